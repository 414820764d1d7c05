//! What operators use: health, metrics, logs, the operator page, the deployment files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also for what the tests call

#[path = "../support/mod.rs"]
mod support;

mod dashboard;
mod deploy;
mod health;
mod observability;
mod operator;
mod secrets;
