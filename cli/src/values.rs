//! How the values of flags are spelled.

use std::path::PathBuf;

use cofferdam::{HostsEntry, MemoryMax, Propagation, Volume};

/// Bytes: a number, or one with k, m, g or t for powers of 1024.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = text.get(digits.len()..).unwrap_or_default().to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(format!("{text:?} is no size: a number, and k, m, g or t")),
    };
    let number: u64 = digits.parse().map_err(|e| format!("{text:?}: {e}"))?;
    number.checked_mul(1 << shift).ok_or_else(|| format!("{text:?} is too large"))
}

/// A size, or -1 for no limit.
pub(crate) fn memory_max(text: &str) -> Result<MemoryMax, String> {
    if text == "-1" { Ok(MemoryMax::Unlimited) } else { size(text).map(MemoryMax::Bytes) }
}

/// Names separated by commas.
pub(crate) fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::to_string).collect()
}

/// `SRC[:DST]`; the destination is the source's own path when there is none.
pub(crate) fn pair(text: &str) -> (PathBuf, PathBuf) {
    let (source, target) = text.split_once(':').unwrap_or((text, text));
    (source.into(), target.into())
}

/// `SRC:DST[:OPTION,...]` with `ro`, `rw`, `host-to-task` and `bidirectional`.
pub(crate) fn volume(text: &str) -> Result<Volume, String> {
    let mut parts = text.splitn(3, ':');
    let (Some(source), Some(target)) = (parts.next(), parts.next()) else {
        return Err(format!("{text:?} is not SRC:DST[:ro]"));
    };
    let mut volume = Volume { source: source.into(), target: target.into(), ..Volume::default() };
    for option in parts.next().into_iter().flat_map(|o| o.split(',')) {
        match option {
            "ro" => volume.read_only = true,
            "rw" => volume.read_only = false,
            "host-to-task" => volume.propagation = Propagation::HostToTask,
            "bidirectional" => volume.propagation = Propagation::Bidirectional,
            other => {
                return Err(format!("{text:?}: {other:?} is none of ro, rw, host-to-task, bidirectional"));
            }
        }
    }
    Ok(volume)
}

/// `NAME:ADDRESS`; the address may have colons of its own.
pub(crate) fn host(text: &str) -> Result<HostsEntry, String> {
    let (name, address) = text.split_once(':').ok_or_else(|| format!("{text:?} is not NAME:ADDRESS"))?;
    Ok(HostsEntry { address: address.into(), names: vec![name.into()] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("1k", 1024), ("64M", 64 << 20), ("2GiB", 2 << 30), ("1tb", 1 << 40)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "k", "1x", "-1", "1.5g", "99999999999g"] {
            assert!(size(text).is_err(), "{text}");
        }
        assert_eq!(memory_max("-1"), Ok(MemoryMax::Unlimited));
    }

    #[test]
    fn hosts() {
        let entry = host("db:fe80::1").unwrap();
        assert_eq!((entry.names, entry.address.as_str()), (vec!["db".to_string()], "fe80::1"));
        assert!(host("db").is_err());
    }

    #[test]
    fn volumes() {
        let v = volume("/a:/b:ro,host-to-task").unwrap();
        assert_eq!((v.read_only, v.propagation), (true, Propagation::HostToTask));
        assert!(!volume("/a:/b").unwrap().read_only);
        assert!(volume("/a").is_err());
        assert!(volume("/a:/b:rx").is_err());
    }
}
