//! A task driver as Nomad has them: starts tasks that outlive it, and finds them again by handles that it has stored.
//! Every call is a process of its own, so every call recovers the task, as a restarted driver does.
//!
//!     export DRIVER_STATE=/var/lib/driver DRIVER_STDOUT=/path/to/file/or/fifo
//!     cargo run --example driver -- start job-7 sh -c 'sleep 10; exit 43'
//!     cargo run --example driver -- wait job-7

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam::{
    DieWith, Error, ExecSpec, ExitStatus, Limits, Policy, Require, Sandbox, Signal, SignalTarget, Stdio,
    Task, TaskHandle,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

const USAGE: &str = "usage: driver start ID COMMAND... | wait ID | stop ID SIGNAL SECONDS | signal ID SIGNAL
              | stats ID | inspect ID | exec ID COMMAND... | destroy ID";

/// How long a call waits for another one that has the task.
const BUSY: Duration = Duration::from_secs(60);

const PATH: (&str, &str) = ("PATH", "/usr/local/bin:/usr/bin:/bin");

/// The directory `$DRIVER_STATE`: `tasks` has a handle for each task, `exits` the records of ended tasks, and `roots` the
/// temporary roots.
struct Driver(PathBuf);

impl Driver {
    fn open() -> Fallible<Driver> {
        let state = PathBuf::from(std::env::var_os("DRIVER_STATE").ok_or("DRIVER_STATE is not set")?);
        for dir in ["tasks", "exits", "roots"] {
            DirBuilder::new().recursive(true).mode(0o700).create(state.join(dir))?;
        }
        Ok(Driver(state.canonicalize()?))
    }

    fn file(&self, id: &str) -> PathBuf {
        self.0.join("tasks").join(format!("{}.json", id.replace('/', "%")))
    }

    /// Stores the handle so that it is there completely or not at all. It includes the exit status, if that is known.
    fn store(&self, id: &str, handle: &TaskHandle) -> io::Result<()> {
        let (file, new) = (self.file(id), self.file(id).with_extension("new"));
        let mut written = File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
        serde_json::to_writer(&mut written, handle)?;
        written.sync_all()?;
        fs::rename(new, file)
    }

    /// Recovers a task, and waits while another call has it. `None` if its id is unknown.
    fn find(&self, id: &str) -> Fallible<Option<Task>> {
        let start = Instant::now();
        loop {
            let text = match fs::read(self.file(id)) {
                Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
                text => text?,
            };
            match Sandbox::recover(&serde_json::from_slice(&text)?) {
                Err(Error::Task { source, .. })
                    if source.kind() == ErrorKind::ResourceBusy && start.elapsed() < BUSY =>
                {
                    std::thread::sleep(Duration::from_millis(10));
                }
                recovered => return Ok(Some(recovered?)),
            }
        }
    }

    fn known(&self, id: &str) -> Fallible<Task> {
        Ok(self.find(id)?.ok_or_else(|| format!("unknown task {id}"))?)
    }

    /// A running task of this id is an error. What is left of one that has ended is removed.
    fn start(&self, id: &str, command: &str, args: &[&str]) -> Fallible<()> {
        if let Some(task) = self.find(id)? {
            if task.status()?.is_none() {
                return Err(format!("the task {id} runs: stop and destroy it first").into());
            }
            self.remove(id, &task)?;
        }
        let dir = |name| Some(self.0.join(name));
        let policy = Policy { state_dir: dir("exits"), temp_dir: dir("roots"), ..Policy::default() };
        let started = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs().to_string();
        let sandbox = Sandbox::command(command)
            .args(args)
            .policy(&policy)
            .id(id)
            .envs([PATH])
            .die_with(DieWith::Survive)
            .limits(Limits { accounting: true, ..Limits::default() })
            .require(Require::BestEffort)
            .stdout(stream("DRIVER_STDOUT")?)
            .stderr(stream("DRIVER_STDERR")?);
        // The command is executed when the handle is stored, so a driver that is killed loses no task.
        let stored = sandbox.spawn_with(|handle| self.store(id, &handle.with_data(started.into_bytes())));
        // What a failed spawn has stored names no task.
        stored.inspect_err(|_| drop(fs::remove_file(self.file(id)))).map(drop).map_err(Into::into)
    }

    /// Waits without the task, because the owner of a task keeps other calls from it: the pidfd polls readable at its end.
    fn wait(&self, id: &str) -> Fallible<Option<ExitStatus>> {
        let pidfd = self.known(id)?.pidfd().try_clone_to_owned()?;
        poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], PollTimeout::NONE)?;
        Ok(self.known(id)?.wait_end(None)?)
    }

    /// A task that has ended or is unknown is stopped.
    fn stop(&self, id: &str, signal: Signal, grace: Duration) -> Fallible<()> {
        let Some(task) = self.find(id)? else { return Ok(()) };
        task.stop(signal, grace, SignalTarget::Main)?;
        // PID 1 has no time to record that it was killed.
        Ok(self.store(id, &task.handle()?)?)
    }

    fn inspect(&self, id: &str) -> Fallible<()> {
        let task = self.known(id)?;
        let result = task.status()?;
        let started = std::str::from_utf8(task.data())?.parse::<u64>()?;
        let state = if result.is_some() { "exited" } else { "running" };
        let report = task.report();
        let ended =
            task.ended_at().and_then(|time| time.duration_since(UNIX_EPOCH).ok()).map(|time| time.as_secs());
        let facts = json!({"state": state, "pid": task.pid(), "started_at": started, "completed_at": ended,
            "result": result, "report": report});
        println!("{facts}");
        Ok(())
    }

    /// The claim on the task ends before the command does.
    fn exec(&self, id: &str, command: &str, args: &[&str]) -> Fallible<ExitStatus> {
        let spec = ExecSpec::command(command).args(args.iter().copied()).env(PATH.0, PATH.1);
        let spec = spec.stdin(Stdio::Inherit).stdout(Stdio::Inherit).stderr(Stdio::Inherit);
        let running = self.known(id)?.exec(&spec)?;
        Ok(running.wait()?)
    }

    fn remove(&self, id: &str, task: &Task) -> Fallible<()> {
        task.release()?;
        Ok(fs::remove_file(self.file(id))?)
    }
}

/// The file or FIFO that an environment variable names. It is opened once, because the reader of a FIFO stops when its
/// last writer closes it.
fn stream(variable: &str) -> Fallible<Stdio> {
    let Some(path) = std::env::var_os(variable) else { return Ok(Stdio::Null) };
    // A FIFO without a reader is an error, not a wait without limit.
    let flags = OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK;
    let file = File::options().append(true).create(true).mode(0o600).custom_flags(flags.bits()).open(&path);
    let file = file.map_err(|e| format!("{variable}={}: {e}", path.display()))?;
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_APPEND))?;
    Ok(file.into())
}

fn run(args: &[&str]) -> Fallible<ExitCode> {
    let driver = Driver::open()?;
    match *args {
        ["start", id, command, ref args @ ..] => driver.start(id, command, args)?,
        ["wait", id] => println!("{}", json!(driver.wait(id)?)),
        ["stop", id, signal, grace] => {
            driver.stop(id, signal.parse()?, Duration::from_secs(grace.parse()?))?;
        }
        ["signal", id, signal] => driver.known(id)?.signal(signal.parse()?)?,
        ["stats", id] => {
            let task = driver.known(id)?;
            let sample = task.stats_every(Duration::from_secs(1)).next().transpose()?;
            println!("{}", json!(sample));
        }
        ["inspect", id] => driver.inspect(id)?,
        ["exec", id, command, ref args @ ..] => {
            let code = driver.exec(id, command, args)?.shell_code();
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
        }
        ["destroy", id] => driver.find(id)?.map_or(Ok(()), |task| driver.remove(id, &task))?,
        _ => return Err(USAGE.into()),
    }
    Ok(ExitCode::SUCCESS)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    run(&args).unwrap_or_else(|error| {
        let remedy = error.downcast_ref::<Error>().and_then(Error::remedy).unwrap_or("none known");
        let cause = error.source().map_or(String::new(), |cause| format!(": {cause}"));
        eprintln!("{error}{cause} (remedy: {remedy})");
        ExitCode::FAILURE
    })
}
