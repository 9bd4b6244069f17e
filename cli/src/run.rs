//! `run` and `explain`.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;

use cofferdam::cgroup::{CONTROLLERS, Detection};
use cofferdam::{Control, Deadline, Error, ExitStatus, Host, Report, Require, Sandbox, Signal, Task};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal as Number};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::args::{Args, Explain};
use crate::progress::Bar;
use crate::streams::Streams;
use crate::{Failure, REFUSED};

fn sandbox(args: &Args) -> Result<Sandbox, Failure> {
    Ok(Sandbox::new(&args.policy()?, args.spec()?))
}

/// Runs the command and returns its exit status.
pub(crate) fn run(args: &Args) -> Result<ExitCode, Failure> {
    let signals = forwarded()?;
    let bar = Bar::on_terminal();
    let mut spec = args.spec()?;
    let pipes = Streams::of(&mut spec).map_err(|e| Failure::new(format!("pipes for standard streams: {e}")));
    let mut pipes = pipes?;
    let sandbox = Sandbox::new(&args.policy()?, spec);
    let sandbox = match &bar {
        Some(bar) => sandbox.progress(bar.teller()),
        None => sandbox,
    };
    // Opened before the command runs, so that a wrong path costs nothing.
    let report = args.report.as_deref().map(open_report).transpose()?;
    let spawned = sandbox.spawn();
    // The sandbox holds the task's ends of the pipes: while they are open, the copying threads never see their end.
    drop((bar, sandbox));
    let task = spawned?;
    pipes.start();
    if let Some(line) = lacking(task.report()) {
        let _ = writeln!(std::io::stderr(), "cofferdam: {line}");
    }
    let status = wait(&task, &signals)?;
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
    Ok(u8::try_from(status.shell_code()).map_or(ExitCode::from(REFUSED), ExitCode::from))
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

/// Blocks the signals that are forwarded to the command, and returns a signalfd for them. The task has a session of its
/// own, so the terminal sends the signals of its keys only to this process.
fn forwarded() -> Result<SignalFd, Failure> {
    let mut set = SigSet::empty();
    for signal in
        [Number::SIGHUP, Number::SIGINT, Number::SIGQUIT, Number::SIGTERM, Number::SIGUSR1, Number::SIGUSR2]
    {
        set.add(signal);
    }
    set.thread_block().map_err(|e| Failure::new(format!("rt_sigprocmask: {e}")))?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
        .map_err(|e| Failure::new(format!("signalfd4: {e}")))
}

fn wait(task: &Task, signals: &SignalFd) -> Result<ExitStatus, Failure> {
    loop {
        if let Some(status) = task.try_wait()? {
            return Ok(status);
        }
        let mut fds =
            [PollFd::new(task.pidfd(), PollFlags::POLLIN), PollFd::new(signals.as_fd(), PollFlags::POLLIN)];
        let _ = poll(&mut fds, PollTimeout::NONE);
        while let Ok(Some(info)) = signals.read_signal() {
            if let Some(signal) = i32::try_from(info.ssi_signo).ok().and_then(Signal::new) {
                task.signal(signal)?;
            }
        }
    }
}
