//! Resource limits of a task, and their validation.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

use super::set::CpuSet;
use crate::error::{Error, Result};
use crate::notation::{self, InvalidValue};

pub(super) mod env;
mod rates;
pub(super) mod readback;
pub(super) mod row;
pub(super) mod table;
pub(super) mod v2;
pub(super) mod weight;
pub(super) mod write;

pub use rates::{CpuMax, IoMax};

/// Smallest accepted [`Limits::memory`], in bytes: 1 MiB.
///
/// The kernel charges a process for its page tables, stacks and copied pages from its first instruction on, and the
/// crate's own init is in the same cgroup. A static program that does nothing was started sixty times, with and without
/// init, on Linux 6.1 and 6.18, v1 and v2. With 512 KiB every start succeeded, with 384 KiB one failed, and with 128
/// KiB all failed. A task with too little memory dies while it starts, which is hard to tell from a broken program.
/// Real programs need more than this minimum.
pub const MEMORY_MIN: u64 = 1024 * 1024;

/// Largest number of processes that the kernel supports (`PID_MAX_LIMIT`), which is the largest value that `pids.max`
/// accepts.
pub const PIDS_LIMIT: u64 = 4 * 1024 * 1024;

/// Resource limits of a task. A resource whose field is unset is not limited.
///
/// ```
/// use cofferdam::{CpuMax, Limits};
///
/// let half_a_cpu = CpuMax::new(50_000);
/// let limits =
///     Limits { memory: Some(256 << 20), pids_max: Some(64), cpu_max: Some(half_a_cpu), ..Limits::default() };
/// limits.validate()?;
/// assert!(Limits { memory: Some(4096), ..limits }.validate().is_err());
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Limits {
    /// Share of CPU time under contention, relative to sibling cgroups. The kernel's default is 1024. Schedulers often
    /// use MHz.
    ///
    /// Clamped to [`SHARES_MIN`](super::SHARES_MIN) and [`SHARES_MAX`](super::SHARES_MAX), as the kernel does: 0 and 1
    /// mean 2. If shares are MHz and the machine has more MHz than `SHARES_MAX`, scale them with
    /// [`clamp_shares`](super::clamp_shares) first. v1 writes `cpu.shares`. v2 writes the result of
    /// [`shares_to_weight`](super::shares_to_weight) to `cpu.weight`.
    pub cpu_shares: Option<u64>,
    /// Whether the task runs only when no other task wants the CPU. Cannot be combined with
    /// [`cpu_shares`](Self::cpu_shares). v1 and v2 `cpu.idle` (Linux 5.15).
    pub cpu_idle: bool,
    /// Maximum CPU time, even if CPUs are idle.
    pub cpu_max: Option<CpuMax>,
    /// CPUs that are reserved for this task, `0-3,8` in serialised form. If empty, none is reserved, and the
    /// task runs on the CPUs that no task below the same parent cgroup has reserved.
    ///
    /// A task with reserved CPUs also runs on the unreserved ones, unless it is [`exclusive`](Self::exclusive). A
    /// reservation is refused if another task has reserved one of the CPUs ([`CpuReservations`](super::CpuReservations)
    /// says which task), or if it would leave no CPU for a running task without reserved CPUs. v1 and v2
    /// `cpuset.cpus`.
    pub cores: CpuSet,
    /// Whether a task with reserved [`cores`](Self::cores) runs only on these.
    pub exclusive: bool,
    /// Memory in bytes, including page cache and kernel memory; at least [`MEMORY_MIN`].
    ///
    /// This is the hard limit if [`memory_max`](Self::memory_max) is unset. Otherwise it is the amount that the kernel
    /// protects from reclaim when memory is short (v1 `memory.soft_limit_in_bytes`, v2 `memory.low`).
    #[serde(deserialize_with = "notation::optional_size_from")]
    pub memory: Option<u64>,
    /// Hard limit of a task that may use more than [`memory`](Self::memory) while memory is available.
    pub memory_max: Option<MemoryMax>,
    /// Memory in bytes above which the kernel slows the task down and reclaims its memory; at least [`MEMORY_MIN`] and
    /// at most the hard limit. It does not stop the task: only a hard limit does. v2 `memory.high` (Linux 4.5). v1 has
    /// no such limit: the report says so, and without a hard limit the spawn fails unless it is best effort
    /// ([`Require`](crate::Require)).
    #[serde(deserialize_with = "notation::optional_size_from")]
    pub memory_high: Option<u64>,
    /// Swap that a task with a memory limit may use in addition to that limit; none by default. Has no effect without a
    /// memory limit.
    pub swap: SwapMax,
    /// Whether the OOM killer kills the whole task, and not only the process that the kernel chooses. v2
    /// `memory.oom.group` (Linux 4.19). v1 has no such setting: the report says so, and the spawn fails unless it is best
    /// effort ([`Require`](crate::Require)).
    pub oom_group: bool,
    /// Maximum number of processes and threads at the same time, at least 1. The crate's own init process is not
    /// counted. v1 needs the `pids` controller (Linux 4.3).
    pub pids_max: Option<u64>,
    /// Weight of the task's I/O on contended block devices, 1 to 10000. The kernel's default is 100.
    ///
    /// Written to v2 `io.weight`, which has an effect on devices with an `io.cost` model, and to v2 `io.bfq.weight` or
    /// v1 `blkio.bfq.weight`. For the BFQ scheduler the range above 100 is compressed to at most 1000. Kernels without
    /// either file are common, and the report says so.
    pub io_weight: Option<u16>,
    /// Maximum rates of reads and writes per block device. v2 `io.max`, v1 `blkio.throttle.*`. v1 throttles only direct
    /// and synchronous I/O, because it charges later writeback to no task.
    pub io_max: Vec<IoMax>,
    /// Bytes of huge pages by their size, as the kernel spells it: `2MB`, `1GB`. v2 `hugetlb.2MB.max` (Linux
    /// 5.6), v1 `hugetlb.2MB.limit_in_bytes`. A task that touches more gets SIGBUS.
    #[serde(deserialize_with = "notation::sizes_from")]
    pub hugetlb: BTreeMap<String, u64>,
    /// Whether the task is in every controller that counts something (memory, cpu, pids, io, on v1 hugetlb), even
    /// without a limit. Its statistics are then complete, and on v1 an update can later set any limit except
    /// [`cores`](Self::cores). Off by default, because on v1 each hierarchy costs a directory.
    pub accounting: bool,
}

/// Limit of the swap that a task may use.
///
/// Serialised: `"off"`, `"unlimited"`, or a size (`"64m"`, or a number of bytes).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum SwapMax {
    /// No swap. v2 `memory.swap.max` is 0, and v1 `memory.memsw.limit_in_bytes` equals the memory limit.
    #[default]
    Off,
    /// This many bytes, in addition to the memory limit.
    Bytes(u64),
    /// No limit.
    Unlimited,
}

impl SwapMax {
    /// Converts a limit of memory and swap together, as v1 and the OCI specification use it. `memory` is the hard limit
    /// of memory alone, if there is one.
    ///
    /// # Errors
    /// [`InvalidValue`] if `together` is less than `memory`, or if `memory` is 0.
    ///
    /// ```
    /// # use cofferdam::SwapMax;
    /// assert_eq!(SwapMax::from_memsw(500, Some(200)), Ok(SwapMax::Bytes(300)));
    /// assert!(SwapMax::from_memsw(300, Some(400)).is_err());
    /// ```
    pub fn from_memsw(together: u64, memory: Option<u64>) -> Result<SwapMax, InvalidValue> {
        let left = match memory {
            None => together,
            Some(0) => {
                return Err(InvalidValue::new("a limit of memory and swap together needs a memory limit"));
            }
            Some(memory) => together.checked_sub(memory).ok_or_else(|| {
                let why =
                    format!("the limit of memory and swap together ({together}) is less than the memory limit ({memory})");
                InvalidValue::new(why)
            })?,
        };
        Ok(if left == 0 { SwapMax::Off } else { SwapMax::Bytes(left) })
    }
}

/// Hard memory limit of a task whose [`Limits::memory`] is a reservation.
///
/// Serialised: `"unlimited"`, or a size (`"64m"`, or a number of bytes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemoryMax {
    /// This many bytes, at least [`MEMORY_MIN`] and [`Limits::memory`].
    Bytes(u64),
    /// No hard limit, only a reservation: [`Limits::memory`] must be set.
    Unlimited,
}

/// Implements parsing and serialisation of a type whose text is a word, such as `unlimited`, or a size.
macro_rules! amount {
    ($type:ident, $wanted:literal, [$($word:literal => $value:ident),+]) => {
        impl FromStr for $type {
            type Err = InvalidValue;

            fn from_str(text: &str) -> Result<Self, InvalidValue> {
                match text {
                    $($word => Ok($type::$value),)+
                    size => notation::size(size).map($type::Bytes).map_err(|_| {
                        InvalidValue::new(format!("{text:?} is not {}", $wanted))
                    }),
                }
            }
        }

        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
                match self {
                    $($type::$value => s.serialize_str($word),)+
                    $type::Bytes(bytes) => s.serialize_u64(*bytes),
                }
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
                struct Form;
                impl de::Visitor<'_> for Form {
                    type Value = $type;

                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($wanted)
                    }

                    fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<$type, E> {
                        Ok($type::Bytes(bytes))
                    }

                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                d.deserialize_any(Form)
            }
        }
    };
}

amount!(SwapMax, "\"off\", \"unlimited\" or a size such as 64m", ["off" => Off, "unlimited" => Unlimited]);
amount!(MemoryMax, "\"unlimited\" or a size such as 64m", ["unlimited" => Unlimited]);

/// Values of the memory controller that follow from [`Limits`], in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct MemoryLimits {
    /// v1 `memory.limit_in_bytes`, v2 `memory.max`.
    pub hard: Option<u64>,
    /// v1 `memory.soft_limit_in_bytes`, v2 `memory.low`.
    pub reserve: Option<u64>,
}

impl Limits {
    /// Checks that each limit is in its range, and that the limits do not contradict each other. Does not access the
    /// host.
    ///
    /// # Errors
    /// [`Error::Spec`] with the field of the first wrong limit.
    pub fn validate(&self) -> Result<()> {
        let Limits {
            cpu_shares,
            cpu_idle,
            cpu_max: _,
            cores: _,
            exclusive: _,
            memory: _,
            memory_max: _,
            memory_high,
            swap: _,
            oom_group: _,
            pids_max: _,
            io_weight: _,
            io_max: _,
            hugetlb: _,
            accounting: _,
        } = self;
        let too_small =
            |n: u64| format!("{n} bytes is too small to start a process: must be at least {MEMORY_MIN}");
        if let Some(n) = self.memory.filter(|n| *n < MEMORY_MIN) {
            return Err(Error::spec("limits.memory", too_small(n)));
        }
        if let Some(MemoryMax::Bytes(max)) = self.memory_max {
            if max < MEMORY_MIN {
                return Err(Error::spec("limits.memory_max", too_small(max)));
            }
            if let Some(memory) = self.memory.filter(|memory| max < *memory) {
                return Err(Error::spec(
                    "limits.memory_max",
                    format!("{max} is less than memory ({memory})"),
                ));
            }
        }
        if self.memory_max == Some(MemoryMax::Unlimited) && self.memory.is_none() {
            return Err(Error::spec(
                "limits.memory_max",
                "\"unlimited\" needs a memory reservation: set memory too",
            ));
        }
        if let Some(high) = memory_high {
            if *high < MEMORY_MIN {
                return Err(Error::spec("limits.memory_high", too_small(*high)));
            }
            if let Some(hard) = self.memory_limits().hard.filter(|hard| high > hard) {
                return Err(Error::spec(
                    "limits.memory_high",
                    format!("{high} is greater than the hard limit ({hard})"),
                ));
            }
        }
        if *cpu_idle && cpu_shares.is_some() {
            return Err(Error::spec("limits.cpu_idle", "cpu_idle and cpu_shares cannot be combined"));
        }
        if self.pids_max == Some(0) {
            return Err(Error::spec(
                "limits.pids_max",
                "0 does not allow the command itself: must be at least 1",
            ));
        }
        if let Some(max) = &self.cpu_max {
            max.validate().map_err(|why| Error::spec("limits.cpu_max", why))?;
        }
        if let Some(weight) = self.io_weight.filter(|weight| !(1..=10_000).contains(weight)) {
            return Err(Error::spec(
                "limits.io_weight",
                format!("{weight} is out of range: must be 1 to 10000"),
            ));
        }
        for (i, max) in self.io_max.iter().enumerate() {
            max.validate().map_err(|why| Error::spec("limits.io_max", why))?;
            if self.io_max.iter().take(i).any(|other| other.device == max.device) {
                return Err(Error::spec("limits.io_max", format!("device {} is listed twice", max.device)));
            }
        }
        if let Some(size) = self.hugetlb.keys().find(|size| !is_page_size(size)) {
            return Err(Error::spec(
                "limits.hugetlb",
                format!("{size:?} is not a huge page size, such as 2MB"),
            ));
        }
        if self.exclusive && self.cores.is_empty() {
            return Err(Error::spec("limits.exclusive", "exclusive needs cores, but cores is empty"));
        }
        Ok(())
    }

    /// Swap limit in bytes, in addition to the memory limit. `None` means no limit. It is always `None` if memory is
    /// not limited.
    pub(crate) fn swap_bytes(&self) -> Option<u64> {
        match self.swap {
            _ if self.memory.is_none() && self.memory_max.is_none() => None,
            SwapMax::Off => Some(0),
            SwapMax::Bytes(bytes) => Some(bytes),
            SwapMax::Unlimited => None,
        }
    }

    /// The CPUs of [`cores`](Self::cores). `None` if it is empty.
    pub(crate) fn cpuset(&self) -> Option<&CpuSet> {
        Some(&self.cores).filter(|cores| !cores.is_empty())
    }

    /// Returns the hard limit and the reservation that follow from `memory` and `memory_max`.
    pub(crate) fn memory_limits(&self) -> MemoryLimits {
        match self.memory_max {
            None => MemoryLimits { hard: self.memory, reserve: None },
            Some(MemoryMax::Bytes(max)) => MemoryLimits { hard: Some(max), reserve: self.memory },
            Some(MemoryMax::Unlimited) => MemoryLimits { hard: None, reserve: self.memory },
        }
    }
}

/// Converts a weight of 1 to 10000 to BFQ's 1 to 1000. Weights up to 100 stay the same.
pub(super) fn bfq_weight(weight: u16) -> u64 {
    let weight = u64::from(weight);
    let above = weight.saturating_sub(100).saturating_mul(900).checked_div(9900).unwrap_or(0);
    weight.min(100).saturating_add(above)
}

/// Whether `size` is a number and a unit, as in the kernel's file names. It becomes part of a file name, so other text
/// (such as `../`) could name any file.
fn is_page_size(size: &str) -> bool {
    let digits = size.trim_end_matches(|c: char| c.is_ascii_uppercase());
    let unit = size.strip_prefix(digits).unwrap_or_default();
    matches!(digits.len(), 1..=4)
        && digits.bytes().all(|b| b.is_ascii_digit())
        && matches!(unit, "KB" | "MB" | "GB")
}

notation::from_maps! { Limits: "an object with the fields of limits" }

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::Control;

    const MB: u64 = 1 << 20;

    fn io(device: &str, read_bps: Option<u64>) -> IoMax {
        IoMax { device: device.into(), read_bps, ..IoMax::default() }
    }

    #[test]
    fn memsw_minus_memory_is_the_swap_limit() {
        for (together, memory, expected) in [
            (500, Some(200), Some(SwapMax::Bytes(300))),
            (300, Some(400), None),
            (300, None, Some(SwapMax::Bytes(300))),
            (300, Some(0), None),
            (300, Some(300), Some(SwapMax::Off)),
        ] {
            assert_eq!(SwapMax::from_memsw(together, memory).ok(), expected, "{together} {memory:?}");
        }
    }

    #[test]
    fn memory_is_a_reservation_if_memory_max_is_set() {
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
    fn validation_error_names_the_field() {
        let base = Limits::default;
        for (limits, field) in [
            (Limits { memory: Some(0), ..base() }, "memory"),
            (Limits { memory: Some(MEMORY_MIN - 1), ..base() }, "memory"),
            // The `exec` driver accepts this, because Nomad's job validation refuses it earlier. Here validate() is the
            // last check.
            (
                Limits { memory: Some(200 * MB), memory_max: Some(MemoryMax::Bytes(100 * MB)), ..base() },
                "memory_max",
            ),
            (Limits { memory_max: Some(MemoryMax::Bytes(0)), ..base() }, "memory_max"),
            (Limits { memory_max: Some(MemoryMax::Unlimited), ..base() }, "memory_max"),
            (Limits { memory_high: Some(MEMORY_MIN - 1), ..base() }, "memory_high"),
            (Limits { memory_high: Some(5 * MB), memory: Some(4 * MB), ..base() }, "memory_high"),
            (Limits { cpu_idle: true, cpu_shares: Some(1024), ..base() }, "cpu_idle"),
            (Limits { exclusive: true, ..base() }, "exclusive"),
            (Limits { pids_max: Some(0), ..base() }, "pids_max"),
            (Limits { cpu_max: Some(CpuMax::new(999)), ..base() }, "cpu_max"),
            (Limits { cpu_max: Some(CpuMax::new(u64::MAX)), ..base() }, "cpu_max"),
            (Limits { cpu_max: Some(CpuMax { period: 999, ..CpuMax::new(1000) }), ..base() }, "cpu_max"),
            (
                Limits { cpu_max: Some(CpuMax { period: 1_000_001, ..CpuMax::new(1000) }), ..base() },
                "cpu_max",
            ),
            (Limits { cpu_max: Some(CpuMax { burst: 1001, ..CpuMax::new(1000) }), ..base() }, "cpu_max"),
            (Limits { io_weight: Some(0), ..base() }, "io_weight"),
            (Limits { io_weight: Some(10_001), ..base() }, "io_weight"),
            (Limits { io_max: vec![IoMax::default()], ..base() }, "io_max"),
            (Limits { io_max: vec![io("8:0", None)], ..base() }, "io_max"),
            (Limits { io_max: vec![io("8:0", Some(0))], ..base() }, "io_max"),
            (Limits { io_max: vec![io("/dev/sda", Some(1))], ..base() }, "io_max"),
            (Limits { io_max: vec![io("8:0 wbps=9", Some(1))], ..base() }, "io_max"),
            (Limits { io_max: vec![io("8:0", Some(1)), io("8:0", Some(2))], ..base() }, "io_max"),
            (Limits { hugetlb: [("../2MB".into(), 1)].into(), ..base() }, "hugetlb"),
            (Limits { hugetlb: [("2M".into(), 1)].into(), ..base() }, "hugetlb"),
            (Limits { hugetlb: [("MB".into(), 1)].into(), ..base() }, "hugetlb"),
        ] {
            match limits.validate() {
                Err(Error::Spec { field: found, .. }) => {
                    assert_eq!(found, format!("limits.{field}"), "{limits:?}")
                }
                other => panic!("{limits:?}: {other:?}"),
            }
        }
        Limits { memory: Some(4 * MB), cpu_shares: Some(0), ..base() }.validate().unwrap();
    }

    #[test]
    fn asked_has_only_the_controls_of_limits_that_are_set() {
        let base = Limits::default;
        for (limits, asked) in [
            (base(), Control::empty()),
            (Limits { swap: SwapMax::Unlimited, ..base() }, Control::empty()),
            (Limits { swap: SwapMax::Bytes(MB), ..base() }, Control::empty()),
            (Limits { memory: Some(MB), ..base() }, Control::MEMORY | Control::SWAP),
            (Limits { memory: Some(MB), swap: SwapMax::Unlimited, ..base() }, Control::MEMORY),
            (
                Limits { cpu_max: Some(CpuMax::new(1000)), oom_group: true, ..base() },
                Control::CPU_MAX | Control::OOM_GROUP,
            ),
            (
                Limits { io_weight: Some(1), hugetlb: [("2MB".into(), 0)].into(), ..base() },
                Control::IO | Control::HUGETLB,
            ),
            (Limits { accounting: true, ..base() }, Control::empty()),
            (Limits { memory_high: Some(MB), ..base() }, Control::MEMORY),
            (Limits { cpu_idle: true, ..base() }, Control::CPU),
            (
                Limits { cores: "0".parse().unwrap(), cpu_shares: Some(1), ..base() },
                Control::CPU | Control::CPUSET,
            ),
            (Limits { pids_max: Some(1), ..base() }, Control::PIDS),
        ] {
            assert_eq!(limits.asked(), asked, "{limits:?}");
        }
    }

    #[test]
    fn bfq_weight_compresses_the_range_above_100() {
        for (weight, bfq) in [(1, 1), (100, 100), (101, 100), (1000, 181), (10_000, 1000)] {
            assert_eq!(bfq_weight(weight), bfq, "{weight}");
        }
    }

    #[test]
    fn limits_have_a_stable_json_form() {
        let limits = Limits { memory_max: Some(MemoryMax::Unlimited), ..Limits::default() };
        let json = r#"{"memory_max":"unlimited"}"#;
        assert_eq!(serde_json::from_str::<Limits>(json).unwrap(), limits);
        let json = r#"{"memory":1048576,"memory_high":"1536k","memory_max":"2m","cores":"0-3","cpu_max":{"quota":5000},
            "swap":"4k","io_max":[{"device":"8:0","read_bps":1}],"hugetlb":{"2MB":0}}"#;
        let limits = serde_json::from_str::<Limits>(json).unwrap();
        assert_eq!(limits.cpu_max, Some(CpuMax::new(5000)));
        assert_eq!(limits.swap, SwapMax::Bytes(4096));
        limits.validate().unwrap();
        assert_eq!(limits.memory_max, Some(MemoryMax::Bytes(2 * MB)));
        assert_eq!(limits.memory_high, Some(1536 << 10));
        let again = serde_json::to_string(&limits).unwrap();
        assert_eq!(serde_json::from_str::<Limits>(&again).unwrap(), limits);
        for wrong in [r#"{"memroy":1}"#, r#"{"memory":-1}"#, r#"{"memory":"64q"}"#, r#"{"cores":"3-1"}"#] {
            assert!(serde_json::from_str::<Limits>(wrong).is_err(), "{wrong}");
        }
    }
}
