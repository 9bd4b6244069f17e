//! Resource limits of `setrlimit(2)`.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::notation::{self, InvalidValue};
use crate::step::rlimit_name;

/// A resource that `setrlimit(2)` limits. Serialised by the name of its constant without `RLIMIT_`, in lower case:
/// `"nofile"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(try_from = "String")]
#[non_exhaustive]
pub enum Resource {
    /// Size of the address space, in bytes.
    As,
    /// Size of a core file, in bytes.
    Core,
    /// CPU time of a process, in seconds. At the soft limit it gets SIGXCPU, at the hard limit SIGKILL.
    Cpu,
    /// Size of the data segment, in bytes.
    Data,
    /// Size of a file that the task writes, in bytes.
    Fsize,
    /// Number of file locks. No effect since Linux 2.4.25.
    Locks,
    /// Size of locked memory, in bytes.
    Memlock,
    /// Size of all POSIX message queues of the user, in bytes.
    Msgqueue,
    /// Lowest nice value that a process can set, as 20 minus that value.
    Nice,
    /// Highest descriptor number plus one.
    Nofile,
    /// Number of processes and threads of the user. [`Limits::pids_max`](crate::Limits::pids_max) counts those of the
    /// task.
    Nproc,
    /// Size of resident memory, in bytes. No effect since Linux 2.4.30.
    Rss,
    /// Highest real-time priority that a process can set.
    Rtprio,
    /// CPU time that a real-time process may use without a blocking call, in microseconds.
    Rttime,
    /// Number of queued signals of the user.
    Sigpending,
    /// Size of the stack, in bytes.
    Stack,
}

impl Resource {
    /// All resources in alphabetical order.
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

    /// The kernel's number of the resource (`RLIMIT_*`).
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
        rlimit_name(self.number())
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

    /// Parses the name of a constant without `RLIMIT_`, in lower case.
    fn from_str(name: &str) -> Result<Self, InvalidValue> {
        Resource::ALL.into_iter().find(|known| known.name() == name).ok_or_else(|| {
            InvalidValue::new(format!("{name:?} is none of {}", Resource::ALL.map(Resource::name).join(", ")))
        })
    }
}

/// A limit of `setrlimit(2)`, in the unit of its [`Resource`]. `None` means no limit.
///
/// In serialised data, `64` and `"64m"` are both the soft and the hard limit. In `{"soft": 64}` the absent limit is the
/// same as the given one. `null` is no limit.
///
/// ```
/// use cofferdam::{Resource, Rlimit, Sandbox};
///
/// let files = Rlimit { soft: Some(1024), hard: Some(4096) };
/// let sandbox = Sandbox::command("make").rlimit(Resource::Nofile, files).rlimit(Resource::Core, 0);
/// # let _ = sandbox;
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Rlimit {
    /// The soft limit, at most the hard limit.
    pub soft: Option<u64>,
    /// The hard limit. A hard limit above the caller's needs `CAP_SYS_RESOURCE`.
    pub hard: Option<u64>,
}

impl<'de> Deserialize<'de> for Rlimit {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Rlimit;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a number, a size such as \"64m\", or an object with soft and hard")
            }

            fn visit_u64<E: de::Error>(self, limit: u64) -> Result<Rlimit, E> {
                Ok(limit.into())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Rlimit, E> {
                notation::size(text).map(Rlimit::from).map_err(E::custom)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Rlimit, A::Error> {
                let (mut soft, mut hard) = (None, None);
                while let Some(key) = map.next_key::<String>()? {
                    let limit = match key.as_str() {
                        "soft" => &mut soft,
                        "hard" => &mut hard,
                        _ => return Err(de::Error::unknown_field(&key, &["soft", "hard"])),
                    };
                    *limit = Some(map.next_value::<Option<notation::Size>>()?.map(|notation::Size(n)| n));
                }
                match (soft.or(hard), hard.or(soft)) {
                    (Some(soft), Some(hard)) => Ok(Rlimit { soft, hard }),
                    _ => Err(de::Error::custom("neither soft nor hard is given")),
                }
            }
        }
        d.deserialize_any(Form)
    }
}

impl From<u64> for Rlimit {
    /// Uses `limit` as the soft and the hard limit.
    fn from(limit: u64) -> Rlimit {
        Rlimit { soft: Some(limit), hard: Some(limit) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serialised_limit_is_a_number_a_size_or_an_object() {
        let read = serde_json::from_str::<Rlimit>;
        let (n, none) = (Some(10), None);
        for (text, soft, hard) in [
            ("10", n, n),
            ("\"10\"", n, n),
            (r#"{"soft": 10}"#, n, n),
            (r#"{"hard": 10}"#, n, n),
            (r#"{"soft": 10, "hard": null}"#, n, none),
            (r#"{"soft": "1k", "hard": 2048}"#, Some(1024), Some(2048)),
        ] {
            assert_eq!(read(text).unwrap(), Rlimit { soft, hard }, "{text}");
        }
        for limit in [Rlimit::default(), 7.into(), Rlimit { soft: n, hard: none }] {
            let text = serde_json::to_string(&limit).unwrap();
            assert_eq!(serde_json::from_str::<Rlimit>(&text).unwrap(), limit);
        }
        for wrong in ["{}", "[1, 2]", "-1", "\"1q\"", r#"{"max": 1}"#] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_resource_is_printed_parsed_and_serialised_by_one_name() {
        for resource in Resource::ALL {
            assert_eq!(resource.to_string().parse(), Ok(resource));
            assert_eq!(serde_json::to_value(resource).unwrap(), resource.to_string());
        }
        let refused = "NOFILE".parse::<Resource>().unwrap_err().to_string();
        assert!(refused.starts_with("\"NOFILE\" is none of as, core, "), "{refused}");
    }
}
