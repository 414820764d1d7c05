//! Redis Sentinel: finds the master, and listens for failovers.

use std::{
    fmt,
    future::poll_fn,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_core::Stream;
use redis::{AsyncConnectionConfig, Cmd, RedisConnectionInfo, Value, aio::MultiplexedConnection, cmd};
use tokio::{
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    RedisConfig,
    client::{client, connect, jittered},
    config::Address,
    error::{Failure, reply},
};

/// The pause before listening to a Sentinel again after its connection was lost.
const PAUSE: Duration = Duration::from_secs(1);

/// The Sentinels that watch a master.
pub(super) struct Sentinels {
    addresses: Vec<Address>,
    master: String,
    login: RedisConnectionInfo,
    /// The master in the latest message of a Sentinel. Other Sentinels may not know it yet.
    named: Mutex<Option<Address>>,
}

impl Sentinels {
    pub(super) fn new(addresses: Vec<Address>, master: String, login: RedisConnectionInfo) -> Self {
        Self { addresses, master, login, named: Mutex::new(None) }
    }

    /// A connection to the master, which confirms that it is the master.
    pub(super) async fn connect_to_master(
        &self,
        config: &RedisConfig,
        options: &AsyncConnectionConfig,
    ) -> Result<MultiplexedConnection, Failure> {
        // Only the first attempt uses the message, because it may be outdated.
        let named = self.named.lock().unwrap_or_else(PoisonError::into_inner).take();
        let master = match named {
            Some(address) => address,
            None => self.ask(config).await?,
        };
        let mut connection = connect(config, &master, options).await?;
        is_master(&reply(connection.send_packed_command(&role()).await?)?)?;
        tracing::debug!(server = %master, master = %self.master, "connected to the master");
        Ok(connection)
    }

    /// Queries all Sentinels concurrently. The first reply with a master wins.
    async fn ask(&self, config: &RedisConfig) -> Result<Address, Failure> {
        let mut questions = JoinSet::new();
        for address in &self.addresses {
            let client = client(config, address, &self.login)?;
            let (master, replica_timeout) = (self.master.clone(), config.connect_timeout);
            questions.spawn(async move {
                let options = AsyncConnectionConfig::new()
                    .set_connection_timeout(Some(replica_timeout))
                    .set_response_timeout(Some(replica_timeout));
                let mut connection = client.get_multiplexed_async_connection_with_config(&options).await?;
                let mut question = cmd("SENTINEL");
                question.arg("GET-MASTER-ADDR-BY-NAME").arg(&master);
                Ok(address_of(reply(connection.send_packed_command(&question).await?)?))
            });
        }
        let mut failure = None;
        while let Some(answer) = questions.join_next().await {
            match answer {
                Ok(Ok(Some(address))) => return Ok(address),
                Ok(Ok(None)) => failure = Some(Failure::unknown_master()),
                Ok(Err(error)) => failure = failure.or(Some(error)),
                Err(_) => {}
            }
        }
        Err(failure.unwrap_or_else(Failure::unknown_master))
    }

    /// Listens to every Sentinel in `tasks`, and calls `switched` when one announces a new master.
    pub(super) fn listen(
        self: &Arc<Self>,
        config: &RedisConfig,
        tasks: &mut JoinSet<()>,
        switched: impl Fn() + Clone + Send + Sync + 'static,
    ) {
        for address in &self.addresses {
            let (sentinels, address, config, switched) =
                (self.clone(), address.clone(), config.clone(), switched.clone());
            tasks.spawn(async move {
                loop {
                    if let Err(failure) = sentinels.listen_to(&address, &config, &switched).await {
                        tracing::debug!(sentinel = %address, error = %failure.error, "cannot listen to this Sentinel");
                    }
                    sleep(jittered(PAUSE)).await;
                }
            });
        }
    }

    async fn listen_to(&self, address: &Address, config: &RedisConfig, switched: &impl Fn()) -> Result<(), Failure> {
        let client = client(config, address, &self.login)?;
        let subscribed = async {
            let mut messages = client.get_async_pubsub().await?;
            messages.subscribe("+switch-master").await?;
            Ok::<_, Failure>(messages)
        };
        let mut messages = timeout(config.connect_timeout, subscribed).await.map_err(|_| Failure::timeout())??;
        let mut messages = pin!(messages.on_message());
        while let Some(message) = poll_fn(|cx| messages.as_mut().poll_next(cx)).await {
            // name, old host, old port, new host, new port
            let text = String::from_utf8_lossy(message.get_payload_bytes()).into_owned();
            if let [name, _, _, host, port] = *text.split(' ').collect::<Vec<_>>()
                && name == self.master
                && let Some(address) = port.parse().ok().and_then(|port| Address::tcp(host, port).ok())
            {
                tracing::warn!(master = %name, server = %address, "the master has changed");
                *self.named.lock().unwrap_or_else(PoisonError::into_inner) = Some(address);
                switched();
            }
        }
        Ok(())
    }
}

impl fmt::Display for Sentinels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the master {}", self.master)
    }
}

/// Queries the role of a server.
pub(super) fn role() -> Cmd {
    cmd("ROLE")
}

/// Whether the reply says that the server is a master.
pub(super) fn is_master(role: &Value) -> Result<(), Failure> {
    match role {
        Value::Array(role) if role.first().is_some_and(|role| text(role) == Some("master")) => Ok(()),
        _ => Err(Failure::no_master()),
    }
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(bytes) => std::str::from_utf8(bytes).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

fn address_of(answer: Value) -> Option<Address> {
    let Value::Array(parts) = answer else { return None };
    let [host, port] = &*parts else { return None };
    Address::tcp(text(host)?, text(port)?.parse().ok()?).ok()
}
