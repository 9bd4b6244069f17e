//! What a task may use, and what of it contradicts itself.

use serde::{Deserialize, Serialize};

use super::set::CpuSet;
use crate::error::{Error, Result};
use crate::report::Control;

/// The smallest [`Limits::memory`] that is accepted, in bytes: 1 MiB.
///
/// The kernel charges a process for its page tables, stacks and copied pages from its first instruction on. A
/// C program that does nothing was measured to need 240 KiB, and to be killed before its first line with 128;
/// below this limit a task dies in its start, which is hard to tell from a broken program.
pub const MEMORY_MIN: u64 = 1024 * 1024;

/// The largest number of processes that the kernel can count (`PID_MAX_LIMIT`); `pids.max` takes no more.
pub const PIDS_LIMIT: u64 = 4 * 1024 * 1024;

/// The resources that a task may use. What is unset is not limited.
///
/// ```
/// # use cofferdam::cgroup::Limits;
/// let limits = Limits { memory: Some(256 << 20), pids_max: Some(64), ..Limits::default() };
/// assert!(limits.validate().is_ok());
/// assert!(Limits { memory: Some(4096), ..Limits::default() }.validate().is_err());
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// The task's share of the processors when they are contended, relative to its siblings; 1024 is what a
    /// group has by default. Schedulers often put MHz here.
    ///
    /// Held within [`SHARES_MIN`] and [`SHARES_MAX`], as the kernel does it: 0 and 1 mean 2. v1 writes it to
    /// `cpu.shares`; v2 writes [`shares_to_weight`] of it to `cpu.weight`.
    pub cpu_shares: Option<u64>,
    /// The processors that are reserved for this task alone, in the kernel's list format: `0-3,8`. Empty: none, and
    /// the task runs on those that nobody below the same parent cgroup has reserved.
    ///
    /// The task runs on the unreserved ones as well, unless it is [`exclusive`](Self::exclusive). A reservation
    /// is refused when another task has one of them ([`CoreBook`](super::CoreBook) tells who), and when it would
    /// leave none for a running task without reserved processors. v1 and v2 `cpuset.cpus`.
    pub cores: String,
    /// Whether a task with reserved [`cores`](Self::cores) runs on these only.
    pub exclusive: bool,
    /// Bytes of memory, page cache and kernel memory included; at least [`MEMORY_MIN`].
    ///
    /// This is a hard limit when [`memory_max`](Self::memory_max) is unset, and otherwise the amount that is
    /// kept back for the task when memory is short (v1 `memory.soft_limit_in_bytes`, v2 `memory.low`).
    pub memory: Option<u64>,
    /// The hard limit of a task that may use more than [`memory`](Self::memory) while there is some to spare.
    pub memory_max: Option<MemoryMax>,
    /// Whether a task with a memory limit may use swap beyond it. Means nothing without a memory limit.
    pub swap: bool,
    /// The number of processes and threads that may exist at once, at least 1. The crate's own init process
    /// is not counted. v1 needs the `pids` controller (Linux 4.3).
    pub pids_max: Option<u64>,
}

/// A hard memory limit that is not the amount reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MemoryMax {
    /// This many bytes, at least [`Limits::memory`].
    Bytes(u64),
    /// No hard limit: only the reservation counts.
    Unlimited,
}

/// What [`Limits`] mean for the memory controller, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryLimits {
    /// v1 `memory.limit_in_bytes`, v2 `memory.max`.
    pub hard: Option<u64>,
    /// v1 `memory.soft_limit_in_bytes`, v2 `memory.low`.
    pub reserve: Option<u64>,
}

impl Limits {
    /// Refuses limits that contradict themselves or that no task could live with.
    ///
    /// # Errors
    /// [`Error::Spec`] that names the field: `memory`, `memory_max`, `cores`, `exclusive` or `pids_max`.
    pub fn validate(&self) -> Result<()> {
        let too_small =
            |n: u64| format!("{n} bytes is too little to start a process, {MEMORY_MIN} is the least");
        if let Some(n) = self.memory.filter(|n| *n < MEMORY_MIN) {
            return Err(Error::spec("memory", too_small(n)));
        }
        if let Some(MemoryMax::Bytes(max)) = self.memory_max {
            if max < MEMORY_MIN {
                return Err(Error::spec("memory_max", too_small(max)));
            }
            if let Some(memory) = self.memory.filter(|memory| max < *memory) {
                return Err(Error::spec("memory_max", format!("{max} is below memory, {memory}")));
            }
        }
        if self.memory_max == Some(MemoryMax::Unlimited) && self.memory.is_none() {
            return Err(Error::spec("memory_max", "unlimited says nothing without memory to reserve"));
        }
        if self.pids_max == Some(0) {
            return Err(Error::spec("pids_max", "0 would forbid the command itself"));
        }
        if self.exclusive && self.cores.is_empty() {
            return Err(Error::spec("exclusive", "there are no cores to run on"));
        }
        self.cpuset().map_err(|why| Error::spec("cores", why)).map(|_| ())
    }

    /// The controls that these limits ask for, a subset of [`Control::RESOURCES`].
    pub fn asked(&self) -> Control {
        let memory = self.memory.is_some() || self.memory_max.is_some();
        [
            (memory, Control::MEMORY),
            (memory && !self.swap, Control::SWAP),
            (self.cpu_shares.is_some(), Control::CPU),
            (!self.cores.is_empty(), Control::CPUSET),
            (self.pids_max.is_some(), Control::PIDS),
        ]
        .into_iter()
        .filter(|(asked, _)| *asked)
        .fold(Control::empty(), |set, (_, control)| set | control)
    }

    /// The processors of [`cores`](Self::cores); `None` when there are none.
    pub(crate) fn cpuset(&self) -> Result<Option<CpuSet>, String> {
        if self.cores.is_empty() { Ok(None) } else { CpuSet::parse(&self.cores).map(Some) }
    }

    /// The hard limit and the reservation that follow from `memory` and `memory_max`.
    pub(crate) fn memory_limits(&self) -> MemoryLimits {
        match self.memory_max {
            None => MemoryLimits { hard: self.memory, reserve: None },
            Some(MemoryMax::Bytes(max)) => MemoryLimits { hard: Some(max), reserve: self.memory },
            Some(MemoryMax::Unlimited) => MemoryLimits { hard: None, reserve: self.memory },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: u64 = 1 << 20;

    #[test]
    fn memory_and_memory_max_become_hard_and_reserve() {
        for (memory, max, hard, reserve) in [
            (Some(100 * MB), None, Some(104_857_600), None),
            (Some(100 * MB), Some(MemoryMax::Bytes(200 * MB)), Some(209_715_200), Some(104_857_600)),
            (Some(100 * MB), Some(MemoryMax::Unlimited), None, Some(104_857_600)),
            (None, Some(MemoryMax::Bytes(200 * MB)), Some(209_715_200), None),
            (None, None, None, None),
        ] {
            let limits = Limits { memory, memory_max: max, ..Limits::default() };
            assert_eq!(limits.memory_limits(), MemoryLimits { hard, reserve }, "{limits:?}");
            limits.validate().unwrap();
        }
    }

    #[test]
    fn a_wrong_field_is_named() {
        let base = Limits::default;
        for (limits, field) in [
            (Limits { memory: Some(0), ..base() }, "memory"),
            (Limits { memory: Some(MEMORY_MIN - 1), ..base() }, "memory"),
            // The reference passes this one on (its job validation refuses it earlier); we are the last to look.
            (
                Limits { memory: Some(200 * MB), memory_max: Some(MemoryMax::Bytes(100 * MB)), ..base() },
                "memory_max",
            ),
            (Limits { memory_max: Some(MemoryMax::Bytes(0)), ..base() }, "memory_max"),
            (Limits { memory_max: Some(MemoryMax::Unlimited), ..base() }, "memory_max"),
            (Limits { cores: "banana".into(), ..base() }, "cores"),
            (Limits { cores: "3-1".into(), ..base() }, "cores"),
            (Limits { cores: " ".into(), ..base() }, "cores"),
            (Limits { exclusive: true, ..base() }, "exclusive"),
            (Limits { pids_max: Some(0), ..base() }, "pids_max"),
        ] {
            match limits.validate() {
                Err(Error::Spec { field: found, .. }) => assert_eq!(found, field, "{limits:?}"),
                other => panic!("{limits:?}: {other:?}"),
            }
        }
        Limits { memory: Some(4 * MB), cpu_shares: Some(0), ..base() }.validate().unwrap();
    }

    #[test]
    fn only_what_is_set_is_asked() {
        let base = Limits::default;
        for (limits, asked) in [
            (base(), Control::empty()),
            (Limits { swap: true, ..base() }, Control::empty()),
            (Limits { memory: Some(MB), ..base() }, Control::MEMORY | Control::SWAP),
            (Limits { memory: Some(MB), swap: true, ..base() }, Control::MEMORY),
            (Limits { cores: "0".into(), cpu_shares: Some(1), ..base() }, Control::CPU | Control::CPUSET),
            (Limits { pids_max: Some(1), ..base() }, Control::PIDS),
        ] {
            assert_eq!(limits.asked(), asked, "{limits:?}");
        }
    }

    #[test]
    fn the_serialised_form_is_stable() {
        let limits = Limits { memory_max: Some(MemoryMax::Unlimited), ..Limits::default() };
        let json = r#"{"memory_max":"unlimited"}"#;
        assert_eq!(serde_json::from_str::<Limits>(json).unwrap(), limits);
        let json = r#"{"memory":1048576,"memory_max":{"bytes":2097152},"cores":"0-3"}"#;
        let limits = serde_json::from_str::<Limits>(json).unwrap();
        assert_eq!(limits.memory_max, Some(MemoryMax::Bytes(2 * MB)));
        assert!(serde_json::from_str::<Limits>(r#"{"memroy":1}"#).is_err());
    }
}
