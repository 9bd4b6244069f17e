//! `run` and `explain`.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use cofferdam::cgroup::{CONTROLLERS, Detection};
use cofferdam::{
    Control, Deadline, DieWith, Error, Host, Report, Require, Sandbox, SandboxSpec, Stdio, Task, TaskHandle,
};

use crate::args::{Args, Explain, Run};
use crate::progress::Bar;
use crate::signals::Signals;
use crate::state::{About, Reservation, Store, check_name};
use crate::streams::Streams;
use crate::{Failure, terminal};

fn sandbox(args: &Args) -> Result<Sandbox, Failure> {
    Ok(Sandbox::new(&args.policy()?, args.spec()?))
}

/// Runs the command and returns its exit status, or starts it and prints its name.
pub(crate) fn run(args: &Run) -> Result<ExitCode, Failure> {
    let mut spec = args.args.spec()?;
    if let Some(name) = &args.name {
        check_name(name)?;
        spec.id = Some(name.clone());
    }
    spec.replace |= args.replace;
    if args.detach {
        return detached(&args.args, spec);
    }
    if args.tty {
        (spec.stdin, spec.stdout, spec.stderr) = (Stdio::Null, Stdio::Null, Stdio::Null);
        spec.terminal = Some(terminal::size(args.interactive)?);
    }
    let reads = spec.stdin == Stdio::Inherit || args.tty && args.interactive;
    foreground(&args.args, spec, reads)
}

/// Reserves the name for a task in the foreground, and kills and removes the detached task that it is to replace. `None` if
/// this user can have no detached tasks, or none of this name.
fn room(name: &str, sandbox: &Sandbox) -> Result<Option<Reservation>, Failure> {
    if check_name(name).is_err() {
        return Ok(None);
    }
    let Some(store) = Store::existing()?.or_else(|| Store::open().ok()) else { return Ok(None) };
    if !sandbox.spec().replace {
        return store.reserve(name).map(Some);
    }
    let reserved = store.reserve_used(name)?;
    store.make_room(name, sandbox)?;
    Ok(Some(reserved))
}

/// Runs the command and returns its exit status. `reads` says whether the command reads standard input.
fn foreground(args: &Args, mut spec: SandboxSpec, reads: bool) -> Result<ExitCode, Failure> {
    let signals = Signals::block()?;
    let mut pipes = Streams::of([&mut spec.stdin, &mut spec.stdout, &mut spec.stderr])?;
    let sandbox = Sandbox::new(&args.policy()?, spec);
    // Opened before the command runs, so that a wrong path costs nothing.
    let report = args.report.as_deref().map(open_report).transpose()?;
    // A spawn would take a detached task of the name for stale, and remove it. So no other process can start one until then.
    let reserved = sandbox.spec().id.clone().map(|name| room(&name, &sandbox)).transpose()?;
    let task = spawn(sandbox, Sandbox::spawn)?;
    drop(reserved);
    pipes.start();
    let status = terminal::wait(&task, &signals, reads)?;
    pipes.finish();
    if let Some(file) = report {
        write_report(file, task.report())?;
    }
    let which = match status.deadline {
        Some(Deadline::Cpu) => "CPU time deadline",
        _ => "deadline",
    };
    if status.deadline.is_some() {
        let _ = writeln!(std::io::stderr(), "cofferdam: killed at its {which}");
    }
    if let Some(oom) = task.oom() {
        let _ = writeln!(std::io::stderr(), "cofferdam: {oom}");
    }
    Ok(crate::exit_code(&status))
}

/// Starts a task that outlives this process, stores its handle, and prints its name.
fn detached(args: &Args, mut spec: SandboxSpec) -> Result<ExitCode, Failure> {
    if args.report.as_deref() == Some(Path::new("-")) {
        return Err(Failure::new("--report -: standard output has the name of a detached task: give a file"));
    }
    // A signal must not end this process between the storing and the return of the spawn.
    let signals = Signals::block()?;
    let store = Store::open()?;
    let reserve = |name| if spec.replace { store.reserve_used(name) } else { store.reserve(name) };
    let reserved = spec.id.as_deref().map(reserve).transpose()?;
    let mut policy = args.policy()?;
    store.places(&mut policy);
    spec.die_with = DieWith::Survive;
    detached_streams(&mut spec);
    let report = args.report.as_deref().map(open_report).transpose()?;
    let sandbox = Sandbox::new(&policy, spec);
    let spec = sandbox.spec().clone();
    if let (Some(name), true) = (&spec.id, spec.replace) {
        store.make_room(name, &sandbox)?;
    }
    let (mut stored, mut refused) = (None, None);
    // The handle is stored before the command runs: without it, no call would find the task again.
    let keep = |handle: TaskHandle| {
        let name = handle.sandbox_id().to_owned();
        let done = signals.check_interrupted().and_then(|()| {
            let data = About::new(&name, &spec).to_data()?;
            reserved.map_or_else(|| store.reserve(&name), Ok)?.store(&handle.with_data(data))
        });
        match done {
            Ok(()) => stored = Some(name),
            Err(failure) => {
                refused = Some(failure);
                return Err(std::io::Error::other("the handle was not stored"));
            }
        }
        Ok(())
    };
    let spawned = spawn(sandbox, |sandbox| sandbox.spawn_with(keep));
    let task = spawned.map_err(|mut failure| {
        if let Some(name) = stored {
            store.forget(&name);
        }
        if failure.message.starts_with("temp_dir: ") {
            failure
                .message
                .push_str(" (set COFFERDAM_STATE to a directory elsewhere, or temp_dir of --policy)");
        }
        refused.unwrap_or(failure)
    })?;
    let _ = writeln!(std::io::stdout(), "{}", task.sandbox_id());
    if let Some(file) = report {
        write_report(file, task.report())?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Selects the standard streams of a detached task, which has none of this process.
fn detached_streams(spec: &mut SandboxSpec) {
    (spec.stdin, spec.stdout, spec.stderr) = (Stdio::Null, Stdio::Log, Stdio::Log);
}

/// Spawns the task by `start`, and prints the controls that do not hold. The sandbox is dropped, because it holds the task's ends of
/// the pipes: while they are open, the copying threads never see their end.
fn spawn(sandbox: Sandbox, start: impl FnOnce(&Sandbox) -> cofferdam::Result<Task>) -> Result<Task, Failure> {
    let bar = Bar::on_terminal();
    let sandbox = match &bar {
        Some(bar) => sandbox.progress(bar.teller()),
        None => sandbox,
    };
    let spawned = start(&sandbox);
    drop((bar, sandbox));
    let task = spawned?;
    if let Some(line) = lacking(task.report()) {
        let _ = writeln!(std::io::stderr(), "cofferdam: {line}");
    }
    Ok(task)
}

/// The controls that are missing or weakened, with reasons, in one line; `None` if there are none.
fn lacking(report: &Report) -> Option<String> {
    let part = |word: &str, controls: Control| {
        (!controls.is_empty()).then(|| format!("{word} {controls}: {}", report.why(controls)))
    };
    let parts = [part("missing", report.missing), part("weakened", report.weakened)];
    let line = parts.into_iter().flatten().collect::<Vec<_>>().join("; ");
    (!line.is_empty()).then_some(line)
}

/// Prints what `run` would do, on this host or on one without some controllers.
pub(crate) fn explain(explain: &Explain) -> Result<ExitCode, Failure> {
    let args = &explain.args;
    let mut sandbox = sandbox(args)?;
    let mut lesser = String::new();
    if !explain.without_controller.is_empty() {
        let mut host = Host::probe()?;
        host.cgroups = without(&host.cgroups, &explain.without_controller)?;
        sandbox = sandbox.host(&host);
        let (required, asked) = (args.policy()?.required_controllers, args.spec()?.limits.asked());
        lesser = match host.cgroups.requiring(required, asked).can_limit() {
            Ok(()) => format!("# without {}: limits can be set\n", explain.without_controller.join(", ")),
            Err(why) => format!("# without {}: no limits: {why}\n", explain.without_controller.join(", ")),
        };
    }
    // If the host cannot enforce everything, the best-effort plan is printed before the error.
    let (plan, refused) = match sandbox.plan() {
        Ok(plan) => (plan, None),
        Err(refused @ Error::Unsupported { .. }) => match sandbox.require(Require::BestEffort).plan() {
            Ok(plan) => (plan, Some(refused)),
            Err(_) => return Err(refused.into()),
        },
        Err(e) => return Err(e.into()),
    };
    let mut out = std::io::stdout().lock();
    let _ = write!(out, "{plan}{lesser}# report\n{}", comment(&plan.report));
    if let Some(path) = &args.report {
        write_report(open_report(path)?, &plan.report)?;
    }
    refused.map_or(Ok(ExitCode::SUCCESS), |refused| Err(refused.into()))
}

fn without(found: &Detection, names: &[String]) -> Result<Detection, Failure> {
    let mut found = found.clone();
    for name in names {
        if !CONTROLLERS.contains(&name.as_str()) && name != "io" {
            let known = CONTROLLERS.join(", ");
            return Err(Failure::new(format!("without-controller: {name:?} is not one of {known}")));
        }
        found = found.without(name);
    }
    Ok(found)
}

fn comment(report: &Report) -> String {
    report.to_string().lines().map(|line| format!("#   {line}\n")).collect()
}

/// Opens the file of the report. `None` is standard output.
fn open_report(path: &Path) -> Result<Option<File>, Failure> {
    if path == Path::new("-") {
        return Ok(None);
    }
    File::create(path).map(Some).map_err(|e| Failure::new(format!("--report {path:?}: {e}")))
}

fn write_report(file: Option<File>, report: &Report) -> Result<(), Failure> {
    let json = serde_json::to_string_pretty(report).map_err(|e| Failure::new(format!("report: {e}")))?;
    let written = match file {
        None => writeln!(std::io::stdout(), "{json}"),
        Some(mut file) => file.write_all(json.as_bytes()),
    };
    written.map_err(|e| Failure::new(format!("--report: {e}")))
}
