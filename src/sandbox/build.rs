//! The builder: a method for each field of [`SandboxSpec`].

use std::ffi::OsString;
use std::path::PathBuf;

use super::Sandbox;
use crate::cgroup::{LimitEnv, Limits};
use crate::filter::Filter;
use crate::ns::{IsolationMode, Network};
use crate::report::Require;
use crate::rootfs::{Dns, HostsEntry, Method, Root, TaskDirs, Volume};
use crate::spec::{CallerFd, Device, Fd, Resource, Rlimit, SandboxSpec, Stdio};

/// Builder methods. Each sets, or adds to, the field of [`SandboxSpec`] of the same name, whose page says what it means;
/// their order does not matter. A wrong value is an error of [`plan`](Sandbox::plan) and [`spawn`](Sandbox::spawn).
///
/// ```no_run
/// use cofferdam::{Limits, Network, Resource, Sandbox, Stdio, Volume};
///
/// let sandbox = Sandbox::command("cargo")
///     .args(["build", "--release"])
///     .env("HOME", "/work")
///     .volume(Volume { source: "/srv/job/7".into(), target: "/work".into(), ..Volume::default() })
///     .work_dir("/work")
///     .network(Network::None)
///     .limits(Limits { memory: Some(2 << 30), pids_max: Some(512), ..Limits::default() })
///     .rlimit(Resource::Nofile, 4096)
///     .stdout(Stdio::Piped);
/// let output = sandbox.spawn()?.wait()?;
/// # let _ = output;
/// # Ok::<(), cofferdam::Error>(())
/// ```
impl Sandbox {
    /// Calls `set` with the spec.
    pub fn with(mut self, set: impl FnOnce(&mut SandboxSpec)) -> Self {
        set(&mut self.spec);
        self
    }

    /// Sets the name of the sandbox. A running sandbox with that name is an error.
    pub fn id(self, id: impl Into<String>) -> Self {
        self.with(|s| s.id = Some(id.into()))
    }

    /// Adds an argument.
    pub fn arg(self, arg: impl Into<OsString>) -> Self {
        self.with(|s| s.args.push(arg.into()))
    }

    /// Adds arguments.
    pub fn args<S: Into<OsString>>(self, args: impl IntoIterator<Item = S>) -> Self {
        self.with(|s| s.args.extend(args.into_iter().map(Into::into)))
    }

    /// Sets a variable of the environment. The caller's environment is not inherited.
    pub fn env(self, key: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.with(|s| drop(s.env.insert(key.into(), value.into())))
    }

    /// Sets variables of the environment.
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

    /// Sets the working directory, an absolute path in the root.
    pub fn work_dir(self, dir: impl Into<PathBuf>) -> Self {
        self.with(|s| s.work_dir = Some(dir.into()))
    }

    /// Sets whether the task has a PID namespace of its own.
    pub fn pid_mode(self, mode: IsolationMode) -> Self {
        self.with(|s| s.pid_mode = Some(mode))
    }

    /// Sets whether the task has an IPC namespace of its own.
    pub fn ipc_mode(self, mode: IsolationMode) -> Self {
        self.with(|s| s.ipc_mode = Some(mode))
    }

    /// Sets the network.
    pub fn network(self, network: Network) -> Self {
        self.with(|s| s.network = network)
    }

    /// Sets the host name, in a UTS namespace of the task's own.
    pub fn hostname(self, name: impl Into<String>) -> Self {
        self.with(|s| s.hostname = Some(name.into()))
    }

    /// Sets whether the task has a cgroup namespace of its own.
    pub fn cgroup_namespace(self, private: bool) -> Self {
        self.with(|s| s.cgroup_namespace = Some(private))
    }

    /// Sets whether a small init stays as PID 1.
    pub fn init(self, init: bool) -> Self {
        self.with(|s| s.init = init)
    }

    /// Adds a capability. `all` stands for every one that the kernel has.
    pub fn cap_add(self, name: impl Into<String>) -> Self {
        self.with(|s| s.cap_add.push(name.into()))
    }

    /// Drops a capability of the default set. `all` stands for every one.
    pub fn cap_drop(self, name: impl Into<String>) -> Self {
        self.with(|s| s.cap_drop.push(name.into()))
    }

    /// Sets whether `execve(2)` can grant no privileges.
    pub fn no_new_privs(self, on: bool) -> Self {
        self.with(|s| s.no_new_privs = on)
    }

    /// Sets whether the task may create user namespaces.
    pub fn user_namespaces(self, allowed: bool) -> Self {
        self.with(|s| s.user_namespaces = allowed)
    }

    /// Sets the root.
    pub fn root(self, root: Root) -> Self {
        self.with(|s| s.root = root)
    }

    /// Sets how the root is populated.
    pub fn populate(self, method: Method) -> Self {
        self.with(|s| s.root.populate = method)
    }

    /// Sets `/alloc`, `/local`, `/secrets` and `/tmp`.
    pub fn task_dirs(self, dirs: TaskDirs) -> Self {
        self.with(|s| s.task_dirs = dirs)
    }

    /// Sets the content of `/etc/resolv.conf`.
    pub fn dns(self, dns: Dns) -> Self {
        self.with(|s| s.dns = Some(dns))
    }

    /// Adds lines to an `/etc/hosts` of the sandbox's own.
    pub fn hosts(self, entries: impl IntoIterator<Item = HostsEntry>) -> Self {
        self.with(|s| s.hosts.get_or_insert_default().extend(entries))
    }

    /// Sets which system calls the task can make.
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

    /// Adds a file or directory of the host.
    pub fn volume(self, volume: Volume) -> Self {
        self.with(|s| s.volumes.push(volume))
    }

    /// Adds a device node of the host.
    pub fn device(self, device: Device) -> Self {
        self.with(|s| s.devices.push(device))
    }

    /// Requires a device cgroup, or makes none.
    pub fn device_cgroup(self, on: bool) -> Self {
        self.with(|s| s.device_cgroup = Some(on))
    }

    /// Sets the limits by cgroup.
    pub fn limits(self, limits: Limits) -> Self {
        self.with(|s| s.limits = limits)
    }

    /// Sets the variables in which the task finds its limits.
    pub fn limit_env(self, names: LimitEnv) -> Self {
        self.with(|s| s.limit_env = names)
    }

    /// Sets a limit of `setrlimit(2)`: a number for both the soft and the hard one, or an [`Rlimit`].
    pub fn rlimit(self, resource: Resource, limit: impl Into<Rlimit>) -> Self {
        self.with(|s| s.rlimits.extend([(resource, limit.into())]))
    }

    /// Sets `oom_score_adj`, -1000 to 1000.
    pub fn oom_score_adj(self, score: i32) -> Self {
        self.with(|s| s.oom_score_adj = Some(score))
    }

    /// Sets the umask.
    pub fn umask(self, mask: u32) -> Self {
        self.with(|s| s.umask = mask)
    }

    /// Sets standard input: a [`Stdio`], or a file or descriptor that is owned.
    pub fn stdin(self, stdio: impl Into<Stdio>) -> Self {
        self.with(|s| s.stdin = stdio.into())
    }

    /// Sets standard output: a [`Stdio`], or a file or descriptor that is owned.
    pub fn stdout(self, stdio: impl Into<Stdio>) -> Self {
        self.with(|s| s.stdout = stdio.into())
    }

    /// Sets standard error: a [`Stdio`], or a file or descriptor that is owned.
    pub fn stderr(self, stdio: impl Into<Stdio>) -> Self {
        self.with(|s| s.stderr = stdio.into())
    }

    /// Hands the caller's descriptor `from` to the task as its descriptor `to`, 3 to 1023.
    pub fn fd(self, from: impl Into<CallerFd>, to: u32) -> Self {
        self.with(|s| s.fds.push(Fd::new(from, to)))
    }

    /// Sets what must hold, or the sandbox is refused: a [`Require`], or controls that hold without reservation.
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
