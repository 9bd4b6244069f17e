//! Limits that are rates: CPU time in each period, and I/O of a block device.

use serde::{Deserialize, Serialize};

use crate::notation;

/// Maximum CPU time in each period, for all threads of a task together. A `quota` of 200000 in a `period` of 100000 is
/// the time of two CPUs. All fields are in microseconds. v2 `cpu.max`, v1 `cpu.cfs_quota_us` and `cpu.cfs_period_us`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct CpuMax {
    /// CPU time in each period, 1000 to 2^39.
    pub quota: u64,
    /// Length of a period, 1000 to 1000000. The default is 100000, as in the kernel.
    #[serde(default = "period")]
    pub period: u64,
    /// Unused time of earlier periods that may be used in a single period, at most `quota`. v2 `cpu.max.burst`, v1
    /// `cpu.cfs_burst_us` (Linux 5.14).
    #[serde(default)]
    pub burst: u64,
}

fn period() -> u64 {
    CpuMax::PERIOD
}

impl CpuMax {
    /// The kernel's default period, in microseconds.
    pub const PERIOD: u64 = 100_000;

    /// Returns a limit of `quota` microseconds in each period of [`PERIOD`](Self::PERIOD), without burst.
    pub fn new(quota: u64) -> CpuMax {
        CpuMax { quota, period: Self::PERIOD, burst: 0 }
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        if !(1000..=1_000_000).contains(&self.period) {
            return Err(format!(
                "period {} is out of range: must be 1000 to 1000000 microseconds",
                self.period
            ));
        }
        // The kernel refuses a quota that overflows. 2^39 microseconds are six days.
        if !(1000..=1 << 39).contains(&self.quota) {
            return Err(format!("quota {} is out of range: must be 1000 to 2^39 microseconds", self.quota));
        }
        if self.burst > self.quota {
            return Err(format!("burst {} is greater than the quota ({})", self.burst, self.quota));
        }
        Ok(())
    }
}

/// Maximum rates of I/O on a block device. A rate that is unset is not limited.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct IoMax {
    /// `MAJOR:MINOR` of a whole device, not of a partition, as in `/sys/block/NAME/dev` and the output of `lsblk`:
    /// `8:0`.
    pub device: String,
    /// Bytes read per second, at least 1.
    #[serde(deserialize_with = "notation::optional_size_from")]
    pub read_bps: Option<u64>,
    /// Bytes written per second, at least 1.
    #[serde(deserialize_with = "notation::optional_size_from")]
    pub write_bps: Option<u64>,
    /// Reads per second, at least 1.
    pub read_iops: Option<u64>,
    /// Writes per second, at least 1.
    pub write_iops: Option<u64>,
}

impl IoMax {
    /// The four limits, each with its key in v2 `io.max` and its v1 file.
    pub(crate) fn limits(&self) -> [(&'static str, &'static str, Option<u64>); 4] {
        [
            ("rbps", "blkio.throttle.read_bps_device", self.read_bps),
            ("wbps", "blkio.throttle.write_bps_device", self.write_bps),
            ("riops", "blkio.throttle.read_iops_device", self.read_iops),
            ("wiops", "blkio.throttle.write_iops_device", self.write_iops),
        ]
    }

    pub(super) fn validate(&self) -> Result<(), String> {
        let number = |s: &str| !s.is_empty() && s.len() < 8 && s.bytes().all(|b| b.is_ascii_digit());
        if !self.device.split_once(':').is_some_and(|(major, minor)| number(major) && number(minor)) {
            return Err(format!("device {:?} is not of the form MAJOR:MINOR, such as 8:0", self.device));
        }
        if self.limits().iter().all(|(.., value)| value.is_none()) {
            return Err(format!("no limit is set for device {}", self.device));
        }
        let names = ["read_bps", "write_bps", "read_iops", "write_iops"];
        let mut named = names.into_iter().zip(self.limits());
        match named.find(|(_, (.., value))| *value == Some(0)) {
            Some((name, _)) => Err(format!(
                "{name} of device {} is 0: must be at least 1 (cgroup v1 treats 0 as no limit)",
                self.device
            )),
            None => Ok(()),
        }
    }
}

notation::from_maps! {
    CpuMax: "an object with quota, period and burst in microseconds",
    IoMax: "an object with device, read_bps, write_bps, read_iops and write_iops",
}
