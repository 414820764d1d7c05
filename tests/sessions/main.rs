//! Sessions: what a handler does with them, alone and concurrently with others.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also for what the tests call

#[path = "../support/mod.rs"]
mod support;

mod cancellation;
mod devices;
mod handled;
mod lease;
mod long_lived;
mod model;
mod races;
mod rotation;
mod semantics;
mod transfer;
mod users;
