//! Which paths of the host a spec may name, and what a writable one lets the task do to the host.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::host::{Host, Stream, Survey, temp_dir};
use crate::report::Control;
use crate::rootfs::{Method, Propagation};
use crate::spec::{Policy, SandboxSpec};
use crate::step::Draft;

/// Refuses sources that the operator's policy does not allow.
pub(super) fn allowed(policy: &Policy, spec: &SandboxSpec, survey: &Survey) -> Result<()> {
    if let (false, Some(volume)) = (policy.volumes_enabled, spec.volumes.first()) {
        let why = format!(
            "volumes: {:?} is not allowed: volumes_enabled is off in this host's policy",
            volume.source
        );
        return Err(Error::denied(why));
    }
    if !policy.allow_privileged {
        privileged(spec)?;
    }
    if policy.allowed_source_roots.is_empty() {
        return Ok(());
    }
    let within = |source: &Path| {
        let real = survey.real(source);
        policy.allowed_source_roots.iter().any(|root| real.starts_with(survey.real(root)))
    };
    match spec.sources().find(|(_, source)| !within(source)) {
        None => Ok(()),
        Some((field, source)) => {
            let real = survey.real(source);
            let led = if real == source { String::new() } else { format!(" (which is {real:?})") };
            let why =
                format!("{field}: {source:?}{led} is not below one of the policy's allowed_source_roots");
            Err(Error::denied(why))
        }
    }
}

/// Refuses what can change the host by design: bidirectional mount propagation, and a writable root of hard links.
fn privileged(spec: &SandboxSpec) -> Result<()> {
    let both = spec.volumes.iter().find(|v| v.propagation == Propagation::Bidirectional);
    let what = if let Some(volume) = both {
        format!(
            "volumes: with bidirectional propagation, mounts of the task at {:?} would appear on the host",
            volume.target
        )
    } else if spec.root.populate == Method::Link && spec.root.writable {
        "root: a writable root of hard links would let the task change the host's own files".to_string()
    } else {
        return Ok(());
    };
    Err(Error::denied(format!("{what}: allow_privileged is off in this host's policy")))
}

/// A source that shows the processes of the host: a procfs, or `/`, which contains one.
pub(super) fn showing_processes<'a>(
    policy: &'a Policy,
    spec: &'a SandboxSpec,
    survey: &Survey,
) -> Option<&'a Path> {
    let by_operator = policy.chroot_env.keys().filter(|_| spec.root.chroot_env.is_empty());
    let mut all = spec.sources().map(|(_, source)| source).chain(by_operator);
    let shows = |source: &PathBuf| {
        survey.procfs.contains(source) || Path::new("/proc").starts_with(survey.real(source))
    };
    all.find(|source| shows(source)).map(PathBuf::as_path)
}

/// The sources that the task may write to, with their fields.
fn writable(spec: &SandboxSpec) -> impl Iterator<Item = (&'static str, &PathBuf)> {
    let read_only = |source: &PathBuf| spec.volumes.iter().all(|v| v.source != *source || v.read_only);
    spec.sources().filter(move |(field, source)| match *field {
        "volumes" => !read_only(source),
        "root.path" | "root.upper" | "task_dirs" => true,
        _ => false,
    })
}

/// Adds to the report what the caller's descriptors give access to.
pub(super) fn streams(streams: &[(String, Stream)], draft: &mut Draft) {
    for (name, stream) in streams {
        match stream {
            Stream::File => draft.report.weaken(
                Control::HOST_FILES,
                format!("{name} is a file of the host: the task can reopen it through /proc/self/fd, and change its mode and owner"),
            ),
            Stream::Dir => draft.report.weaken(
                Control::HOST_FILES | Control::ROOT_SWITCH,
                format!("{name} is a directory of the host: the task can leave its root through it"),
            ),
            Stream::Terminal => draft.report.note(
                Control::DEVICES,
                format!("{name} is a terminal of the host: the task can change its mode and settings"),
            ),
            Stream::Disk => draft.report.weaken(
                Control::HOST_FILES | Control::DEVICES,
                format!("{name} is a block device of the host: the task can read or write what is on it"),
            ),
            Stream::Device => draft.report.weaken(
                Control::DEVICES,
                format!("{name} is a device of the host: the task can use it as far as it is open"),
            ),
        }
    }
}

/// Adds to the report what a writable source gives access to. Refuses a source in another sandbox's temporary root.
pub(super) fn lead(
    policy: &Policy,
    spec: &SandboxSpec,
    host: &Host,
    survey: &Survey,
    draft: &mut Draft,
) -> Result<()> {
    let base = temp_dir(policy);
    let base = survey.real(&base);
    for (field, source) in writable(spec) {
        let real = survey.real(source);
        let within = real.strip_prefix(base).ok().and_then(|rest| rest.components().next());
        if within.is_some_and(|name| name.as_os_str().to_string_lossy().starts_with("cofferdam-")) {
            return Err(Error::spec(
                field,
                format!("{source:?} is in the temporary root of another sandbox"),
            ));
        }
        if base.starts_with(real) {
            let why = format!(
                "the task can write to {source:?}, which contains {base:?}, the directory of other sandboxes' temporary roots"
            );
            draft.report.weaken(Control::HOST_FILES, why);
        }
        if let Some(dir) = policy.state_dir.as_ref().filter(|dir| survey.real(dir).starts_with(real)) {
            let why = format!("the task can write to {source:?}, which contains the state_dir {dir:?}");
            draft.report.weaken(Control::EXIT_RECORD & draft.report.asked, why);
        }
        if host.cgroup_mounts().iter().any(|mount| mount.starts_with(real) || real.starts_with(mount)) {
            let why = format!(
                "the task can write to {source:?}, which contains files of the host's cgroups, with the permissions of its user"
            );
            draft.report.weaken(
                ((Control::RESOURCES | Control::DEADLINES) & draft.report.asked) | Control::KILL,
                why,
            );
        }
    }
    let can_write: Vec<&PathBuf> = writable(spec).map(|(_, source)| source).collect();
    for (_, source) in spec.sources() {
        let real = survey.real(source);
        if let Some(fs) = survey.kernel.get(source) {
            let why = format!("{source:?} exposes files of the kernel ({fs}), which are not masked there");
            draft.report.weaken(Control::MASKED_PATHS, why);
            if can_write.contains(&source) {
                let why = format!(
                    "the task can write to files of the kernel ({fs}) in {source:?}, with the permissions of its user"
                );
                draft.report.weaken(Control::HOST_FILES | Control::ROOT_SWITCH, why);
            }
        }
        if let Some(tree) =
            ["/proc", "/sys"].into_iter().find(|t| real.starts_with(t) || Path::new(t).starts_with(real))
        {
            draft.report.weaken(
                Control::MASKED_PATHS,
                format!("{source:?} exposes the host's {tree}, where sensitive files are not masked"),
            );
        }
    }
    Ok(())
}
