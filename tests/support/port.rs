//! Ports reserved for a test, whether its server is up or down.

use std::{
    net::{TcpListener, UdpSocket},
    process,
    sync::atomic::{AtomicU16, Ordering},
};

/// A TCP port of 127.0.0.1 that no other test takes while this lives.
///
/// The reservation is the UDP port of the same number: other test processes see it, the server does not, and it ends with this
/// process in every case.
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

    /// For a cluster node: the port 10000 above, for the cluster bus, is reserved too.
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

/// Below the range from which the kernel assigns ports. Each process starts elsewhere.
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
