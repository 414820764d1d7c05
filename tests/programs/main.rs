//! The example programs, over HTTP and in a browser.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // also for what the tests call

#[path = "../support/mod.rs"]
mod support;

mod admin;
mod browser;
mod erp;
mod examples;
mod iframe_auth;
mod jwt_auth;
mod websocket;
