//! Ends the task that has an id, so that a spawn can take its place.
//!
//! The owner of a task is the process that has locked its files and cgroups (`flock(2)`). The task is killed in any case.
//! But a living owner removes what the task has made by name, and the new task has the same names. So this module waits
//! until the locks are free, and removes what is left with the locks held.

use std::io;
use std::time::{Duration, Instant, SystemTime};

use super::stale::Places;
use crate::error::Error;
use crate::host::Host;
use crate::spec::Policy;

/// How long the owner of the task may take to release it after the kill.
const PATIENCE: Duration = Duration::from_secs(10);

/// The longest pause between two attempts to lock what the task has left.
const PAUSE: Duration = Duration::from_millis(20);

/// How far the clocks of a file system may be ahead. Nothing that was found is too young to be removed.
const AHEAD: Duration = Duration::from_secs(3600);

/// Kills the task of this id, waits until its owner has released it, at the latest until `end`, and removes what is left.
/// Does nothing if there is no such task. A task that takes the id meanwhile is not touched.
///
/// # Errors
/// The cause: `ResourceBusy` if the owner has not released the task after [`PATIENCE`] or at `end`; otherwise the refused
/// call.
#[inline(never)] // The caller's thread may have a small stack, and most spawns replace nothing.
pub(crate) fn replace(policy: &Policy, host: &Host, id: &str, end: Option<Instant>) -> io::Result<()> {
    let before = SystemTime::now().checked_add(AHEAD).unwrap_or_else(SystemTime::now);
    let places = Places::of(policy, host, before);
    let mut owned = places.look(id)?;
    let until = Instant::now().checked_add(PATIENCE).into_iter().chain(end).min();
    let mut pause = Duration::from_micros(100);
    while owned.is_there()? {
        // A spawn that has begun makes its cgroup later. What it has made before is still there, so the cgroup is its own.
        if owned.group.is_none() {
            let group = places.look(id)?.group;
            owned.group = group.filter(|_| owned.is_there().unwrap_or(false));
        }
        match owned.kill() {
            // A process of the task has not ended yet.
            Err(e) if cause(&e).is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut) => {}
            killed => killed.map_err(|e| failed(id, &e))?,
        }
        match places.hold(id) {
            // Another spawn may have taken the id, and not have locked what it makes.
            Ok(Some(_)) if !owned.is_there()? => return Ok(()),
            Ok(Some(held)) => return held.remove().map_err(|e| failed(id, &e)),
            Ok(None) => {}
            Err(e) if is_busy(&e) => {}
            Err(e) => return Err(e),
        }
        if until.is_none_or(|until| Instant::now() > until) {
            return Err(still_in_use(id, owned.owner_pid()));
        }
        std::thread::sleep(pause);
        pause = pause.saturating_mul(2).min(PAUSE);
    }
    Ok(())
}

/// Whether another process has a lock on something, or has removed it meanwhile.
fn is_busy(e: &io::Error) -> bool {
    matches!(e.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::WouldBlock | io::ErrorKind::NotFound)
}

fn cause(error: &Error) -> Option<&io::Error> {
    std::error::Error::source(error).and_then(|source| source.downcast_ref())
}

/// The cause of the error if the task cannot be ended.
fn failed(id: &str, why: &Error) -> io::Error {
    let source = cause(why);
    let kind = source.map_or(io::ErrorKind::Other, io::Error::kind);
    let source = source.map(|source| format!(": {source}")).unwrap_or_default();
    io::Error::new(kind, format!("the task {id} cannot be ended: {why}{source}"))
}

/// The error if the task still has an owner, or processes that this one cannot find.
fn still_in_use(id: &str, owner: Option<i32>) -> io::Error {
    let why = match owner {
        Some(pid) if pid.cast_unsigned() == std::process::id() => {
            format!("this process ({pid}) has the task {id}: release it, or drop its value")
        }
        Some(pid) => {
            format!("process {pid} has the task {id}, and has not released it in time after its kill")
        }
        None => format!("a process that cannot be found still uses the task {id} after its kill"),
    };
    io::Error::new(io::ErrorKind::ResourceBusy, format!("the id is in use: {why}"))
}
