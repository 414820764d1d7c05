//! HTTP and gRPC: credentials, cookies, JWTs, policies, and the responses.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also for what the tests call

#[path = "../support/mod.rs"]
mod support;

mod credentials;
mod deadline;
mod guards;
mod jwt;
mod metadata;
mod mistakes;
mod policies;
mod responses;
mod signed;
mod single_use;
mod wrapping;
