//! The operations of init. Part of `wire`, so compiled into the library and into init.

use super::{Blob, Dup, Field, FileType, List, Malformed, Sink, Str};

/// Declares the operations once: generates their type, their codes and their encoding.
macro_rules! ops {
    ($(
        $(#[$doc:meta])*
        $name:ident { $( $(#[$fdoc:meta])* $field:ident : $t:ty ),* $(,)? }
    )*) => {
        /// One operation of init: a unit that a user would name. Each operation makes a fixed sequence of system calls,
        /// which the plan prints in order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Op<'a> {
            $( $(#[$doc])* $name { $( $(#[$fdoc])* $field: $t ),* } ),*
        }

        /// The kind of an operation, without its fields. Its number on the wire is its position in the declaration.
        /// Init is built together with the library, so both have the same numbers.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum OpCode {
            $( $(#[$doc])* $name ),*
        }

        /// The declarations as text. Two builds of the library understand each other's operations if it is the same.
        pub const DECLARATIONS: &str = concat!($( stringify!($name { $($field : $t),* }), "\n" ),*);

        impl OpCode {
            /// All kinds, in order of their numbers.
            pub const ALL: &'static [OpCode] = &[ $( OpCode::$name ),* ];
        }

        impl Op<'_> {
            /// The kind of the operation.
            pub fn code(&self) -> OpCode {
                match self {
                    $( Op::$name { .. } => OpCode::$name ),*
                }
            }
        }

        impl<'a> Field<'a> for Op<'a> {
            fn encode<S: Sink>(&self, sink: &mut S) {
                (self.code() as u8).encode(sink);
                match self {
                    $( Op::$name { $($field),* } => { $( $field.encode(sink); )* } )*
                }
            }
            fn decode(input: &mut &'a [u8]) -> Result<Self, Malformed> {
                let code = OpCode::ALL.get(u8::decode(input)? as usize).ok_or(Malformed)?;
                Ok(match code {
                    $( OpCode::$name => Op::$name { $( $field: Field::decode(input)? ),* }, )*
                })
            }
        }
    };
}

ops! {
    /// Waits until the parent has written the id maps of the new user namespace.
    AwaitIdMaps {}
    /// Starts a new session with a new session keyring. Clears the dumpable flag, sets default signal dispositions, and
    /// umask 0 until [`Op::Umask`].
    Session {}
    /// Resets the scheduling and process settings that init inherited from the caller: policy, nice value, I/O
    /// priority, timer slack, memory policy, personality, transparent huge pages, KSM, I/O flusher, securebits.
    ResetScheduling {}
    /// Changes to a user and group that are mapped in the user namespace. Init keeps all capabilities in that
    /// namespace.
    Become {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    }
    /// Allows every CPU of the cpuset (`sched_setaffinity(2)`).
    Affinity {}
    /// Arranges the descriptors of the task and closes all others.
    Fds {
        /// Pairs of source and target descriptor.
        map: List<'a, Dup>,
    }
    /// Joins a namespace, or several namespaces of a process (`setns(2)`).
    Join {
        /// Index into the table of descriptors, of a namespace file or of a pidfd (Linux 5.8).
        fd: u32,
        /// `CLONE_NEW*` bits: the expected kind of the namespace file, or the namespaces to join.
        kind: u32,
        /// Path of the namespace file, or a name of the process; only for the printed plan.
        path: Str<'a>,
    }
    /// Moves into new namespaces (`unshare(2)`).
    Unshare {
        /// `CLONE_NEW*` bits.
        flags: u32,
    }
    /// Enters a version 1 cgroup.
    Enter {
        /// Index into the table of descriptors: the group's `tasks` file, open for writing.
        fd: u32,
        /// Path of the file; only for the printed plan.
        path: Str<'a>,
        /// Whether the operation is skipped if the parent has handed over no descriptor, if the cgroup was removed
        /// since (`ENODEV`), or if its cpuset has no CPUs (`ENOSPC`).
        may_be_absent: bool,
    }
    /// Continues in a copy of init that is created in a version 2 cgroup (`CLONE_INTO_CGROUP`, Linux 5.7), as another child
    /// of the caller. The parent gets a pidfd of the copy, and the first process exits.
    ///
    /// If the cgroup is frozen, the copy does not run before it is thawed, and can be killed. It has none of the caller's
    /// memory, and the caller does not wait for it in the kernel, as it does for the child of its own clone.
    CloneInto {
        /// Index into the table of descriptors: the cgroup's directory.
        fd: u32,
        /// Path of the directory; only for the printed plan.
        path: Str<'a>,
    }
    /// Writes `/proc/self/oom_score_adj`.
    OomScore {
        /// -1000 to 1000, in decimal.
        value: Str<'a>,
    }
    /// Brings the loopback interface up.
    Loopback {}
    /// Sets the host name.
    Hostname {
        /// At most 64 bytes.
        name: Str<'a>,
    }
    /// Sets the propagation of every mount.
    Propagation {
        /// `MS_SLAVE` or `MS_PRIVATE`.
        flags: u64,
    }
    /// Opens a file or directory of the host again, and clones its mount tree. Fails unless it is the file that the
    /// parent's descriptor refers to. In the table, the tree replaces that descriptor. Used only if the caller itself
    /// may not clone mount trees.
    Tree {
        /// Index into the table of descriptors.
        fd: u32,
        /// Path on the host, without symbolic links.
        source: Str<'a>,
        /// Whether the mounts below it are cloned too.
        recursive: bool,
    }
    /// Mounts a new tmpfs as the root.
    RootTmpfs {
        /// `MOUNT_ATTR_*` bits.
        attrs: u64,
        /// Mount options: key, value, key, value, and so on. An empty value means a flag.
        options: List<'a, Str<'a>>,
    }
    /// Mounts a directory of the host as the root.
    RootBind {
        /// Path on the host; only for the printed plan.
        source: Str<'a>,
        /// `MOUNT_ATTR_*` bits, set recursively.
        attrs: u64,
        /// Index into the table of descriptors, of a detached mount tree.
        fd: u32,
    }
    /// Creates a directory in the root, with its parents, unless it exists.
    Dir {
        /// Path in the sandbox.
        path: Str<'a>,
        /// Permission bits of the last component, if it is created.
        mode: u32,
    }
    /// Binds a file or directory of the host, with all mounts below it.
    Bind {
        /// Path on the host; only for the printed plan.
        source: Str<'a>,
        /// Path in the sandbox; created if it does not exist.
        target: Str<'a>,
        /// `MOUNT_ATTR_*` bits, set recursively.
        attrs: u64,
        /// `MS_PRIVATE`, `MS_SLAVE` or `MS_SHARED`.
        propagation: u64,
        /// The type of the source, and of the mount point that is created if the target does not exist.
        file_type: FileType,
        /// Index into the table of descriptors, of a detached mount tree.
        fd: u32,
    }
    /// Mounts one of the kernel's own file systems.
    Mount {
        /// File system type.
        fs: Str<'a>,
        /// Path in the sandbox; created if it does not exist. No component may be a symbolic link.
        target: Str<'a>,
        /// `MOUNT_ATTR_*` bits.
        attrs: u64,
        /// Mount options: key, value, key, value, and so on. An empty value means a flag.
        options: List<'a, Str<'a>>,
    }
    /// Creates a symbolic link, unless the name exists.
    Symlink {
        /// The link's target.
        text: Str<'a>,
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// Creates a character device node with mode 0666.
    Node {
        /// Path in the sandbox.
        path: Str<'a>,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    }
    /// Covers a file with the sandbox's `/dev/null`, if the file exists.
    MaskFile {
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// Mounts an empty read-only tmpfs at `/proc`, of which each [`Op::MaskDir`] binds a copy. The procfs covers it.
    MaskSource {}
    /// Covers a directory with a copy of the mount of [`Op::MaskSource`], if the directory exists.
    MaskDir {
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// Binds a path on itself with more mount attributes.
    Restrict {
        /// Path in the sandbox.
        path: Str<'a>,
        /// `MOUNT_ATTR_*` bits, set recursively.
        attrs: u64,
        /// If true, symbolic links are followed; an absent path, or a link to the root, is an error. If false, init
        /// skips the operation if the path is absent or is a symbolic link.
        must: bool,
    }
    /// Adds attributes to the mount at a path, and to no other mount.
    Seal {
        /// Path in the sandbox.
        path: Str<'a>,
        /// `MOUNT_ATTR_*` bits.
        attrs: u64,
    }
    /// Enters a copy of the prepared mount namespace (`setns(2)`, `unshare(2)`), whose root becomes the sandbox's.
    EnterPrepared {
        /// Index into the table of descriptors: the namespace.
        fd: u32,
    }
    /// Opens the mount namespace of this process and its table of mounts, which [`Op::SendPrepared`] sends.
    OpenPrepared {}
    /// Sends the mount namespace and its table to the parent. Init then exits.
    SendPrepared {}
    /// Changes to the root, and closes the descriptors of it and of its mounts. The root is already `/`.
    EnterRoot {}
    /// Makes the root `/` by `pivot_root(2)`, and detaches the host's root.
    PivotRoot {}
    /// Makes the root `/` by `chroot(2)`. The host's root stays mounted below it.
    MoveRoot {}
    /// Sets a resource limit (`prlimit(2)`).
    Rlimit {
        /// `RLIMIT_*`.
        resource: u32,
        /// Soft limit; `u64::MAX` is unlimited.
        soft: u64,
        /// Hard limit; `u64::MAX` is unlimited.
        hard: u64,
    }
    /// Starts the timer of the task's deadline, which PID 1 watches (`timerfd_create(2)`, Linux 2.6.25).
    Deadline {
        /// Time from now.
        nanoseconds: u64,
    }
    /// Starts the watch of the task's CPU time by PID 1: a timer for the next reading of the counter
    /// (`timerfd_create(2)`).
    CpuDeadline {
        /// The CPU time after which the task is killed.
        nanoseconds: u64,
        /// Maximum number of CPUs that the task runs on at once.
        processors: u32,
        /// Nanoseconds for each unit of the counter.
        unit: u32,
        /// Index into the table of descriptors: the counter's file, open for reading.
        fd: u32,
        /// Path of the file; only for the printed plan.
        path: Str<'a>,
    }
    /// Keeps the file of the exit record, which only PID 1 writes. A lock on its first byte says that PID 1 lives, and which
    /// process it is.
    ExitRecord {
        /// Index into the table of descriptors: the file, open for writing.
        fd: u32,
        /// Path on the host; only for the printed plan.
        path: Str<'a>,
    }
    /// Keeps the file of the task's log, and pipes from the task, which PID 1 copies to it. Reads the header of the file.
    Log {
        /// Index into the table of descriptors: the file, open for reading and writing.
        fd: u32,
        /// Index of the pipe of standard output. An index beyond the table means none.
        stdout: u32,
        /// Index of the pipe of standard error. An index beyond the table means none.
        stderr: u32,
        /// Path on the host; only for the printed plan.
        path: Str<'a>,
    }
    /// Forks. Init stays as PID 1, which reaps processes and reports the exit status. The child waits until PID 1 has
    /// given up the privileges that reaping does not need, and then runs the following steps.
    Fork {
        /// User id of PID 1 after the fork.
        uid: u32,
        /// Group id of PID 1 after the fork.
        gid: u32,
        /// Whether PID 1 drops its supplementary groups; some user namespaces forbid it.
        set_groups: bool,
        /// Bits of the bounding set, all of which PID 1 drops from its own.
        bounding: u64,
        /// Index into the table of descriptors, of a pidfd of the caller. PID 1 exits when the caller ends. An index
        /// beyond the table means that PID 1 outlives the caller.
        caller: u32,
        /// Index into the table of descriptors, of a pidfd of the caller. PID 1 exits when the caller ends before it lets
        /// the command go: see [`Op::Gate`]. An index beyond the table means that there is no such step.
        gate: u32,
    }
    /// Makes a PID namespace and forks: the child is PID 1 of the namespace, and init stays outside of it. The child waits
    /// until init has given up its privileges, and then runs the following steps. Init reaps it, reports its exit status,
    /// and kills it before it exits itself. For that it keeps `CAP_KILL`, and a filter allows to kill only this child.
    ForkOutside {
        /// User id of init after the fork.
        uid: u32,
        /// Group id of init after the fork.
        gid: u32,
        /// Whether init drops its supplementary groups; some user namespaces forbid it.
        set_groups: bool,
        /// Bits of the bounding set, all of which init drops from its own.
        bounding: u64,
        /// Index into the table of descriptors, of a pidfd of the caller. Init kills the child when the caller ends. An
        /// index beyond the table means that both outlive the caller.
        caller: u32,
        /// As in [`Op::Fork`].
        gate: u32,
    }
    /// Forks after [`Op::Join`] has joined the PID namespace of a task: the child is in that namespace, init is not. The
    /// child continues with the next steps. Init waits for it and reports its exit status. The kernel kills the child
    /// when init ends. Both have only the task's ids and capabilities, and a filter.
    ForkInside {
        /// Index into the table of descriptors, of a pidfd of the caller. Init exits when the caller ends.
        caller: u32,
    }
    /// Drops capabilities from the bounding set.
    Bounding {
        /// Bits of the capabilities to keep.
        keep: u64,
        /// The highest capability that the kernel knows.
        last: u32,
    }
    /// Changes to the task's user and groups.
    Ids {
        /// Real, effective and saved user id.
        uid: u32,
        /// Real, effective and saved group id.
        gid: u32,
        /// Whether to set the supplementary groups; some user namespaces forbid it.
        set_groups: bool,
        /// Supplementary groups.
        groups: List<'a, u32>,
    }
    /// Sets the capabilities of the thread.
    Caps {
        /// Bits of the permitted and effective sets.
        permitted: u64,
        /// Bits of the inheritable set.
        inheritable: u64,
        /// Bits of the ambient set.
        ambient: u64,
    }
    /// Sets no_new_privs (`PR_SET_NO_NEW_PRIVS`).
    NoNewPrivs {}
    /// Changes the working directory, and verifies that it lies below the root.
    Cwd {
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// Sets the umask.
    Umask {
        /// Permission bits.
        mask: u32,
    }
    /// Opens a pseudo-terminal of the sandbox as the standard streams, and sends the other end to the parent.
    Terminal {
        /// Rows of the window.
        rows: u32,
        /// Columns of the window.
        columns: u32,
    }
    /// Starts a session, and makes standard input its controlling terminal.
    ControllingTerminal {}
    /// Executes the command that [`Op::Find`] found.
    Exec {
        /// Arguments after `argv[0]`, which is the path that was found.
        args: List<'a, Str<'a>>,
        /// Environment: `KEY=value` strings.
        env: List<'a, Str<'a>>,
    }
    /// Opens the sandbox's `/dev/null` for standard streams. A descriptor of the host's device node would let the task
    /// change the node's mode. In a process that joins a running task, the path is looked up in the task's root.
    Null {
        /// Bits 0, 1 and 2 for the descriptors of the same number.
        streams: u8,
    }
    /// Loads the seccomp filter of PID 1 and the task (`seccomp(2)`). It refuses to create or join a user namespace, or to
    /// create a cgroup namespace if the task may create user namespaces.
    CommonFilter {
        /// An array of `struct sock_filter`.
        program: Blob<'a>,
    }
    /// Loads the task's seccomp filter.
    Filter {
        /// An array of `struct sock_filter`.
        program: Blob<'a>,
    }
    /// Enters a Landlock domain (`landlock(7)`).
    Landlock {
        /// `LANDLOCK_ACCESS_FS_*` bits that the domain handles. `REFER` is allowed everywhere, the others nowhere.
        fs: u64,
        /// `LANDLOCK_SCOPE_*` bits.
        scoped: u64,
    }
    /// Names the thread until the exec. The name has a slash, so that no file has it whose execution names a thread: the
    /// parent sees whether the command was executed. Without it, a process that stays tells.
    Name {
        /// The name, of at most 15 bytes.
        name: Str<'a>,
    }
    /// Finds the command, the first candidate that is a regular file. If no process stays, reports to the parent that only
    /// the filter and `execve(2)` are left.
    Find {
        /// Absolute paths in the sandbox, in order of preference.
        candidates: List<'a, Str<'a>>,
    }
    /// In the child of a process that stays: waits until that process has given up its privileges. Since the fork, both
    /// processes have run at the same time.
    AwaitPid1 {
        /// Whether the kernel kills the child when that process ends (`PR_SET_PDEATHSIG`), unless the command clears that:
        /// the process is not PID 1 of the child's PID namespace, whose end kills every process.
        tied: bool,
    }
    /// Reports to the parent that the command can be executed, and waits until the parent lets it go. If the caller ends
    /// before, the command is not executed. A process of init that stays watches the caller and passes the byte on.
    Gate {
        /// Index into the table of descriptors, of a pidfd of the caller. An index beyond the table means that a process
        /// of init stays.
        caller: u32,
    }
    /// Mounts a tmpfs that overlays write to, outside the sandbox's root.
    Upper {
        /// Mount options: key, value, key, value, and so on. An empty value means a flag.
        options: List<'a, Str<'a>>,
    }
    /// Mounts a directory of the host that overlays write to, outside the sandbox's root.
    UpperBind {
        /// Path on the host; only for the printed plan.
        source: Str<'a>,
        /// Index into the table of descriptors, of a detached mount.
        fd: u32,
    }
    /// Mounts an overlay file system over a directory of the host. It writes to the file system that [`Op::Upper`] or
    /// [`Op::UpperBind`] mounted.
    Overlay {
        /// Path on the host; only for the printed plan.
        source: Str<'a>,
        /// Index into the table of descriptors, of a detached mount without the mounts below it.
        fd: u32,
        /// Path in the sandbox; created if it does not exist.
        target: Str<'a>,
        /// Name of this overlay's directory in the upper file system.
        name: Str<'a>,
        /// Permission bits of the top of the upper layer, if init creates it.
        mode: u32,
        /// Owner of the top of the upper layer, if init creates it.
        uid: u32,
        /// Group of the top of the upper layer, if init creates it.
        gid: u32,
        /// Whether overlayfs stores its metadata in `user.*` attributes, as it must in a user namespace (`userxattr`).
        userxattr: bool,
        /// `MOUNT_ATTR_*` bits.
        attrs: u64,
    }
    /// Binds a directory of the sandbox at a second path in the sandbox. The mounts at and below it keep their
    /// attributes.
    Share {
        /// Path in the sandbox.
        source: Str<'a>,
        /// Path in the sandbox; created if it does not exist.
        target: Str<'a>,
    }
    /// Mounts a read-only file with content from the plan over a path.
    File {
        /// Path in the sandbox; created if it does not exist.
        path: Str<'a>,
        /// The content.
        content: Blob<'a>,
    }
    /// Creates an empty file in the root, with its parents, unless the name exists.
    Empty {
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// Creates a file on one of the sandbox's own file systems. Fails if the name exists.
    Write {
        /// Path in the sandbox.
        path: Str<'a>,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// The content.
        content: Blob<'a>,
    }
}
