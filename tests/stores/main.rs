//! Every store and every wrapper keeps the contract.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also for what the tests call

#[path = "../support/mod.rs"]
mod support;

mod basics;
mod codecs;
mod conformance;
mod core_store;
mod fallback;
mod guard;
mod key_value;
mod migrating;
mod outside_store;
