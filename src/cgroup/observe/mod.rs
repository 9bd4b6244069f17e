//! Observation of a running group: resource usage, events and OOM kills.

pub(super) mod events;
pub(super) mod oom;
pub mod stats;
