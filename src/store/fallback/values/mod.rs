//! Values during an outage.

mod local;
mod replay;

pub(super) use self::{
    local::LocalValues,
    replay::{ValueReplay, ValueReply},
};
