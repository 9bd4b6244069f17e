//! Runs a command in a sandbox on Linux: namespaces, a root file system, user and group ids, capabilities, a system
//! call filter and cgroups, in one call from any thread of any program.
//!
//! ```no_run
//! use cofferdam::{Limits, Network, Sandbox, Stdio};
//!
//! let task = Sandbox::command("make")
//!     .arg("--version")
//!     .network(Network::None)
//!     .limits(Limits { memory: Some(256 << 20), pids_max: Some(64), ..Limits::default() })
//!     .stdout(Stdio::Inherit)
//!     .spawn()?;
//! print!("{}", task.report()); // what is enforced, what is not, and why
//! println!("{}", task.wait()?); // exit status 0
//! # Ok::<(), cofferdam::Error>(())
//! ```
//!
//! # Spec, policy and host become a plan, and a plan becomes a task
//!
//! - [`SandboxSpec`]: what the author of a task asks for. [`Sandbox`] has a builder method for each field.
//! - [`Policy`]: what the operator of the host allows, and the defaults. Spec and policy are plain serde data.
//! - [`Host`]: what the kernel offers and what the caller may use of it. It is probed once and shared.
//!
//! [`Sandbox::plan`] compiles the three into a [`Plan`], which lists every step with its system calls and changes
//! nothing on the host. [`Sandbox::spawn`] compiles and runs the plan, and returns a [`Task`]. The task has methods to
//! wait, signal, stop, kill, freeze, change limits, and read usage and events. [`Task::release`], or a drop, kills every
//! process and removes its cgroup, its temporary root, its exit record and its log.
//!
//! # What you can rely on
//!
//! - **The caller does not change.** Working directory, umask, signal mask and handlers, dumpable flag, descriptors and
//!   children are the same after `spawn` as before, whatever its outcome. Any thread may call `spawn` while other
//!   threads allocate or spawn. It blocks until the command is executed.
//! - **The report is complete.** A [`Report`] lists every [`Control`] that was asked for as enforced, weakened or
//!   missing, with the reason. By default a spawn fails if a control that was asked for is missing; [`Require`] changes
//!   that.
//! - **An error names the refused system call** with its arguments; its source is the errno. Everything made before is
//!   removed: see [`Error`].
//! - **The task cannot change files of the host**, except through what the spec passes on: descriptors, writable
//!   volumes and directories, and a linked root that is made writable.
//! - **The removal of a root** crosses no mount and follows no symbolic link.
//! - **The cost of a spawn does not depend on the caller's memory.**
//!
//! # Limits
//!
//! - Linux 5.12 or later (`mount_setattr(2)`), on x86_64.
//! - There is no LSM label. A kernel bug in a system call that the filter allows is in the task's reach.
//! - A task shares the host's network namespace by default: see [`Network`].
//! - A caller that lacks any of `CAP_SYS_ADMIN`, `CAP_SETUID`, `CAP_SETGID` and `CAP_SETPCAP`, or that is itself in a user
//!   namespace, creates a user namespace, and the report lists what cannot be enforced in it. The task runs with the
//!   caller's ids unless the caller may map others.
//! - Resource limits need cgroups that the caller may write: root, or a delegated cgroup v2 subtree (systemd:
//!   `Delegate=yes`).
//! - If the caller ignores `SIGCHLD`, or another of its threads reaps unknown children (`waitpid(-1)`), the status of a
//!   task still comes from [`init`](SandboxSpec::init). Without init the status may be
//!   [`lost`](ExitStatus#structfield.lost).
//!
//! # Where to look next
//!
//! - [`Sandbox`]: the builder. [`SandboxSpec`] and [`Policy`]: every field, with its default.
//! - [`Limits`] and [`cgroup`]: resource limits. [`cgroup::stats`]: usage. [`Task::events`]: OOM kills and pressure.
//! - [`rootfs`]: how the root is populated and what is mounted in it. [`Template`]: a root for many sandboxes.
//! - [`ids`], [`caps`] and [`filter`]: users and groups, capabilities, system calls.
//! - [`Policy::strict`]: the policy for untrusted code. `examples/judge.rs`, `examples/ci.rs` and
//!   `examples/driver.rs` are complete programs.
//! - `SECURITY.md`: what is promised and what is not. `ARCHITECTURE.md`: the modules and their invariants.

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
mod status;
mod step;
mod sys;
mod task;

#[cfg(test)]
#[path = "../tests/common/skip.rs"]
mod skip;

#[doc(inline)]
pub use cgroup::{
    CpuMax, CpuSet, Event, EventOptions, Events, IoMax, Limits, MemoryMax, Oom, OomLimit,
    RequiredControllers, Stats, SwapMax,
};
pub use error::{Error, Result};
#[doc(inline)]
pub use filter::Filter;
pub use host::{Health, Host};
#[doc(inline)]
pub use notation::InvalidValue;
pub use ns::{IsolationMode, Network};
pub use plan::Plan;
pub use report::{Control, Reason, Report, Require};
#[doc(inline)]
pub use rootfs::{
    Cancel, Change, ChangeKind, ChrootEnv, Dns, FileKind, HostsEntry, Method, Populated, Progress,
    Propagation, Root, Secrets, TaskDirs, Template, Volume,
};
pub use sandbox::Sandbox;
pub use spec::{
    CallerFd, Device, DieWith, ExecSpec, Fd, Policy, Resource, Rlimit, SandboxSpec, Stdio, WindowSize,
};
pub use status::{Deadline, ExitKind, ExitStatus, Lost, Rusage, Signal};
pub use task::{
    EndedRoot, Log, LogEntry, LogStream, Output, PruneOptions, Pruned, Pruner, Sample, Samples, SignalTarget,
    StaleSandbox, Task, TaskHandle, Terminal,
};

/// The wire format between the parent and init, public for the fuzz targets only.
#[cfg(fuzzing)]
#[doc(hidden)]
pub use step::{Encoded, printed, wire};
