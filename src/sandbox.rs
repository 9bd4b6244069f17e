//! Entry point of the crate: a spec under a policy that can be planned or spawned.
#![forbid(unsafe_code)]

use std::cell::Cell;
use std::ffi::OsString;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::compile::{check_deadline, compile};
use crate::error::{Error, Result};
use crate::host::{Host, Survey};
use crate::ids::{Identity, lookup_until};
use crate::plan::Plan;
use crate::rootfs::lower::Part;
use crate::rootfs::reach::Reach;
use crate::rootfs::{Cancel, Progress, ProgressFn, Watch};
use crate::spawn::{self, AtGate, Given};
use crate::spec::{DieWith, Policy, SandboxSpec};
use crate::task::{Task, TaskHandle};
use prepare::{Kept, KeptPlan};

mod build;
mod enter;
mod prepare;

/// A spec under a policy, with builder methods for its fields. It can be spawned any number of times. Keep it, or a clone of
/// it, for the next spawn: from the second one on, mounts that every task needs are [prepared](Sandbox::prepare).
///
/// ```no_run
/// use cofferdam::{Control, Sandbox, Stdio};
///
/// let task = Sandbox::command("id").user("daemon").stdout(Stdio::Inherit).spawn()?;
/// assert!(task.report().enforced.contains(Control::PID_NS | Control::CAPS));
/// println!("{}", task.wait()?);
/// # Ok::<(), cofferdam::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Sandbox {
    policy: Policy,
    spec: SandboxSpec,
    host: Option<Host>,
    progress: Progressed,
    cancel: Option<Cancel>,
    kept: Kept,
}

/// The progress callback of the caller, if there is one.
#[derive(Clone, Default)]
struct Progressed(Option<Arc<dyn Fn(Progress) -> ControlFlow<()> + Send + Sync>>);

impl Progressed {
    fn as_fn(&self) -> Option<&ProgressFn<'_>> {
        self.0.as_ref().map(|tell| &**tell as &ProgressFn<'_>)
    }
}

impl fmt::Debug for Progressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Some(..)" } else { "None" })
    }
}

impl Sandbox {
    /// A sandbox from a spec and a policy, for example from deserialised ones.
    pub fn new(policy: &Policy, spec: SandboxSpec) -> Self {
        Sandbox {
            policy: policy.clone(),
            spec,
            host: None,
            progress: Progressed::default(),
            cancel: None,
            kept: Kept::default(),
        }
    }

    /// A sandbox for a command, with the default spec and the default policy. See [`SandboxSpec::command`] for how the
    /// command is looked up.
    pub fn command(command: impl Into<OsString>) -> Self {
        let spec = SandboxSpec { command: command.into(), ..SandboxSpec::default() };
        Sandbox::new(&Policy::default(), spec)
    }

    /// The spec, with all changes of the builder.
    pub fn spec(&self) -> &SandboxSpec {
        &self.spec
    }

    /// Sets the facts about this host, from an earlier [`Host::probe`]. Without them, every plan and every spawn probes
    /// the host again.
    pub fn host(mut self, host: &Host) -> Self {
        self.host = Some(host.clone());
        self.kept = self.kept.without_plan();
        self
    }

    /// Sets a callback for the progress of a root that is populated by links, reflinks or copies. `spawn` calls it
    /// several times, from any of its worker threads, and a last time when the root is populated. It must return
    /// quickly. Other roots have no progress.
    ///
    /// [`ControlFlow::Break`] cancels the spawn as [`cancel`](Self::cancel) does. After the last call it has no effect.
    pub fn progress(mut self, tell: impl Fn(Progress) -> ControlFlow<()> + Send + Sync + 'static) -> Self {
        self.progress = Progressed(Some(Arc::new(tell)));
        self
    }

    /// Sets a handle that ends the population of a root from another thread. `spawn` then removes everything that it has
    /// made, and returns [`Error::Cancelled`](crate::Error::Cancelled). The copying stops before the next file, or
    /// within a large file before the next 8 MiB; removing takes time in proportion to what was made. A spawn whose root
    /// is populated, or is not populated at all, goes on.
    pub fn cancel(mut self, cancel: &Cancel) -> Self {
        self.cancel = Some(cancel.clone());
        self
    }

    /// Sets the operator's policy.
    pub fn policy(mut self, policy: &Policy) -> Self {
        self.policy = policy.clone();
        self.kept = self.kept.without_plan();
        self
    }

    /// Compiles the steps of a spawn and the report of what will hold. Changes nothing on the host, except for the
    /// probe of [`Host::probe`] if no host was given.
    ///
    /// Without an [`id`](SandboxSpec::id), every plan has another random name for the sandbox and its cgroup.
    ///
    /// ```no_run
    /// let plan = cofferdam::Sandbox::command("make").plan()?;
    /// println!("{plan}"); // every step, with its system calls
    /// println!("{}", plan.report);
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Spec`](crate::Error::Spec), [`Error::Denied`](crate::Error::Denied),
    /// [`Error::Unsupported`](crate::Error::Unsupported) and [`Error::Prepare`](crate::Error::Prepare), as `spawn`
    /// returns them. [`Error::Unsupported`](crate::Error::Unsupported) includes a required control that will not hold.
    pub fn plan(&self) -> Result<Plan> {
        self.on_host(|host| {
            let survey = self.survey(host, Instant::now())?;
            self.compile_with(host, &survey).map(|plan| *plan)
        })
    }

    /// Calls `work` with the facts about this host.
    fn on_host<T>(&self, work: impl FnOnce(&Host) -> Result<T>) -> Result<T> {
        match &self.host {
            Some(host) => work(host),
            None => work(&*probe_host()?),
        }
    }

    /// Large values are in boxes, and each box is filled in a function of its own, because the caller's thread may have
    /// a small stack.
    ///
    /// `begun` is when the call of the caller began.
    fn survey(&self, host: &Host, begun: Instant) -> Result<Box<Survey>> {
        check_deadline(&self.spec)?;
        let identity = self.identity(begun)?;
        let until = self.until(begun);
        let ask = |path: &Path| until.map_or(Ok(()), |until| spawn::answers(path, until));
        Survey::take(&self.policy, &self.spec, host, identity, &Reach::by(&ask)).map(Box::new)
    }

    /// The user of the spec, as the host's database has it now.
    fn identity(&self, begun: Instant) -> Result<Identity> {
        lookup_until(self.spec.user.as_deref().unwrap_or_default(), self.until(begun))
    }

    /// The deadline of a spawn that began then. `None` if it is too late for the clock.
    fn until(&self, begun: Instant) -> Option<Instant> {
        begun.checked_add(self.spec.spawn_time())
    }

    fn compile_with(&self, host: &Host, survey: &Survey) -> Result<Box<Plan>> {
        compile(&self.policy, &self.spec, host, survey, &random_id(), Part::Whole).map(Box::new)
    }

    /// Builds the sandbox and runs the command in it. Returns after `execve(2)` of the command has succeeded.
    ///
    /// Any number of threads may call it at once, with stacks of at least 64 KiB (256 KiB without optimisation). The
    /// caller's working directory, umask, signal mask and handlers, dumpable flag and descriptors do not change. The cost
    /// does not depend on the caller's memory.
    ///
    /// ```no_run
    /// use cofferdam::Sandbox;
    ///
    /// let sandbox = Sandbox::command("make").arg("-j4");
    /// match sandbox.spawn() {
    ///     Ok(task) => println!("{}", task.wait()?),
    ///     Err(error) => eprintln!("{error}: {}", error.remedy().unwrap_or("no remedy known")),
    /// }
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error`](crate::Error) with the refused step. Everything made before it is removed.
    pub fn spawn(&self) -> Result<Task> {
        self.spawn_by(&|plan, host, given| self.run(plan, host, given))
    }

    /// As [`spawn`](Self::spawn), but passes the task's handle to `store` before the command is executed. So a driver that
    /// is killed at any moment has the handle of every command that was executed, if `store` writes it to a file.
    ///
    /// `store` is called when the sandbox is complete and the command was found. Only the task's filter and `execve(2)`
    /// are left, which wait until `store` returns. The handle is that of [`Task::handle`], whatever
    /// [`die_with`](SandboxSpec::die_with) is: a task that ends with its driver leaves an exit record, which says that it
    /// was killed, and cgroups, which the handle finds. `store` may take any time. Another process that recovers the task
    /// meanwhile is told that it is in use, if the task has an exit record or a cgroup.
    ///
    /// If this process ends before `store` has returned, the command is never executed, and init ends. Recovering the stored
    /// handle then yields a task that has ended, with [`Lost::NotExecuted`](crate::Lost::NotExecuted) if the policy has a
    /// [`state_dir`](Policy::state_dir), else with [`Lost::Unrecorded`](crate::Lost::Unrecorded). If it ends later, a task
    /// that [survives](DieWith::Survive) runs on.
    ///
    /// [`Plan::gated`] prints the steps. They cost two messages between this process and init.
    ///
    /// ```no_run
    /// use cofferdam::{DieWith, Policy, Sandbox};
    ///
    /// let policy = Policy { state_dir: Some("/var/lib/driver".into()), ..Policy::default() };
    /// let sandbox = Sandbox::command("daemon").policy(&policy).die_with(DieWith::Survive);
    /// let task = sandbox.spawn_with(|handle| {
    ///     let mut file = std::fs::File::create("/var/lib/driver/job-7.json")?;
    ///     serde_json::to_writer(&mut file, &handle)?;
    ///     file.sync_all()
    /// })?;
    /// println!("{}", task.wait()?);
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`spawn`](Self::spawn). [`Error::Prepare`](crate::Error::Prepare) with the step `store the handle` if `store`
    /// returns an error: the command was not executed, and everything is removed. The same happens if `store` panics; the
    /// panic goes on. After any other error, `store` may have been called: what it has stored names a task that does not
    /// exist.
    pub fn spawn_with(&self, store: impl FnOnce(TaskHandle) -> io::Result<()>) -> Result<Task> {
        let store = Cell::new(Some(store));
        self.spawn_by(&|plan, host, given| {
            let at_gate = |task: AtGate<'_>| {
                let AtGate { child, undo, report, populated } = task;
                let handle = TaskHandle::at_gate(plan.enclosure(report.clone()), child, undo, populated)?;
                let Some(store) = store.take() else { return Ok(()) };
                store(handle).map_err(Error::prepare("store the handle"))
            };
            self.run(&plan.clone().gated()?, host, Given { at_gate: Some(&at_gate), ..given })
        })
    }

    /// Finds the plan of the next task, and runs it.
    fn spawn_by(&self, run: &dyn Fn(&Plan, &Host, Given<'_>) -> Result<Task>) -> Result<Task> {
        let begun = Instant::now();
        spawn::check_declared(&self.spec)?;
        if let Some(kept) = self.kept_plan(begun) {
            return self.on_host(|host| self.spawn_prepared(&kept, host, self.left(begun), run));
        }
        self.on_host(|host| {
            let survey = self.survey(host, begun)?;
            let plan = self.compile_with(host, &survey)?;
            match self.keep(&plan, host, &survey, begun)? {
                Some(kept) => self.spawn_prepared(&kept, host, self.left(begun), run),
                None => {
                    let start = Some(self.left(begun));
                    run(&plan, host, Given { survey: Some(&survey), start, ..Given::default() })
                }
            }
        })
    }

    fn spawn_prepared(
        &self,
        kept: &KeptPlan,
        host: &Host,
        start: Duration,
        run: &dyn Fn(&Plan, &Host, Given<'_>) -> Result<Task>,
    ) -> Result<Task> {
        let (survey, ready, start) = (Some(&kept.survey), Some(kept.ready()), Some(start));
        let given = Given { survey, ready, start, ..Given::default() };
        match self.spec.id {
            Some(_) => run(&kept.plan, host, given),
            None => run(&kept.plan.named(&random_id()), host, given),
        }
    }

    /// The time that is left for a spawn that began then.
    fn left(&self, begun: Instant) -> Duration {
        self.spec.spawn_time().saturating_sub(begun.elapsed())
    }

    fn run(&self, plan: &Plan, host: &Host, given: Given<'_>) -> Result<Task> {
        let watch = Watch { progress: self.progress.as_fn(), cancel: self.cancel.as_ref() };
        let places = self.spec.replace.then_some((&self.policy, host));
        let given = Given { streams: spawn::streams(self.spec.streams()), watch, places, ..given };
        let survives = self.spec.die_with == DieWith::Survive;
        let (prepared, releases) = (given.ready.is_some(), self.kept.releases());
        let spawned = spawn::spawn(plan, given)?;
        if prepared && let Some(group) = spawned.undo.group() {
            self.kept.keep_parents(group, releases);
        }
        Task::new(plan, spawned, survives)
    }
}

impl Sandbox {
    /// Finds a task again by its handle, in any process of the host, also after the process that spawned it was killed.
    ///
    /// The recovered task is as the spawned one: it can be waited for, signalled, updated and released. Its standard
    /// streams and its [`rusage`](Task::rusage) are not recovered. It is not a child of this process, so its exit status
    /// comes from the exit record in the operator's [`state_dir`](Policy::state_dir). If it has ended without one, the
    /// status is [`Lost`](crate::Lost) with the reason, as it is if its PID is another process's now, if the machine was
    /// rebooted, or if its cgroup was removed. No other process is ever signalled.
    ///
    /// Dropping a recovered task kills and removes nothing. [`release`](Task::release) does, also if the task has ended;
    /// it removes the exit record too.
    ///
    /// ```no_run
    /// use cofferdam::{Sandbox, TaskHandle};
    ///
    /// let text = std::fs::read_to_string("/var/lib/driver/job-7.json").unwrap();
    /// let handle: TaskHandle = serde_json::from_str(&text).unwrap();
    /// let task = Sandbox::recover(&handle)?;
    /// println!("{:?}", task.wait_end(None)?.map(|status| status.kind()));
    /// task.release()?;
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Task`](crate::Error::Task) with the refused call. Its source is `ResourceBusy` if this or another process
    /// has the task, and the message names it; that needs a `state_dir` or a cgroup. It is `Unsupported` for a handle of
    /// another version.
    pub fn recover(handle: &TaskHandle) -> Result<Task> {
        Task::recover(handle)
    }
}

fn probe_host() -> Result<Box<Host>> {
    Host::probe().map(Box::new)
}

/// A random name for a sandbox: 64 bits from the process's random hash keys, the clock and a counter.
fn random_id() -> String {
    use std::sync::atomic::{AtomicU64, Ordering};
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let mut hasher = std::collections::hash_map::RandomState::new().build_hasher();
    hasher.write_u64(COUNT.fetch_add(1, Ordering::Relaxed));
    hasher.write_u32(std::process::id());
    if let Ok(now) = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH) {
        hasher.write_u128(now.as_nanos());
    }
    format!("{:016x}", hasher.finish())
}
