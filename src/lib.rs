//! A watertight enclosure around a process on Linux.

#[cfg(not(target_os = "linux"))]
compile_error!("cofferdam builds on Linux only: it is made of Linux namespaces, cgroups and capabilities");

pub mod caps;
pub mod cgroup;
mod compile;
mod error;
mod host;
pub mod ids;
mod ns;
pub mod plan;
mod report;
mod rootfs;
mod sandbox;
mod spawn;
mod spec;
mod sys;
mod task;

pub use cgroup::{Limits, MemoryMax};
pub use error::{Error, Result};
pub use host::{Health, Host};
pub use ns::{IsolationMode, Network};
pub use plan::Plan;
pub use report::{Control, Reason, Report};
pub use rootfs::{ChrootEnv, Device, Kind, Method, Populated, Propagation, Root, Volume};
pub use sandbox::Sandbox;
pub use spec::{Fd, Policy, Rlimit, SandboxSpec, Stdio};
pub use task::{ExitStatus, Signal, Task};
