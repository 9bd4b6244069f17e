//! Parsers of the values of flags.

use std::path::PathBuf;

use cofferdam::cgroup::devices::Access;
use cofferdam::notation::size;
use cofferdam::{CpuMax, Device, HostsEntry, IoMax, Propagation, Volume};

/// Parses `QUOTA[/PERIOD[/BURST]]` in microseconds.
pub(crate) fn cpu_max(text: &str) -> Result<CpuMax, String> {
    let numbers: Option<Vec<u64>> = text.split('/').map(|piece| piece.parse().ok()).collect();
    match numbers.as_deref() {
        Some([quota]) => Ok(CpuMax::new(*quota)),
        Some([quota, period]) => Ok(CpuMax { period: *period, ..CpuMax::new(*quota) }),
        Some([quota, period, burst]) => Ok(CpuMax { quota: *quota, period: *period, burst: *burst }),
        _ => Err(format!("{text:?} is not QUOTA[/PERIOD[/BURST]] in microseconds")),
    }
}

/// Parses `MAJ:MIN,rbps=N,...`.
pub(crate) fn io_max(text: &str) -> Result<IoMax, String> {
    let mut pieces = text.split(',');
    let mut max = IoMax { device: pieces.next().unwrap_or_default().into(), ..IoMax::default() };
    for piece in pieces {
        let (name, value) = piece.split_once('=').ok_or_else(|| format!("{piece:?} is not NAME=N"))?;
        let field = match name {
            "rbps" => &mut max.read_bps,
            "wbps" => &mut max.write_bps,
            "riops" => &mut max.read_iops,
            "wiops" => &mut max.write_iops,
            _ => return Err(format!("{name:?} is not one of rbps, wbps, riops and wiops")),
        };
        *field = Some(size(value).map_err(|e| e.to_string())?);
    }
    Ok(max)
}

/// Parses `PAGE=SIZE`, such as `2MB=64m`.
pub(crate) fn hugetlb(text: &str) -> Result<(String, u64), String> {
    let (page, bytes) = text.split_once('=').ok_or_else(|| format!("{text:?} is not PAGE=SIZE"))?;
    Ok((page.to_owned(), size(bytes).map_err(|e| e.to_string())?))
}

/// Parses names separated by commas.
pub(crate) fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::to_string).collect()
}

/// Parses `SRC[:DST]`; DST defaults to SRC.
pub(crate) fn pair(text: &str) -> (PathBuf, PathBuf) {
    let (source, target) = text.split_once(':').unwrap_or((text, text));
    (source.into(), target.into())
}

/// Parses `SRC[:DST[:ACCESS]]`; DST defaults to SRC, ACCESS to `rwm`.
pub(crate) fn device(text: &str) -> Result<Device, String> {
    let mut parts = text.splitn(3, ':');
    let source = parts.next().unwrap_or_default();
    let target = parts.next().unwrap_or(source);
    let access = parts.next().map_or(Ok(Access::all()), Access::parse).map_err(|e| e.to_string())?;
    Ok(Device { source: source.into(), target: target.into(), access })
}

/// Parses `SRC:DST[:OPTION,...]` with the options `ro`, `rw`, `host-to-task` and `bidirectional`.
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
                return Err(format!("{text:?}: {other:?} is not one of ro, rw, host-to-task, bidirectional"));
            }
        }
    }
    Ok(volume)
}

/// Parses `NAME:ADDRESS`; the address may contain colons.
pub(crate) fn host(text: &str) -> Result<HostsEntry, String> {
    let (name, address) = text.split_once(':').ok_or_else(|| format!("{text:?} is not NAME:ADDRESS"))?;
    Ok(HostsEntry { address: address.into(), names: vec![name.into()] })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_parsed() {
        assert_eq!(cpu_max("5000"), Ok(CpuMax::new(5000)));
        assert_eq!(cpu_max("5000/20000/1000"), Ok(CpuMax { quota: 5000, period: 20_000, burst: 1000 }));
        assert_eq!(hugetlb("2MB=4m"), Ok(("2MB".into(), 4 << 20)));
        let max = io_max("8:0,rbps=1m,wiops=9").unwrap();
        assert_eq!((max.device.as_str(), max.read_bps, max.write_iops), ("8:0", Some(1 << 20), Some(9)));
        for wrong in [cpu_max("").err(), cpu_max("1/2/3/4").err(), cpu_max("x").err(), hugetlb("2MB").err()] {
            assert!(wrong.is_some());
        }
        for wrong in ["8:0,rbps", "8:0,speed=1", "8:0,rbps=x"] {
            assert!(io_max(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn devices_are_parsed() {
        let all = |text: &str| {
            let d = device(text).unwrap();
            (d.source.display().to_string(), d.target.display().to_string(), d.access.to_string())
        };
        assert_eq!(all("/dev/fuse"), ("/dev/fuse".into(), "/dev/fuse".into(), "rwm".into()));
        assert_eq!(all("/dev/fuse:/dev/f:r"), ("/dev/fuse".into(), "/dev/f".into(), "r".into()));
    }

    #[test]
    fn hosts_are_parsed() {
        let entry = host("db:fe80::1").unwrap();
        assert_eq!((entry.names, entry.address.as_str()), (vec!["db".to_string()], "fe80::1"));
        assert!(host("db").is_err());
    }

    #[test]
    fn volumes_are_parsed() {
        let v = volume("/a:/b:ro,host-to-task").unwrap();
        assert_eq!((v.read_only, v.propagation), (true, Propagation::HostToTask));
        assert!(!volume("/a:/b").unwrap().read_only);
        assert!(volume("/a").is_err());
        assert!(volume("/a:/b:rx").is_err());
    }
}
