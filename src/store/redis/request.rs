//! A request: what is sent to Redis in one round trip.

use redis::{Cmd, Pipeline, Value, aio::MultiplexedConnection, pipe};

use tracing::Span;

use super::{
    error::{Failure, reply},
    script::Call,
};

/// The commands of one round trip.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    what: What<'a>,
    /// The number of replicas that must confirm the write, and the timeout in milliseconds.
    replicas: Option<(usize, u64)>,
    /// Send `ASKING` first, because the slot is being moved to this server.
    asking: bool,
    /// Return the errors of single reads to the caller.
    lenient: bool,
    /// Do not send it again if it may have been applied.
    once: bool,
}

#[derive(Clone, Copy)]
enum What<'a> {
    Read(&'a Pipeline),
    Write(&'a Cmd),
    Script(&'a Call<'a>),
}

impl<'a> Request<'a> {
    fn new(what: What<'a>) -> Self {
        Self { what, replicas: None, asking: false, lenient: false, once: false }
    }

    /// Read commands. The reply is an array of their replies.
    pub(super) fn read(commands: &'a Pipeline) -> Self {
        Self::new(What::Read(commands))
    }

    pub(super) fn write(command: &'a Cmd) -> Self {
        Self::new(What::Write(command))
    }

    /// A write that is not idempotent.
    pub(super) fn once(command: &'a Cmd) -> Self {
        Self { once: true, ..Self::write(command) }
    }

    pub(super) fn script(call: &'a Call<'a>) -> Self {
        Self::new(What::Script(call))
    }

    /// Waits until replicas have confirmed the write. This blocks the connection.
    pub(super) fn confirmed_by(self, replicas: Option<(usize, u64)>) -> Self {
        Self { replicas, ..self }
    }

    #[cfg(feature = "redis-cluster")]
    pub(super) fn asking(self) -> Self {
        Self { asking: true, ..self }
    }

    #[cfg(feature = "redis-cluster")]
    pub(super) fn lenient(self) -> Self {
        Self { lenient: true, ..self }
    }

    /// The commands, if there are several reads.
    #[cfg(feature = "redis-cluster")]
    pub(super) fn reads(&self) -> Option<&'a Pipeline> {
        match self.what {
            What::Read(commands) if commands.len() > 1 => Some(commands),
            _ => None,
        }
    }

    /// Whether the request may be sent again after `failure`.
    pub(super) fn may_follow(&self, failure: &Failure) -> bool {
        !self.once || !failure.may_be_applied()
    }

    pub(super) fn writes(&self) -> bool {
        matches!(self.what, What::Write(_) | What::Script(_))
    }

    /// Records the request on the span of the operation, with OpenTelemetry attributes.
    pub(super) fn describe(&self, span: &Span) {
        match self.what {
            What::Read(commands) if commands.len() > 1 => {
                span.record("db.operation.batch.size", commands.len());
            }
            What::Script(call) => {
                span.record("db.stored_procedure.name", call.script.name);
            }
            What::Read(_) | What::Write(_) => {}
        }
    }

    pub(super) async fn send(&self, connection: &mut MultiplexedConnection) -> Result<Value, Failure> {
        match self.what {
            What::Write(command) => self.send_one(command, connection).await,
            // With `EVALSHA`, an unknown script would wait for replicas twice.
            What::Script(call) if self.replicas.is_some() => self.send_one(&call.by_text(), connection).await,
            What::Script(call) => match self.send_one(&call.by_sha(), connection).await {
                Err(failure) if failure.is_unknown_script() => self.send_one(&call.by_text(), connection).await,
                answer => answer,
            },
            What::Read(commands) => Ok(Value::Array(self.send_all(commands, connection).await?)),
        }
    }

    async fn send_one(&self, command: &Cmd, connection: &mut MultiplexedConnection) -> Result<Value, Failure> {
        if !self.asking && self.replicas.is_none() {
            return Ok(reply(connection.send_packed_command(command).await?)?);
        }
        let mut commands = pipe();
        commands.add_command(command.clone());
        if let Some((replicas, within)) = self.replicas {
            commands.cmd("WAIT").arg(replicas).arg(within);
        }
        let mut replies = self.send_all(&commands, connection).await?.into_iter();
        let answer = replies.next().ok_or_else(Failure::unexpected_reply)?;
        match (self.replicas, replies.next()) {
            (Some((wanted, _)), Some(Value::Int(confirmed))) if confirmed < wanted as i64 => {
                Err(Failure::too_few_replicas())
            }
            (Some(_), None) => Err(Failure::unexpected_reply()),
            _ => Ok(answer),
        }
    }

    async fn send_all(
        &self,
        commands: &Pipeline,
        connection: &mut MultiplexedConnection,
    ) -> Result<Vec<Value>, Failure> {
        let replies = if self.asking {
            let mut asking = pipe();
            for command in commands.cmd_iter() {
                asking.cmd("ASKING").add_command(command.clone());
            }
            let replies = connection.send_packed_commands(&asking, 0, asking.len()).await?;
            replies.into_iter().skip(1).step_by(2).collect()
        } else {
            connection.send_packed_commands(commands, 0, commands.len()).await?
        };
        if replies.len() != commands.len() {
            return Err(Failure::unexpected_reply());
        }
        if self.lenient {
            return Ok(replies);
        }
        Ok(replies.into_iter().map(reply).collect::<Result<_, _>>()?)
    }
}
