//! Ports that stay the test's own, whether a server is up or down.

use std::{
    net::{TcpListener, UdpSocket},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// A TCP port of 127.0.0.1 that nobody else takes while this lives.
///
/// The claim is the UDP port of the same number: other test processes see it, the server does not, and it ends with this
/// process however that ends.
pub struct Port {
    number: u16,
    _claims: Vec<UdpSocket>,
}

impl Port {
    pub fn free() -> Self {
        loop {
            let number = next();
            if let Some(claim) = claim(number) {
                return Self { number, _claims: vec![claim] };
            }
        }
    }

    /// For a node of a cluster: the port 10000 above, where nodes talk to each other, is its own too.
    pub fn free_with_bus() -> Self {
        loop {
            let number = 10_000 + next() % 10_000;
            if let (Some(claim), Some(bus)) = (claim(number), claim(number + 10_000)) {
                return Self { number, _claims: vec![claim, bus] };
            }
        }
    }

    pub fn number(&self) -> u16 {
        self.number
    }
}

/// Below those that the kernel gives to whoever asks for any; each process begins elsewhere.
fn next() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let process = (process::id() as u16).wrapping_mul(127);
    10_000 + process.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 20_000
}

fn claim(number: u16) -> Option<UdpSocket> {
    let claim = UdpSocket::bind(("127.0.0.1", number)).ok()?;
    TcpListener::bind(("127.0.0.1", number)).ok()?;
    Some(claim)
}
