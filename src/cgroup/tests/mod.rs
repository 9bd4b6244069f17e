//! Tests of the whole module, and helpers that its tests share.

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::*;
use crate::report::Report;

mod calls;
mod golden;
mod limits;
mod live;
pub(super) mod stubborn;

pub(super) const MB: u64 = 1 << 20;
pub(super) const LONG: Duration = Duration::from_secs(10);

/// The host's detection; `None` if the tests cannot run here, with a message. Fails instead if CI requires it:
/// `COFFERDAM_MUST_HAVE` is a list that may contain `root`, `cgroup_v1` (limits are set through v1) and `cgroup_v2`.
pub(super) fn detected() -> Option<Detection> {
    let found = Detection::probe();
    let on = |version| found.can_limit().is_ok() && found.limits_on == version;
    let root = nix::unistd::geteuid().is_root();
    for (what, yes) in [("root", root), ("cgroup_v1", on(Version::V1)), ("cgroup_v2", on(Version::V2))] {
        assert!(yes || !crate::skip::must_have(what), "this machine must have {what}: {found:#?}");
    }
    if let Err(why) = found.can_limit() {
        crate::skip::skip(&["cgroups"], why);
        return None;
    }
    Some(found)
}

/// The host's detection. On a host with both versions, also one that has v1 only.
pub(super) fn hosts() -> Vec<Detection> {
    let Some(host) = detected() else { return Vec::new() };
    let only_v1 = Detection { v2: None, ..host.clone() };
    let both = host.v2.is_some() && host.limits_on == Version::V1;
    if both { vec![host, only_v1] } else { vec![host] }
}

/// Whether this is an emulated machine, on which everything takes 20 times as long.
pub(super) fn emulated() -> bool {
    std::env::var_os("COFFERDAM_EMULATED").is_some()
}

/// A name that the tests of other processes do not use.
pub(super) fn name_of(name: &str) -> CgroupName {
    CgroupName::new(&format!("test.{}.{name}", std::process::id())).unwrap()
}

/// The cgroups for `limits`, and the report.
pub(super) fn lowered(host: &Detection, limits: &Limits, parent: &str, name: &str) -> (Cgroups, Report) {
    let mut report = Report::default();
    let (parent, name) = (CgroupPath::new(parent).unwrap(), name_of(name));
    let cgroups = lower(&Request::new(limits, host, &parent, &name), &mut report).unwrap();
    (cgroups, report)
}

pub(super) fn cgroups(host: &Detection, limits: &Limits, parent: &str, name: &str) -> Cgroups {
    lowered(host, limits, parent, name).0
}

/// The group, and a report of what the kernel refused or changed.
pub(super) fn created(cgroups: &Cgroups) -> (Group, Report) {
    let mut report = Report::default();
    (Group::create(cgroups, &mut report).unwrap(), report)
}

pub(super) fn create(cgroups: &Cgroups) -> Group {
    created(cgroups).0
}

/// A sleeping process in the group. The test process itself must never be in it.
pub(super) fn sleeper(group: &Group) -> Child {
    let child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
    group.add(child.id()).unwrap();
    child
}

/// The cgroup that an operator's parent must be below.
pub(super) fn top(host: &Detection) -> &str {
    host.v2.as_ref().and_then(|v2| v2.top.as_deref()).unwrap_or("/").trim_end_matches('/')
}

pub(super) fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap().trim().to_owned()
}

#[track_caller]
pub(super) fn assert_gone(cgroups: &Cgroups) {
    for leaf in cgroups.leaves() {
        assert!(!leaf.exists(), "{leaf:?} is left");
    }
}

/// The file and the line of every step that writes a file.
pub(super) fn writes(cgroups: &Cgroups) -> impl Iterator<Item = (&Path, &str)> {
    cgroups.steps.iter().filter_map(|step| match &step.op {
        CgroupOp::Write { file, text } => Some((file.as_path(), text.as_str())),
        _ => None,
    })
}
