//! Turns the root into steps of init, in the order in which init runs them: clones of the host's mount trees, mount
//! propagation, the file system that overlays write to, the root, its sources, `/tmp`, `/dev`, `/proc` and `/sys`, the
//! task's directories, volumes, devices, generated files, the working directory, the read-only `/dev`, masks, standard
//! streams on `/dev/null`, and `pivot_root(2)`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::populate::Method;
use super::probe::Owner;
use super::{FileKind, Propagation, Root, TaskDirs, Volume};
use crate::report::Control;
use crate::step::wire::{Blob, FileType, Op};
use crate::step::{
    ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, ATTR_STRICTATIME, Draft, Encoded, Enter, Handed,
    InitStep, MS_PRIVATE, MS_SHARED, MS_SLAVE, Phase, path, text,
};

mod dirs;
mod populated;

pub(crate) use populated::layer_name;

/// One source of the root, a file or directory of the host, and its destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootEntry {
    pub source: PathBuf,
    /// `source` without symbolic links.
    pub real: PathBuf,
    /// Absolute path in the sandbox.
    pub target: PathBuf,
    pub kind: FileKind,
    /// Mode and owner of the source, which the top of an overlay's upper layer gets.
    pub owner: Owner,
    /// The topmost mount points of the host below the source, relative to it.
    pub submounts: Vec<(PathBuf, FileKind)>,
    /// Directories below the source, relative to it, that are left empty.
    pub skip: Vec<PathBuf>,
}

/// Everything that the steps of a root depend on, resolved and decided.
pub(crate) struct RootRequest<'a> {
    /// The root as the spec declares it.
    pub root: &'a Root,
    /// The directory of the host that becomes the root; `None` for a tmpfs.
    pub dir: Option<&'a Path>,
    /// Maps each path of the spec to the path without symbolic links, if the two differ.
    pub real: &'a BTreeMap<PathBuf, PathBuf>,
    /// The chosen method, never `auto`.
    pub method: Method,
    /// Sources of the root, parents before children.
    pub entries: &'a [RootEntry],
    /// The task's directories.
    pub task_dirs: &'a TaskDirs,
    /// User and group id of the task.
    pub user: (u32, u32),
    /// Whether init changes to the task's user before it mounts anything. It must if the user namespace maps the task's
    /// ids and not the caller's.
    pub becomes: bool,
    /// Why `/secrets` may be written to swap; `None` if it cannot be.
    pub swappable: Option<&'a str>,
    /// Files that are generated for the sandbox: path in it and content.
    pub files: &'a [(&'static str, String)],
    /// Volumes, each with the type of its source.
    pub volumes: &'a [(Volume, FileKind)],
    /// Device nodes of the host that the spec adds: path on the host and path in the sandbox.
    pub devices: &'a [(&'a Path, &'a Path)],
    /// The task's working directory. Made if it does not exist.
    pub work_dir: Option<&'a Path>,
    /// Sensitive paths below `/proc` and `/sys` that are masked.
    pub masked: &'a [(PathBuf, FileKind)],
    /// Options of the host's `/proc`, for a new procfs of the same PID namespace.
    pub proc_options: &'a [(String, String)],
    /// Files and directories of the sources that are covered, because other users may not read them on the host.
    pub private: &'a [(PathBuf, FileKind)],
    /// Destination of the source that is an idmapped mount in which no file has an owner.
    pub unowned: Option<&'a Path>,
    /// Sensitive paths below `/proc` that become read-only.
    pub read_only: &'a [(PathBuf, FileKind)],
    /// The standard streams that are `/dev/null`: bit N for descriptor N.
    pub null: u8,
    /// The root is entered by `pivot_root(2)`. Otherwise by `chroot(2)`.
    pub pivot: bool,
    /// The caller may mount without a user namespace.
    pub privileged: bool,
    /// The caller may make device nodes. Otherwise the host's nodes are bind-mounted.
    pub nodes: bool,
    /// The sandbox has its own PID namespace.
    pub own_pid: bool,
    /// PID 1 of that namespace is a process of init, not of the task.
    pub pid1: bool,
    /// The task may make user namespaces, whose id maps it writes in `/proc`.
    pub user_namespaces: bool,
    /// The sandbox has its own IPC namespace.
    pub own_ipc: bool,
    /// The network namespace is new.
    pub new_net: bool,
    /// The network namespace is the caller's.
    pub host_net: bool,
    /// Mounts of host files are `nosuid`.
    pub nosuid: bool,
    /// Steps that are the same for every task may run once per sandbox ([`Phase::Prepare`]).
    pub prepares: bool,
    /// Which mounts the steps make.
    pub part: Part,
}

/// The mounts of a root that a list of steps makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// All mounts, for one task.
    Whole,
    /// The mounts that are the same for every task of the sandbox, and a mount point for each other mount. They are made in
    /// the prepared mount namespace.
    Common,
}

impl RootRequest<'_> {
    fn attrs(&self, more: u64) -> u64 {
        ATTR_NODEV | more | if self.nosuid { ATTR_NOSUID } else { 0 }
    }

    /// Whether `/sys` is bind-mounted from the host. A caller without privileges may mount a new sysfs only in a new
    /// network namespace.
    fn binds_sys(&self) -> bool {
        !self.privileged && !self.new_net
    }

    /// Whether a cgroup file system is visible in the sandbox. `cgroup_mounts` are the host's mount points of such file
    /// systems.
    pub(crate) fn shows_cgroups(&self, cgroup_mounts: &[PathBuf]) -> bool {
        let sources = || {
            let volumes = self.volumes.iter().map(|(v, _)| v.source.as_path());
            let bound = self.entries.iter().filter(|_| self.mounts()).map(|e| e.source.as_path());
            volumes.chain(bound).chain(self.task_dirs.binds().map(|(source, _)| source))
        };
        let sys = self.binds_sys().then_some(Path::new("/sys"));
        let real = |s: &Path| self.real.get(s).map_or_else(|| s.to_path_buf(), PathBuf::clone);
        let shows = |s: &Path| cgroup_mounts.iter().any(|m| m.starts_with(s) || s.starts_with(m));
        sources().chain(sys).any(|source| shows(&real(source)))
    }

    fn tmpfs_size(&self) -> u64 {
        self.root.tmpfs_size.unwrap_or(SIZE_DEFAULT)
    }

    /// Whether the sources are mounted in the root, and not linked or copied.
    fn mounts(&self) -> bool {
        matches!(self.method, Method::Bind | Method::Overlay)
    }

    /// Whether the root contains hard links to the host's files that must not be written.
    fn restricts(&self) -> bool {
        self.method == Method::Link && !self.root.writable
    }

    /// Whether an entry of the map puts such hard links into `/` itself. Other directories become read-only by a bind
    /// mount on themselves. That is not possible for `/`: its own mount becomes read-only, after all mount points are
    /// created. So does a tmpfs root of bind mounts: nothing in it is for the task to write.
    fn seals_root(&self) -> bool {
        self.restricts() && self.entries.iter().any(|e| e.target == Path::new("/")) || self.is_bare()
    }

    /// Whether the root is a tmpfs that contains only mount points, and links and directories that init makes.
    pub(crate) fn is_bare(&self) -> bool {
        self.dir.is_none() && self.method == Method::Bind
    }
}

const SIZE_DEFAULT: u64 = 64 << 20;
const NO: u64 = ATTR_NOSUID | ATTR_NODEV | ATTR_NOEXEC;
/// Attributes of a bind-mounted device node. Read-only protects its mode and owner; the device can still be written to.
const DEVICE: u64 = ATTR_NOSUID | ATTR_NOEXEC | ATTR_RDONLY;
/// Name, major and minor number of the devices of every task.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 6] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// Collects the steps of a root.
pub(crate) struct Steps<'a> {
    req: &'a RootRequest<'a>,
    draft: &'a mut Draft,
    /// Steps that clone mount trees, if the caller may not clone them itself. They come before all other steps.
    trees: Vec<InitStep>,
    steps: Vec<InitStep>,
    /// Mount points of the mounts that each task has of its own.
    own: Vec<PathBuf>,
}

impl Steps<'_> {
    fn push(&mut self, step: InitStep) {
        self.steps.push(step);
    }

    /// Adds a step for each task. The mount that it makes at `at` may contain what the task writes, or depend on the task.
    fn own(&mut self, at: &Path, kind: FileKind, make: impl FnOnce(&mut Self) -> InitStep) {
        if self.req.part == Part::Whole {
            let step = make(self);
            self.push(step);
        } else if !self.is_own(at) {
            self.point(at, kind);
        }
        if self.req.prepares {
            self.own.push(at.to_path_buf());
        }
    }

    /// Adds a step for each task, on a file of one of its own mounts.
    fn own_step(&mut self, make: impl FnOnce(&mut Self) -> InitStep) {
        if self.req.part == Part::Whole {
            let step = make(self);
            self.push(step);
        }
    }

    /// Adds a step that is the same for every task of the sandbox and makes nothing that a task can write to. It runs for
    /// each task if `at` is in a mount of the task's own.
    fn common(&mut self, at: &Path, make: impl FnOnce(&mut Self) -> InitStep) {
        if self.is_own(at) {
            self.own_step(make);
        } else {
            let step = make(self);
            let phase = if self.req.prepares { Phase::Prepare } else { Phase::Build };
            self.push(step.in_phase(phase));
        }
    }

    /// Whether `at` is at or below a mount of the task's own.
    fn is_own(&self, at: &Path) -> bool {
        self.own.iter().any(|own| at.starts_with(own))
    }

    /// Adds the step that makes a mount point.
    fn point(&mut self, at: &Path, kind: FileKind) {
        let path = path(at);
        let op = if kind == FileKind::Dir { Op::Dir { path, mode: 0o755 } } else { Op::Empty { path } };
        self.push(InitStep::new(Control::MOUNT_NS, op));
    }

    /// Returns the index, in the table of descriptors, of a detached clone of the mount tree at `source`. The clone is
    /// made before anything of the sandbox is mounted. A privileged caller makes it in its own mount namespace.
    /// Otherwise init makes it from the path, and refuses a path that does not lead to the file that the caller holds
    /// open.
    fn tree(&mut self, source: &Path, recursive: bool) -> u32 {
        if self.req.privileged {
            return self.draft.hand(Handed::Tree { source: source.into(), recursive, unowned: false });
        }
        let fd = self.draft.hand(Handed::Source(source.into()));
        let real = self.req.real.get(source).map_or(source, PathBuf::as_path);
        let op = Op::Tree { fd, source: path(real), recursive };
        self.trees.push(InitStep::new(Control::MOUNT_NS, op));
        fd
    }

    /// Adds a bind mount of the task's own.
    fn bind(
        &mut self,
        control: Control,
        source: (&Path, FileKind),
        target: &Path,
        attrs: u64,
        propagation: u64,
    ) {
        let (_, kind) = source;
        self.own(target, kind, |steps| steps.bound(control, source, target, attrs, propagation));
    }

    /// Adds a bind mount that every task has in its root. `attrs` must make it read-only.
    fn bind_common(&mut self, control: Control, source: (&Path, FileKind), target: &Path, attrs: u64) {
        self.common(target, |steps| steps.bound(control, source, target, attrs, MS_PRIVATE));
    }

    /// Adds such a bind mount of a directory, in which no file has an owner.
    fn bind_unowned(&mut self, source: &Path, target: &Path, attrs: u64) {
        let handed = Handed::Tree { source: source.into(), recursive: true, unowned: true };
        self.common(target, |steps| {
            let fd = steps.draft.hand(handed);
            let control = Control::HOST_FILES;
            attach(control, (source, FileKind::Dir), target, attrs, MS_PRIVATE, fd)
        });
    }

    /// Adds a file system of the task's own.
    fn mount(&mut self, control: Control, fs: &str, target: &str, attrs: u64, options: &[&str]) {
        let make = |_: &mut Self| mount(control, fs, target, attrs, options);
        self.own(Path::new(target), FileKind::Dir, make);
    }

    fn bound(
        &mut self,
        control: Control,
        (source, kind): (&Path, FileKind),
        target: &Path,
        attrs: u64,
        propagation: u64,
    ) -> InitStep {
        let fd = self.tree(source, true);
        attach(control, (source, kind), target, attrs, propagation, fd)
    }
}

/// The step that attaches the mount tree `fd` of `source` at `target`.
fn attach(
    control: Control,
    (source, kind): (&Path, FileKind),
    target: &Path,
    attrs: u64,
    propagation: u64,
    fd: u32,
) -> InitStep {
    let file_type = if kind == FileKind::Dir { FileType::Dir } else { FileType::File };
    let (source, target) = (path(source), path(target));
    InitStep::new(control, Op::Bind { source, target, attrs, propagation, file_type, fd })
}

/// Paths of the device nodes of every sandbox.
pub(crate) fn nodes() -> impl Iterator<Item = PathBuf> {
    DEVICES.iter().map(|(name, ..)| Path::new("/dev").join(name))
}

/// Paths of the host, other than those in the spec, that must be opened for a sandbox: the device nodes if the caller
/// may not make any, and `/proc` and `/sys` if it may not mount new ones.
pub(crate) fn own_sources(privileged: bool, nodes: bool) -> Vec<PathBuf> {
    let devices = self::nodes().filter(|_| !nodes);
    let trees = ["/proc", "/sys"].into_iter().filter(|_| !privileged).map(PathBuf::from);
    devices.chain(trees).collect()
}

/// Adds the steps of the root to `draft`, with the descriptors that they need.
pub(crate) fn lower(req: &RootRequest<'_>, draft: &mut Draft) {
    let mut steps = Steps { req, draft, trees: Vec::new(), steps: Vec::new(), own: Vec::new() };
    if req.part == Part::Common {
        // With the umask of a task's init, and out of reach of other processes of the caller's user.
        steps.push(InitStep::new(Control::MOUNT_NS, Op::Session {}));
        steps.push(InitStep::new(Control::MOUNT_NS, Op::OpenPrepared {}));
    }
    steps.push(InitStep::new(Control::MOUNT_NS, Op::Propagation { flags: MS_SLAVE }));
    populated::upper(req, &mut steps);
    root(req, &mut steps);
    mask_source(req, &mut steps);
    populated::lower(req, &mut steps);
    tmp(req, &mut steps);
    dev(req, &mut steps);
    kernel(req, &mut steps);
    dirs::lower(req, &mut steps);
    volumes(req, &mut steps);
    devices(req, &mut steps);
    for (at, content) in req.files {
        let op = Op::File { path: text(at.as_bytes()), content: Blob(content.as_bytes()) };
        steps.common(Path::new(at), |_| InitStep::new(Control::MOUNT_NS, op));
    }
    if let Some(dir) = req.work_dir.filter(|dir| dir.parent().is_some()) {
        let op = Op::Dir { path: path(dir), mode: 0o755 };
        steps.common(dir, |_| InitStep::new(Control::ROOT_SWITCH, op));
    }
    // Before the masks of files, which are copies of a mount of /dev: through a writable one, a task could change the mode
    // of /dev/null.
    seal(Control::DEVICES, "/dev", &mut steps);
    masks(req, &mut steps);
    if req.seals_root() {
        seal(Control::HOST_FILES, "/", &mut steps);
    }
    if req.null != 0 {
        steps.own_step(|_| InitStep::new(Control::DEVICES, Op::Null { streams: req.null }));
    }
    let switch = if req.pivot { Op::PivotRoot {} } else { Op::MoveRoot {} };
    steps.push(InitStep::new(Control::ROOT_SWITCH, switch));
    if req.part == Part::Common {
        steps.push(InitStep::new(Control::MOUNT_NS, Op::SendPrepared {}));
    }
    let Steps { mut trees, steps, draft, .. } = steps;
    draft.report.enforce(Control::ROOT_SWITCH);
    if req.becomes {
        let (uid, gid) = req.user;
        trees.push(InitStep::new(Control::IDS, Op::Become { uid, gid }).entering(Enter::Inside));
    }
    draft.init.extend(trees);
    draft.init.extend(steps);
}

fn root(req: &RootRequest<'_>, steps: &mut Steps<'_>) {
    let attrs = req.attrs(0);
    steps.common(Path::new("/"), |steps| match req.dir {
        Some(dir) => {
            let fd = steps.tree(dir, true);
            InitStep::new(Control::ROOT_SWITCH, Op::RootBind { source: path(dir), attrs, fd })
        }
        None => {
            let size = req.tmpfs_size().to_string();
            let options = Encoded::strings(["mode", "0755", "size", &size]);
            InitStep::new(Control::ROOT_SWITCH, Op::RootTmpfs { attrs, options: options.list() })
        }
    });
}

/// Adds the empty directory of which masks of directories are copies, if there are such masks.
fn mask_source(req: &RootRequest<'_>, steps: &mut Steps<'_>) {
    let masks = req.masked.iter().chain(req.private).any(|(_, kind)| *kind == FileKind::Dir);
    if masks || req.entries.iter().any(|entry| !entry.skip.is_empty()) {
        let make = |_: &mut Steps<'_>| InitStep::new(Control::MASKED_PATHS, Op::MaskSource {});
        steps.common(Path::new("/proc"), make);
    } else if req.part == Part::Common {
        steps.point(Path::new("/proc"), FileKind::Dir);
    }
}

/// Adds `/tmp`: a directory of the root, or a tmpfs if the root is read-only.
fn tmp(req: &RootRequest<'_>, steps: &mut Steps<'_>) {
    if !req.is_bare() {
        let op = Op::Dir { path: text(b"/tmp"), mode: 0o1777 };
        steps.common(Path::new("/tmp"), |_| InitStep::new(Control::ROOT_SWITCH, op));
    } else if req.task_dirs.tmp.is_none() {
        dirs::tmp(req.tmpfs_size(), steps);
    }
}

/// Adds the step that makes the mount at `at` read-only, after everything is made in it.
fn seal(control: Control, at: &str, steps: &mut Steps<'_>) {
    let op = Op::Seal { path: text(at.as_bytes()), attrs: ATTR_RDONLY };
    steps.common(Path::new(at), |_| InitStep::new(control, op));
}

fn mount(control: Control, fs: &str, target: &str, attrs: u64, options: &[&str]) -> InitStep {
    let options = Encoded::strings(options);
    let (fs, target) = (text(fs.as_bytes()), text(target.as_bytes()));
    InitStep::new(control, Op::Mount { fs, target, attrs, options: options.list() })
}

fn dev(req: &RootRequest<'_>, steps: &mut Steps<'_>) {
    let control = Control::DEVICES;
    steps.draft.report.enforce(control);
    let at = Path::new("/dev");
    let attrs = ATTR_NOSUID | ATTR_STRICTATIME;
    steps.common(at, |_| mount(control, "tmpfs", "/dev", attrs, &["mode", "0755"]));
    for (name, major, minor) in DEVICES {
        let node = format!("/dev/{name}");
        let at = Path::new(&node);
        if req.nodes {
            let op = Op::Node { path: text(node.as_bytes()), major, minor };
            steps.common(at, |_| InitStep::new(control, op));
        } else {
            steps.bind_common(control, (at, FileKind::Device), at, DEVICE);
        }
    }
    for (to, link) in LINKS {
        let op = Op::Symlink { text: text(to.as_bytes()), path: text(link.as_bytes()) };
        steps.common(at, |_| InitStep::new(control, op));
    }
    let pts: &[&str] = &["ptmxmode", "0666", "mode", "0620", "gid", "5"];
    // The task's user namespace may not map group 5 (tty).
    let pts = if req.privileged { pts } else { pts.get(..4).unwrap_or_default() };
    steps.mount(control, "devpts", "/dev/pts", ATTR_NOSUID | ATTR_NOEXEC, pts);
    steps.mount(control, "tmpfs", "/dev/shm", NO, &["mode", "1777", "size", "67108864"]);
    if req.privileged || req.own_ipc {
        steps.mount(Control::IPC_NS, "mqueue", "/dev/mqueue", NO, &[]);
    } else {
        steps.draft.report.note(
            Control::IPC_NS,
            "/dev/mqueue is not mounted: in the host's IPC namespace that needs CAP_SYS_ADMIN on the host",
        );
    }
}

fn kernel(req: &RootRequest<'_>, steps: &mut Steps<'_>) {
    let control = Control::MASKED_PATHS;
    // In the host's PID namespace, the task could write files such as /proc/PID/oom_score_adj of every process.
    let proc_attrs = if req.own_pid || req.user_namespaces { NO } else { NO | ATTR_RDONLY };
    if req.privileged || req.own_pid {
        let options: Vec<&str> = match req.own_pid {
            true => Vec::new(),
            false => req.proc_options.iter().flat_map(|(name, value)| [name.as_str(), value]).collect(),
        };
        steps.mount(Control::PID_NS, "proc", "/proc", proc_attrs, &options);
    } else {
        let proc = Path::new("/proc");
        // Private, because a later mount of the host would propagate without these attributes. So is /sys below.
        steps.bind(control, (proc, FileKind::Dir), proc, proc_attrs, MS_PRIVATE);
    }
    if req.binds_sys() {
        let sys = Path::new("/sys");
        steps.bind(control, (sys, FileKind::Dir), sys, NO | ATTR_RDONLY, MS_PRIVATE);
    } else {
        // A sysfs shows the network namespace of the process that mounts it.
        let sys = |_: &mut Steps<'_>| mount(control, "sysfs", "/sys", NO | ATTR_RDONLY, &[]);
        let at = Path::new("/sys");
        if req.host_net { steps.common(at, sys) } else { steps.own(at, FileKind::Dir, sys) }
    }
}

fn volumes(req: &RootRequest<'_>, steps: &mut Steps<'_>) {
    for (volume, kind) in req.volumes {
        if volume.propagation != Propagation::Private {
            let why = format!(
                "mounts that the host makes below {:?} later keep the host's flags, without nodev, nosuid or read-only",
                volume.target
            );
            steps.draft.report.weaken(Control::DEVICES, &*why);
            if volume.read_only {
                steps.draft.report.weaken(Control::HOST_FILES, why);
            }
        }
        let attrs = req.attrs(if volume.read_only { ATTR_RDONLY } else { 0 });
        let propagation = match volume.propagation {
            Propagation::Private => MS_PRIVATE,
            Propagation::HostToTask => MS_SLAVE,
            Propagation::Bidirectional => MS_SHARED,
        };
        steps.bind(Control::MOUNT_NS, (&volume.source, *kind), &volume.target, attrs, propagation);
    }
}

fn devices(req: &RootRequest<'_>, steps: &mut Steps<'_>) {
    for (source, target) in req.devices {
        steps.bind(Control::DEVICES, (source, FileKind::Device), target, DEVICE, MS_PRIVATE);
    }
}

/// The files of PID 1.
const PID1: &str = "/proc/1";

fn masks(req: &RootRequest<'_>, steps: &mut Steps<'_>) {
    let control = Control::MASKED_PATHS;
    steps.draft.report.enforce(control);
    // A task with the file permissions of user 0 could make PID 1 the first to be killed when memory is short.
    let pid1 = req.pid1.then_some(Path::new(PID1));
    for at in req.read_only.iter().map(|(at, _)| at.as_path()).chain(pid1) {
        let op = Op::Restrict { path: path(at), attrs: ATTR_RDONLY, must: false };
        steps.common(at, |_| InitStep::new(control, op));
    }
    for (at, kind) in req.masked.iter().chain(req.private) {
        let path = path(at);
        let op = if *kind == FileKind::Dir { Op::MaskDir { path } } else { Op::MaskFile { path } };
        steps.common(at, |_| InitStep::new(control, op));
    }
}
