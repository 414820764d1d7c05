//! A TCP proxy between a service and Redis, with the faults of a network.
//!
//! It forwards bytes, so TLS works too. Only faults that name a command need a plain connection. Sentinels and
//! replicas connect directly: the network of the service is not the network between the servers.

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

/// A proxy in front of a Redis server. Dropped with its connections.
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
    /// The number of connections so far. Each connection has its number, from 1 on.
    connections: AtomicUsize,
    open: AtomicUsize,
}

/// The current faults.
#[derive(Clone, Copy, Default)]
struct Weather {
    black_hole: bool,
    delay: Duration,
    /// Connections up to this number carry nothing any more, and stay open.
    stranded: usize,
    /// Connections up to this number are closed normally.
    closed: usize,
    /// Connections up to this number are reset.
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

/// The fault of a forwarded command.
enum Order {
    /// Wait for the reply, forward this many bytes of it, and close the connection.
    Lose(usize),
    /// Hold the reply until released.
    Hold,
}

#[derive(PartialEq)]
enum Held {
    No,
    Yes,
    /// The connection is to be closed.
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

    /// A black hole: data and connections, old and new, are held in both directions.
    pub fn black_hole(&self) {
        self.wire.weather.send_modify(|weather| weather.black_hole = true);
    }

    /// Ends the black hole and delays. Held data arrives, as after a TCP retransmission.
    pub fn heal(&self) {
        self.wire.weather.send_modify(|weather| (weather.black_hole, weather.delay) = (false, Duration::ZERO));
    }

    /// Existing connections silently carry nothing any more, as after a firewall has forgotten
    /// them. New ones work.
    pub fn strand_connections(&self) {
        let all = self.connections();
        self.wire.weather.send_modify(|weather| weather.stranded = all);
    }

    /// Delays each reply. Replies in transit are not delayed.
    pub fn delay_replies(&self, delay: Duration) {
        self.wire.weather.send_modify(|weather| weather.delay = delay);
    }

    /// Closes existing connections on both sides.
    pub fn close_connections(&self) {
        let all = self.connections();
        self.wire.weather.send_modify(|weather| weather.closed = all);
    }

    /// Resets existing connections (RST) on both sides. Data in transit is lost.
    pub fn reset_connections(&self) {
        let all = self.connections();
        self.wire.weather.send_modify(|weather| weather.reset = all);
    }

    /// Refuses new connections, like a closed port. Existing ones continue. Until [`accept`](Self::accept).
    pub async fn refuse(&self) {
        let listening = self.listening.lock().unwrap().take();
        if let Some(task) = listening {
            task.abort();
            let _ = task.await; // now the listener is closed
        }
    }

    /// Accepts new connections again.
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

    /// The number of connections so far.
    pub fn connections(&self) -> usize {
        self.wire.connections.load(Ordering::Relaxed)
    }

    /// The number of open connections.
    pub fn open_connections(&self) -> usize {
        self.wire.open.load(Ordering::Relaxed)
    }

    /// The next `command` reaches Redis, and its reply is lost.
    pub fn lose_reply_to(&self, command: &str) {
        self.order(command, Order::Lose(0));
    }

    /// The same, after `bytes` bytes of the reply.
    pub fn cut_reply_to(&self, command: &str, bytes: usize) {
        self.order(command, Order::Lose(bytes));
    }

    /// From the next `command` on, replies are held.
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

    /// Whether all requested faults have happened.
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
        // Redis notices when it can.
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
                biased; // a change of the faults applies before more data
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

    /// Whether a reply that may be held is dropped.
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
