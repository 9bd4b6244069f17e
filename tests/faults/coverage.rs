//! Every operation of both executors is in a plan of the matrix. Operations are listed by the declarations in the source,
//! so a new one must be added here, and to a spec.

use std::collections::BTreeSet;

use crate::Matrix;

/// Where an operation must be in a plan.
#[derive(Clone, Copy, Debug, PartialEq)]
enum On {
    Every,
    Root,
    /// In a user namespace.
    User,
    /// As root, with limits on cgroup v1.
    V1,
    /// As root, with limits on cgroup v2.
    V2,
    /// In a plan that is not printed: that of another command (the specs `exec` and `exec-terminal`), and the caller's part of
    /// one on prepared mounts, or of one that prepares them. Or for callers that may map every id without being privileged,
    /// and for a blank cpuset of v1.
    Exec,
}

/// The operations, and how the titles of their steps begin.
#[rustfmt::skip]
const OPERATIONS: [(&str, &str, On); 110] = [
    // ---- ParentOp
    ("Replace", "replace the task ", On::Every),
    ("ExitRecord", "exit record ", On::Every), ("Log", "log ", On::Every),
    ("HoldSources", "open the sources of the root", On::Every), ("TempRoot", "temporary root ", On::Every),
    ("LockUpper", "lock the upper directory ", On::Every), ("BuildRoot", "populate the root by ", On::Every),
    ("Cgroup", "open cgroup ", On::Root), ("Hand", "pass ", On::Every), ("Channel", "create a socket to init", On::Every),
    ("SealSteps", "write the steps of init", On::Every), ("SealInit", "write the program of init", On::Every),
    ("Clone", "clone, and execute init", On::Every), ("IdMaps", "write the id maps", On::User),
    ("AwaitCommand", "wait until the command runs", On::Every), ("AwaitPrepared", "", On::Exec),
    ("AwaitGate", "wait until the command can be executed", On::Every), ("LetGo", "let the command go, ", On::Every),
    ("CheckShare", "check again whether CPUs are reserved", On::V1),
    // ---- CgroupOp
    ("RemoveStale", "remove the cgroup ", On::Root), ("Make", "cgroup ", On::Root), ("Reserve", "reserve CPUs ", On::Root),
    ("JoinShare", "keep the task off reserved CPUs", On::V1), ("Hold", "open cgroup ", On::Root),
    ("HoldMemory", "open cgroup ", On::V1), ("Inherit", "", On::Exec), ("Write", "pids.max = ", On::Root),
    ("DeviceProgram", "restrict the task to the declared devices", On::V2),
    ("DeviceFiles", "restrict the task to the declared devices", On::V1),
    // ---- Handed
    ("Prepared", "", On::Exec), ("Nothing", "", On::Exec), ("Stream", "pass standard stream ", On::Every), ("Caller", "pass descriptor ", On::Every),
    ("CallerPidfd", "pass a pidfd of the caller", On::Every), ("Task", "", On::Exec), ("Cgroup", "", On::Exec),
    ("ExitRecord", "pass exit record ", On::Every), ("Log", "pass log ", On::Every),
    ("LogPipe", "pass a pipe from standard stream ", On::Every), ("Namespace", "pass namespace ", On::Root),
    ("Tree", "pass a mount tree of ", On::Root), ("Source", "pass \"", On::User), ("CpuTime", "pass \"", On::Root),
    ("Tasks", "pass cgroup ", On::V1), ("Share", "pass cgroup ", On::V1),
    // ---- Op
    ("AwaitIdMaps", "wait for the id maps", On::User), ("Session", "new session", On::Every),
    ("ResetScheduling", "reset scheduling ", On::Every), ("Become", "", On::Exec),
    ("Affinity", "reset CPU affinity ", On::Every), ("Fds", "close all descriptors ", On::Every),
    ("Join", "join ", On::Root), ("Unshare", "new ", On::Every), ("Enter", "enter the cgroup of ", On::V1),
    ("CloneInto", "", On::Exec), ("OomScore", "oom_score_adj", On::Every), ("Loopback", "bring up the loopback ", On::Every),
    ("Hostname", "host name", On::Every), ("Propagation", "stop mount propagation ", On::Every),
    ("Tree", "open \"", On::User), ("RootTmpfs", "the root is a new tmpfs", On::Every), ("RootBind", "the root is \"", On::Every),
    ("Dir", "directory ", On::Every), ("Bind", "bind ", On::Every), ("Mount", "mount ", On::Every),
    ("Symlink", "symbolic link ", On::Every), ("Node", "device ", On::Root), ("MaskSource", "empty directory for masks", On::Every),
    ("EnterPrepared", "enter a copy of the prepared mounts", On::Root),
    ("OpenPrepared", "open the mount namespace", On::Root), ("SendPrepared", "send the mount namespace", On::Root),
    ("EnterRoot", "enter the root", On::Root), ("MaskFile", "mask ", On::Every),
    ("MaskDir", "mask ", On::Every), ("Restrict", "\"", On::Every), ("Seal", "\"", On::Every),
    ("PivotRoot", "switch to the new root", On::Every), ("MoveRoot", "switch to the new root", On::Every),
    ("Rlimit", "resource limit", On::Every), ("Deadline", "deadline of the task", On::Every),
    ("CpuDeadline", "deadline of the task's CPU time", On::Root), ("ExitRecord", "exit record in ", On::Every),
    ("Log", "copy the standard streams to the log ", On::Every), ("Fork", "stay as PID 1, ", On::Every),
    ("ForkOutside", "stay outside of a new PID namespace", On::Root), ("Name", "name of the thread ", On::Root), ("ForkInside", "", On::Exec), ("Bounding", "capability bounding set", On::Every), ("Ids", "set uid, gid and groups", On::Every),
    ("Caps", "capabilities", On::Every), ("NoNewPrivs", "no new privileges", On::Every), ("Cwd", "working directory", On::Every),
    ("Umask", "umask", On::Every), ("Terminal", "pseudo-terminal", On::Every),
    ("ControllingTerminal", "controlling terminal", On::Every), ("Exec", "execute the command", On::Every), ("Null", "", On::Exec),
    ("CommonFilter", "filter of PID 1 and the task", On::Every), ("Filter", "seccomp filter", On::Every),
    ("Landlock", "Landlock domain", On::Every), ("Find", "find the command", On::Every), ("AwaitPid1", "wait until PID 1 ", On::Every),
    ("Gate", "wait until the caller lets the command go", On::Every),
    ("Upper", "the upper layer of overlays is a new tmpfs", On::Every), ("UpperBind", "the upper layer of overlays is \"", On::Every),
    ("Overlay", "overlay ", On::Every), ("Share", "bind ", On::Every), ("File", "file ", On::Every),
    ("Empty", "empty file ", On::Every), ("Write", "new file ", On::Every),
];

/// The operations that a source file declares: the names that stand at the depth of the variants of an enum.
fn declared(source: &str, begin: &str) -> Vec<String> {
    let from = source.find(begin).unwrap() + begin.len();
    let body = &source[from..from + source[from..].find("\n}").unwrap()];
    let name = |line: &str| {
        let line = line.strip_prefix("    ")?;
        let end = line.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(line.len());
        line.starts_with(|c: char| c.is_ascii_uppercase()).then(|| line[..end].to_owned())
    };
    body.lines().filter_map(name).collect()
}

#[test]
fn every_operation_is_in_a_plan_of_the_matrix() {
    let mut all = declared(include_str!("../../src/plan/parent.rs"), "pub(crate) enum ParentOp {");
    all.extend(declared(include_str!("../../src/cgroup/group/op.rs"), "pub(crate) enum CgroupOp {"));
    all.extend(declared(include_str!("../../src/step/mod.rs"), "pub(crate) enum Handed {"));
    all.extend(declared(include_str!("../../src/step/ops.rs"), "\nops! {"));
    let listed: Vec<&str> =
        OPERATIONS.iter().map(|(name, ..)| *name).filter(|name| !name.is_empty()).collect();
    let mut both = [all.iter().map(String::as_str).collect::<Vec<_>>(), listed];
    both.iter_mut().for_each(|names| names.sort_unstable());
    assert_eq!(both[0], both[1], "the list of operations is not the declared one");

    let _alone = crate::alone();
    if !crate::sandboxes() {
        return;
    }
    let matrix = Matrix::record();
    let titles: BTreeSet<&str> = matrix
        .plans
        .iter()
        .flat_map(|plan| plan.lines())
        .filter_map(|line| line.strip_prefix("# "))
        .collect();
    let host = cofferdam::Host::probe().unwrap();
    let root = host.lacking().is_empty();
    let limits = |mode| root && host.cgroups.mode == mode;
    let v1 = limits(cofferdam::cgroup::Mode::V1) || limits(cofferdam::cgroup::Mode::Hybrid);
    let missing = OPERATIONS.iter().filter(|(_, title, on)| {
        let here = match on {
            On::Every => true,
            On::Root => root && host.cgroups.can_limit().is_ok(),
            On::User => !root,
            On::V1 => v1,
            On::V2 => limits(cofferdam::cgroup::Mode::V2),
            On::Exec => return !matrix.names.contains(&"exec"),
        };
        here && !titles.iter().any(|has| has.starts_with(title))
    });
    let missing: Vec<_> = missing.collect();
    assert!(missing.is_empty(), "in no plan of the matrix: {missing:?}");
}
