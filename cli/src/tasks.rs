//! `ps`, `inspect`, `wait`, `stop`, `kill`, `pause`, `unpause` and `rm`: the verbs for detached tasks.
//!
//! A process that has a task keeps others from it. So no verb has a task while it waits: it polls the pidfd instead.

use std::io::{ErrorKind, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cofferdam::{Error, ExitStatus, Lost, Signal, Task};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

use crate::state::{About, Store};
use crate::{Failure, REFUSED};

/// How long a killed task may take to end.
const KILLED: Duration = Duration::from_secs(10);

#[derive(clap::Args)]
pub(crate) struct Names {
    /// Name of the task
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
}

#[derive(clap::Args)]
pub(crate) struct Ps {
    /// List tasks that have ended too
    #[arg(short, long)]
    all: bool,
    /// Output format
    #[arg(long, value_name = "table|json", default_value = "table", value_parser = ["table", "json"])]
    format: String,
    /// Print only the names
    #[arg(short, long, conflicts_with = "format")]
    quiet: bool,
}

#[derive(clap::Args)]
pub(crate) struct Stop {
    /// Seconds until the task is killed
    #[arg(short, long, value_name = "SECONDS", default_value_t = 10)]
    time: u64,
    /// Signal for the main process
    #[arg(short, long, default_value = "TERM")]
    signal: Signal,
    #[command(flatten)]
    names: Names,
}

#[derive(clap::Args)]
pub(crate) struct Kill {
    /// Signal for the main process; KILL ends all processes
    #[arg(short, long, default_value = "KILL")]
    signal: Signal,
    #[command(flatten)]
    names: Names,
}

#[derive(clap::Args)]
pub(crate) struct Rm {
    /// Kill tasks that run
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    names: Names,
}

/// The state of a task.
enum State {
    Running,
    Frozen,
    Ended(ExitStatus),
}

/// A task as `ps` and `inspect` print it.
struct Seen {
    about: About,
    state: State,
    /// When it ended, if that is known.
    ended: Option<SystemTime>,
    pid: Option<i32>,
    report: serde_json::Value,
}

impl Seen {
    fn of(store: &Store, name: &str, task: &Task) -> Result<Seen, Failure> {
        let state = match task.status().map_err(|e| Failure::of(name, e))? {
            Some(status) => State::Ended(status),
            None if task.frozen().unwrap_or(false) => State::Frozen,
            None => State::Running,
        };
        let pid = task.pid().filter(|_| !matches!(state, State::Ended(_)));
        let (about, ended) = (store.about(name, task)?, task.ended_at());
        Ok(Seen { about, state, ended, pid, report: json!(task.report()) })
    }

    /// The state as one word.
    fn word(&self) -> &'static str {
        match &self.state {
            State::Running => "running",
            State::Frozen => "frozen",
            State::Ended(status) if status.lost.is_some() => "lost",
            State::Ended(_) => "exited",
        }
    }

    fn status(&self) -> String {
        match &self.state {
            State::Ended(ExitStatus { code: Some(code), .. }) => format!("exited ({code})"),
            State::Ended(ExitStatus { signal: Some(signal), .. }) => format!("signal {signal}"),
            State::Ended(status) => format!("lost: {}", status.lost.unwrap_or(Lost::Unrecorded)),
            _ => self.word().to_owned(),
        }
    }

    /// The status, and how long ago the task ended.
    fn status_and_age(&self, now: SystemTime) -> String {
        match self.ended {
            Some(ended) => format!("{} {}", self.status(), ago(now, ended)),
            None => self.status(),
        }
    }

    fn created(&self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_secs(self.about.created)).unwrap_or(UNIX_EPOCH)
    }

    fn json(&self) -> serde_json::Value {
        let exit = match &self.state {
            State::Ended(status) => Some(status),
            _ => None,
        };
        json!({
            "name": self.about.name,
            "state": self.word(),
            "status": self.status(),
            "pid": self.pid,
            "exit": exit,
            "created": utc(self.created()),
            "finished": self.ended.map(utc),
            "command": self.about.command,
        })
    }
}

/// Lists the tasks. A task that cannot be read does not keep the others from being listed.
pub(crate) fn ps(args: &Ps) -> Result<ExitCode, Failure> {
    let store = Store::open()?;
    let mut seen = Vec::new();
    let failed = each(&store.names()?, |name| {
        // The task may have been removed meanwhile.
        let task = store.find(name)?;
        seen.extend(task.map(|task| Seen::of(&store, name, &task)).transpose()?);
        Ok(())
    });
    seen.retain(|task| args.all || !matches!(task.state, State::Ended(_)));
    seen.sort_by_key(|task| std::cmp::Reverse(task.about.created));
    let mut out = std::io::stdout().lock();
    let _ = match (args.quiet, args.format.as_str()) {
        (true, _) => seen.iter().try_for_each(|task| writeln!(out, "{}", task.about.name)),
        (_, "json") => {
            let all: Vec<_> = seen.iter().map(Seen::json).collect();
            writeln!(out, "{:#}", json!(all))
        }
        _ => write!(out, "{}", table(&seen, SystemTime::now())),
    };
    Ok(failed)
}

/// The table of `ps`, with columns as wide as their longest value.
fn table(seen: &[Seen], now: SystemTime) -> String {
    let header = ["NAME", "STATUS", "CREATED", "PID", "COMMAND"].map(str::to_owned);
    let rows = seen.iter().map(|task| {
        let created = ago(now, task.created());
        let pid = task.pid.map_or("-".to_owned(), |pid| pid.to_string());
        [task.about.name.clone(), task.status_and_age(now), created, pid, line(&task.about.command)]
    });
    let rows: Vec<[String; 5]> = std::iter::once(header).chain(rows).collect();
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("   ").trim_end());
        text.push('\n');
    }
    text
}

/// The command in one line, without control characters, at most 40 characters long.
fn line(command: &[String]) -> String {
    let text = command.join(" ");
    let shown: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(40).collect();
    if text.chars().count() > 40 { format!("{shown}...") } else { shown }
}

/// A time of the host's clock, as RFC 3339 has it.
fn utc(time: SystemTime) -> String {
    humantime::format_rfc3339_seconds(time).to_string()
}

/// How long ago a time was, in its largest unit.
fn ago(now: SystemTime, then: SystemTime) -> String {
    format!("{} ago", age(now.duration_since(then).unwrap_or_default().as_secs()))
}

/// A time in its largest unit.
fn age(seconds: u64) -> String {
    let units = [(86_400, "day"), (3600, "hour"), (60, "minute"), (1, "second")];
    let unit = units.into_iter().find(|(length, _)| seconds >= *length);
    let (length, name) = unit.unwrap_or((1, "second"));
    let number = seconds.checked_div(length).unwrap_or_default();
    format!("{number} {name}{}", if number == 1 { "" } else { "s" })
}

/// Calls `act` for each name. Prints the failures. Exits with 125 if there was one.
fn each(names: &[String], mut act: impl FnMut(&str) -> Result<(), Failure>) -> ExitCode {
    let mut code = 0;
    for name in names {
        if let Err(failure) = act(name) {
            failure.print();
            code = REFUSED;
        }
    }
    ExitCode::from(code)
}

/// As [`each`], and prints the name of each task for which `act` succeeds.
fn each_printed(
    Names { names }: &Names,
    act: impl Fn(&Store, &str) -> Result<(), Failure>,
) -> Result<ExitCode, Failure> {
    let store = Store::open()?;
    Ok(each(names, |name| {
        act(&store, name)?;
        let _ = writeln!(std::io::stdout(), "{name}");
        Ok(())
    }))
}

/// Prints a JSON array.
pub(crate) fn inspect(Names { names }: &Names) -> Result<ExitCode, Failure> {
    let store = Store::open()?;
    let mut all = Vec::new();
    let code = each(names, |name| {
        let seen = Seen::of(&store, name, &store.recover(name)?)?;
        let mut facts = seen.json();
        if let Some(facts) = facts.as_object_mut() {
            facts.insert("report".into(), seen.report);
        }
        all.push(facts);
        Ok(())
    });
    let _ = writeln!(std::io::stdout(), "{:#}", json!(all));
    Ok(code)
}

/// Prints the exit code of each task, or 128 plus its signal.
pub(crate) fn wait(Names { names }: &Names) -> Result<ExitCode, Failure> {
    let store = Store::open()?;
    Ok(each(names, |name| {
        let waited_for = await_end(&store, name, None)?;
        let task = store.recover(name)?;
        if store.identity(name, &task)? != waited_for {
            return Err(Failure::new(format!(
                "task {name}: the exit status is lost: another task has the name now"
            )));
        }
        let status = task.wait_end(Some(KILLED)).map_err(|e| Failure::of(name, e))?;
        let status = status.unwrap_or(ExitStatus::lost(Lost::Unrecorded));
        if let Some(why) = status.lost {
            return Err(Failure::new(format!("task {name}: the exit status is lost: {why}")));
        }
        let _ = writeln!(std::io::stdout(), "{}", status.shell_code());
        Ok(())
    }))
}

/// Waits for the end of a task, or until a time. Other processes have access to the task meanwhile. Returns its identity.
fn await_end(store: &Store, name: &str, until: Option<Instant>) -> Result<Value, Failure> {
    let wrong = |e: std::io::Error| Failure::new(format!("task {name}: poll(pidfd): {e}"));
    let task = store.recover(name)?;
    let identity = store.identity(name, &task)?;
    let pidfd: OwnedFd = task.pidfd().try_clone_to_owned().map_err(wrong)?;
    drop(task);
    loop {
        // Rounded up, so that the last poll does not end too early.
        let left = until.map(|until| until.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(PollTimeout::NONE, |left| {
            PollTimeout::try_from(left.as_millis().saturating_add(1)).unwrap_or(PollTimeout::MAX)
        });
        match poll(&mut [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            Ok(0) if left.is_some_and(|left| !left.is_zero()) => {}
            polled => return polled.map(|_| identity).map_err(|e| wrong(e.into())),
        }
    }
}

/// Kills the task, and stores its status: its PID 1 may have no time to write the exit record. A task of another identity is
/// not the one that was to be killed, which has ended.
fn kill_and_store(store: &Store, name: &str, identity: &Value) -> Result<(), Failure> {
    let of = |e| Failure::of(name, e);
    let task = store.recover(name)?;
    if store.identity(name, &task)? != *identity {
        return Ok(());
    }
    task.kill().map_err(of)?;
    if task.wait_end(Some(KILLED)).map_err(of)?.is_none() {
        return Err(Failure::new(format!(
            "task {name}: it was killed, but still runs after {} s: a process is in an uninterruptible wait",
            KILLED.as_secs()
        )));
    }
    store.replace(name, &task)
}

pub(crate) fn stop(args: &Stop) -> Result<ExitCode, Failure> {
    let grace = Duration::from_secs(args.time);
    each_printed(&args.names, |store, name| {
        let task = store.recover(name)?;
        let identity = store.identity(name, &task)?;
        if task.status().map_err(|e| Failure::of(name, e))?.is_none() {
            // A task that cannot be signalled is killed at once.
            let sent = task.signal(args.signal);
            // A frozen task gets the signal when it is thawed. Without a cgroup, it cannot be frozen.
            let _ = task.thaw();
            drop(task);
            if sent.is_ok() {
                await_end(store, name, Instant::now().checked_add(grace))?;
            }
        } else {
            drop(task);
        }
        kill_and_store(store, name, &identity)
    })
}

pub(crate) fn kill(args: &Kill) -> Result<ExitCode, Failure> {
    each_printed(&args.names, |store, name| {
        let task = store.recover(name)?;
        let of = |e| Failure::of(name, e);
        if let Some(status) = task.status().map_err(of)? {
            return Err(Failure::new(format!(
                "task {name}: it has ended ({status}) and gets no signal (cofferdam rm {name} removes it)"
            )));
        }
        if args.signal != Signal::KILL {
            return task.signal(args.signal).map_err(of);
        }
        let identity = store.identity(name, &task)?;
        drop(task);
        kill_and_store(store, name, &identity)
    })
}

pub(crate) fn pause(names: &Names) -> Result<ExitCode, Failure> {
    each_printed(names, |store, name| frozen(name, store.recover(name)?.freeze()))
}

pub(crate) fn unpause(names: &Names) -> Result<ExitCode, Failure> {
    each_printed(names, |store, name| frozen(name, store.recover(name)?.thaw()))
}

/// The result of a change of the freezer.
fn frozen(name: &str, changed: Result<(), Error>) -> Result<(), Failure> {
    changed.map_err(|e| {
        let lacks = matches!(&e, Error::Task { source, .. } if source.kind() == ErrorKind::Unsupported);
        let mut failure = Failure::of(name, e);
        if lacks {
            failure.message.push_str(" (run it with --accounting, on a host that delegates cgroups)");
        }
        failure
    })
}

pub(crate) fn rm(args: &Rm) -> Result<ExitCode, Failure> {
    each_printed(&args.names, |store, name| {
        let task = store.recover(name)?;
        let runs = task.status().map_err(|e| Failure::of(name, e))?.is_none();
        if runs && !args.force {
            let remedy = format!("stop it first, or use cofferdam rm -f {name}");
            return Err(Failure::new(format!("task {name}: it is running: {remedy}")));
        }
        store.remove(name, &task)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_age_is_printed_in_its_largest_unit() {
        let wanted =
            [(0, "0 seconds"), (1, "1 second"), (119, "1 minute"), (7200, "2 hours"), (90_000, "1 day")];
        for (seconds, text) in wanted {
            assert_eq!(age(seconds), text);
        }
    }

    #[test]
    fn a_command_is_one_line_without_control_characters() {
        assert_eq!(line(&["sh".into(), "-c".into(), "a\nb\x1b[m".into()]), "sh -c a b [m");
        assert_eq!(line(&["x".repeat(50)]), format!("{}...", "x".repeat(40)));
    }
}
