//! The values beside the sessions, in an outage.

mod local;
mod task;

pub(super) use self::{
    local::LocalValues,
    task::{ToldValue, ValueTask},
};
