//! Limits of `setrlimit(2)`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize, Serializer};

use crate::notation::InvalidValue;

/// A resource that `setrlimit(2)` limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
#[non_exhaustive]
pub enum Resource {
    /// Bytes of address space.
    As,
    /// Bytes of a core file.
    Core,
    /// Seconds of processor time.
    Cpu,
    /// Bytes of data segment.
    Data,
    /// Bytes of a file that the task writes.
    Fsize,
    /// Number of file locks; no effect since Linux 2.4.25.
    Locks,
    /// Bytes of locked memory.
    Memlock,
    /// Bytes in POSIX message queues of the user.
    Msgqueue,
    /// Ceiling of the nice value: 20 less the value.
    Nice,
    /// One more than the highest descriptor.
    Nofile,
    /// Number of processes of the user.
    Nproc,
    /// Bytes of resident memory; no effect since Linux 2.4.30.
    Rss,
    /// Ceiling of the real-time priority.
    Rtprio,
    /// Microseconds of processor time that a real-time process may use without a blocking call.
    Rttime,
    /// Number of queued signals of the user.
    Sigpending,
    /// Bytes of stack.
    Stack,
}

impl Resource {
    /// All of them, in alphabetic order.
    pub const ALL: [Resource; 16] = [
        Resource::As,
        Resource::Core,
        Resource::Cpu,
        Resource::Data,
        Resource::Fsize,
        Resource::Locks,
        Resource::Memlock,
        Resource::Msgqueue,
        Resource::Nice,
        Resource::Nofile,
        Resource::Nproc,
        Resource::Rss,
        Resource::Rtprio,
        Resource::Rttime,
        Resource::Sigpending,
        Resource::Stack,
    ];

    /// Its number in the kernel's interface.
    pub(crate) fn number(self) -> u32 {
        match self {
            Resource::As => libc::RLIMIT_AS,
            Resource::Core => libc::RLIMIT_CORE,
            Resource::Cpu => libc::RLIMIT_CPU,
            Resource::Data => libc::RLIMIT_DATA,
            Resource::Fsize => libc::RLIMIT_FSIZE,
            Resource::Locks => libc::RLIMIT_LOCKS,
            Resource::Memlock => libc::RLIMIT_MEMLOCK,
            Resource::Msgqueue => libc::RLIMIT_MSGQUEUE,
            Resource::Nice => libc::RLIMIT_NICE,
            Resource::Nofile => libc::RLIMIT_NOFILE,
            Resource::Nproc => libc::RLIMIT_NPROC,
            Resource::Rss => libc::RLIMIT_RSS,
            Resource::Rtprio => libc::RLIMIT_RTPRIO,
            Resource::Rttime => libc::RLIMIT_RTTIME,
            Resource::Sigpending => libc::RLIMIT_SIGPENDING,
            Resource::Stack => libc::RLIMIT_STACK,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Resource::As => "as",
            Resource::Core => "core",
            Resource::Cpu => "cpu",
            Resource::Data => "data",
            Resource::Fsize => "fsize",
            Resource::Locks => "locks",
            Resource::Memlock => "memlock",
            Resource::Msgqueue => "msgqueue",
            Resource::Nice => "nice",
            Resource::Nofile => "nofile",
            Resource::Nproc => "nproc",
            Resource::Rss => "rss",
            Resource::Rtprio => "rtprio",
            Resource::Rttime => "rttime",
            Resource::Sigpending => "sigpending",
            Resource::Stack => "stack",
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for Resource {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(self.name())
    }
}

impl TryFrom<String> for Resource {
    type Error = InvalidValue;

    fn try_from(name: String) -> Result<Self, InvalidValue> {
        name.parse()
    }
}

impl FromStr for Resource {
    type Err = InvalidValue;

    /// The name of its constant without `RLIMIT_`, in lower case.
    fn from_str(name: &str) -> Result<Self, InvalidValue> {
        Resource::ALL.into_iter().find(|known| known.name() == name).ok_or_else(|| {
            InvalidValue::new(format!("{name:?} is none of {}", Resource::ALL.map(Resource::name).join(", ")))
        })
    }
}

/// A limit of `setrlimit(2)`. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rlimit {
    /// The soft limit, at most the hard one.
    pub soft: Option<u64>,
    /// The hard limit; to raise it above the caller's needs `CAP_SYS_RESOURCE`.
    pub hard: Option<u64>,
}

impl From<u64> for Rlimit {
    /// The same soft and hard limit.
    fn from(limit: u64) -> Rlimit {
        Rlimit { soft: Some(limit), hard: Some(limit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_is_spelled_alike_everywhere() {
        for resource in Resource::ALL {
            assert_eq!(resource.to_string().parse(), Ok(resource));
            assert_eq!(serde_json::to_value(resource).unwrap(), resource.to_string());
        }
        let refused = "NOFILE".parse::<Resource>().unwrap_err().to_string();
        assert!(refused.starts_with("\"NOFILE\" is none of as, core, "), "{refused}");
    }
}
