//! Tests without a kernel: a spec and a fake host give a plan, which is compared as text. Nothing is touched, so they
//! run on any machine.
//!
//! [`check`] takes the lines that a plan must have, in order, and those that it must not have. [`refused`] takes an
//! error. Every plan that a test compiles is also checked for what is true of all plans (`order.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use super::*;
use crate::cgroup::devices::Access;
use crate::cgroup::{
    CgroupOp, CgroupPath, CpuSet, Detection, Hierarchy, Mode as CgroupMode, Swap, Unified, Version,
};
use crate::ids::IdMap;
use crate::report::Require;
use crate::rootfs::private::Private;
use crate::rootfs::{FileKind, Volume};
use crate::spec::{CallerFd, Device, Fd, Resource, Rlimit, Stdio};

mod cgroups;
mod conflicts;
mod credentials;
mod devices;
mod identity;
mod landlock;
mod namespaces;
mod order;
mod populate;
mod prepare;
mod process;
mod roots;
mod sources;
mod volumes;

/// The arguments of `compile`.
#[derive(Clone)]
struct Case {
    policy: Policy,
    spec: SandboxSpec,
    host: Host,
    survey: Survey,
}

/// A command on a host on which everything works, changed by `set`.
fn case(set: impl FnOnce(&mut Case)) -> Case {
    let spec = SandboxSpec { command: "tool".into(), ..SandboxSpec::default() };
    let mut case = Case { policy: Policy::default(), spec, host: host(), survey: survey() };
    set(&mut case);
    case
}

/// A host with cgroup v2, whose caller is root.
fn host() -> Host {
    Host {
        kernel: (6, 1),
        uid: 0,
        gid: 0,
        groups: vec![0],
        supported: CapSet::up_to(40),
        held: CapSet::up_to(40),
        nested: false,
        uid_map: IdMap::identity(),
        gid_map: IdMap::identity(),
        set_groups: true,
        cgroups: v2("cpu cpuset io memory pids"),
        user_ns_forbidden: None,
        landlock_abi: 0,
        no_new_privs: false,
        mdwe: false,
        overlay: true,
        proc_options: Vec::new(),
        private: Private::listed(&[("/etc/shadow", FileKind::File), ("/etc/ssl/private", FileKind::Dir)]),
        masked: vec![("/proc/kcore".into(), FileKind::File), ("/sys/firmware".into(), FileKind::Dir)],
        read_only: vec![("/proc/sys".into(), FileKind::Dir)],
    }
}

/// A host whose caller is user 1000, to whom no cgroup is delegated. User namespaces are allowed.
fn rootless() -> Host {
    let why = "cgroup /user.slice is not delegated: its cgroup.procs cannot be written";
    let mut cgroups = v2("");
    cgroups.reason = Some(why.into());
    if let Some(v2) = &mut cgroups.v2 {
        (v2.top, v2.why) = (None, Some(why.into()));
    }
    Host { uid: 1000, gid: 1000, groups: vec![1000], held: CapSet::EMPTY, cgroups, ..host() }
}

/// A cgroup v2 tree with these controllers. Without one of the required controllers no limits can be set.
fn v2(controllers: &str) -> Detection {
    let words: std::collections::BTreeSet<String> =
        controllers.split_whitespace().map(str::to_owned).collect();
    let missing: Vec<String> =
        cgroup::V2_REQUIRED.into_iter().filter(|name| !words.contains(*name)).map(str::to_owned).collect();
    let tree = Unified {
        mount: "/sys/fs/cgroup".into(),
        own: Some("/".into()),
        top: Some("/".into()),
        controllers: words,
        enabled: ["memory".to_owned()].into(),
        why: None,
    };
    Detection {
        mode: CgroupMode::V2,
        limits_on: Version::V2,
        v2: Some(tree),
        v1: BTreeMap::new(),
        controllers: Vec::new(),
        required: cgroup::RequiredControllers::Minimal,
        asked: Control::empty(),
        reason: (!missing.is_empty())
            .then(|| format!("cgroup v2 controllers not available: {}", missing.join(", "))),
        missing,
        online: CpuSet::parse("0-3").unwrap(),
        swap: Swap { active: false, accounted: Some(true) },
    }
}

fn v1() -> Detection {
    let names = ["cpu", "cpuset", "devices", "freezer", "memory", "pids"];
    let at = |name: &str| Hierarchy { mount: format!("/sys/fs/cgroup/{name}").into(), writable: true };
    let v1 = names.into_iter().map(|name| (name.to_owned(), at(name))).collect();
    Detection {
        mode: CgroupMode::V1,
        limits_on: Version::V1,
        v2: None,
        v1,
        ..v2("cpu cpuset io memory pids")
    }
}

/// A hybrid host: the controllers are on cgroup v1, and a cgroup v2 tree has none.
fn hybrid() -> Detection {
    let mut tree = v2("").v2.unwrap();
    tree.mount = "/sys/fs/cgroup/unified".into();
    tree.enabled.clear();
    Detection { mode: CgroupMode::Hybrid, v2: Some(tree), ..v1() }
}

fn off() -> Detection {
    Detection {
        mode: CgroupMode::Off,
        v2: None,
        reason: Some("no cgroup hierarchy is mounted".into()),
        ..v2("")
    }
}

/// The paths of the fake host; the task runs as `nobody`.
fn survey() -> Survey {
    let kinds = [
        ("/", FileKind::Dir),
        ("/bin", FileKind::Dir),
        ("/dev/fuse", FileKind::Device),
        ("/etc", FileKind::Dir),
        ("/etc/hosts", FileKind::File),
        ("/etc/resolv.conf", FileKind::File),
        ("/srv/a", FileKind::Dir),
        ("/srv/b", FileKind::Dir),
        ("/srv/file", FileKind::File),
        ("/sys", FileKind::Dir),
        ("/sys/fs/cgroup", FileKind::Dir),
        ("/sys/fs/cgroup/memory", FileKind::Dir),
        ("/sys/fs/cgroups", FileKind::Dir),
        ("/usr", FileKind::Dir),
    ];
    let fuse = rootfs::probe::Node { block: false, major: 10, minor: 229 };
    Survey {
        identity: who(65534, &[65534]),
        kinds: kinds.into_iter().map(|(path, kind)| (path.into(), Some(kind))).collect(),
        sources: BTreeMap::new(),
        nodes: [("/dev/fuse".into(), fuse)].into(),
        unseen: BTreeMap::new(),
        network: Ok(true),
        namespace: None,
        noexec: BTreeSet::new(),
        streams: Vec::new(),
        owners: BTreeMap::new(),
        real: BTreeMap::new(),
        skip: Vec::new(),
        procfs: BTreeSet::new(),
        kernel: BTreeMap::new(),
        own_network: false,
        users: None,
        real_time: false,
        mounts: BTreeMap::new(),
        resolv_conf: "nameserver 10.0.0.1\n".into(),
        served: false,
        looked: BTreeSet::new(),
    }
}

/// An identity whose first group is the primary one.
fn who(uid: u32, groups: &[u32]) -> Identity {
    Identity { uid, gid: groups[0], groups: groups.to_vec(), name: None, home: None }
}

fn capabilities(names: &[&str]) -> CapSet {
    CapSet::from_names(names).unwrap()
}

/// Parses a mode; `None` if `text` is empty.
fn mode(text: &str) -> Option<IsolationMode> {
    (!text.is_empty()).then(|| text.parse().unwrap())
}

fn caller_fd(number: i32) -> CallerFd {
    serde_json::from_value(number.into()).unwrap()
}

fn strings(items: &[&str]) -> Vec<String> {
    items.iter().map(|item| (*item).to_owned()).collect()
}

/// The compiled plan, or the error as `variant: message`.
fn compiled(case: &Case) -> Result<Plan, String> {
    match compile(&case.policy, &case.spec, &case.host, &case.survey, "box", Part::Whole) {
        Ok(compiled) => {
            order::holds(case, &compiled);
            Ok(compiled)
        }
        Err(error) => {
            let variant = match &error {
                Error::Spec { field, .. } => format!("spec {field}"),
                Error::Denied { .. } => "denied".to_owned(),
                Error::Unsupported { .. } => "unsupported".to_owned(),
                other => panic!("compile touches nothing, so it cannot fail at {other:?}"),
            };
            Err(format!("{variant}: {error}"))
        }
    }
}

fn text(plan: &Plan) -> String {
    format!("{plan}# report\n{}", plan.report)
}

/// Compares the plan with `expected`. Each line of `expected` must be in the plan, in this order; `...` at the end of a
/// line stands for any text. The text after `! ` must not be in any line of the plan.
#[track_caller]
fn check(case: &Case, expected: &str) -> Plan {
    let plan = compiled(case).unwrap();
    let text = text(&plan);
    // The undo steps are compared in `golden/`.
    let (before, after) = text.split_once("# release").unwrap();
    let text = format!("{before}{}", &after[after.find("# report").unwrap()..]);
    let mut rest = text.lines().map(str::trim);
    for line in expected.lines().map(str::trim).filter(|line| !line.is_empty()) {
        if let Some(absent) = line.strip_prefix("! ") {
            assert!(!text.contains(absent), "unexpected {absent:?} in\n{text}");
        } else {
            let matches = |found: &str| match line.strip_suffix("...") {
                // The phases of steps are compared in `golden/`.
                Some(front) => found.starts_with(front),
                None => found.replace(" (prepare)", "").replace(" (enter)", "") == line,
            };
            assert!(rest.any(matches), "no {line:?}, or not in its place, in\n{text}");
        }
    }
    plan
}

/// Compares the error with `expected`, which is `variant: message`.
#[track_caller]
fn refused(case: &Case, expected: &str) {
    match compiled(case) {
        Ok(compiled) => panic!("expected {expected:?}, got\n{compiled}"),
        Err(error) => assert_eq!(error, expected),
    }
}

/// Compares three whole plans with `golden/`; the third has nearly everything that a spec can ask for.
/// `COFFERDAM_BLESS=1` writes the files anew: read the diff.
#[test]
fn whole_plans() {
    let user = case(|c| {
        c.host = rootless();
        c.survey.identity =
            Identity { name: Some("ann".into()), home: Some("/home/ann".into()), ..who(7, &[7]) };
    });
    for (case, name, expected) in [
        (case(|c| c.host.landlock_abi = 7), "root", include_str!("golden/root.txt")),
        (user, "rootless", include_str!("golden/rootless.txt")),
        (everything(), "everything", include_str!("golden/everything.txt")),
    ] {
        let found = text(&compiled(&case).unwrap());
        if std::env::var_os("COFFERDAM_BLESS").is_some() {
            let path = format!("{}/src/compile/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
            std::fs::write(path, &found).unwrap();
            continue;
        }
        assert!(found == expected, "another plan than in golden/:\n{found}");
    }
}

/// A linked root on a host with cgroup v1, with a joined network, limits and volumes.
fn everything() -> Case {
    use crate::rootfs::{Dns, HostsEntry, Propagation, Secrets, TaskDirs};
    let volume = |source: &str, target: &str, read_only, propagation| Volume {
        source: source.into(),
        target: target.into(),
        read_only,
        propagation,
    };
    case(|c| {
        c.host.cgroups = v1();
        c.policy.allow_caps = Some(strings(&["all"]));
        c.policy.cgroup_parent = CgroupPath::new("/ops").unwrap();
        c.policy.temp_dir = Some("/var/tmp".into());
        c.policy.allow_privileged = true;
        c.survey.identity = who(1000, &[100, 27]);
        let spec = &mut c.spec;
        spec.id = Some("job-1.web".into());
        spec.args = vec!["-v".into(), "".into()];
        spec.env = [("A".into(), "1".into())].into();
        spec.work_dir = Some("/work".into());
        spec.network = Network::Path("/run/netns/web".into());
        spec.hostname = Some("web-1".into());
        spec.cgroup_namespace = Some(true);
        spec.cap_add = strings(&["net_admin"]);
        spec.root.populate = Method::Link;
        spec.task_dirs = TaskDirs {
            alloc: Some("/srv/a".into()),
            local: Some("/srv/b".into()),
            secrets: Some(Secrets {
                size: Some(4096),
                files: [("token".to_owned(), "s3cr3t".to_owned())].into(),
            }),
            tmp: Some(1 << 20),
        };
        spec.dns = Some(Dns { searches: strings(&["example"]), ..Dns::default() });
        let entry = HostsEntry { address: "10.0.0.7".into(), names: strings(&["db"]) };
        spec.hosts = Some(vec![entry]);
        spec.volumes = vec![
            volume("/srv/a", "/a", false, Propagation::Bidirectional),
            volume("/srv/b", "/b", true, Propagation::HostToTask),
            volume("/srv/file", "/etc/file", false, Propagation::Private),
        ];
        spec.devices = vec![Device { access: Access::READ, ..Device::new("/dev/fuse") }];
        spec.limits.memory = Some(64 << 20);
        spec.limits.pids_max = Some(10);
        spec.rlimits = [(Resource::Nofile, Rlimit { soft: Some(64), hard: None })].into();
        spec.umask = 0o077;
        spec.fds = vec![Fd::new(caller_fd(40), 9)];
    })
}

/// The operation that populates the root.
fn build(plan: &Plan) -> rootfs::work::BuildRoot {
    let build = plan.parent.iter().find_map(|step| match &step.op {
        ParentOp::BuildRoot(build) => Some(build),
        _ => None,
    });
    build.unwrap().as_ref().clone()
}

/// The rules of the device cgroup.
fn device_rules(plan: &Plan) -> Vec<String> {
    let rules = plan.parent.iter().find_map(|step| match &step.op {
        ParentOp::Cgroup(CgroupOp::DeviceProgram { rules, .. } | CgroupOp::DeviceFiles { rules, .. }) => {
            Some(rules)
        }
        _ => None,
    });
    rules.into_iter().flatten().map(ToString::to_string).collect()
}
