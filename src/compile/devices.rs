//! The devices of a task: each declaration makes a device node and a rule of the device cgroup.

use crate::cgroup::devices::{self, Access, DeviceKind, DeviceRule};
use crate::error::Result;
use crate::host::{Host, Survey};
use crate::report::{Control, Effect};
use crate::rootfs::probe::Node;
use crate::spec::{Device, SandboxSpec};
use crate::step::{Draft, OnRefusal};

/// The rules of the device cgroup. The list is empty if there is no device cgroup, and the report then says why.
///
/// # Errors
/// [`Error::Unsupported`](crate::Error::Unsupported) if the spec requires a device cgroup and the caller cannot make
/// one.
pub(super) fn rules(
    spec: &SandboxSpec,
    host: &Host,
    survey: &Survey,
    draft: &mut Draft,
) -> Result<Vec<DeviceRule>> {
    let may = |name: &str| host.held.has(name);
    let why = if spec.device_cgroup == Some(false) {
        "it is turned off in the spec"
    } else if !(may("sys_admin") || may("bpf") && may("net_admin")) {
        "the caller needs CAP_SYS_ADMIN, or CAP_BPF and CAP_NET_ADMIN"
    } else {
        let declared = spec.devices.iter().filter_map(|device| {
            let (kind, node) = node(device, survey)?;
            let (major, minor) = (Some(node.major), Some(node.minor));
            Some(DeviceRule { kind, major, minor, access: device.access })
        });
        return Ok(devices::rules(declared));
    };
    without(spec).give_up(Control::DEVICES, why, &mut draft.report)?;
    Ok(Vec::new())
}

/// What happens if there is no device cgroup: an error if the spec requires one, otherwise entries in the report.
/// Device nodes can then be opened for both reading and writing, whatever access was declared.
pub(super) fn without(spec: &SandboxSpec) -> OnRefusal {
    if spec.device_cgroup == Some(true) {
        return OnRefusal::Unsupported(Control::DEVICES, "there is no device cgroup".into());
    }
    let mounts = "enforced by nodev mounts and a read-only /dev only, without a device cgroup";
    let mut effects = vec![Effect::noted(Control::DEVICES, mounts)];
    for device in narrow(spec) {
        effects.push(Effect::weakened(Control::DEVICES, wider(device, "there is no device cgroup")));
    }
    let volumes = spec.volumes.iter().filter(|v| !v.read_only).map(|v| &v.source);
    let dirs = &spec.task_dirs;
    if let Some(dir) = volumes.chain(&dirs.alloc).chain(&dirs.local).chain(&spec.root.upper).next() {
        let why = format!(
            "without a device cgroup, a task with CAP_MKNOD can make device nodes below {dir:?} that work on the host, unless the file system is mounted nodev there"
        );
        effects.push(Effect::noted(Control::DEVICES, why));
    }
    OnRefusal::Degrade(effects)
}

/// Adds to the report the devices that the task can open for more than the declared access, because another rule of the
/// device cgroup allows it.
pub(super) fn wider_than_declared(
    spec: &SandboxSpec,
    survey: &Survey,
    rules: &[DeviceRule],
    draft: &mut Draft,
) {
    for device in narrow(spec).filter(|_| !rules.is_empty()) {
        let all = node(device, survey).map(|(kind, n)| devices::allows(rules, kind, n.major, n.minor));
        let more = all.unwrap_or_default().difference(device.access | Access::MKNOD);
        if !more.is_empty() {
            let why = "every task may use this device, or it is declared twice";
            draft.report.weaken(Control::DEVICES, wider(device, why));
        }
    }
}

fn node(device: &Device, survey: &Survey) -> Option<(DeviceKind, Node)> {
    let node = survey.nodes.get(&device.source)?;
    Some((if node.block { DeviceKind::Block } else { DeviceKind::Char }, *node))
}

/// The devices declared without read or without write access.
fn narrow(spec: &SandboxSpec) -> impl Iterator<Item = &Device> {
    spec.devices.iter().filter(|device| !device.access.contains(Access::READ | Access::WRITE))
}

fn wider(device: &Device, why: &str) -> String {
    format!("{:?} can be opened for more than \"{}\": {why}", device.place(), device.access)
}
