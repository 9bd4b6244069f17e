//! Device lists: which device nodes a task may open or make. The kernel enforces the list regardless of where the node
//! is and of its mode.
//!
//! One list of [`DeviceRule`]s, [`rules`](rules()), is made from the same declaration as the device nodes of the
//! sandbox. It is enforced in one of two equivalent ways: by the files of the v1 `devices` controller, or by an eBPF
//! program on the v2 cgroup (`BPF_PROG_TYPE_CGROUP_DEVICE`, Linux 4.15; v2 has no files for devices). Access to a
//! device that is not on the list fails with `EPERM`. A descriptor that is already open stays usable, but opening it
//! again through `/proc/self/fd` is checked.
//!
//! The list is the second line of defence. The first is that every mount of a sandbox is `nodev` and its `/dev` cannot
//! be written. In addition to these, the list covers file systems that are mounted later, and can restrict a device to
//! reading or to writing.
//!
//! The list applies to the task's own leaf. The program is attached once, when the leaf is made, with
//! `BPF_F_ALLOW_MULTI`: a program of another process is added to it and does not replace it. It does not replace the
//! programs of the cgroups above either, and all programs must allow an access. The exception is a program above that
//! was attached with `BPF_F_ALLOW_OVERRIDE`: a program below replaces it. The program is removed with the cgroup: no
//! descriptor of it is kept, and no file in bpffs. Device lists do not depend on the controllers that limits require:
//! the program needs no controller, and the v1 hierarchy is used even if other controllers are missing.
//!
//! Unlike the `exec` driver, the default list does not allow `/dev/net/tun`. A task that needs it must declare it as a
//! device.
//!
//! Reference: `Documentation/admin-guide/cgroup-v1/devices.rst`, the section *Device controller* of `cgroup-v2.rst`,
//! `bpf(2)`.

pub(super) mod bpf;
#[cfg(test)]
mod live;
mod rules;

pub use rules::{Access, DeviceKind, DeviceRule, allows, rules};
