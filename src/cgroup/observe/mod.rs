//! What is known of a group while it runs: what it uses, what happens to it, and why it was killed.

pub(super) mod events;
pub(super) mod oom;
pub mod stats;
