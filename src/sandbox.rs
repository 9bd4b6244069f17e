//! The front: a spec under a policy, to be planned or spawned.
#![forbid(unsafe_code)]

use std::ffi::OsString;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;

use crate::compile::compile;
use crate::error::Result;
use crate::host::{Host, Survey};
use crate::plan::Plan;
use crate::rootfs::Progress;
use crate::spawn::{self, Given};
use crate::spec::{Policy, SandboxSpec};
use crate::task::Task;

mod build;
mod enter;

/// A sandbox that can be planned, or spawned any number of times.
///
/// ```no_run
/// use cofferdam::{Control, Sandbox, Stdio};
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
}

/// Whom to tell how far the population of a root is.
#[derive(Clone, Default)]
struct Progressed(Option<Arc<dyn Fn(Progress) + Send + Sync>>);

impl Progressed {
    fn as_fn(&self) -> Option<&(dyn Fn(Progress) + Sync)> {
        self.0.as_ref().map(|tell| &**tell as &(dyn Fn(Progress) + Sync))
    }
}

impl fmt::Debug for Progressed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Some(..)" } else { "None" })
    }
}

impl Sandbox {
    /// A spec under a policy.
    pub fn new(policy: &Policy, spec: SandboxSpec) -> Self {
        Sandbox { policy: policy.clone(), spec, host: None, progress: Progressed::default() }
    }

    /// A command under the default policy, to be refined by the methods below. Their order does not
    /// matter; each sets the field of the same name.
    pub fn command(command: impl Into<OsString>) -> Self {
        let spec = SandboxSpec { command: command.into(), ..SandboxSpec::default() };
        Sandbox { policy: Policy::default(), spec, host: None, progress: Progressed::default() }
    }

    /// What is known about this host, from an earlier [`Host::probe`]. Without it every plan probes.
    pub fn host(mut self, host: &Host) -> Self {
        self.host = Some(host.clone());
        self
    }

    /// Whom to tell how far it is while a root is populated by links, reflinks or copies: called now and then,
    /// from any thread of the walk, until `spawn` has populated it. It should return soon.
    pub fn progress(mut self, tell: impl Fn(Progress) + Send + Sync + 'static) -> Self {
        self.progress = Progressed(Some(Arc::new(tell)));
        self
    }

    /// The operator's policy.
    pub fn policy(mut self, policy: &Policy) -> Self {
        self.policy = policy.clone();
        self
    }

    /// What would be done and what would hold. Touches nothing, beyond what [`Host::probe`] does where no host was
    /// given. The name of a sandbox without one, and so of its cgroup, differs from one plan to the next.
    ///
    /// # Errors
    /// [`Error::Spec`](crate::Error::Spec), [`Error::Denied`](crate::Error::Denied) and
    /// [`Error::Unsupported`](crate::Error::Unsupported), as `spawn` would give them.
    pub fn plan(&self) -> Result<Plan> {
        Ok(*self.compile()?.0)
    }

    /// What is large stands in boxes, and each of them is filled by a function of its own: a caller's thread may have a
    /// small stack.
    fn compile(&self) -> Result<(Box<Plan>, Box<Survey>)> {
        let probed;
        let host = match &self.host {
            Some(host) => host,
            None => {
                probed = probe_host()?;
                &*probed
            }
        };
        let survey = self.survey(host)?;
        Ok((self.compile_with(host, &survey)?, survey))
    }

    fn survey(&self, host: &Host) -> Result<Box<Survey>> {
        Survey::take(&self.policy, &self.spec, host).map(Box::new)
    }

    fn compile_with(&self, host: &Host, survey: &Survey) -> Result<Box<Plan>> {
        compile(&self.policy, &self.spec, host, survey, &random_id()).map(Box::new)
    }

    /// Builds the enclosure and runs the command in it. Returns once the command has been executed, or
    /// with the step that was refused; then nothing is left of it.
    ///
    /// Any thread of any program may call it, any number of them at once. The caller's own state is as
    /// before: working directory, umask, signal mask and handlers, dumpable flag, descriptors. The cost
    /// does not depend on how much memory the caller has.
    ///
    /// # Errors
    /// See [`Error`](crate::Error), whose variants are sorted by who must act.
    pub fn spawn(&self) -> Result<Task> {
        spawn::check_declared(&self.spec)?;
        let (plan, survey) = self.compile()?;
        let given = Given {
            streams: spawn::streams([&self.spec.stdin, &self.spec.stdout, &self.spec.stderr]),
            survey: Some(&survey),
            progress: self.progress.as_fn(),
            running: None,
        };
        Task::new(&plan, spawn::spawn(&plan, given)?)
    }
}

fn probe_host() -> Result<Box<Host>> {
    Host::probe().map(Box::new)
}

/// A name that no other sandbox of this host has: 64 bits from the process's random hash keys, the
/// clock and a counter.
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
