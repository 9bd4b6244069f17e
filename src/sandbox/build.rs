//! The builder: a method for each field of [`SandboxSpec`].

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use super::Sandbox;
use crate::cgroup::{LimitEnv, Limits};
use crate::filter::Filter;
use crate::ns::{IsolationMode, Network};
use crate::report::Require;
use crate::rootfs::{Dns, HostsEntry, Method, Root, TaskDirs, Volume};
use crate::spec::{CallerFd, Device, DieWith, Fd, Resource, Rlimit, SandboxSpec, Stdio, WindowSize};

/// Builder methods. Each one sets the field of [`SandboxSpec`] with the same name, or adds to it. The documentation of
/// the field has the details. The order of the calls does not matter. A wrong value is an error of
/// [`plan`](Sandbox::plan) and [`spawn`](Sandbox::spawn).
///
/// ```no_run
/// use cofferdam::{Limits, Network, Resource, Sandbox, Stdio, Volume};
///
/// let task = Sandbox::command("cargo")
///     .args(["build", "--release"])
///     .env("HOME", "/work")
///     .volume(Volume { source: "/srv/job/7".into(), target: "/work".into(), ..Volume::default() })
///     .work_dir("/work")
///     .network(Network::None)
///     .limits(Limits { memory: Some(2 << 30), pids_max: Some(512), ..Limits::default() })
///     .rlimit(Resource::Nofile, 4096)
///     .stdout(Stdio::Inherit)
///     .spawn()?;
/// println!("{}", task.wait()?);
/// # Ok::<(), cofferdam::Error>(())
/// ```
impl Sandbox {
    /// Calls `set` with the spec, to set several fields or fields of fields.
    pub fn with(mut self, set: impl FnOnce(&mut SandboxSpec)) -> Self {
        set(&mut self.spec);
        self.kept = self.kept.without_plan();
        self
    }

    /// Sets the name of the sandbox, 1 to 128 letters, digits, `.`, `_` and `-`. If a sandbox with that name runs, the
    /// spawn fails, unless it is to [replace](Self::replace) it.
    pub fn id(self, id: impl Into<String>) -> Self {
        self.with(|s| s.id = Some(id.into()))
    }

    /// Sets whether the spawn ends the task that has the sandbox's id, and takes its place. False by default.
    ///
    /// ```no_run
    /// use cofferdam::Sandbox;
    ///
    /// let task = Sandbox::command("nginx").id("web").replace(true).spawn()?;
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn replace(self, on: bool) -> Self {
        self.with(|s| s.replace = on)
    }

    /// Adds an argument. `argv[0]` is not one of them.
    pub fn arg(self, arg: impl Into<OsString>) -> Self {
        self.with(|s| s.args.push(arg.into()))
    }

    /// Adds arguments.
    pub fn args<S: Into<OsString>>(self, args: impl IntoIterator<Item = S>) -> Self {
        self.with(|s| s.args.extend(args.into_iter().map(Into::into)))
    }

    /// Sets an environment variable. The caller's environment is not inherited.
    pub fn env(self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.with(|s| drop(s.env.insert(key.into(), value.into())))
    }

    /// Sets environment variables. The caller's environment is not inherited.
    pub fn envs<K: Into<OsString>, V: Into<OsString>>(
        self,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> Self {
        self.with(|s| s.env.extend(variables.into_iter().map(|(key, value)| (key.into(), value.into()))))
    }

    /// Sets the user, and optionally the group: `NAME`, `UID`, `NAME:GROUP` or `UID:GID`.
    pub fn user(self, user: impl Into<String>) -> Self {
        self.with(|s| s.user = Some(user.into()))
    }

    /// Sets the working directory, an absolute path in the root. It is made if it does not exist.
    pub fn work_dir(self, dir: impl Into<PathBuf>) -> Self {
        self.with(|s| s.work_dir = Some(dir.into()))
    }

    /// Sets whether the task has a private PID namespace or the host's.
    pub fn pid_mode(self, mode: IsolationMode) -> Self {
        self.with(|s| s.pid_mode = Some(mode))
    }

    /// Sets whether the task has a private IPC namespace or the host's.
    pub fn ipc_mode(self, mode: IsolationMode) -> Self {
        self.with(|s| s.ipc_mode = Some(mode))
    }

    /// Sets the network namespace.
    pub fn network(self, network: Network) -> Self {
        self.with(|s| s.network = network)
    }

    /// Sets the host name, 1 to 64 bytes, in a new UTS namespace.
    pub fn hostname(self, name: impl Into<String>) -> Self {
        self.with(|s| s.hostname = Some(name.into()))
    }

    /// Sets whether the task has a new cgroup namespace.
    pub fn cgroup_namespace(self, private: bool) -> Self {
        self.with(|s| s.cgroup_namespace = Some(private))
    }

    /// Sets whether a small init stays as PID 1. True by default.
    pub fn init(self, init: bool) -> Self {
        self.with(|s| s.init = init)
    }

    /// Adds a capability to the default set, by name. `all` adds every capability that the kernel supports.
    pub fn cap_add(self, name: impl Into<String>) -> Self {
        self.with(|s| s.cap_add.push(name.into()))
    }

    /// Drops a capability from the default set, by name. `all` drops every capability.
    pub fn cap_drop(self, name: impl Into<String>) -> Self {
        self.with(|s| s.cap_drop.push(name.into()))
    }

    /// Sets `PR_SET_NO_NEW_PRIVS`: if true, `execve(2)` grants no privileges. True by default.
    pub fn no_new_privs(self, on: bool) -> Self {
        self.with(|s| s.no_new_privs = on)
    }

    /// Sets whether the task may create user namespaces. False by default.
    pub fn user_namespaces(self, allowed: bool) -> Self {
        self.with(|s| s.user_namespaces = allowed)
    }

    /// Sets the root file system.
    pub fn root(self, root: Root) -> Self {
        self.with(|s| s.root = root)
    }

    /// Sets the method that populates the root: [`Root::populate`].
    pub fn populate(self, method: Method) -> Self {
        self.with(|s| s.root.populate = method)
    }

    /// Sets `/alloc`, `/local`, `/secrets` and `/tmp`.
    pub fn task_dirs(self, dirs: TaskDirs) -> Self {
        self.with(|s| s.task_dirs = dirs)
    }

    /// Sets the content of a new `/etc/resolv.conf`, mounted read-only.
    pub fn dns(self, dns: Dns) -> Self {
        self.with(|s| s.dns = Some(dns))
    }

    /// Adds lines to a new `/etc/hosts`, mounted read-only.
    pub fn hosts(self, entries: impl IntoIterator<Item = HostsEntry>) -> Self {
        self.with(|s| s.hosts.get_or_insert_default().extend(entries))
    }

    /// Sets the system call filter.
    ///
    /// ```no_run
    /// use cofferdam::filter::{Action, Filter, Profile, Rule};
    ///
    /// let rule = Rule { calls: vec!["ptrace".into()], action: Action::Errno(1), args: Vec::new() };
    /// let filter = Filter::Profile(Profile { rules: vec![rule], i386: false, ..Profile::default() });
    /// let task = cofferdam::Sandbox::command("make").filter(filter).spawn()?;
    /// # Ok::<(), cofferdam::Error>(())
    /// ```
    pub fn filter(self, filter: Filter) -> Self {
        self.with(|s| s.filter = filter)
    }

    /// Adds a file or directory of the host, bind-mounted in the sandbox.
    pub fn volume(self, volume: Volume) -> Self {
        self.with(|s| s.volumes.push(volume))
    }

    /// Adds a device node of the host, bind-mounted in the sandbox.
    pub fn device(self, device: Device) -> Self {
        self.with(|s| s.devices.push(device))
    }

    /// Sets whether a device cgroup is required (true) or none is made (false).
    pub fn device_cgroup(self, on: bool) -> Self {
        self.with(|s| s.device_cgroup = Some(on))
    }

    /// Sets the resource limits by cgroup.
    pub fn limits(self, limits: Limits) -> Self {
        self.with(|s| s.limits = limits)
    }

    /// Sets the names of the environment variables that hold the limits.
    pub fn limit_env(self, names: LimitEnv) -> Self {
        self.with(|s| s.limit_env = names)
    }

    /// Sets a limit of `setrlimit(2)`: an [`Rlimit`], or a number for both the soft and the hard limit.
    pub fn rlimit(self, resource: Resource, limit: impl Into<Rlimit>) -> Self {
        self.with(|s| s.rlimits.extend([(resource, limit.into())]))
    }

    /// Sets the time after which PID 1 kills the task.
    pub fn deadline(self, deadline: Duration) -> Self {
        self.with(|s| s.deadline = Some(deadline))
    }

    /// Sets the CPU time after which PID 1 kills the task.
    pub fn cpu_deadline(self, deadline: Duration) -> Self {
        self.with(|s| s.cpu_deadline = Some(deadline))
    }

    /// Sets the time after which an unfinished spawn fails.
    pub fn spawn_deadline(self, deadline: Duration) -> Self {
        self.with(|s| s.spawn_deadline = Some(deadline))
    }

    /// Sets what becomes of the task when this process ends.
    pub fn die_with(self, die_with: DieWith) -> Self {
        self.with(|s| s.die_with = die_with)
    }

    /// Sets `oom_score_adj`, -1000 to 1000.
    pub fn oom_score_adj(self, score: i32) -> Self {
        self.with(|s| s.oom_score_adj = Some(score))
    }

    /// Sets the umask, `0o022` by default.
    pub fn umask(self, mask: u32) -> Self {
        self.with(|s| s.umask = mask)
    }

    /// Sets standard input: a [`Stdio`], a `File` or an `OwnedFd`.
    pub fn stdin(self, stdio: impl Into<Stdio>) -> Self {
        self.with(|s| s.stdin = stdio.into())
    }

    /// Sets a pseudo-terminal of this size as the standard streams.
    pub fn terminal(self, size: WindowSize) -> Self {
        self.with(|s| s.terminal = Some(size))
    }

    /// Sets standard output: a [`Stdio`], a `File` or an `OwnedFd`.
    pub fn stdout(self, stdio: impl Into<Stdio>) -> Self {
        self.with(|s| s.stdout = stdio.into())
    }

    /// Sets standard error: a [`Stdio`], a `File` or an `OwnedFd`.
    pub fn stderr(self, stdio: impl Into<Stdio>) -> Self {
        self.with(|s| s.stderr = stdio.into())
    }

    /// Passes the caller's descriptor `from` to the task as its descriptor `to`, 3 to 1023.
    pub fn fd(self, from: impl Into<CallerFd>, to: u32) -> Self {
        self.with(|s| s.fds.push(Fd::new(from, to)))
    }

    /// Sets what must hold, or the spawn fails: a [`Require`], or the controls that must be enforced.
    pub fn require(self, require: impl Into<Require>) -> Self {
        self.with(|s| s.require = Some(require.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_of_a_spec_has_a_builder_method() {
        let spec = serde_json::to_value(SandboxSpec::default()).unwrap();
        let source = concat!(include_str!("build.rs"), include_str!("../sandbox.rs"));
        for field in spec.as_object().unwrap().keys() {
            let one = field.strip_suffix('s').unwrap_or(field);
            let found = [field.as_str(), one].into_iter().any(|name| {
                source.contains(&format!("pub fn {name}(")) || source.contains(&format!("pub fn {name}<"))
            });
            assert!(found, "no builder method for {field}");
        }
    }
}
