//! Code that only cgroup v1 needs.

pub(super) mod cpuset;
pub(super) mod devices;
pub(super) mod lower;
pub(super) mod oom;
pub(super) mod table;
