//! Samples of every operation: with and without its optional parts, and on kernels that differ.

use crate::arch::Facts;
use crate::wire::{Blob, Dup, Field, FileType, List, Op, OpCode, Str};

/// An operation, and the state of the kernel that it runs on.
pub struct Sample {
    pub op: Op<'static>,
    pub facts: Facts,
    /// Indices of lines for which init makes no call on this kernel.
    pub not_made: &'static [usize],
}

pub fn leak(bytes: Vec<u8>) -> &'static [u8] {
    Box::leak(bytes.into_boxed_slice())
}

/// A string as the decoder returns it, followed by a NUL.
pub fn text(text: &str) -> Str<'static> {
    let mut bytes = Vec::new();
    Str::new(text.as_bytes()).unwrap().encode(&mut bytes);
    Str::decode(&mut leak(bytes)).unwrap()
}

fn list<T: Field<'static>>(items: impl IntoIterator<Item = T>) -> List<'static, T> {
    let (mut count, mut bytes) = (0, Vec::new());
    for item in items {
        item.encode(&mut bytes);
        count += 1;
    }
    List::from_encoded(count, leak(bytes))
}

fn texts(items: &[&str]) -> List<'static, Str<'static>> {
    list(items.iter().map(|item| text(item)))
}

fn on(op: Op<'static>, facts: Facts) -> Sample {
    Sample { op, facts, not_made: &[] }
}

fn plain<const N: usize>(ops: [Op<'static>; N]) -> Vec<Sample> {
    ops.map(|op| on(op, Facts::default())).into()
}

/// A kernel without these paths.
fn without(absent: &[&'static str]) -> Facts {
    Facts { absent: absent.to_vec(), ..Facts::default() }
}

/// Operations that init itself refuses, although the kernel refused no call; with the errno and the line.
pub fn refused_by_init() -> Vec<(Sample, i32, &'static str)> {
    let path = || text("/a/b/c");
    let exchanged = Op::Tree { fd: 1, source: path(), recursive: true };
    let over = Facts { over_root: 1000, ..Facts::default() };
    let root = Facts { held: "/a/b/c", ..Facts::default() };
    let unreachable = Facts { unreachable: true, ..Facts::default() };
    let missing = || Facts { missing: true, ..Facts::default() };
    vec![
        (on(exchanged, Facts::default()), libc::ESTALE, "statx(opened \"/a/b/c\", STATX_INO)"),
        // The path leads to the same object as the root.
        (
            on(Op::Restrict { path: path(), attrs: 1, must: true }, root),
            libc::ELOOP,
            "openat2(root, \"/a/b/c\", RESOLVE_IN_ROOT)",
        ),
        (
            on(Op::PivotRoot {}, over),
            libc::EBUSY,
            "statx(\"/..\", STATX_MNT_ID) # umount2 and statx are repeated until this is the root",
        ),
        (on(Op::Cwd { path: path() }, unreachable), libc::ENOENT, "getcwd()"),
        (
            on(Op::Find { candidates: texts(&["/bin/true"]) }, missing()),
            libc::ENOENT,
            "statx(first regular file of \"/bin/true\")",
        ),
        (
            on(Op::Exec { args: texts(&[]), env: texts(&[]) }, missing()),
            libc::ENOENT,
            "execve(it, 0 more arguments)",
        ),
    ]
}

/// The samples of an operation. There is no catch-all arm, so the compiler asks for samples of a new operation.
pub fn samples(code: OpCode) -> Vec<Sample> {
    let options = || [texts(&[]), texts(&["size", "1m"]), texts(&["size", "1m", "ro", "", "mode", "755"])];
    let path = || text("/a/b/c");
    let deep = || without(&["/a/b/c", "/a/b", "/a"]);
    match code {
        OpCode::AwaitIdMaps => plain([Op::AwaitIdMaps {}]),
        OpCode::Session => plain([Op::Session {}]),
        OpCode::ResetScheduling => {
            let facts = Facts { securebits: true, ..Facts::default() };
            vec![on(Op::ResetScheduling {}, Facts::default()), on(Op::ResetScheduling {}, facts)]
        }
        OpCode::Become => plain([Op::Become { uid: 1, gid: 2 }]),
        OpCode::Affinity => [0, 3]
            .map(|cpuset_changes| on(Op::Affinity {}, Facts { cpuset_changes, ..Facts::default() }))
            .into(),
        OpCode::Fds => {
            let dups = [Dup { from: 0, to: 0 }, Dup { from: 1, to: 5 }];
            plain([Op::Fds { map: list(dups) }, Op::Fds { map: list([dups[0]]) }])
        }
        OpCode::Join => plain([Op::Join { fd: 0, kind: 0x4000_0000, path: path() }]),
        OpCode::Unshare => plain([Op::Unshare { flags: 0x0200_0000 }]),
        OpCode::Enter => {
            plain([false, true].map(|may_be_absent| Op::Enter { fd: 0, path: path(), may_be_absent }))
        }
        OpCode::CloneInto => {
            let op = Op::CloneInto { fd: 0, path: path() };
            let copy = Facts { child: true, ..Facts::default() };
            vec![
                Sample { op, facts: Facts::default(), not_made: &[2] },
                Sample { op, facts: copy, not_made: &[1] },
            ]
        }
        OpCode::OomScore => plain([Op::OomScore { value: text("500") }]),
        OpCode::Loopback => plain([Op::Loopback {}]),
        OpCode::Hostname => plain([Op::Hostname { name: text("dam") }]),
        OpCode::Propagation => plain([Op::Propagation { flags: 1 << 19 }]),
        OpCode::Tree => [true, false]
            .map(|recursive| {
                let facts = Facts { held: "/a/b/c", ..Facts::default() };
                on(Op::Tree { fd: 1, source: path(), recursive }, facts)
            })
            .into(),
        OpCode::RootTmpfs => plain(options().map(|options| Op::RootTmpfs { attrs: 6, options })),
        OpCode::RootBind => plain([Op::RootBind { source: path(), attrs: 1, fd: 0 }]),
        OpCode::Dir => {
            let op = || Op::Dir { path: path(), mode: 0o755 };
            let top = on(Op::Dir { path: text("/a"), mode: 0o1777 }, Facts::default());
            vec![on(op(), Facts::default()), on(op(), deep()), top]
        }
        OpCode::Bind => {
            let op = |source, target, file_type| Op::Bind {
                source: text(source),
                target: text(target),
                attrs: 7,
                propagation: 1 << 18,
                file_type,
                fd: 2,
            };
            vec![
                on(op("/s", "/a/b/c", FileType::Dir), Facts::default()),
                on(op("/s", "/a/b/c", FileType::Dir), deep()),
                on(op("/s", "/a/b/c", FileType::File), deep()),
                on(op("/proc", "/proc", FileType::Dir), Facts::default()),
            ]
        }
        OpCode::Mount => options()
            .into_iter()
            .flat_map(|options| {
                let op = |target| Op::Mount { fs: text("proc"), target: text(target), attrs: 14, options };
                [
                    on(op("/proc"), Facts::default()),
                    on(op("/dev/shm"), without(&["/shm"])),
                    on(op("/a/b/c"), deep()),
                ]
            })
            .collect(),
        OpCode::Symlink => {
            let op = |path| Op::Symlink { text: text("/proc/self/fd"), path: text(path) };
            vec![on(op("/dev/fd"), Facts::default()), on(op("/a/b/c"), deep())]
        }
        OpCode::Node => {
            let op = |path| Op::Node { path: text(path), major: 1, minor: 3 };
            vec![on(op("/dev/null"), Facts::default()), on(op("/a/b/c"), deep())]
        }
        OpCode::MaskFile => plain([Op::MaskFile { path: path() }, Op::MaskFile { path: text("/proc/keys") }]),
        OpCode::MaskSource => {
            vec![on(Op::MaskSource {}, Facts::default()), on(Op::MaskSource {}, without(&["/proc"]))]
        }
        OpCode::MaskDir => plain([Op::MaskDir { path: path() }, Op::MaskDir { path: text("/proc/acpi") }]),
        OpCode::Restrict => plain([
            Op::Restrict { path: path(), attrs: 1, must: true },
            Op::Restrict { path: path(), attrs: 1, must: false },
            Op::Restrict { path: text("/proc/sys"), attrs: 1, must: false },
        ]),
        OpCode::Seal => plain(["/", "/dev"].map(|path| Op::Seal { path: text(path), attrs: 1 })),
        OpCode::EnterPrepared => plain([Op::EnterPrepared { fd: 0 }]),
        OpCode::OpenPrepared => plain([Op::OpenPrepared {}]),
        OpCode::SendPrepared => plain([Op::SendPrepared {}]),
        OpCode::EnterRoot => plain([Op::EnterRoot {}]),
        OpCode::PivotRoot => {
            [1, 3].map(|over_root| on(Op::PivotRoot {}, Facts { over_root, ..Facts::default() })).into()
        }
        OpCode::MoveRoot => plain([Op::MoveRoot {}]),
        OpCode::Rlimit => plain([Op::Rlimit { resource: 7, soft: 1, hard: u64::MAX }]),
        OpCode::Deadline => plain([Op::Deadline { nanoseconds: 1_500_000_000 }]),
        OpCode::CpuDeadline => {
            let (unit, path) = (1000, text("/g/cpu.stat"));
            plain([Op::CpuDeadline { nanoseconds: 1_500_000_000, processors: 2, unit, fd: 0, path }])
        }
        OpCode::ExitRecord => plain([Op::ExitRecord { fd: 0, path: path() }]),
        OpCode::Log => plain([1, u32::MAX].map(|stderr| Op::Log { fd: 0, stdout: 2, stderr, path: path() })),
        OpCode::Fork => {
            let op = |set_groups| Op::Fork { uid: 1, gid: 2, set_groups, bounding: 5, caller: 0, gate: 9 };
            let child = Facts { child: true, ..Facts::default() };
            let of_child =
                Sample { op: op(true), facts: child, not_made: &[3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13] };
            vec![on(op(true), Facts::default()), on(op(false), Facts::default()), of_child]
        }
        OpCode::Gate => plain([Op::Gate { caller: 0 }]),
        OpCode::Name => plain([Op::Name { name: text("/init") }]),
        OpCode::ForkOutside => {
            let op =
                |set_groups| Op::ForkOutside { uid: 1, gid: 2, set_groups, bounding: 5, caller: 0, gate: 9 };
            let parent = |set_groups| Sample { op: op(set_groups), facts: Facts::default(), not_made: &[5] };
            let child = Facts { child: true, ..Facts::default() };
            let of_child = Sample {
                op: op(true),
                facts: child,
                not_made: &[6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17],
            };
            vec![parent(true), parent(false), of_child]
        }
        OpCode::ForkInside => {
            let op = Op::ForkInside { caller: 0 };
            let child = Facts { child: true, ..Facts::default() };
            let of_parent = Sample { op, facts: Facts::default(), not_made: &[3, 4] };
            vec![of_parent, Sample { op, facts: child, not_made: &[5, 6, 7, 8, 9, 10] }]
        }
        OpCode::Bounding => {
            plain([Op::Bounding { keep: 0b101, last: 40 }, Op::Bounding { keep: 1, last: 63 }])
        }
        OpCode::Ids => plain([true, false].map(|set_groups| Op::Ids {
            uid: 1,
            gid: 2,
            set_groups,
            groups: list([3u32, 4, 5]),
        })),
        OpCode::Caps => plain([0, 0b11].map(|ambient| Op::Caps { permitted: 7, inheritable: 3, ambient })),
        OpCode::NoNewPrivs => plain([Op::NoNewPrivs {}]),
        OpCode::Cwd => plain([Op::Cwd { path: path() }]),
        OpCode::Umask => plain([Op::Umask { mask: 0o22 }]),
        OpCode::Exec => plain([Op::Exec { args: texts(&["-c", "x"]), env: texts(&["A=b"]) }]),
        OpCode::Null => plain([Op::Null { streams: 0b111 }]),
        OpCode::CommonFilter => plain([Op::CommonFilter { program: Blob(&[0; 8]) }]),
        OpCode::Filter => plain([Op::Filter { program: Blob(&[0; 16]) }]),
        OpCode::Landlock => plain([0, 1 << 13].map(|fs| Op::Landlock { fs, scoped: 3 })),
        OpCode::Terminal => plain([Op::Terminal { rows: 24, columns: 80 }]),
        OpCode::ControllingTerminal => plain([Op::ControllingTerminal {}]),
        OpCode::AwaitPid1 => plain([true, false].map(|tied| Op::AwaitPid1 { tied })),
        OpCode::Find => plain([Op::Find { candidates: texts(&["/bin/true"]) }]),
        OpCode::Upper => plain(options().map(|options| Op::Upper { options })),
        OpCode::UpperBind => plain([Op::UpperBind { source: path(), fd: 0 }]),
        OpCode::Overlay => {
            let op = |userxattr| Op::Overlay {
                source: path(),
                fd: 1,
                target: text("/d/e"),
                name: text("layer"),
                mode: 0o755,
                uid: 1,
                gid: 2,
                userxattr,
                attrs: 6,
            };
            let again = Facts { taken: vec!["layer", "upper", "work"], ..Facts::default() };
            vec![
                on(op(true), Facts::default()),
                on(op(false), without(&["/d/e", "/d"])),
                // A layer of an earlier sandbox keeps its owner and mode.
                Sample { op: op(false), facts: again, not_made: &[3, 4] },
            ]
        }
        OpCode::Share => {
            let op = || Op::Share { source: text("/s"), target: path() };
            vec![on(op(), Facts::default()), on(op(), deep())]
        }
        OpCode::File => {
            let op = || Op::File { path: path(), content: Blob(b"x") };
            vec![on(op(), Facts::default()), on(op(), deep())]
        }
        OpCode::Empty => {
            vec![on(Op::Empty { path: path() }, Facts::default()), on(Op::Empty { path: path() }, deep())]
        }
        OpCode::Write => {
            let op = |path| Op::Write { path: text(path), mode: 0o400, uid: 1, gid: 2, content: Blob(b"x") };
            vec![on(op("/secrets/key"), Facts::default()), on(op("/a/b/c"), deep())]
        }
    }
}
