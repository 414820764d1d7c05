//! What goes to Redis in one round trip.

use redis::{Cmd, Pipeline, Value, aio::MultiplexedConnection, pipe};

use tracing::Span;

use super::{error::Failure, link::reply, script::Call};

/// What goes to Redis in one round trip.
#[derive(Clone, Copy)]
pub(super) struct Request<'a> {
    what: What<'a>,
    /// So many replicas must confirm what was written, within so many milliseconds.
    replicas: Option<(usize, u64)>,
    /// To a server that another one names while it hands a slot over.
    asking: bool,
    /// What is said of single reads, and may be an error, is for the caller to see.
    lenient: bool,
    /// Not to be sent again when it may have been done.
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

    /// Commands that change nothing; their replies come as an array.
    pub(super) fn read(commands: &'a Pipeline) -> Self {
        Self::new(What::Read(commands))
    }

    pub(super) fn write(command: &'a Cmd) -> Self {
        Self::new(What::Write(command))
    }

    /// A write that would do more if it was done twice.
    pub(super) fn once(command: &'a Cmd) -> Self {
        Self { once: true, ..Self::write(command) }
    }

    pub(super) fn script(call: &'a Call<'a>) -> Self {
        Self::new(What::Script(call))
    }

    /// The same, and so many replicas must confirm it within so many milliseconds, if any. It blocks its connection that long.
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

    /// The commands, if they are several that change nothing.
    #[cfg(feature = "redis-cluster")]
    pub(super) fn reads(&self) -> Option<&'a Pipeline> {
        match self.what {
            What::Read(commands) if commands.len() > 1 => Some(commands),
            _ => None,
        }
    }

    /// Whether it may be sent again after this: all but one kind may always be.
    pub(super) fn may_follow(&self, failure: &Failure) -> bool {
        !self.once || !failure.may_be_done()
    }

    pub(super) fn writes(&self) -> bool {
        matches!(self.what, What::Write(_) | What::Script(_))
    }

    /// Says on the span of the operation what it is, as the conventions of OpenTelemetry have it.
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
            // Replicas would be waited for twice if the script were not known.
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
