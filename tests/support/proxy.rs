//! What lies between a service and Redis: it carries everything, and loses a reply when told to.

use std::{
    io,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
    task::JoinHandle,
};

/// A proxy in front of a Redis server. Gone when dropped.
pub struct Proxy {
    port: u16,
    wire: Arc<Wire>,
    task: JoinHandle<()>,
}

struct Wire {
    orders: Mutex<Vec<(String, Order)>>,
    held: watch::Sender<Held>,
}

/// What to do when a command was carried to Redis.
enum Order {
    /// Wait for the reply, carry so many bytes of it, and close the connection.
    Lose(usize),
    /// Carry no reply until told otherwise.
    Hold,
}

#[derive(PartialEq)]
enum Held {
    No,
    Yes,
    /// Not any more: the connection is to be closed.
    Cut,
}

impl Proxy {
    pub async fn start(redis_port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let wire = Arc::new(Wire { orders: Mutex::default(), held: watch::Sender::new(Held::No) });
        let carried = wire.clone();
        let task = tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let wire = carried.clone();
                tokio::spawn(async move {
                    let far = TcpStream::connect(("127.0.0.1", redis_port)).await?;
                    wire.carry(near, far).await
                });
            }
        });
        Self { port, wire, task }
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port)
    }

    /// Redis will be given the next `command`, and its reply will be lost.
    pub fn lose_reply_to(&self, command: &str) {
        self.order(command, Order::Lose(0));
    }

    /// As above, after `bytes` bytes of the reply.
    pub fn cut_reply_to(&self, command: &str, bytes: usize) {
        self.order(command, Order::Lose(bytes));
    }

    /// From the next `command` on no reply comes through.
    pub fn hold_reply_to(&self, command: &str) {
        self.order(command, Order::Hold);
    }

    /// Waits until replies are held.
    pub async fn holds(&self) {
        self.wire.held.subscribe().wait_for(|held| *held == Held::Yes).await.unwrap();
    }

    pub fn release(&self) {
        self.wire.held.send_replace(Held::No);
    }

    /// Closes the connection whose replies are held.
    pub fn cut(&self) {
        self.wire.held.send_replace(Held::Cut);
    }

    /// Whether everything it was told to do has happened.
    pub fn is_done(&self) -> bool {
        self.wire.orders.lock().unwrap().is_empty()
    }

    fn order(&self, command: &str, order: Order) {
        self.wire.orders.lock().unwrap().push((format!("\r\n{command}\r\n"), order));
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Wire {
    async fn carry(&self, mut near: TcpStream, mut far: TcpStream) -> io::Result<()> {
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let (mut requests, mut replies) = (vec![0; 65_536], vec![0; 65_536]);
        loop {
            select! {
                read = near.read(&mut requests) => {
                    let request = &requests[..read?];
                    if request.is_empty() {
                        return Ok(());
                    }
                    let order = self.order_for(request);
                    if let Some(Order::Hold) = order {
                        self.held.send_replace(Held::Yes);
                    }
                    far.write_all(request).await?;
                    if let Some(Order::Lose(all_but)) = order {
                        let read = far.read(&mut replies).await?;
                        return near.write_all(&replies[..read.min(all_but)]).await;
                    }
                }
                read = far.read(&mut replies) => {
                    let reply = &replies[..read?];
                    if reply.is_empty() || self.is_cut().await {
                        return Ok(());
                    }
                    near.write_all(reply).await?;
                }
            }
        }
    }

    fn order_for(&self, request: &[u8]) -> Option<Order> {
        let mut orders = self.orders.lock().unwrap();
        let (command, _) = orders.first()?;
        let given = request.windows(command.len()).any(|part| part == command.as_bytes());
        given.then(|| orders.remove(0).1)
    }

    async fn is_cut(&self) -> bool {
        let mut held = self.held.subscribe();
        held.wait_for(|held| *held != Held::Yes).await.unwrap();
        let cut = *self.held.borrow() == Held::Cut;
        if cut {
            self.held.send_replace(Held::No);
        }
        cut
    }
}
