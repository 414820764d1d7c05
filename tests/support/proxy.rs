//! What lies between a service and Redis: it carries everything, and fails as networks do when told to.
//!
//! It knows nothing but bytes, so that TLS passes too; only the orders that name a command need a plain connection. Sentinels and
//! replicas that come through it fare well in any weather: the network between Redis and us is not that between its servers.

use std::{
    collections::VecDeque,
    io, net,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    select,
    sync::watch,
    task::JoinHandle,
    time::{Instant, sleep_until},
};

use super::port::Port;

/// A proxy in front of a Redis server. Gone when dropped, and its connections too.
pub struct Proxy {
    port: Port,
    redis_port: u16,
    wire: Arc<Wire>,
    listening: Mutex<Option<JoinHandle<()>>>,
}

struct Wire {
    orders: Mutex<Vec<(String, Order)>>,
    held: watch::Sender<Held>,
    weather: watch::Sender<Weather>,
    /// How many there were ever: each connection has its number, from 1 on.
    connections: AtomicUsize,
    open: AtomicUsize,
}

/// What happens to everything on the wire.
#[derive(Clone, Copy, Default)]
struct Weather {
    black_hole: bool,
    delay: Duration,
    /// Connections up to this number carry nothing any more, and stay open.
    stranded: usize,
    /// Connections up to this number are to end as they do when a program ends.
    closed: usize,
    /// Connections up to this number are to end with a RST.
    reset: usize,
}

impl Weather {
    fn carries(&self, connection: usize) -> bool {
        !self.black_hole && connection > self.stranded
    }

    fn ends(&self, connection: usize) -> bool {
        connection <= self.closed.max(self.reset)
    }
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
        let wire = Arc::new(Wire {
            orders: Mutex::default(),
            held: watch::Sender::new(Held::No),
            weather: watch::Sender::new(Weather::default()),
            connections: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
        });
        let proxy = Self { port: Port::free(), redis_port, wire, listening: Mutex::new(None) };
        proxy.accept();
        proxy
    }

    pub fn port(&self) -> u16 {
        self.port.number()
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/", self.port())
    }

    /// Nobody gets through: bytes stay where they are in both directions, and so do connections, old and new ones.
    pub fn black_hole(&self) {
        self.wire.weather.send_modify(|weather| weather.black_hole = true);
    }

    /// The end of the black hole and of delays. What was sent meanwhile arrives, as TCP sends it again.
    pub fn heal(&self) {
        self.wire.weather.send_modify(|weather| (weather.black_hole, weather.delay) = (false, Duration::ZERO));
    }

    /// The connections that are there will never carry anything again and nobody is told, as when a firewall forgets
    /// them; new ones work.
    pub fn strand_connections(&self) {
        let all = self.connections();
        self.wire.weather.send_modify(|weather| weather.stranded = all);
    }

    /// Each reply comes so much later; those on their way come as they would have.
    pub fn delay_replies(&self, delay: Duration) {
        self.wire.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Closes the connections that are there, to both sides.
    pub fn close_connections(&self) {
        let all = self.connections();
        self.wire.weather.send_modify(|weather| weather.closed = all);
    }

    /// Resets the connections that are there (RST), to both sides; what they carried is lost.
    pub fn reset_connections(&self) {
        let all = self.connections();
        self.wire.weather.send_modify(|weather| weather.reset = all);
    }

    /// New connections are refused, as if nobody listened; the others go on. Until [`accept`](Self::accept).
    pub async fn refuse(&self) {
        let listening = self.listening.lock().unwrap().take();
        if let Some(task) = listening {
            task.abort();
            let _ = task.await; // now the listener is closed
        }
    }

    /// Takes new connections, as it does from the beginning.
    pub fn accept(&self) {
        let mut listening = self.listening.lock().unwrap();
        if listening.is_some() {
            return;
        }
        let listener = net::TcpListener::bind(("127.0.0.1", self.port())).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(listener).unwrap();
        let (wire, redis_port) = (self.wire.clone(), self.redis_port);
        *listening = Some(tokio::spawn(async move {
            loop {
                let (near, _) = listener.accept().await.unwrap();
                let number = wire.connections.fetch_add(1, Ordering::Relaxed) + 1;
                let wire = wire.clone();
                tokio::spawn(async move {
                    wire.open.fetch_add(1, Ordering::Relaxed);
                    let _ = wire.serve(near, redis_port, number).await;
                    wire.open.fetch_sub(1, Ordering::Relaxed);
                });
            }
        }));
    }

    /// How many connections there were so far.
    pub fn connections(&self) -> usize {
        self.wire.connections.load(Ordering::Relaxed)
    }

    /// How many connections there are now.
    pub fn open_connections(&self) -> usize {
        self.wire.open.load(Ordering::Relaxed)
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
        if let Some(task) = self.listening.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner()) {
            task.abort();
        }
        self.wire.weather.send_modify(|weather| weather.closed = usize::MAX);
    }
}

impl Wire {
    async fn serve(&self, near: TcpStream, redis_port: u16, number: usize) -> io::Result<()> {
        // Redis hears of it when it can.
        let mut weather = self.weather.subscribe();
        let weather = weather.wait_for(|weather| weather.carries(number) || weather.ends(number)).await;
        drop(weather);
        let far = TcpStream::connect(("127.0.0.1", redis_port)).await?;
        self.carry(near, far, number).await
    }

    async fn carry(&self, mut near: TcpStream, mut far: TcpStream, number: usize) -> io::Result<()> {
        near.set_nodelay(true)?;
        far.set_nodelay(true)?;
        let (mut requests, mut replies) = (vec![0; 65_536], vec![0; 65_536]);
        let mut delayed = VecDeque::<(Instant, Vec<u8>)>::new();
        let mut far_is_done = false;
        let mut changes = self.weather.subscribe();
        let mut is_redis = false;
        loop {
            let weather = *changes.borrow_and_update();
            let weather = if is_redis { Weather::default() } else { weather };
            if weather.ends(number) {
                if number <= weather.reset {
                    near.set_zero_linger()?;
                    far.set_zero_linger()?;
                }
                return Ok(());
            }
            if far_is_done && delayed.is_empty() {
                return Ok(());
            }
            let carries = weather.carries(number);
            let due = delayed.front().map(|(due, _)| *due);
            select! {
                biased; // after a change of the weather nothing passes as before
                _ = changes.changed() => {}
                () = sleep_until(due.unwrap_or_else(Instant::now)), if carries && due.is_some() => {
                    if let Some((_, reply)) = delayed.pop_front() {
                        near.write_all(&reply).await?;
                    }
                }
                read = far.read(&mut replies), if carries && !far_is_done => {
                    let reply = &replies[..read?];
                    if reply.is_empty() {
                        far_is_done = true;
                    } else if self.is_cut(number).await {
                        return Ok(());
                    } else if delayed.is_empty() && weather.delay.is_zero() {
                        near.write_all(reply).await?;
                    } else {
                        delayed.push_back((Instant::now() + weather.delay, reply.to_vec()));
                    }
                }
                read = near.read(&mut requests), if carries => {
                    let request = &requests[..read?];
                    if request.is_empty() {
                        return Ok(());
                    }
                    is_redis |= contains(request, b"REPLCONF") || contains(request, b"sentinel-");
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
            }
        }
    }

    fn order_for(&self, request: &[u8]) -> Option<Order> {
        let mut orders = self.orders.lock().unwrap();
        let (command, _) = orders.first()?;
        contains(request, command.as_bytes()).then(|| orders.remove(0).1)
    }

    /// Whether a reply that may be held is not to be carried at last.
    async fn is_cut(&self, number: usize) -> bool {
        let (mut held, mut weather) = (self.held.subscribe(), self.weather.subscribe());
        select! {
            free = held.wait_for(|held| *held != Held::Yes) => drop(free),
            ends = weather.wait_for(|weather| weather.ends(number)) => drop(ends),
        }
        let cut = *self.held.borrow() == Held::Cut;
        if cut {
            self.held.send_replace(Held::No);
        }
        cut
    }
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}
