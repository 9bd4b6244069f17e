//! A watertight enclosure around a process on Linux: namespaces, a root file system, identity,
//! capabilities, a system call filter and cgroups, in one call.
//!
//! ```no_run
//! use cofferdam::{Control, Sandbox, Stdio};
//!
//! let task = Sandbox::command("id").user("daemon").stdout(Stdio::Inherit).spawn()?;
//! assert!(task.report().enforced.contains(Control::PID_NS));
//! let status = task.wait()?;
//! println!("{status}");
//! # Ok::<(), cofferdam::Error>(())
//! ```
//!
//! A [`SandboxSpec`] is what a task asks for, a [`Policy`] what its operator allows, a [`Host`] what the
//! kernel offers. [`Sandbox::plan`] makes a [`Plan`] of the three and touches nothing; [`Sandbox::spawn`]
//! obeys it and gives a [`Task`].
//!
//! # What you can rely on
//!
//! - **The caller is never touched.** Working directory, umask, signal mask and handlers, dumpable flag,
//!   descriptors and children are the same after `spawn` as before, whatever its outcome. Any thread of any
//!   program may call it, while other threads allocate or spawn. It blocks until the command runs.
//! - **Nothing is enforced or dropped in silence.** A [`Report`] says what was asked for, what of it is
//!   enforced, weakened or missing, and why; [`SandboxSpec::require`] refuses what is not enough.
//! - **A refused step reads like strace** and comes from `spawn` itself, with everything taken back:
//!   see [`Error`].
//! - **The host is never written through a sandbox**, and teardown never walks through a mount.
//! - **Cost does not grow** with the caller's memory.
//!
//! # Limits
//!
//! Linux 5.12 or later (`mount_setattr(2)`), x86_64. There is no LSM label yet.
//! Without `CAP_SYS_ADMIN`, `CAP_SETUID`, `CAP_SETGID` and `CAP_SETPCAP` a user namespace is made, and the task
//! runs as the caller; the report says what that costs. A program that reaps children it does not know (`waitpid(-1)`)
//! or ignores `SIGCHLD` takes nothing from a task with [`init`](SandboxSpec::init); without it the status may
//! come back as [`lost`](ExitStatus#structfield.lost).

#[cfg(not(target_os = "linux"))]
compile_error!("cofferdam builds on Linux only: it is made of Linux namespaces, cgroups and capabilities");

pub mod caps;
pub mod cgroup;
mod compile;
mod error;
pub mod filter;
mod host;
pub mod ids;
pub mod notation;
mod ns;
mod plan;
mod report;
pub mod rootfs;
mod sandbox;
mod spawn;
mod spec;
mod step;
mod sys;
mod task;

#[cfg(test)]
#[path = "../tests/common/skip.rs"]
mod skip;

pub use cgroup::{
    CpuMax, CpuSet, Event, EventOptions, Events, IoMax, Limits, MemoryMax, Oom, OomLimit, Required, Stats,
    SwapMax,
};
pub use error::{Error, Result};
pub use filter::Filter;
pub use host::{Health, Host};
pub use notation::InvalidValue;
pub use ns::{IsolationMode, Network};
pub use plan::Plan;
pub use report::{Control, Reason, Report, Require};
pub use rootfs::{
    Change, ChangeKind, ChrootEnv, Dns, FileKind, HostsEntry, Method, Populated, Progress, Propagation, Root,
    Secrets, TaskDirs, Template, Volume,
};
pub use sandbox::Sandbox;
pub use spec::{CallerFd, Device, Fd, Policy, Resource, Rlimit, SandboxSpec, Stdio};
pub use task::{EndedRoot, ExitStatus, Signal, Task};

/// The wire format between the parent and init, for the fuzzers.
#[cfg(fuzzing)]
#[doc(hidden)]
pub use step::{Encoded, printed, wire};
