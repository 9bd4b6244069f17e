//! Any bytes as a program for init, and any bytes as one of its records. The decoder refuses them, or returns a value
//! that encodes to the same bytes. A truncated program is refused, and every decoded step can be printed.
//!
//! Half of the inputs are built from operations, since random bytes rarely are a valid program.

#![no_main]

use cofferdam::wire::{
    Blob, Dup, FDS, Field, FileType, List, Op, OpCode, Program, ProgramStep, RECORD, Record, Str,
};
use cofferdam::{Encoded, printed};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input {
    Bytes(Vec<u8>),
    Steps { status: u32, fds: Vec<u32>, steps: Vec<Made>, flip: Option<(u16, u8)> },
}

/// Material for one operation. No operation needs all fields.
#[derive(Arbitrary, Debug)]
struct Made {
    optional: bool,
    code: u8,
    texts: [Vec<u8>; 2],
    list: Vec<Vec<u8>>,
    numbers: [u64; 3],
}

/// The bytes up to their first NUL.
fn text(bytes: &[u8]) -> Str<'_> {
    Str::new(bytes.split(|b| *b == 0).next().unwrap_or_default()).unwrap()
}

impl Made {
    fn encode(&self, strings: &Encoded, words: &Encoded, dups: &Encoded, into: &mut Vec<u8>) {
        let [a, b] = [text(&self.texts[0]), text(&self.texts[1])];
        let [x, y, z] = self.numbers;
        let (m, n) = (x as u32, y as u32);
        let strings: List<'_, Str<'_>> = strings.list();
        let op = match OpCode::ALL[usize::from(self.code) % OpCode::ALL.len()] {
            OpCode::AwaitIdMaps => Op::AwaitIdMaps {},
            OpCode::Session => Op::Session {},
            OpCode::Fds => Op::Fds { map: dups.list() },
            OpCode::Join => Op::Join { fd: m, kind: n, path: a },
            OpCode::Unshare => Op::Unshare { flags: m },
            OpCode::Enter => Op::Enter { fd: m, path: a, may_be_absent: x & 1 != 0 },
            OpCode::CloneInto => Op::CloneInto { fd: m, path: a },
            OpCode::OomScore => Op::OomScore { value: a },
            OpCode::Loopback => Op::Loopback {},
            OpCode::Hostname => Op::Hostname { name: a },
            OpCode::Propagation => Op::Propagation { flags: x },
            OpCode::Tree => Op::Tree { fd: m, source: a, recursive: x & 1 != 0 },
            OpCode::RootTmpfs => Op::RootTmpfs { attrs: x, options: strings },
            OpCode::RootBind => Op::RootBind { source: a, attrs: x, fd: z as u32 },
            OpCode::Dir => Op::Dir { path: a, mode: m },
            OpCode::Bind => Op::Bind {
                source: a,
                target: b,
                attrs: x,
                propagation: y,
                file_type: if z & 1 == 0 { FileType::Dir } else { FileType::File },
                fd: z as u32,
            },
            OpCode::Mount => Op::Mount { fs: a, target: b, attrs: x, options: strings },
            OpCode::Symlink => Op::Symlink { text: a, path: b },
            OpCode::Node => Op::Node { path: a, major: m, minor: n },
            OpCode::MaskFile => Op::MaskFile { path: a },
            OpCode::MaskSource => Op::MaskSource {},
            OpCode::MaskDir => Op::MaskDir { path: a },
            OpCode::Restrict => Op::Restrict { path: a, attrs: x, must: y & 1 != 0 },
            OpCode::Seal => Op::Seal { path: a, attrs: x },
            OpCode::EnterPrepared => Op::EnterPrepared { fd: m },
            OpCode::OpenPrepared => Op::OpenPrepared {},
            OpCode::SendPrepared => Op::SendPrepared {},
            OpCode::EnterRoot => Op::EnterRoot {},
            OpCode::PivotRoot => Op::PivotRoot {},
            OpCode::MoveRoot => Op::MoveRoot {},
            OpCode::Rlimit => Op::Rlimit { resource: m, soft: y, hard: z },
            OpCode::Fork => {
                Op::Fork { uid: m, gid: n, set_groups: x & 1 != 0, bounding: y, caller: z as u32, gate: m }
            }
            OpCode::Gate => Op::Gate { caller: m },
            OpCode::Name => Op::Name { name: a },
            OpCode::ForkOutside => Op::ForkOutside {
                uid: m,
                gid: n,
                set_groups: x & 1 != 0,
                bounding: y,
                caller: z as u32,
                gate: m,
            },
            OpCode::ForkInside => Op::ForkInside { caller: z as u32 },
            OpCode::Bounding => Op::Bounding { keep: x, last: n },
            OpCode::Ids => Op::Ids { uid: m, gid: n, set_groups: z & 1 != 0, groups: words.list() },
            OpCode::Caps => Op::Caps { permitted: x, inheritable: y, ambient: z },
            OpCode::NoNewPrivs => Op::NoNewPrivs {},
            OpCode::Cwd => Op::Cwd { path: a },
            OpCode::Umask => Op::Umask { mask: m },
            OpCode::Null => Op::Null { streams: z as u8 },
            OpCode::CommonFilter => Op::CommonFilter { program: Blob(&self.texts[1]) },
            OpCode::Upper => Op::Upper { options: strings },
            OpCode::Overlay => Op::Overlay {
                source: a,
                target: b,
                fd: n,
                name: a,
                mode: m,
                uid: n,
                gid: n,
                userxattr: z & 1 != 0,
                attrs: x,
            },
            OpCode::File => Op::File { path: a, content: Blob(&self.texts[1]) },
            OpCode::Write => Op::Write { path: a, mode: m, uid: n, gid: n, content: Blob(&self.texts[1]) },
            OpCode::Empty => Op::Empty { path: a },
            OpCode::Share => Op::Share { source: a, target: b },
            OpCode::UpperBind => Op::UpperBind { source: a, fd: m },
            OpCode::ResetScheduling => Op::ResetScheduling {},
            OpCode::Affinity => Op::Affinity {},
            OpCode::Filter => Op::Filter { program: Blob(&self.texts[1]) },
            OpCode::Terminal => Op::Terminal { rows: m, columns: n },
            OpCode::ControllingTerminal => Op::ControllingTerminal {},
            OpCode::AwaitPid1 => Op::AwaitPid1 { tied: x & 1 != 0 },
            OpCode::Find => Op::Find { candidates: strings },
            OpCode::Landlock => Op::Landlock { fs: x, scoped: y },
            OpCode::Become => Op::Become { uid: m, gid: n },
            OpCode::Deadline => Op::Deadline { nanoseconds: y },
            OpCode::CpuDeadline => Op::CpuDeadline { nanoseconds: x, processors: m, unit: n, fd: m, path: a },
            OpCode::Log => Op::Log { fd: m, stdout: n, stderr: z as u32, path: a },
            OpCode::ExitRecord => Op::ExitRecord { fd: m, path: a },
            OpCode::Exec => Op::Exec { args: strings, env: strings },
        };
        ProgramStep { optional: self.optional, op }.encode(into);
    }
}

fn bytes(input: &Input) -> Vec<u8> {
    let (status, fds, steps, flip) = match input {
        Input::Bytes(bytes) => return bytes.clone(),
        Input::Steps { status, fds, steps, flip } => (status, fds, steps, flip),
    };
    let mut encoded = Vec::new();
    for made in steps {
        let strings = Encoded::strings(&made.list);
        let words = Encoded::of(made.list.iter().map(|item| item.len() as u32));
        let dups = Encoded::of(made.list.iter().map(|item| Dup { from: item.len() as u32, to: status ^ 1 }));
        made.encode(&strings, &words, &dups, &mut encoded);
    }
    let fds = Encoded::of(fds.iter().copied());
    let steps = List::from_encoded(steps.len() as u32, &encoded);
    let mut bytes = Vec::new();
    Program { status: *status, fds: fds.list(), steps }.encode(&mut bytes);
    match flip {
        Some((at, bits)) if !bytes.is_empty() => {
            let at = usize::from(*at) % bytes.len();
            bytes[at] ^= bits;
        }
        _ => {
            assert!(fds.list::<u32>().len() > FDS as usize || Program::decode(&mut bytes.as_slice()).is_ok())
        }
    }
    bytes
}

fuzz_target!(|input: Input| {
    let bytes = bytes(&input);
    record(&bytes);
    let Ok(program) = Program::decode(&mut bytes.as_slice()) else { return };
    let mut again = Vec::new();
    program.encode(&mut again);
    assert_eq!(again, bytes, "another encoding of the same program");
    assert!(program.fds.len() <= FDS as usize);
    // An iterator over a list yields as many items as the list's length says.
    assert_eq!(program.steps.iter().count(), program.steps.len());
    assert_eq!(program.fds.iter().count(), program.fds.len());
    for cut in [0, bytes.len() / 2, bytes.len() - 1] {
        assert!(Program::decode(&mut &bytes[..cut]).is_err(), "cut at {cut} of {}", bytes.len());
    }
    print(&program);
});

/// Prints every step, whatever it contains.
fn print(program: &Program<'_>) {
    for step in program.steps.iter() {
        let (title, calls) = printed(&step.op);
        assert!(!title.is_empty() && !calls.is_empty(), "{:?}", step.op);
        assert!(calls.iter().all(|line| !line.is_empty()), "{:?}", step.op);
        // A control character in a path must not end the line or start a terminal escape sequence.
        let lines = calls.iter().chain(&[title]).all(|line| !line.contains(char::is_control));
        assert!(lines, "{calls:?}");
    }
}

fn record(bytes: &[u8]) {
    match Record::decode(bytes) {
        Err(_) => assert!(bytes.len() != RECORD || !(1..=12).contains(&bytes[0])),
        Ok(record) => {
            assert_eq!(bytes.len(), RECORD);
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
    }
}
