//! The processes that spawn. Each has a size and a mount namespace of its own, and makes one measurement when the bench
//! asks for it, so that rows of different callers can take turns.
//!
//! A caller is this program again, with the name of the caller in an environment variable. It writes a line for each of
//! its rows: whether the row can be measured. Then it reads the numbers of rows, and writes the nanoseconds of each. It
//! ends with its standard input, and its mounts with it.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use cofferdam::Host;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::floor::Calls;
use crate::ours::{self, Files, NOT_MEASURED};
use crate::place::Place;
use crate::rows::{Batch, Row, Work};
use crate::{library::Library, peers, tiny};

const VARIABLE: &str = "COFFERDAM_BENCH_CALLER";
/// Mounts of the callers whose axis is another one.
const FEW: usize = 20;
/// A row that takes less is done once more before each measurement, untimed, since the rows before it have left the
/// processor's caches cold.
const SHORT: Duration = Duration::from_millis(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Caller {
    Small,
    Large,
    Mounts500,
    Mounts3000,
    /// Another thread mounts and unmounts a file system ten times a second.
    Busy,
    /// No cgroup file system is mounted.
    NoCgroups,
    /// The v2 tree of a hybrid host is not mounted, since some programs refuse to use one.
    NoUnified,
}

impl Caller {
    pub const ALL: [Caller; 7] = [
        Caller::Small,
        Caller::Large,
        Caller::Mounts500,
        Caller::Mounts3000,
        Caller::Busy,
        Caller::NoCgroups,
        Caller::NoUnified,
    ];

    /// Mounts of its namespace.
    pub fn mounts(self) -> usize {
        match self {
            Caller::Mounts500 => 500,
            Caller::Mounts3000 => 3000,
            _ => FEW,
        }
    }

    /// Bytes of memory that the caller has written to.
    fn memory(self, test: bool) -> usize {
        match self {
            Caller::Large if test => 64 << 20,
            Caller::Large => 1 << 30,
            _ => 10 << 20,
        }
    }
}

/// Whether a row can be measured.
#[derive(Clone, Debug)]
pub enum Ready {
    Yes,
    No(String),
    /// It should, but it failed.
    Failed(String),
}

/// The bench's side of a caller.
pub struct Measurer {
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Measurer {
    /// Starts a caller for its rows, if there are any. Returns it with what it says about each.
    pub fn start(caller: Caller, rows: usize) -> Option<(Measurer, Vec<Ready>)> {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(std::env::args_os().skip(1)).env(VARIABLE, format!("{caller:?}"));
        (rows > 0).then(|| Measurer::talk_to(command, rows))
    }

    fn talk_to(mut command: Command, rows: usize) -> (Measurer, Vec<Ready>) {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (ask, answers) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        let mut measurer = Measurer { child, ask, answers: BufReader::new(answers) };
        let ready = (0..rows).map(|_| match measurer.line().split_once(' ') {
            Some(("no", why)) => Ready::No(why.to_owned()),
            Some(("failed", why)) => Ready::Failed(why.to_owned()),
            _ => Ready::Yes,
        });
        let ready = ready.collect();
        (measurer, ready)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        let read = self.answers.read_line(&mut line).unwrap();
        assert!(read > 0, "a caller has ended");
        line.trim_end().to_owned()
    }

    /// One measurement of the caller's row with this number.
    ///
    /// # Errors
    /// What failed.
    pub fn measure(&mut self, row: usize) -> Result<Duration, String> {
        writeln!(self.ask, "{row}").unwrap();
        let line = self.line();
        line.parse().map(Duration::from_nanos).map_err(|_| line)
    }

    /// Ends the caller and waits for it.
    pub fn end(self) {
        let Measurer { mut child, ask, .. } = self;
        drop(ask);
        assert!(child.wait().unwrap().success());
    }
}

/// The caller that this process is to be, if the bench has started it as one.
pub fn this_process() -> Option<Caller> {
    let name = std::env::var(VARIABLE).ok()?;
    Caller::ALL.into_iter().find(|caller| format!("{caller:?}") == name)
}

/// Runs this process as a caller, until the bench closes its standard input.
pub fn serve(caller: Caller, rows: &[Row], test: bool) {
    let mut out = std::io::stdout();
    let stage = Stage::new(caller, test);
    let works: Vec<_> = rows.iter().map(|row| stage.work(row)).collect();
    for ready in works.iter().map(|work| work.as_ref().err()) {
        match ready {
            None => writeln!(out, "yes"),
            Some(Ready::Failed(why)) => writeln!(out, "failed {}", why.replace('\n', "; ")),
            Some(Ready::No(why)) => writeln!(out, "no {}", why.replace('\n', "; ")),
            Some(Ready::Yes) => unreachable!(),
        }
        .unwrap();
    }
    for line in std::io::stdin().lines() {
        let row: usize = line.unwrap().parse().unwrap();
        let answer = match &works[row] {
            Ok((work, short)) => timed(work, *short, rows[row].key.batch),
            Err(_) => Err("cannot be measured".to_owned()),
        };
        match answer {
            Ok(took) => writeln!(out, "{}", took.as_nanos()).unwrap(),
            Err(why) => writeln!(out, "{}", why.replace('\n', "; ")).unwrap(),
        }
    }
    drop(stage);
}

/// Runs a work once. Returns its time.
type Runs = Box<dyn Fn() -> Result<Duration, String> + Send + Sync>;

fn clocked(work: impl Fn() -> Result<(), String> + Send + Sync + 'static) -> Runs {
    Box::new(move || {
        let began = Instant::now();
        work().map(|()| began.elapsed())
    })
}

/// The time of one run, or of the runs of a batch together.
fn timed(work: &Runs, short: bool, batch: Option<Batch>) -> Result<Duration, String> {
    let Some(batch) = batch else {
        if short {
            work()?;
        }
        return work();
    };
    // The threads share the runs, so that all end at about the same time.
    let (left, start) = (AtomicUsize::new(batch.runs), Barrier::new(batch.threads + 1));
    let thread = || {
        start.wait();
        while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            work()?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..batch.threads).map(|_| scope.spawn(thread)).collect();
        start.wait();
        let began = Instant::now();
        let ended: Result<(), String> = threads.into_iter().try_for_each(|thread| thread.join().unwrap());
        ended.map(|()| began.elapsed())
    })
}

/// What the rows of a caller need.
struct Stage {
    /// Why the caller is not as its name says.
    unlike: Option<String>,
    host: Host,
    files: Files,
    place: Place,
    _memory: Vec<u8>,
}

impl Stage {
    fn new(caller: Caller, test: bool) -> Stage {
        let place = Place::enter();
        let dir = place.tmpfs.clone();
        let files = Files { root: dir.join("root"), program: dir.join("exit") };
        for path in [files.root.join("proc"), dir.join("empty")] {
            std::fs::create_dir_all(path).unwrap();
        }
        tiny::write(&files.program, tiny::EXIT);
        tiny::write(&dir.join("exec"), tiny::EXEC);
        tiny::write(&dir.join("fork"), tiny::FORK);
        tiny::write(&files.root.join("exit"), tiny::EXIT);
        let unlike = match place.cannot() {
            None => become_caller(caller, &dir).err(),
            Some(_) if matches!(caller, Caller::Small | Caller::Large) => None,
            Some(why) => Some(why.to_owned()),
        };
        let (bytes, free) = (caller.memory(test), free_memory());
        let unlike = unlike.or((free < bytes * 3 / 2).then(|| format!("only {} MiB are free", free >> 20)));
        let memory = if unlike.is_none() { vec![1; bytes] } else { Vec::new() };
        Stage { unlike, host: Host::probe().unwrap(), files, place, _memory: std::hint::black_box(memory) }
    }

    /// What a row runs, and whether it takes a short time. It has been run twice.
    fn work(&self, row: &Row) -> Result<(Runs, bool), Ready> {
        if let Some(why) = &self.unlike {
            return Err(Ready::No(why.clone()));
        }
        let failed = |why: String| {
            let can = self.place.cannot().is_none() && self.host.lacking().is_empty();
            if row.key.work.required() && can && why != NOT_MEASURED {
                Ready::Failed(why)
            } else {
                Ready::No(why)
            }
        };
        let work = self.runs(row.key.work).map_err(failed)?;
        work().map_err(failed)?;
        let took = work().map_err(failed)?;
        Ok((work, took < SHORT))
    }

    fn runs(&self, work: Work) -> Result<Runs, String> {
        let (files, host, dir) = (&self.files, &self.host, &*self.place.tmpfs);
        match work {
            Work::Floor => self.raw(Calls::floor(&files.root)),
            Work::ByHand => self.raw(Calls::default_plan(&dir.join("empty"), &files.program, host)),
            Work::ByHandPrepared(beside) => {
                self.raw(Calls::on_prepared(&dir.join("empty"), dir, host, beside)?)
            }
            Work::Std => external(vec![files.program.clone().into()]),
            Work::Ours(way, extent) => {
                let sandbox = ours::ready(host, files, way, extent)?;
                Ok(clocked(move || ours::run(&sandbox, way)))
            }
            Work::Plan => {
                let sandbox = ours::sandbox(host, files, ours::Extent::Cgroup);
                Ok(clocked(move || sandbox.plan().map(drop).map_err(ours::described)))
            }
            Work::Probe => Ok(clocked(|| Host::probe().map(drop).map_err(ours::described))),
            Work::RunDefault => external(peers::cofferdam(files, "")?),
            Work::RunBare => external(peers::cofferdam(files, "--filter none --device-cgroup no")?),
            Work::Bubblewrap => external(peers::bubblewrap(files, host)),
            Work::Unshare => external(peers::unshare(files)),
            Work::Crun => external(peers::oci("crun", dir, files, host)?),
            Work::Runc => external(peers::oci("runc", dir, files, host)?),
            Work::Library(name) => {
                let library = Library::start(name, dir, files, host)?;
                Ok(Box::new(move || library.run()))
            }
        }
    }

    fn raw(&self, calls: Calls) -> Result<Runs, String> {
        match self.place.cannot() {
            Some(why) => Err(why.to_owned()),
            None => Ok(clocked(move || calls.run())),
        }
    }
}

fn external(command: Vec<OsString>) -> Result<Runs, String> {
    peers::check(&command)?;
    Ok(clocked(move || peers::run(&command)))
}

/// Makes the mounts of a caller, in the namespace that `Place` has entered.
fn become_caller(caller: Caller, dir: &Path) -> Result<(), String> {
    let unmounted = match caller {
        Caller::NoCgroups => Some("/sys/fs/cgroup"),
        Caller::NoUnified => Some("/sys/fs/cgroup/unified"),
        _ => None,
    };
    for at in mount_points()?.iter().rev().filter(|at| unmounted.is_some_and(|tree| at.starts_with(tree))) {
        umount2(at, MntFlags::MNT_DETACH).map_err(|errno| format!("umount2({at:?}): {errno}"))?;
    }
    let more = caller.mounts().saturating_sub(mount_points()?.len());
    let tmpfs = |at: &Path| {
        std::fs::create_dir_all(at).map_err(|error| error.to_string())?;
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>)
            .map_err(|errno| format!("mount({at:?}): {errno}"))
    };
    let source = dir.join("empty");
    for i in 0..more {
        let at = dir.join(format!("mounts/{i}"));
        std::fs::create_dir_all(&at).map_err(|error| error.to_string())?;
        mount(Some(&source), &at, None::<&str>, MsFlags::MS_BIND, None::<&str>)
            .map_err(|errno| format!("mount({at:?}): {errno}"))?;
    }
    if caller == Caller::Busy {
        let at = dir.join("busy");
        tmpfs(&at)?;
        std::thread::spawn(move || {
            loop {
                std::thread::sleep(Duration::from_millis(50));
                umount2(&at, MntFlags::MNT_DETACH).unwrap();
                std::thread::sleep(Duration::from_millis(50));
                tmpfs(&at).unwrap();
            }
        });
    }
    Ok(())
}

/// Bytes that the host could give to this process.
fn free_memory() -> usize {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|line| line.trim().split(' ').next()?.parse::<usize>().ok());
    kib.map_or(0, |kib| kib << 10)
}

fn mount_points() -> Result<Vec<PathBuf>, String> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").map_err(|error| error.to_string())?;
    Ok(mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(Into::into).collect())
}
