//! Any bytes as a program for init, and any as a record of its: the decoder refuses them or gives a value that is
//! encoded to the same bytes, is cut nowhere, and is printed.
//!
//! Half of the inputs are built of operations, since few bytes at random are one.

#![no_main]

use cofferdam::wire::{Blob, Dup, Field, FileType, List, Op, Program, RECORD, Record, Step, Str};
use cofferdam::{Encoded, Plan};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
enum Input {
    Bytes(Vec<u8>),
    Steps { status: u32, fds: Vec<u32>, steps: Vec<Made>, flip: Option<(u16, u8)> },
}

/// Material for an operation. The fields are more than any needs.
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
        let op = match self.code % 45 {
            0 => Op::AwaitIdMaps {},
            1 => Op::Session {},
            2 => Op::Fds { map: dups.list() },
            3 => Op::Join { fd: m, kind: n, path: a },
            4 => Op::Unshare { flags: m },
            5 => Op::Enter { fd: m, path: a },
            6 => Op::OomScore { value: a },
            7 => Op::Loopback {},
            8 => Op::Hostname { name: a },
            9 => Op::Propagation { flags: x },
            10 => Op::Tree { fd: m, source: a, recursive: x & 1 != 0 },
            11 => Op::RootTmpfs { attrs: x, options: strings },
            12 => Op::RootBind { source: a, attrs: x, fd: z as u32 },
            13 => Op::Dir { path: a, mode: m },
            14 => Op::Bind { source: a, target: b, attrs: x, propagation: y, file_type: if z & 1 == 0 { FileType::Dir } else { FileType::File }, fd: z as u32 },
            15 => Op::Mount { fs: a, target: b, attrs: x, options: strings },
            16 => Op::Symlink { text: a, path: b },
            17 => Op::Node { path: a, major: m, minor: n },
            18 => Op::MaskFile { path: a },
            19 => Op::MaskDir { path: a },
            20 => Op::Restrict { path: a, attrs: x, must: y & 1 != 0 },
            21 => Op::Seal { path: a, attrs: x },
            22 => Op::PivotRoot {},
            23 => Op::MoveRoot {},
            24 => Op::Rlimit { resource: m, soft: y, hard: z },
            25 => Op::Fork { uid: m, gid: n, set_groups: x & 1 != 0, last: y as u32, caller: z as u32 },
            26 => Op::Bounding { keep: x, last: n },
            27 => Op::Ids { uid: m, gid: n, set_groups: z & 1 != 0, groups: words.list() },
            28 => Op::Caps { permitted: x, inheritable: y, ambient: z },
            29 => Op::NoNewPrivs {},
            30 => Op::Cwd { path: a },
            31 => Op::Umask { mask: m },
            32 => Op::Null { streams: z as u8 },
            33 => Op::NoUserNamespaces { program: Blob(&self.texts[1]) },
            34 => Op::Upper { options: strings },
            35 => Op::Overlay {
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
            36 => Op::File { path: a, content: Blob(&self.texts[1]) },
            37 => Op::Write { path: a, mode: m, uid: n, gid: n, content: Blob(&self.texts[1]) },
            38 => Op::Empty { path: a },
            39 => Op::Share { source: a, target: b },
            40 => Op::UpperBind { source: a, fd: m },
            41 => Op::Ordinary {},
            42 => Op::Affinity {},
            43 => Op::Filter { program: Blob(&self.texts[1]) },
            44 => Op::Find { candidates: strings },
            46 => Op::Landlock { fs: x, scoped: y },
            45 => Op::Become { uid: m, gid: n },
            _ => Op::Exec { args: strings, env: strings },
        };
        Step { optional: self.optional, op }.encode(into);
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
        _ => assert!(fds.list::<u32>().len() > 256 || Program::decode(&mut bytes.as_slice()).is_ok()),
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
    assert!(program.fds.len() <= 256);
    // Whoever walks a list meets all that it says it has.
    assert_eq!(program.steps.iter().count(), program.steps.len());
    assert_eq!(program.fds.iter().count(), program.fds.len());
    for cut in [0, bytes.len() / 2, bytes.len() - 1] {
        assert!(Program::decode(&mut &bytes[..cut]).is_err(), "cut at {cut} of {}", bytes.len());
    }
    print(&program, &bytes);
});

/// The plan that this program could come from: printed, and encoded again.
fn print(program: &Program<'_>, bytes: &[u8]) {
    let plan = Plan {
        id: String::new(),
        parent: Vec::new(),
        namespaces: 0,
        handed: Vec::new(),
        init: program.steps.iter().map(cofferdam::Step::from).collect(),
        maps: None,
        reaper: false,
        command: String::new(),
        candidates: Vec::new(),
        report: cofferdam::Report::default(),
    };
    for (step, sent) in plan.init.iter().zip(program.steps.iter()) {
        let calls = step.calls();
        assert!(!calls.is_empty() && calls.iter().all(|line| !line.is_empty()), "{:?}", sent.op);
        assert!(!step.title().is_empty());
        // A control character in a path is no end of a line, and no escape sequence of a terminal.
        let lines = calls.iter().chain(&[step.title()]).all(|line| !line.contains(char::is_control));
        assert!(lines, "{calls:?}");
    }
    let text = plan.to_string();
    assert!(text.lines().count() >= plan.init.len());
    assert!(!format!("{plan:?}").is_empty());
    let fds: Vec<u32> = program.fds.iter().collect();
    assert_eq!(plan.encode(program.status, &fds), bytes);
}

fn record(bytes: &[u8]) {
    match Record::decode(bytes) {
        Err(_) => assert!(bytes.len() != RECORD || !(1..=5).contains(&bytes[0])),
        Ok(record) => {
            assert_eq!(bytes.len(), RECORD);
            assert_eq!(Record::decode(&record.encode()), Ok(record));
        }
    }
}
