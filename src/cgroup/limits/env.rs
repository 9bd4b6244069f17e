//! Environment variables that tell a task its limits.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Limits, MemoryMax};
use crate::error::{Error, Result};

/// Names of the environment variables that hold a task's limits. A limit whose name is empty, or that is not set, has
/// no variable. If the spec's own environment has one of the names too, the limit's value wins.
///
/// The values are the requested limits. The report says whether they hold.
///
/// ```
/// # use cofferdam::cgroup::{LimitEnv, Limits};
/// let names = LimitEnv::with_prefix("NOMAD_");
/// assert_eq!(names.memory, "NOMAD_MEMORY_LIMIT");
/// let limits = Limits { memory: Some(256 << 20), cpu_shares: Some(500), ..Limits::default() };
/// let variables = names.variables(&limits).unwrap();
/// assert_eq!(variables["NOMAD_MEMORY_LIMIT"], "256");
/// assert_eq!(variables["NOMAD_CPU_LIMIT"], "500");
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct LimitEnv {
    /// Variable for [`Limits::cpu_shares`], in the unit that the scheduler uses, often MHz.
    pub cpu: String,
    /// Variable for [`Limits::cores`], in the kernel's list format.
    pub cores: String,
    /// Variable for [`Limits::memory`], in MiB (1048576 bytes), rounded down.
    pub memory: String,
    /// Variable for [`Limits::memory_max`], in MiB, rounded down. Not set if there is no hard limit.
    pub memory_max: String,
}

impl LimitEnv {
    /// Returns the names that the `exec` driver uses: `CPU_LIMIT`, `CPU_CORES`, `MEMORY_LIMIT` and `MEMORY_MAX_LIMIT`,
    /// each after `prefix`. The driver's prefix is `NOMAD_`.
    pub fn with_prefix(prefix: &str) -> LimitEnv {
        let name = |name: &str| format!("{prefix}{name}");
        LimitEnv {
            cpu: name("CPU_LIMIT"),
            cores: name("CPU_CORES"),
            memory: name("MEMORY_LIMIT"),
            memory_max: name("MEMORY_MAX_LIMIT"),
        }
    }

    /// Returns the variables and their values for these limits.
    ///
    /// # Errors
    /// [`Error::Spec`] if a name contains `=` or NUL, or is used for two limits that are set.
    pub fn variables(&self, limits: &Limits) -> Result<BTreeMap<String, String>> {
        const MB: u64 = 1 << 20;
        let megabytes = |bytes: u64| bytes.checked_div(MB).unwrap_or(0).to_string();
        let max = match limits.memory_max {
            Some(MemoryMax::Bytes(bytes)) => Some(megabytes(bytes)),
            Some(MemoryMax::Unlimited) | None => None,
        };
        let mut found = BTreeMap::new();
        for (name, value) in [
            (&self.cpu, limits.cpu_shares.map(|shares| shares.to_string())),
            (&self.cores, limits.cpuset().map(ToString::to_string)),
            (&self.memory, limits.memory.map(megabytes)),
            (&self.memory_max, max),
        ] {
            if name.contains(['=', '\0']) {
                return Err(Error::spec(
                    "limit_env",
                    format!("{name:?} is not a valid environment variable name"),
                ));
            }
            let Some(value) = value.filter(|_| !name.is_empty()) else { continue };
            if found.insert(name.clone(), value).is_some() {
                return Err(Error::spec(
                    "limit_env",
                    format!("environment variable {name:?} is used for two limits"),
                ));
            }
        }
        Ok(found)
    }
}

crate::notation::from_maps! { LimitEnv: "an object with names of variables" }

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_in_mib_and_absent_for_unset_limits() {
        let names = LimitEnv::with_prefix("X_");
        let text = |limits: &Limits| {
            let variables = names.variables(limits).unwrap();
            variables.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(text(&Limits::default()), "");
        let limits = Limits {
            cpu_shares: Some(1500),
            cores: "0,2-3".parse().unwrap(),
            memory: Some((10 << 20) + 1),
            memory_max: Some(MemoryMax::Bytes(20 << 20)),
            ..Limits::default()
        };
        assert_eq!(
            text(&limits),
            "X_CPU_CORES=0,2-3 X_CPU_LIMIT=1500 X_MEMORY_LIMIT=10 X_MEMORY_MAX_LIMIT=20"
        );
        let open =
            Limits { memory_max: Some(MemoryMax::Unlimited), memory: Some(5 << 20), ..Limits::default() };
        assert_eq!(text(&open), "X_MEMORY_LIMIT=5");
        assert!(LimitEnv::default().variables(&limits).unwrap().is_empty());
    }

    #[test]
    fn invalid_or_duplicate_names_are_refused() {
        let limits = Limits { memory: Some(1 << 20), cpu_shares: Some(2), ..Limits::default() };
        for names in [
            LimitEnv { memory: "A=B".into(), ..LimitEnv::default() },
            LimitEnv { cores: "A\0".into(), ..LimitEnv::default() },
            LimitEnv { memory: "A".into(), cpu: "A".into(), ..LimitEnv::default() },
        ] {
            let wrong = names.variables(&limits).unwrap_err();
            assert!(matches!(wrong, Error::Spec { field: "limit_env", .. }), "{wrong:?}");
        }
    }
}
