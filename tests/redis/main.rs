//! Redis: one server, Sentinel, Cluster, TLS, ACL users, pools, and every fault.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also for what the tests call

#[path = "../support/mod.rs"]
mod support;

mod acl;
mod cluster;
mod fault_table;
mod faults;
mod pool;
mod redis_store;
mod sentinel;
mod servers;
mod tls;
