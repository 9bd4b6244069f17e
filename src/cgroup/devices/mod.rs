//! Which device nodes a task may open or make, held by the kernel whatever the node's place and mode.
//!
//! One list of [`Rule`]s, [`rules`], comes of the same declaration as the nodes of the sandbox, and goes to one of
//! two places that say the same: the files of the v1 `devices` controller, or an eBPF program on the v2
//! cgroup (`BPF_PROG_TYPE_CGROUP_DEVICE`, Linux 4.15; v2 has no files for it). Whatever is not on the list is
//! `EPERM`. A descriptor that is open already stays usable; to open it anew through `/proc/self/fd` is an open.
//!
//! The second wall, not the first: every mount of a sandbox is `nodev` and its `/dev` cannot be written. Beyond
//! those, it holds for what is mounted later, and it holds a device to reading or to writing.
//!
//! The cgroup is the task's own leaf and nobody else's business. The program is attached once, while the
//! leaf is made, with `BPF_F_ALLOW_MULTI`: another writer's program is added to it and does not replace it, nor
//! does it replace those above, and all of them must agree; but for one above that was attached with
//! `BPF_F_ALLOW_OVERRIDE`, which the kernel lets every program below stand in for. It goes away with the cgroup; no descriptor of it
//! is kept, and nothing is pinned. Neither needs the limits' gate: no controller must be enabled for the program, and
//! the v1 hierarchy is used whatever the others lack.
//!
//! What it does not do: allow `/dev/net/tun` to every task, as the `exec` driver does. Declare it as a device.
//!
//! Reference: `Documentation/admin-guide/cgroup-v1/devices.rst`, the section *Device controller* of
//! `cgroup-v2.rst`, `bpf(2)`.

pub(super) mod bpf;
#[cfg(test)]
mod live;
mod rules;
pub(super) mod v1;

pub use rules::{Access, Kind, Rule, allows, rules};
