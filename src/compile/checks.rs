//! Checks of single fields. Each error names its field.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use crate::error::{Error, Result};
use crate::host::{Host, Survey};
use crate::ns::Network;
use crate::report::Control;
use crate::rootfs::{FileKind, Method, check_path, check_path_at};
use crate::spec::{Policy, SandboxSpec};

pub(super) fn kernel(host: &Host) -> Result<()> {
    let control = Control::MOUNT_NS | Control::HOST_FILES;
    host.too_old().map_or(Ok(()), |reason| Err(Error::Unsupported { control, reason }))
}

/// Checks a sandbox's name. It becomes one component of cgroup and directory paths, so it has no characters that are
/// special to a shell or a log.
pub(super) fn id(id: &str) -> Result<String> {
    let fine = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
    if id.is_empty() || id.len() > 128 || id.starts_with('.') || !id.chars().all(fine) {
        return Err(Error::spec(
            "id",
            format!(
                "{id:?} is not a valid name: use 1 to 128 letters, digits, '.', '_' or '-', and no '.' at the start"
            ),
        ));
    }
    Ok(id.to_string())
}

/// Refuses a replacement of nothing.
pub(super) fn replace(spec: &SandboxSpec) -> Result<()> {
    if spec.replace && spec.id.is_none() {
        return Err(Error::spec("replace", "a sandbox without an id has a new name each time: set id too"));
    }
    Ok(())
}

/// Refuses a string with a NUL byte, at which the kernel would truncate it.
pub(super) fn no_nul(field: &'static str, text: &OsStr) -> Result<()> {
    match text.as_bytes().contains(&0) {
        true => Err(Error::spec(field, format!("{text:?} contains a NUL byte"))),
        false => Ok(()),
    }
}

/// Refuses a spawn that has no time.
pub(crate) fn spawn_deadline(spec: &SandboxSpec) -> Result<()> {
    match spec.spawn_time().is_zero() {
        true => Err(Error::spec("spawn_deadline", "0 seconds are too short to start a task")),
        false => Ok(()),
    }
}

/// Checks the values of the policy that its types cannot.
pub(super) fn policy(policy: &Policy) -> Result<()> {
    let lists =
        [("chroot_skip", &policy.chroot_skip), ("allowed_source_roots", &policy.allowed_source_roots)];
    for (field, paths) in lists {
        for (number, path) in paths.iter().enumerate() {
            check_path_at(field, &format!("{field}[{number}]"), path)?;
        }
    }
    policy.check_dirs()?;
    if !(64 << 10..=1 << 40).contains(&policy.log_size) {
        let why = format!("{} bytes is not within 64 KiB to 1 TiB", policy.log_size);
        return Err(Error::spec("log_size", why));
    }
    Ok(())
}

/// Checks the sizes of the tmpfs mounts. For the kernel, size 0 is no limit, and a size near 2^64 overflows to 0.
pub(super) fn tmpfs_sizes(spec: &SandboxSpec) -> Result<()> {
    let secrets = spec.task_dirs.secrets.as_ref().and_then(|secrets| secrets.size);
    for (field, size) in [
        ("root.tmpfs_size", spec.root.tmpfs_size),
        ("task_dirs.secrets.size", secrets),
        ("task_dirs.tmp", spec.task_dirs.tmp),
    ] {
        let why = match size {
            Some(0) => "it must not be 0: leave it out for the default",
            Some(size) if i64::try_from(size).is_err() => "it must be less than 2^63 bytes",
            _ => continue,
        };
        return Err(Error::spec(field, why));
    }
    if spec.root.tmpfs_size.is_some() && (spec.root.populate.walks() || spec.root.populate == Method::None) {
        let why = format!("populate {:?} has no tmpfs to limit", spec.root.populate.to_string());
        return Err(Error::spec("root.tmpfs_size", why));
    }
    Ok(())
}

/// Checks the command, its arguments and environment, the user, the host name, the umask and the working directory.
pub(super) fn strings(spec: &SandboxSpec) -> Result<()> {
    if spec.user.as_deref() == Some("") {
        return Err(Error::spec("user", "it must not be empty: leave it out for nobody"));
    }
    command(&spec.command, &spec.args, &spec.env)?;
    if let Some(name) = &spec.hostname {
        if name.is_empty() || name.len() > 64 {
            return Err(Error::spec("hostname", format!("{name:?} is not 1 to 64 bytes long")));
        }
        no_nul("hostname", name.as_ref())?;
    }
    if spec.umask > 0o777 {
        return Err(Error::spec("umask", format!("{:o} is greater than 777", spec.umask)));
    }
    work_dir(spec.work_dir.as_deref())
}

/// Checks the strings that execve(2) gets.
pub(super) fn command(command: &OsStr, args: &[OsString], env: &BTreeMap<OsString, OsString>) -> Result<()> {
    if command.is_empty() {
        return Err(Error::spec("command", "no command is given"));
    }
    if command.len() > 4000 {
        return Err(Error::spec("command", "it is longer than 4000 bytes"));
    }
    no_nul("command", command)?;
    args.iter().try_for_each(|arg| no_nul("args", arg))?;
    for (key, value) in env {
        if key.is_empty() || key.as_bytes().contains(&b'=') {
            return Err(Error::spec(
                "env",
                format!("{key:?} is not a valid name of an environment variable"),
            ));
        }
        no_nul("env", key)?;
        no_nul("env", value)?;
    }
    Ok(())
}

pub(super) fn work_dir(dir: Option<&Path>) -> Result<()> {
    match dir {
        Some(dir) if !dir.as_os_str().is_empty() => check_path("work_dir", dir),
        Some(_) => Err(Error::spec("work_dir", "it must not be empty: leave it out for /")),
        None => Ok(()),
    }
}

/// Checks that a network given by its path is a namespace.
pub(super) fn network(network: &Network, survey: &Survey) -> Result<()> {
    let Network::Path(path) = network else { return Ok(()) };
    check_path("network", path)?;
    match &survey.network {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::spec("network", format!("{path:?} is not a namespace"))),
        Err(why) => Err(Error::spec("network", format!("{path:?}: {why}"))),
    }
}

/// Checks the place of a volume or a device in the sandbox.
pub(super) fn mount_point(field: &'static str, name: &str, target: &Path) -> Result<()> {
    check_path_at(field, name, target)?;
    if target == Path::new("/") || target.starts_with("/proc") {
        let why = "cannot be a mount point: / and everything below /proc are reserved";
        return Err(Error::spec(field, format!("{name}: {target:?} {why}")));
    }
    Ok(())
}

pub(super) fn devices(spec: &SandboxSpec, survey: &Survey) -> Result<()> {
    for (number, device) in spec.devices.iter().enumerate() {
        check_path_at("devices", &format!("devices[{number}].source"), &device.source)?;
        mount_point("devices", &format!("devices[{number}].target"), device.place())?;
        let kind = survey.kind(&device.source);
        if kind.is_none() {
            return Err(survey.absent("devices", &device.source));
        }
        if kind != Some(FileKind::Device) {
            return Err(Error::spec("devices", format!("{:?} is not a device", device.source)));
        }
        if device.access.is_empty() {
            return Err(Error::spec(
                "devices",
                format!("{:?}: no access is given: use r, w or m", device.source),
            ));
        }
    }
    Ok(())
}
