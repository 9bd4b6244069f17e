//! Checks of single fields, each an error that names its field.

use std::os::unix::ffi::OsStrExt;

use crate::error::{Error, Result};
use crate::host::{Host, Survey};
use crate::ns::Network;
use crate::report::Control;
use crate::rootfs::{FileKind, check_path};
use crate::spec::SandboxSpec;

pub(super) fn kernel(host: &Host) -> Result<()> {
    let control = Control::MOUNT_NS | Control::HOST_FILES;
    host.too_old().map_or(Ok(()), |reason| Err(Error::Unsupported { control, reason }))
}

/// A name for a cgroup and a directory: one component, and nothing that a shell or a log would mangle.
pub(super) fn id(id: &str) -> Result<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.chars().all(fine) {
        return Err(Error::spec("id", format!("{id:?} is not 1 to 128 letters, digits, '.', '_' and '-'")));
    }
    Ok(id.to_string())
}

/// Everything that goes to the kernel as a string.
pub(super) fn strings(spec: &SandboxSpec) -> Result<()> {
    let no_nul = |field: &'static str, text: &str| match text.contains('\0') {
        true => Err(Error::spec(field, format!("{text:?} contains a NUL byte"))),
        false => Ok(()),
    };
    if spec.command.is_empty() {
        return Err(Error::spec("command", "there is no command"));
    }
    if spec.command.len() > 4000 {
        return Err(Error::spec("command", "longer than 4000 bytes"));
    }
    no_nul("command", &spec.command)?;
    spec.args.iter().try_for_each(|arg| no_nul("args", arg))?;
    for (key, value) in &spec.env {
        if key.is_empty() || key.contains('=') {
            return Err(Error::spec("env", format!("{key:?} is no name of a variable")));
        }
        no_nul("env", key)?;
        no_nul("env", value)?;
    }
    if let Some(name) = &spec.hostname {
        if name.is_empty() || name.len() > 64 {
            return Err(Error::spec("hostname", format!("{name:?} is not 1 to 64 bytes long")));
        }
        no_nul("hostname", name)?;
    }
    if spec.umask > 0o777 {
        return Err(Error::spec("umask", format!("{:o} is above 777", spec.umask)));
    }
    match &spec.work_dir {
        Some(dir) if !dir.as_os_str().as_bytes().is_empty() => check_path("work_dir", dir),
        Some(_) => Err(Error::spec("work_dir", "it is empty: leave it out for /")),
        None => Ok(()),
    }
}

/// A path that is joined must be a namespace.
pub(super) fn network(network: &Network, survey: &Survey) -> Result<()> {
    let Network::Path(path) = network else { return Ok(()) };
    check_path("network", path)?;
    match &survey.network {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::spec("network", format!("{path:?} is no namespace"))),
        Err(why) => Err(Error::spec("network", format!("{path:?}: {why}"))),
    }
}

pub(super) fn devices(spec: &SandboxSpec, survey: &Survey) -> Result<()> {
    for device in &spec.devices {
        check_path("devices", &device.source)?;
        check_path("devices", &device.target)?;
        let kind = survey.kind(&device.source);
        if kind.is_none() {
            return Err(survey.absent("devices", &device.source));
        }
        if kind != Some(FileKind::Device) {
            return Err(Error::spec("devices", format!("{:?} is no device of the host", device.source)));
        }
        let wrong = |c: char| !"rwm".contains(c);
        if device.permissions.is_empty() || device.permissions.contains(wrong) {
            return Err(Error::spec(
                "devices",
                format!("{:?} is not made of r, w and m", device.permissions),
            ));
        }
    }
    Ok(())
}

/// The number of a resource limit.
pub(super) fn rlimit(name: &str) -> Result<u32> {
    const NAMES: [(&str, u32); 16] = [
        ("as", libc::RLIMIT_AS),
        ("core", libc::RLIMIT_CORE),
        ("cpu", libc::RLIMIT_CPU),
        ("data", libc::RLIMIT_DATA),
        ("fsize", libc::RLIMIT_FSIZE),
        ("locks", libc::RLIMIT_LOCKS),
        ("memlock", libc::RLIMIT_MEMLOCK),
        ("msgqueue", libc::RLIMIT_MSGQUEUE),
        ("nice", libc::RLIMIT_NICE),
        ("nofile", libc::RLIMIT_NOFILE),
        ("nproc", libc::RLIMIT_NPROC),
        ("rss", libc::RLIMIT_RSS),
        ("rtprio", libc::RLIMIT_RTPRIO),
        ("rttime", libc::RLIMIT_RTTIME),
        ("sigpending", libc::RLIMIT_SIGPENDING),
        ("stack", libc::RLIMIT_STACK),
    ];
    NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number).ok_or_else(|| {
        let known: Vec<&str> = NAMES.iter().map(|(name, _)| *name).collect();
        Error::spec("rlimits", format!("{name:?} is none of {}", known.join(", ")))
    })
}
