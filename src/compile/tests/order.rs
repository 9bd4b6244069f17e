//! What is true of every plan, whatever the spec and the host: the order of its steps, its report, its wire.

use super::*;
use crate::step::wire::{Field, Program};

/// The names of the operations of a plan, in order.
fn names(plan: &Plan) -> Vec<String> {
    let name = |step: &Step| {
        let debug = format!("{:?}", step.op().unwrap());
        debug.split(|c: char| !c.is_alphanumeric()).next().unwrap_or_default().to_owned()
    };
    plan.init.iter().map(name).collect()
}

/// Asserts everything that this page says.
#[track_caller]
pub(super) fn holds(case: &Case, compiled: &Compiled) {
    let plan = &compiled.plan;
    report(case, plan);
    once_and_in_order(plan);
    nothing_before_its_time(plan);
    descriptors(plan);
    survives_the_wire(plan);
    assert_eq!(plan.maps.is_some(), plan.namespaces & libc::CLONE_NEWUSER.cast_unsigned() != 0);
    assert_eq!(plan.reaper, names(plan).contains(&"Fork".to_owned()));
}

fn report(case: &Case, plan: &Plan) {
    let r = &plan.report;
    assert_eq!(r.asked, r.enforced | r.weakened | r.missing, "{r}");
    for (a, b) in [(r.enforced, r.weakened), (r.enforced, r.missing), (r.weakened, r.missing)] {
        assert!(!a.intersects(b), "two of the three have {}:\n{r}", a & b);
    }
    for control in (r.weakened | r.missing).iter() {
        assert!(!r.why(control).is_empty(), "nothing is said about {control}:\n{r}");
    }
    for reason in &r.reasons {
        assert!(!reason.control.is_empty() && !reason.why.is_empty(), "{reason:?}");
    }
    let always = Control::MOUNT_NS | Control::ROOT_SWITCH | Control::HOST_FILES | Control::MASKED_PATHS;
    let always =
        always | Control::DEVICES | Control::IDS | Control::CAPS | Control::OOM_SCORE | Control::KILL;
    assert!(r.asked.contains(always), "{r}");
    assert!(r.asked.contains(case.spec.limits.asked()), "{r}");
    // What is lost with an optional step must have a place in the report.
    for step in plan.init.iter().filter(|step| step.optional) {
        assert!(!step.control.is_empty() && r.asked.contains(step.control), "{}", step.title());
    }
}

/// Where each of these stands, it stands once, and before the next.
fn once_and_in_order(plan: &Plan) {
    let names = names(plan);
    for order in [
        &["AwaitIdMaps", "OomScore", "Session", "Ordinary", "Fds", "Hostname", "Affinity", "Propagation"][..],
        // No real-time process enters a cgroup without real-time budget; and a cpuset narrows whoever enters it.
        &["Ordinary", "Enter", "Affinity"],
        &["Fds", "Join", "Propagation"],
        &["Fds", "Loopback", "Propagation"],
        &["AwaitIdMaps", "Become", "Propagation", "RootTmpfs", "Seal", "PivotRoot", "Fork", "Bounding"],
        &["Propagation", "RootBind", "Seal", "MoveRoot", "Fork", "Bounding"],
        // Dropping from the bounding set takes CAP_SETPCAP, and changing ids the other capabilities.
        &["Bounding", "Ids", "Caps", "NoNewPrivs", "Cwd", "Umask", "Find", "Exec"],
        // Both are loaded with no_new_privs or CAP_SYS_ADMIN; the domain first, as a filter may refuse it.
        &["Fork", "Landlock", "Filter", "Exec"],
        // What neither PID 1 nor the task needs both are without.
        &["PivotRoot", "NoUserNamespaces", "Fork"],
        &["MoveRoot", "NoUserNamespaces", "Fork"],
    ] {
        let at: Vec<usize> = order.iter().filter_map(|name| names.iter().position(|n| n == name)).collect();
        assert!(at.is_sorted(), "{order:?} in {names:?}");
    }
    let count = |of: &[&str]| names.iter().filter(|name| of.contains(&name.as_str())).count();
    for of in [
        &["Session"][..],
        &["Ordinary"],
        &["Affinity"],
        &["Fds"],
        &["Propagation"],
        &["RootTmpfs", "RootBind"],
        &["PivotRoot", "MoveRoot"],
        &["Bounding"],
        &["Ids"],
        &["Caps"],
        &["Cwd"],
        &["Find"],
        &["Umask"],
        &["Exec"],
    ] {
        assert_eq!(count(of), 1, "{of:?} in {names:?}");
    }
    for at_most_once in [
        "AwaitIdMaps",
        "OomScore",
        "Become",
        "Join",
        "Loopback",
        "Hostname",
        "Unshare",
        "Fork",
        "NoNewPrivs",
        "Null",
        "NoUserNamespaces",
        "Filter",
        "Landlock",
        "Upper",
    ] {
        assert!(count(&[at_most_once]) <= 1, "{at_most_once} in {names:?}");
    }
    assert_eq!(names.last().map(String::as_str), Some("Exec"));
    // The task's filter is the last before it, or comes before the capabilities that loading it takes are gone.
    if let Some(filter) = names.iter().position(|name| name == "Filter") {
        let next = names.get(filter.saturating_add(1)).map(String::as_str);
        let last = names.contains(&"NoNewPrivs".to_owned());
        assert_eq!(next, Some(if last { "Exec" } else { "Bounding" }), "{names:?}");
    }
    assert_eq!(names.first().is_some_and(|name| name == "AwaitIdMaps"), plan.maps.is_some());
}

/// Steps of which there can be many: between which others each of them stands.
fn nothing_before_its_time(plan: &Plan) {
    let names = names(plan);
    let at = |wanted: &[&str]| names.iter().position(|name| wanted.contains(&name.as_str())).unwrap();
    let (fds, propagation) = (at(&["Fds"]), at(&["Propagation"]));
    let (root, switch) = (at(&["RootTmpfs", "RootBind"]), at(&["PivotRoot", "MoveRoot"]));
    let (seal, bounding) = (at(&["Seal"]), at(&["Bounding"]));
    let sealed = |step: &Step| match step.op().unwrap() {
        Op::Seal { path, .. } => Some(path.bytes().to_vec()),
        _ => None,
    };
    let sealed: Vec<Vec<u8>> = plan.init.iter().filter_map(sealed).collect();
    assert!(sealed == [b"/dev".to_vec()] || sealed == [b"/dev".to_vec(), b"/".to_vec()], "{sealed:?}");
    // Between the seals and the switch only the streams that become the sealed /dev's own null device.
    let null = names.iter().filter(|name| *name == "Null").count();
    assert_eq!(seal.saturating_add(sealed.len()).saturating_add(null), switch, "{names:?}");
    let proc = plan.init.iter().position(|step| {
        let target = match step.op().unwrap() {
            Op::Bind { target, .. } | Op::Mount { target, .. } => target.bytes(),
            _ => b"",
        };
        target == b"/proc"
    });
    let dev = plan.init.iter().position(|step| match step.op().unwrap() {
        Op::Mount { target, .. } => target.bytes() == b"/dev",
        _ => false,
    });
    let upper = names.iter().position(|name| name == "Upper");
    for (i, (name, step)) in names.iter().zip(&plan.init).enumerate() {
        let (from, to) = match name.as_str() {
            // Before the mounts of the host are slaves, or they would be slaves too.
            "Tree" => (fds, propagation),
            "Enter" | "Unshare" => (fds, propagation),
            "Dir" | "Empty" | "Bind" | "Mount" | "Share" => (root, switch),
            // The root covers it.
            "Upper" => (propagation, root),
            "Overlay" => (upper.unwrap_or(root), switch),
            // Made in /dev, or in a file system of the sandbox's own.
            "File" | "Write" => (dev.unwrap(), seal),
            // Nothing can be made in /dev once it is sealed.
            "Symlink" | "Node" => (root, seal),
            // What is covered must be there, and /dev/null to cover it with.
            "MaskFile" | "MaskDir" | "Restrict" => (root, seal),
            // In the task, not in the init that stays.
            "Rlimit" => (names.iter().position(|name| name == "Fork").unwrap_or(switch), bounding),
            _ => continue,
        };
        assert!(from < i && i < to, "{name} at {i}, not between {from} and {to}: {names:?}");
        // What the root is populated with is masked at once, and what the kernel shows once it is mounted.
        let kernels = match step.op().unwrap() {
            Op::MaskFile { path } | Op::MaskDir { path } => {
                path.bytes().starts_with(b"/proc/") || path.bytes().starts_with(b"/sys/")
            }
            _ => false,
        };
        if kernels {
            assert!(proc.is_some_and(|proc| proc < i), "{name} before /proc: {names:?}");
        }
    }
    let last = |wanted: &str| names.iter().rposition(|name| name == wanted);
    // A cgroup namespace is rooted where its maker is.
    if let (Some(enter), Some(unshare)) = (last("Enter"), last("Unshare")) {
        assert!(enter < unshare, "{names:?}");
    }
    // A device of the spec's is bound into /dev before it is sealed.
    for (i, step) in plan.init.iter().enumerate() {
        if let Op::Bind { target, .. } | Op::Mount { target, .. } = step.op().unwrap() {
            assert!(!target.bytes().starts_with(b"/dev") || i < seal, "{}", step.title());
        }
    }
}

/// Steps name descriptors that are handed over; each is used up once. A source is made a tree of before anything of
/// the sandbox is mounted, by init where the parent may not.
fn descriptors(plan: &Plan) {
    let mut used = Vec::new();
    let mut trees = Vec::new();
    let mut mounting = false;
    let handed = |fd: u32| &plan.handed[usize::try_from(fd).unwrap()];
    for step in &plan.init {
        match step.op().unwrap() {
            Op::Fds { map } => {
                used.extend(map.iter().map(|dup| dup.from));
                let to: Vec<u32> = map.iter().map(|dup| dup.to).collect();
                assert!(to.starts_with(&[0, 1, 2]) && to.is_sorted_by(|a, b| a < b), "{to:?}");
            }
            Op::Join { fd, .. } | Op::Enter { fd, .. } | Op::Fork { caller: fd, .. } => used.push(fd),
            Op::Tree { fd, .. } => {
                assert!(!mounting && matches!(handed(fd), Handed::Source(_)), "{}", step.title());
                trees.push(fd);
            }
            Op::Propagation { .. } => mounting = true,
            Op::Bind { fd, .. }
            | Op::RootBind { fd, .. }
            | Op::UpperBind { fd, .. }
            | Op::Overlay { fd, .. } => {
                let whole = match handed(fd) {
                    Handed::Tree { recursive, .. } => *recursive,
                    Handed::Source(_) => {
                        let tree = plan.init.iter().find_map(|step| match step.op().unwrap() {
                            Op::Tree { fd: of, recursive, .. } if of == fd => Some(recursive),
                            _ => None,
                        });
                        assert!(trees.contains(&fd), "{}", step.title());
                        tree.unwrap()
                    }
                    other => panic!("{other:?} is no tree: {}", step.title()),
                };
                let layer = matches!(step.op().unwrap(), Op::UpperBind { .. } | Op::Overlay { .. });
                assert_eq!(whole, !layer, "{}", step.title());
                used.push(fd);
            }
            _ => {}
        }
    }
    used.sort_unstable();
    let all: Vec<u32> = (0..u32::try_from(plan.handed.len()).unwrap()).collect();
    assert_eq!(used, all, "{:?}", plan.handed);
}

/// What init decodes is what was planned.
fn survives_the_wire(plan: &Plan) {
    let numbers: Vec<u32> = (0..).take(plan.handed.len()).collect();
    let bytes = plan.encode(77, &numbers);
    let program = Program::decode(&mut bytes.as_slice()).unwrap();
    assert_eq!((program.status, program.fds.len()), (77, plan.handed.len()));
    assert_eq!(program.steps.len(), plan.init.len());
    for (sent, planned) in program.steps.iter().zip(&plan.init) {
        assert_eq!((sent.optional, Some(sent.op)), (planned.optional, planned.op()));
        assert!(!planned.title().is_empty() && planned.calls().iter().all(|line| !line.is_empty()));
    }
}
