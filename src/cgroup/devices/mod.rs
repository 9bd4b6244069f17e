//! Which device nodes a task may open or make, held by the kernel whatever the node's place and mode.
//!
//! One list of [`DeviceRule`]s, [`rules`], comes of the same declaration as the nodes of the sandbox, and goes to one of
//! two places that mean the same: the files of the v1 `devices` controller, or an eBPF program on the v2
//! cgroup (`BPF_PROG_TYPE_CGROUP_DEVICE`, Linux 4.15; v2 has no files for it). Whatever is not on the list is
//! `EPERM`. A descriptor that is open already stays usable; to open it anew through `/proc/self/fd` is an open.
//!
//! The second wall, not the first: every mount of a sandbox is `nodev` and its `/dev` cannot be written. Beyond
//! those, it holds for what is mounted later, and it holds a device to reading or to writing.
//!
//! The cgroup is the task's own leaf. The program is attached once, when the leaf is made, with `BPF_F_ALLOW_MULTI`:
//! another process's program is added to it and does not replace it. It does not replace those of the cgroups above,
//! and all of them must allow an access, except one above that was attached with `BPF_F_ALLOW_OVERRIDE`, which a
//! program below replaces. The program goes with the cgroup: no descriptor of it is kept, and no file in bpffs. Devices
//! do not depend on the required controllers of limits: the program needs no controller, and the v1 hierarchy is used
//! whatever the others lack.
//!
//! What it does not do: allow `/dev/net/tun` to every task, as the `exec` driver does. Declare it as a device.
//!
//! Reference: `Documentation/admin-guide/cgroup-v1/devices.rst`, the section *Device controller* of
//! `cgroup-v2.rst`, `bpf(2)`.

pub(super) mod bpf;
#[cfg(test)]
mod live;
mod rules;

pub use rules::{Access, DeviceKind, DeviceRule, allows, rules};
