//! The devices of a task: one declaration makes its nodes and the list of the device cgroup.

use crate::cgroup::Layout;
use crate::cgroup::devices::{self, Access, Kind, Rule};
use crate::error::{Error, Result};
use crate::host::{Host, Survey};
use crate::report::{Control, Report};
use crate::rootfs::Device;
use crate::rootfs::probe::Node;
use crate::spec::SandboxSpec;

const BY_V1: &str = "all but the declared ones are refused by the devices controller of cgroup v1 too, and not only by \
                     nodev mounts and a sealed /dev";
const BY_BPF: &str = "all but the declared ones are refused by an eBPF program on the cgroup too, and not only by nodev \
                      mounts and a sealed /dev";

/// The list of the device cgroup, or why there is to be none.
pub(super) fn rules(spec: &SandboxSpec, host: &Host, survey: &Survey) -> Result<Vec<Rule>, String> {
    if spec.device_cgroup == Some(false) {
        return Err("the spec turns it off".into());
    }
    let may = |name: &str| host.held.has(name);
    let able = may("sys_admin") || (may("bpf") && may("net_admin"));
    if !able {
        return Err("the caller lacks sys_admin".into());
    }
    let declared = spec.devices.iter().filter_map(|device| {
        let (kind, node) = node(device, survey)?;
        let (major, minor) = (Some(node.major), Some(node.minor));
        Some(Rule { kind, major, minor, access: access(device) })
    });
    Ok(devices::rules(declared))
}

fn node(device: &Device, survey: &Survey) -> Option<(Kind, Node)> {
    let node = survey.nodes.get(&device.source)?;
    Some((if node.block { Kind::Block } else { Kind::Char }, *node))
}

fn access(device: &Device) -> Access {
    Access::parse(&device.permissions).unwrap_or_default()
}

/// Says by which means devices are held. `missing` is why no filter could be laid out, where there is none.
///
/// # Errors
/// [`Error::Unsupported`] if there must be one.
pub(super) fn tell(
    spec: &SandboxSpec,
    survey: &Survey,
    rules: &[Rule],
    layout: &Layout,
    missing: Option<&str>,
    report: &mut Report,
) -> Result<()> {
    if let Some(why) = missing {
        return unfiltered(spec, why, report);
    }
    report.note(Control::DEVICES, if layout.devices.is_empty() { BY_V1 } else { BY_BPF });
    for device in narrow(spec) {
        let all = node(device, survey).map(|(kind, n)| devices::allows(rules, kind, n.major, n.minor));
        let more = all.unwrap_or_default().difference(access(device) | Access::MKNOD);
        if !more.is_empty() {
            let why = "every task has that device, or it is declared twice";
            report.weaken(Control::DEVICES, wider(device, why));
        }
    }
    Ok(())
}

/// Says that there is no device cgroup: nodes are bound whole, for reading and writing.
///
/// # Errors
/// [`Error::Unsupported`] if there must be one.
pub(crate) fn unfiltered(spec: &SandboxSpec, why: &str, report: &mut Report) -> Result<()> {
    if spec.device_cgroup == Some(true) {
        let reason = format!("there is no device cgroup: {why}");
        return Err(Error::Unsupported { control: Control::DEVICES, reason });
    }
    report.reasons.retain(|r| r.control != Control::DEVICES || (r.why != BY_V1 && r.why != BY_BPF));
    report.note(
        Control::DEVICES,
        format!("held by nodev mounts and a sealed /dev, by no device cgroup: {why}"),
    );
    for device in narrow(spec) {
        report.weaken(Control::DEVICES, wider(device, "there is no device cgroup"));
    }
    let volumes = spec.volumes.iter().filter(|v| !v.read_only).map(|v| &v.source);
    let dirs = &spec.task_dirs;
    if let Some(dir) = volumes.chain(&dirs.alloc).chain(&dirs.local).chain(&spec.root.upper).next() {
        let why = format!(
            "a node that a task with CAP_MKNOD makes below {dir:?} works on the host, unless its file system is mounted nodev there"
        );
        report.note(Control::DEVICES, why);
    }
    Ok(())
}

/// Devices that are not to be opened for both reading and writing.
fn narrow(spec: &SandboxSpec) -> impl Iterator<Item = &Device> {
    spec.devices.iter().filter(|device| !access(device).contains(Access::READ | Access::WRITE))
}

fn wider(device: &Device, why: &str) -> String {
    format!("{:?} can be opened for more than {:?}: {why}", device.target, device.permissions)
}
