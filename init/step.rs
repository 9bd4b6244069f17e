//! One function an operation. The index given to `at` is the line that the plan prints for the call
//! (`src/step/render.rs` prints them in the same order).

use crate::place::{ANCHORS, drop_parent, exists_is_fine, mount_point, own, parent, place, present};
use crate::sys::{self, Errno, Z};
use crate::wire::{Dup, FileType, List, Op, Record, Str};
use crate::{State, files, overlay};

/// The kernel refused a call of an operation.
pub struct Refused {
    /// Index of the call among those of the operation.
    pub call: u8,
    /// Its answer.
    pub errno: Errno,
}

/// What a step comes to.
pub type Done = Result<(), Refused>;

/// Names the call that a result comes from.
pub trait At<T> {
    /// The call is the one of this index among those of the operation.
    fn at(self, call: usize) -> Result<T, Refused>;
}

impl<T> At<T> for Result<T, Errno> {
    fn at(self, call: usize) -> Result<T, Refused> {
        self.map_err(|errno| Refused { call: call as u8, errno })
    }
}

/// Obeys one operation.
pub fn run(state: &mut State, op: &Op<'static>) -> Done {
    match *op {
        Op::AwaitIdMaps {} => await_id_maps(state),
        Op::Session {} => session(),
        Op::Ordinary {} => ordinary(),
        Op::Become { uid, gid } => becomes(uid, gid, 0),
        Op::Affinity {} => sys::any_processor().at(0),
        Op::Fds { map } => fds(state, map),
        Op::Join { fd, kind, .. } => {
            let fd = take_fd(state, fd);
            let joined = sys::setns(fd, kind).at(0);
            sys::close(fd);
            joined
        }
        Op::Unshare { flags } => sys::unshare(flags).at(0),
        Op::Enter { fd, .. } => {
            let fd = take_fd(state, fd);
            let entered = sys::write(fd, b"0").at(0);
            sys::close(fd);
            entered
        }
        Op::OomScore { value } => oom_score(value),
        Op::Loopback {} => {
            let socket = sys::inet_socket().at(0)?;
            let up = sys::loopback_up(socket).at(1);
            sys::close(socket);
            up
        }
        Op::Hostname { name } => sys::sethostname(name.bytes()).at(0),
        Op::Propagation { flags } => sys::propagation(flags).at(0),
        Op::Tree { fd, source, recursive } => tree(state, fd, source, recursive),
        Op::RootTmpfs { attrs, options } => {
            let (tree, calls) = new_mount(c"tmpfs", attrs, options)?;
            state.root = tree;
            sys::move_mount_over_root(tree).at(calls)
        }
        Op::RootBind { fd, attrs, .. } => {
            let tree = take_fd(state, fd);
            state.root = tree;
            sys::mount_setattr(tree, attrs, MS_PRIVATE, true).at(0)?;
            sys::move_mount_over_root(tree).at(1)
        }
        Op::Dir { path, mode } => {
            let (parent, name) = parent(state.root, path).at(0)?;
            let made = exists_is_fine(sys::mkdirat(parent, name, mode));
            drop_parent(state.root, parent);
            made.at(0)
        }
        Op::Bind { source, target, attrs, propagation, file_type, fd } => {
            let tree = take_fd(state, fd);
            bind(state, tree, source == target, target, attrs, propagation, file_type)
        }
        Op::Mount { fs, target, attrs, options } => {
            let (tree, calls) = new_mount(fs, attrs, options)?;
            let at = mount_point(state, target, FileType::Dir, sys::NO_LINKS).at(calls)?;
            anchor(state, tree, at, target).at(calls + 1)
        }
        Op::Symlink { text, path } => {
            let (base, path) = place(state, path);
            let (parent, name) = parent(base, path).at(0)?;
            let made = exists_is_fine(sys::symlinkat(text, parent, name));
            drop_parent(base, parent);
            made.at(0)
        }
        Op::Node { path, major, minor } => {
            let (base, path) = place(state, path);
            let (parent, name) = parent(base, path).at(0)?;
            let made = sys::mknodat(parent, name, major, minor);
            drop_parent(base, parent);
            made.at(0)
        }
        Op::MaskFile { path } => {
            let Some(at) = present(state, path).at(0)? else { return Ok(()) };
            let tree = sys::open_tree(state.anchors[0], c"null", true).at(1)?;
            attach(tree, at).at(2)
        }
        Op::MaskDir { path } => {
            let Some(at) = present(state, path).at(0)? else { return Ok(()) };
            let (tree, calls) = new_mount(c"tmpfs", MASK_ATTRS, List::from_encoded(0, &[]))
                .map_err(|r| Refused { call: r.call + 1, ..r })?;
            attach(tree, at).at(calls + 1)
        }
        Op::Restrict { path, attrs, must } => restrict(state, path, attrs, must),
        Op::Seal { path, attrs } => {
            let (base, path) = place(state, path);
            let at = sys::openat2(base, path, sys::O_PATH, sys::IN_ROOT).at(0)?;
            let sealed = sys::mount_setattr(at, attrs, 0, false).at(1);
            sys::close(at);
            sealed
        }
        Op::Null { streams } => {
            let null = sys::openat2(state.anchors[0], c"null", sys::O_RDWR, sys::IN_ROOT).at(0)?;
            for stream in (0..3).filter(|n| streams & (1 << n) != 0) {
                sys::dup3(null, stream).at(1)?;
            }
            sys::close(null);
            Ok(())
        }
        Op::Empty { path } => {
            let (parent, name) = parent(state.root, path).at(0)?;
            let made = sys::openat(parent, name, sys::O_NEW, 0o644).map(sys::close);
            drop_parent(state.root, parent);
            exists_is_fine(made).at(0)
        }
        Op::Share { source, target } => {
            let from =
                sys::openat2(state.root, source, sys::O_PATH | sys::O_DIRECTORY, sys::IN_ROOT).at(0)?;
            let tree = sys::open_tree(from, c"", true).at(1)?;
            sys::close(from);
            let at = mount_point(state, target, FileType::Dir, sys::IN_ROOT).at(2)?;
            attach(tree, at).at(3)
        }
        Op::Upper { options } => overlay::upper(state, options),
        Op::UpperBind { fd, .. } => {
            state.upper = take_fd(state, fd);
            sys::mount_setattr(state.upper, 0x6 /* NOSUID|NODEV */, MS_PRIVATE, false).at(0)?;
            sys::move_mount_over_root(state.upper).at(1)
        }
        Op::Overlay { .. } => overlay::mount(state, op),
        Op::File { path, content } => files::cover(state, path, content),
        Op::Write { path, mode, uid, gid, content } => files::new(state, path, mode, (uid, gid), content),
        Op::PivotRoot {} => {
            sys::fchdir(state.root).at(0)?;
            sys::pivot_root().at(1)?;
            bare(state)?;
            sys::chdir(c"/").at(4)?;
            let_go(state);
            Ok(())
        }
        Op::MoveRoot {} => {
            sys::fchdir(state.root).at(0)?;
            // The host's own proc and sysfs must not lie in wait below; absent is as good as gone.
            let _ = sys::detach(c"/proc");
            let _ = sys::detach(c"/sys");
            sys::chroot(c".").at(3)?;
            sys::chdir(c"/").at(4)?;
            let_go(state);
            Ok(())
        }
        Op::Rlimit { resource, soft, hard } => sys::rlimit(resource, soft, hard).at(0),
        Op::Fork { .. } => Err(Refused { call: 0, errno: sys::EINVAL }),
        Op::Bounding { keep, last } => bounding(keep, last),
        Op::Ids { uid, gid, set_groups, groups } => ids(uid, gid, set_groups, groups),
        Op::Caps { permitted, inheritable, ambient } => caps(permitted, inheritable, ambient),
        Op::NoUserNamespaces { program } | Op::Filter { program } => sys::seccomp(program.0).at(0),
        Op::NoNewPrivs {} => sys::prctl(38, 1, 0).at(0).map(drop),
        Op::Cwd { path } => {
            sys::chdir(path).at(0)?;
            sys::cwd_reachable().at(1)
        }
        Op::Umask { mask } => {
            sys::umask(mask);
            Ok(())
        }
        Op::Landlock { fs, scoped } => landlock(fs, scoped),
        Op::Find { candidates } => find(state, candidates),
        Op::Exec { args, env } => exec(state, args, env),
    }
}

pub const MS_PRIVATE: u64 = 1 << 18;
/// MOUNT_ATTR_RDONLY | NOSUID | NODEV | NOEXEC.
pub const MASK_ATTRS: u64 = 0xf;

pub fn take_fd(state: &mut State, index: u32) -> i32 {
    match state.fds.get_mut(index as usize) {
        Some(fd) => core::mem::replace(fd, -1),
        None => -1,
    }
}

fn await_id_maps(state: &State) -> Done {
    let mut byte = [0u8; 1];
    match sys::recv(state.status, &mut byte).at(0)? {
        // The parent is gone: nobody wants this sandbox.
        0 => sys::exit(1),
        _ => Ok(()),
    }
}

fn session() -> Done {
    sys::prctl(4 /* PR_SET_DUMPABLE */, 0, 0).at(0)?;
    sys::setsid().at(1)?;
    // Where there are no keys, or a filter forbids the call to the task as well, there is nothing to keep.
    match sys::new_session_keyring() {
        Err(sys::ENOSYS | sys::EPERM | sys::EACCES) => {}
        done => done.at(2)?,
    }
    sys::default_signals();
    sys::umask(0);
    Ok(())
}

/// What execve(2) leaves as the caller had it. What this kernel lacks, or an outer filter forbids, has not been set either.
fn ordinary() -> Done {
    let lenient = |done: Result<(), Errno>| match done {
        Err(sys::ENOSYS | sys::EPERM | sys::EACCES) => Ok(()),
        done => done,
    };
    lenient(sys::normal_policy()).at(0)?;
    // To raise it takes CAP_SYS_NICE: a task of a caller who lacks that stays as low as it.
    lenient(sys::normal_nice()).at(1)?;
    lenient(sys::normal_io_priority()).at(2)?;
    sys::prctl(29 /* PR_SET_TIMERSLACK */, 50_000, 0).at(3)?;
    lenient(sys::default_memory_policy()).at(4)?;
    lenient(sys::personality(0)).at(5)?;
    lenient(sys::prctl(41 /* PR_SET_THP_DISABLE */, 0, 0).map(drop)).at(6)?;
    // EINVAL from a kernel that does not have it, which then need not forget it. (Linux 6.4 and 5.6)
    for (call, option) in [(7, 67 /* PR_SET_MEMORY_MERGE */), (8, 57 /* PR_SET_IO_FLUSHER */)] {
        let done = sys::prctl(option, 0, 0).map(drop);
        if done != Err(sys::EINVAL) {
            lenient(done).at(call)?;
        }
    }
    if sys::prctl(27 /* PR_GET_SECUREBITS */, 0, 0).at(9)? != 0 {
        sys::prctl(28 /* PR_SET_SECUREBITS */, 0, 0).at(9)?;
    }
    Ok(())
}

/// Moves everything of ours above the highest target, puts the targets in place, closes the rest.
fn fds(state: &mut State, map: List<'static, Dup>) -> Done {
    let base = map.iter().map(|d| d.to as i32 + 1).max().unwrap_or(0).max(3);
    for fd in state.fds.iter_mut().filter(|fd| **fd >= 0) {
        *fd = sys::dup_above(*fd, base).at(0)?;
    }
    state.status = sys::dup_above(state.status, base).at(0)?;
    for dup in map.iter() {
        let from = state.fds.get(dup.from as usize).copied().unwrap_or(-1);
        sys::dup3(from, dup.to as i32).at(1)?;
    }
    for dup in map.iter() {
        take_fd(state, dup.from);
    }
    close_others(state, map)
}

/// Closes every descriptor that is neither a target nor ours: the gaps between those, in order.
fn close_others(state: &State, map: List<'static, Dup>) -> Done {
    let ours = || state.fds.iter().copied().filter(|fd| *fd >= 0).chain([state.status]);
    let mut first = 0;
    loop {
        let kept = ours().chain(map.iter().map(|d| d.to as i32)).filter(|fd| *fd >= first).min();
        let Some(kept) = kept else { break };
        if kept > first {
            sys::close_range(first, kept as u32 - 1).at(2)?;
        }
        first = kept + 1;
    }
    sys::close_range(first, u32::MAX).at(2)
}

fn oom_score(value: Str<'static>) -> Done {
    let fd = sys::openat(sys::CWD, c"/proc/self/oom_score_adj", 1, 0).at(0)?;
    let written = sys::write(fd, value.bytes()).at(1);
    sys::close(fd);
    written
}

/// fsopen, one fsconfig an option, which is a flag where it has no value, create, fsmount; with the number of
/// calls that this was.
pub fn new_mount(
    fs: impl Into<Z>,
    attrs: u64,
    options: List<'static, Str<'static>>,
) -> Result<(i32, usize), Refused> {
    let context = sys::fsopen(fs).at(0)?;
    let mut calls = 1;
    let mut items = options.iter();
    while let (Some(key), Some(value)) = (items.next(), items.next()) {
        match value.bytes() {
            [] => sys::fsconfig_flag(context, key),
            _ => sys::fsconfig_set(context, key, value),
        }
        .at(calls)?;
        calls += 1;
    }
    sys::fsconfig_create(context).at(calls)?;
    let tree = sys::fsmount(context, attrs).at(calls + 1)?;
    sys::close(context);
    Ok((tree, calls + 2))
}

pub fn attach(tree: i32, at: i32) -> Result<(), Errno> {
    let attached = sys::move_mount(tree, at);
    sys::close(tree);
    sys::close(at);
    attached
}

/// As `attach`, but the tree stays open when it is one of those.
fn anchor(state: &mut State, tree: i32, at: i32, target: Str<'static>) -> Result<(), Errno> {
    let index = ANCHORS.iter().position(|path| *path == target.bytes());
    let Some(fd) = index.and_then(|i| state.anchors.get_mut(i)) else { return attach(tree, at) };
    sys::close(core::mem::replace(fd, tree));
    let attached = sys::move_mount(tree, at);
    sys::close(at);
    attached
}

/// Detaches all that lies over the root once it is `/`: the host's, and what was mounted over that, be it by us or
/// in the caller's namespace. The kernel takes one a call, the topmost, and `/..` would lead to any that is left.
fn bare(state: &State) -> Result<(), Refused> {
    let root = sys::mount_id(state.root, c"").at(3)?;
    for _ in 0..MOST_OVER_ROOT {
        sys::detach(c".").at(2)?;
        if sys::mount_id(sys::CWD, c"/..").at(3)? == root {
            return Ok(());
        }
    }
    Err(Refused { call: 3, errno: sys::EBUSY })
}

/// So many mounts may lie over the caller's own root.
const MOST_OVER_ROOT: u32 = 64;

/// Closes what led to the root from outside.
fn let_go(state: &State) {
    sys::close(state.root);
    sys::close(state.upper);
    for fd in state.anchors {
        sys::close(fd);
    }
}

/// What is at the path must be what the caller holds: a directory on the way may have been exchanged since.
fn tree(state: &mut State, fd: u32, source: Str<'static>, recursive: bool) -> Done {
    let held = take_fd(state, fd);
    let again = sys::openat2(sys::CWD, source, sys::O_PATH, sys::PLAIN).at(0)?;
    if !sys::same_object(held, again).at(1)? {
        return Err(sys::ESTALE).at(1);
    }
    let tree = sys::open_tree(again, c"", recursive).at(2)?;
    sys::close(again);
    sys::close(held);
    match state.fds.get_mut(fd as usize) {
        Some(place) => *place = tree,
        None => return Err(sys::EINVAL).at(2),
    }
    Ok(())
}

/// `own`: the host's own tree where a new one cannot be mounted. Anything else at that place is a volume.
fn bind(
    state: &mut State,
    tree: i32,
    own: bool,
    target: Str<'static>,
    attrs: u64,
    propagation: u64,
    file_type: FileType,
) -> Done {
    sys::mount_setattr(tree, attrs, propagation, true).at(0)?;
    let at = mount_point(state, target, file_type, sys::IN_ROOT).at(1)?;
    let attached = if own { anchor(state, tree, at, target) } else { attach(tree, at) };
    attached.at(2)
}

/// Binds a path on itself. What is over the root does not stay there, so a link that leads to the root is as
/// bad as one that leads nowhere; and what may be absent may also be a link, to `/proc` say, of which a copy
/// would show what is covered in the other.
fn restrict(state: &State, path: Str<'static>, attrs: u64, must: bool) -> Done {
    let at = if must {
        let at = sys::openat2(state.root, path, sys::O_PATH, sys::IN_ROOT).at(0)?;
        if sys::same_place(at, state.root).at(0)? {
            return Err(sys::ELOOP).at(0);
        }
        at
    } else {
        let Some(at) = own(state, path).at(0)? else { return Ok(()) };
        at
    };
    let tree = sys::open_tree(at, c"", true).at(1)?;
    sys::mount_setattr(tree, attrs, 0, true).at(2)?;
    attach(tree, at).at(3)
}

fn bounding(keep: u64, last: u32) -> Done {
    for cap in 0..=last.min(63) {
        if keep & (1 << cap) == 0 {
            sys::prctl(24 /* PR_CAPBSET_DROP */, cap as usize, 0).at(0)?;
        }
    }
    Ok(())
}

/// `first` is the index of the first of the three calls.
pub fn becomes(uid: u32, gid: u32, first: usize) -> Done {
    sys::setresgid(gid).at(first)?;
    sys::setresuid(uid).at(first + 1)?;
    // Becoming another user set it to the value of fs.suid_dumpable.
    sys::prctl(4 /* PR_SET_DUMPABLE */, 0, 0).at(first + 2).map(drop)
}

fn ids(uid: u32, gid: u32, set_groups: bool, groups: List<'static, u32>) -> Done {
    sys::prctl(8 /* PR_SET_KEEPCAPS */, 1, 0).at(0)?;
    let mut calls = 1;
    if set_groups {
        let list = sys::words(groups.len() / 2 + 1).at(1)?;
        for (i, group) in groups.iter().enumerate() {
            if let Some(word) = list.get_mut(i / 2) {
                *word |= (group as usize) << (32 * (i % 2));
            }
        }
        sys::setgroups(list, groups.len()).at(1)?;
        calls = 2;
    }
    becomes(uid, gid, calls)
}

fn caps(permitted: u64, inheritable: u64, ambient: u64) -> Done {
    sys::capset(permitted, inheritable).at(0)?;
    sys::prctl(47 /* PR_CAP_AMBIENT */, 4 /* CLEAR_ALL */, 0).at(1)?;
    for cap in (0..64).filter(|cap| ambient & (1 << cap) != 0) {
        sys::prctl(47, 2 /* RAISE */, cap).at(2)?;
    }
    Ok(())
}

fn landlock(fs: u64, scoped: u64) -> Done {
    let ruleset = sys::landlock_create_ruleset(fs, scoped).at(0)?;
    let mut calls = 1;
    if fs != 0 {
        let root = sys::openat2(sys::CWD, c"/", sys::O_PATH, 0).at(1)?;
        sys::landlock_allow_refer(ruleset, root).at(1)?;
        sys::close(root);
        calls = 2;
    }
    sys::landlock_restrict_self(ruleset).at(calls)?;
    sys::close(ruleset);
    Ok(())
}

/// Finds the command with the user's own rights, and tells the parent. It is all that comes before the filter.
fn find(state: &mut State, candidates: List<'static, Str<'static>>) -> Done {
    let mut errno = sys::ENOENT;
    for (index, path) in candidates.iter().enumerate() {
        match sys::is_regular(path) {
            Ok(true) => {
                state.command = Some((index as u8, path));
                break;
            }
            Ok(false) | Err(sys::ENOENT | sys::ENOTDIR) => {}
            // Nobody knows what is there.
            Err(refused) => errno = refused,
        }
    }
    if state.command.is_none() {
        return Err(errno).at(0);
    }
    sys::unblock_signals().at(0)?;
    state.tell(Record::Ready);
    Ok(())
}

/// Becomes the command. A refusal is of the candidate that was found.
fn exec(state: &State, args: List<'static, Str<'static>>, env: List<'static, Str<'static>>) -> Done {
    let Some((index, path)) = state.command else { return Err(sys::ENOENT).at(0) };
    let at = usize::from(index);
    let argv = sys::words(args.len() + 2).at(at)?;
    let envp = sys::words(env.len() + 1).at(at)?;
    for (word, text) in argv.iter_mut().zip([path].into_iter().chain(args.iter())) {
        *word = text.bytes().as_ptr() as usize;
    }
    for (word, text) in envp.iter_mut().zip(env.iter()) {
        *word = text.bytes().as_ptr() as usize;
    }
    let mut errno = sys::execve(path, argv, envp);
    // Another process may hold the file open for writing for the moment between its own fork and exec,
    // as every threaded program's children do with descriptors that are none of their business.
    for _ in 0..TEXT_BUSY_TRIES {
        if errno != sys::ETXTBSY {
            break;
        }
        sys::pause(1);
        errno = sys::execve(path, argv, envp);
    }
    Err(errno).at(at)
}

/// Milliseconds that a file may stay busy.
const TEXT_BUSY_TRIES: u32 = 100;
