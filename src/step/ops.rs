//! The operations of init; part of `wire`, and so compiled into both.

use super::{Blob, Dup, Field, FileType, List, Malformed, Sink, Str};

/// Declares the operations once: their type, their codes and their encoding.
macro_rules! ops {
    ($(
        $(#[$doc:meta])*
        $name:ident { $( $(#[$fdoc:meta])* $field:ident : $t:ty ),* $(,)? }
    )*) => {
        /// One operation of init. What a user would name is one operation; the system calls that it is
        /// made of are fixed, and a plan prints them in order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Op<'a> {
            $( $(#[$doc])* $name { $( $(#[$fdoc])* $field: $t ),* } ),*
        }

        /// The name of an operation without its fields. Its number on the wire is its position in the declaration:
        /// init is built together with the parent, so the two cannot differ.
        #[repr(u8)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum OpCode {
            $( $(#[$doc])* $name ),*
        }

        impl OpCode {
            /// All of them, in order of their numbers.
            pub const ALL: &'static [OpCode] = &[ $( OpCode::$name ),* ];
        }

        impl Op<'_> {
            /// The name of the operation.
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
    /// Wait until the parent has written the id maps of the new user namespace.
    AwaitIdMaps {}
    /// A session of its own, default signal dispositions, umask 0 until the end.
    Session {}
    /// Nothing of how the caller is scheduled and treated: policy, nice, I/O priority, timer slack, memory policy,
    /// personality, securebits.
    Ordinary {}
    /// Become a user who is mapped in the user namespace, and keep every capability there.
    Become {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    }
    /// Any processor of the cpuset.
    Affinity {}
    /// Arrange the descriptors of the task and close all others.
    Fds {
        /// Which descriptor becomes which.
        map: List<'a, Dup>,
    }
    /// Join a namespace.
    Join {
        /// Index into the table of descriptors.
        fd: u32,
        /// The `CLONE_NEW*` bit that says which kind it must be.
        kind: u32,
        /// The path that the parent opened, for the printed plan.
        path: Str<'a>,
    }
    /// Leave namespaces for new ones.
    Unshare {
        /// `CLONE_NEW*` bits.
        flags: u32,
    }
    /// Enter a version 1 cgroup.
    Enter {
        /// Index into the table of descriptors: the group's `tasks` file, open for writing.
        fd: u32,
        /// Its path, for the printed plan.
        path: Str<'a>,
        /// Whether it may not be handed over: then it is not entered.
        may_be_absent: bool,
    }
    /// Write `/proc/self/oom_score_adj`.
    OomScore {
        /// -1000 to 1000, in decimal.
        value: Str<'a>,
    }
    /// Bring the loopback interface up.
    Loopback {}
    /// Set the host name.
    Hostname {
        /// At most 64 bytes.
        name: Str<'a>,
    }
    /// Set the propagation of every mount.
    Propagation {
        /// `MS_SLAVE` or `MS_PRIVATE`.
        flags: u64,
    }
    /// Open a file or directory of the host again, refuse unless it is the one whose descriptor was handed over, and
    /// clone its mount tree, which takes the place of that descriptor. Only where the caller may clone none itself.
    Tree {
        /// Index into the table of descriptors.
        fd: u32,
        /// Path on the host, without symbolic links.
        source: Str<'a>,
        /// Whether what is mounted below comes along.
        recursive: bool,
    }
    /// The root is a new tmpfs.
    RootTmpfs {
        /// `MOUNT_ATTR_*` bits.
        attrs: u64,
        /// Options, key and value in turn.
        options: List<'a, Str<'a>>,
    }
    /// The root is a directory of the host.
    RootBind {
        /// Path on the host, for the printed plan.
        source: Str<'a>,
        /// `MOUNT_ATTR_*` bits, set recursively.
        attrs: u64,
        /// Index into the table of descriptors: a detached mount tree.
        fd: u32,
    }
    /// Make a directory in the root, with its parents, unless it is there.
    Dir {
        /// Path in the sandbox.
        path: Str<'a>,
        /// Permission bits of the last component when it is made.
        mode: u32,
    }
    /// Bind a file or a directory of the host, with all that is mounted below it.
    Bind {
        /// Path on the host, for the printed plan.
        source: Str<'a>,
        /// Path in the sandbox; made when it is absent.
        target: Str<'a>,
        /// `MOUNT_ATTR_*` bits, set recursively.
        attrs: u64,
        /// `MS_PRIVATE`, `MS_SLAVE` or `MS_SHARED`.
        propagation: u64,
        /// The type of the source, and of the mount point that is made when the target is absent.
        file_type: FileType,
        /// Index into the table of descriptors: a detached mount tree.
        fd: u32,
    }
    /// Mount a file system of the kernel's own.
    Mount {
        /// Its type.
        fs: Str<'a>,
        /// Path in the sandbox; no component may be a symbolic link. Made when it is absent.
        target: Str<'a>,
        /// `MOUNT_ATTR_*` bits.
        attrs: u64,
        /// Options, key and value in turn.
        options: List<'a, Str<'a>>,
    }
    /// Make a symbolic link, unless the name is taken.
    Symlink {
        /// What it holds.
        text: Str<'a>,
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// Make a character device node, mode 0666.
    Node {
        /// Path in the sandbox.
        path: Str<'a>,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    }
    /// Cover a file with the sandbox's own `/dev/null`, when it is there.
    MaskFile {
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// Cover a directory with an empty read-only tmpfs, when it is there.
    MaskDir {
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// Bind a path on itself with more mount attributes.
    Restrict {
        /// Path in the sandbox.
        path: Str<'a>,
        /// `MOUNT_ATTR_*` bits, set recursively.
        attrs: u64,
        /// Whether an absent path or a symbolic link is refused. Else init skips the operation there.
        must: bool,
    }
    /// Add attributes to the mount at a path, and to no other.
    Seal {
        /// Path in the sandbox.
        path: Str<'a>,
        /// `MOUNT_ATTR_*` bits.
        attrs: u64,
    }
    /// Make the root `/` and detach the host's.
    PivotRoot {}
    /// Make the root `/` by moving it over the host's, which stays below it.
    MoveRoot {}
    /// Set a resource limit.
    Rlimit {
        /// `RLIMIT_*`.
        resource: u32,
        /// Soft limit; `u64::MAX` is none.
        soft: u64,
        /// Hard limit; `u64::MAX` is none.
        hard: u64,
    }
    /// Stay as PID 1, to reap and to record the exit. What follows is done by a child, once PID 1 has given up all
    /// that it does not need for that.
    Fork {
        /// User id of PID 1 from then on.
        uid: u32,
        /// Group id of PID 1 from then on.
        gid: u32,
        /// Whether PID 1 leaves its supplementary groups; the kernel forbids it in some user namespaces.
        set_groups: bool,
        /// The highest capability that the kernel knows; all are dropped from the bounding set.
        last: u32,
        /// Index into the table of descriptors: a pidfd of the caller, with whose end PID 1 ends.
        caller: u32,
    }
    /// Drop capabilities from the bounding set.
    Bounding {
        /// Bits to keep.
        keep: u64,
        /// The highest capability that the kernel knows.
        last: u32,
    }
    /// Become the user.
    Ids {
        /// User id, real, effective and saved.
        uid: u32,
        /// Group id, real, effective and saved.
        gid: u32,
        /// Whether to set the supplementary groups; the kernel forbids it in some user namespaces.
        set_groups: bool,
        /// Supplementary groups.
        groups: List<'a, u32>,
    }
    /// Set the capabilities of the thread.
    Caps {
        /// Permitted and effective bits.
        permitted: u64,
        /// Inheritable bits.
        inheritable: u64,
        /// Ambient bits.
        ambient: u64,
    }
    /// No more privileges by execve.
    NoNewPrivs {}
    /// Change to a directory, and verify that it lies in the root.
    Cwd {
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// Set the umask.
    Umask {
        /// Permission bits.
        mask: u32,
    }
    /// Execute the first of some paths that is a regular file.
    Exec {
        /// Arguments after the name, which is the path that was found.
        args: List<'a, Str<'a>>,
        /// `KEY=value`.
        env: List<'a, Str<'a>>,
    }
    /// Open the sandbox's own `/dev/null` for standard streams. The host's would be a way to its mode.
    Null {
        /// A bit for each of 0, 1 and 2.
        streams: u8,
    }
    /// A filter of what neither PID 1 nor the task needs from here on: no user namespace is made or joined (`seccomp(2)`).
    NoUserNamespaces {
        /// An array of `struct sock_filter`.
        program: Blob<'a>,
    }
    /// The task's filter.
    Filter {
        /// An array of `struct sock_filter`.
        program: Blob<'a>,
    }
    /// A Landlock domain (`landlock(7)`).
    Landlock {
        /// `LANDLOCK_ACCESS_FS_*` bits that the domain handles. `REFER` is allowed everywhere, the others nowhere.
        fs: u64,
        /// `LANDLOCK_SCOPE_*` bits.
        scoped: u64,
    }
    /// Find the command, and tell the parent that it is there.
    Find {
        /// Absolute paths in the sandbox, in order of preference.
        candidates: List<'a, Str<'a>>,
    }
    /// A tmpfs for what overlays are written to, out of the sandbox's sight.
    Upper {
        /// Options, key and value in turn.
        options: List<'a, Str<'a>>,
    }
    /// A directory of the host for what overlays are written to.
    UpperBind {
        /// Path on the host, for the printed plan.
        source: Str<'a>,
        /// Index into the table of descriptors: a detached mount of it.
        fd: u32,
    }
    /// An overlay file system over a directory of the host, written to what [`Op::Upper`] or [`Op::UpperBind`] mounted.
    Overlay {
        /// Path on the host, for the printed plan.
        source: Str<'a>,
        /// Index into the table of descriptors: a detached mount of it, without what is mounted below.
        fd: u32,
        /// Path in the sandbox; made when it is absent.
        target: Str<'a>,
        /// Name of this overlay's own directory in there.
        name: Str<'a>,
        /// What the top of the written layer is like when it is made: permission bits, owner, group.
        mode: u32,
        /// See `mode`.
        uid: u32,
        /// See `mode`.
        gid: u32,
        /// Whether the overlay stores its metadata in `user.*` attributes, as it must in a user namespace.
        userxattr: bool,
        /// `MOUNT_ATTR_*` bits.
        attrs: u64,
    }
    /// Bind a directory of the sandbox at a second path in it, with what is mounted below and as it is mounted.
    Share {
        /// Path in the sandbox.
        source: Str<'a>,
        /// Path in the sandbox; made when it is absent.
        target: Str<'a>,
    }
    /// A file of the sandbox's own, read-only, over whatever is at a path.
    File {
        /// Path in the sandbox; made when it is absent.
        path: Str<'a>,
        /// What is in it.
        content: Blob<'a>,
    }
    /// Make an empty file in the root, with its parents, unless there is something.
    Empty {
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// A new file in a directory of the sandbox's own.
    Write {
        /// Path in the sandbox.
        path: Str<'a>,
        /// Permission bits.
        mode: u32,
        /// Owner.
        uid: u32,
        /// Group.
        gid: u32,
        /// What is in it.
        content: Blob<'a>,
    }
}
