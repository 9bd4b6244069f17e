//! The wire format between the parent and init: one file, compiled into both.
//!
//! A program is a run of operations, each a one-byte code and its fields in order, little-endian;
//! strings and lists carry their length and every string ends with a NUL that is not part of it, so
//! that init hands pointers into the plan straight to the kernel and allocates nothing.
//! The decoder trusts nothing: whatever the bytes, it answers with an operation or [`Malformed`].
//!
//! It does not decide anything and knows no policy: what stands here has been decided.

#[path = "program.rs"]
mod program;
#[path = "record.rs"]
mod record;

pub use program::{Program, Step};
pub use record::{NO_STEP, RECORD, Record};

/// What the decoder answers to bytes that no encoder wrote.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Malformed;

/// Where encoded bytes go: a vector in the parent; init only decodes.
pub trait Sink {
    /// Appends `bytes`.
    fn put(&mut self, bytes: &[u8]);
}

/// A value that stands in the wire format.
pub trait Field<'a>: Sized {
    /// Appends the value to `sink`.
    fn encode<S: Sink>(&self, sink: &mut S);
    /// Takes the value off the front of `input`.
    fn decode(input: &mut &'a [u8]) -> Result<Self, Malformed>;
}

fn take<'a>(input: &mut &'a [u8], n: usize) -> Result<&'a [u8], Malformed> {
    let (head, tail) = input.split_at_checked(n).ok_or(Malformed)?;
    *input = tail;
    Ok(head)
}

macro_rules! int_field {
    ($($t:ty),*) => {$(
        impl Field<'_> for $t {
            fn encode<S: Sink>(&self, sink: &mut S) {
                sink.put(&self.to_le_bytes());
            }
            fn decode(input: &mut &[u8]) -> Result<Self, Malformed> {
                let bytes = take(input, size_of::<$t>())?;
                bytes.try_into().map(<$t>::from_le_bytes).map_err(|_| Malformed)
            }
        }
    )*};
}
int_field!(u8, u32, u64, i32);

impl Field<'_> for bool {
    fn encode<S: Sink>(&self, sink: &mut S) {
        sink.put(&[*self as u8]);
    }
    fn decode(input: &mut &[u8]) -> Result<Self, Malformed> {
        match u8::decode(input)? {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(Malformed),
        }
    }
}

/// The type of the source and of the target of a bind mount. The kernel mounts a directory on a directory only, and
/// another file on another file only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// A directory.
    Dir,
    /// A file that is no directory.
    File,
}

impl Field<'_> for FileType {
    fn encode<S: Sink>(&self, sink: &mut S) {
        (*self == FileType::File).encode(sink);
    }
    fn decode(input: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(if bool::decode(input)? { FileType::File } else { FileType::Dir })
    }
}

/// A string without a NUL in it. A decoded one is followed by a NUL in memory.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Str<'a>(&'a [u8]);

impl<'a> Str<'a> {
    /// The bytes, without the NUL.
    pub fn bytes(&self) -> &'a [u8] {
        self.0
    }

    /// Wraps `bytes`; `None` when they hold a NUL.
    pub fn new(bytes: &'a [u8]) -> Option<Self> {
        if bytes.contains(&0) { None } else { Some(Str(bytes)) }
    }
}

impl core::fmt::Debug for Str<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "\"{}\"", self.0.escape_ascii())
    }
}

impl<'a> Field<'a> for Str<'a> {
    fn encode<S: Sink>(&self, sink: &mut S) {
        (self.0.len() as u32).encode(sink);
        sink.put(self.0);
        sink.put(&[0]);
    }
    fn decode(input: &mut &'a [u8]) -> Result<Self, Malformed> {
        let len = u32::decode(input)? as usize;
        let bytes = take(input, len)?;
        if take(input, 1)? != [0] {
            return Err(Malformed);
        }
        Str::new(bytes).ok_or(Malformed)
    }
}

/// Bytes of a file. Printed by their number only: they may be a secret.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Blob<'a>(pub &'a [u8]);

impl core::fmt::Debug for Blob<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<'a> Field<'a> for Blob<'a> {
    fn encode<S: Sink>(&self, sink: &mut S) {
        (self.0.len() as u32).encode(sink);
        sink.put(self.0);
    }
    fn decode(input: &mut &'a [u8]) -> Result<Self, Malformed> {
        let len = u32::decode(input)? as usize;
        take(input, len).map(Blob)
    }
}

/// A list of values of one type, encoded; the items are decoded as one walks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct List<'a, T> {
    count: u32,
    bytes: &'a [u8],
    items: core::marker::PhantomData<T>,
}

impl<'a, T: Field<'a>> List<'a, T> {
    /// A list over bytes that already hold `count` encoded items. Wrong bytes are found on decoding.
    pub fn from_encoded(count: u32, bytes: &'a [u8]) -> Self {
        List { count, bytes, items: core::marker::PhantomData }
    }

    /// How many items there are.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The items, in order.
    pub fn iter(&self) -> impl Iterator<Item = T> + use<'a, T> {
        let mut rest = self.bytes;
        (0..self.count).map_while(move |_| T::decode(&mut rest).ok())
    }
}

impl<'a, T: Field<'a> + core::fmt::Debug> core::fmt::Debug for List<'a, T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl<'a, T: Field<'a>> Field<'a> for List<'a, T> {
    fn encode<S: Sink>(&self, sink: &mut S) {
        self.count.encode(sink);
        (self.bytes.len() as u32).encode(sink);
        sink.put(self.bytes);
    }
    fn decode(input: &mut &'a [u8]) -> Result<Self, Malformed> {
        let count = u32::decode(input)?;
        let len = u32::decode(input)? as usize;
        let bytes = take(input, len)?;
        let mut rest = bytes;
        for _ in 0..count {
            T::decode(&mut rest)?;
        }
        if !rest.is_empty() {
            return Err(Malformed);
        }
        Ok(List::from_encoded(count, bytes))
    }
}

/// Source index of a descriptor in the plan's table, and the number that it gets in the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dup {
    /// Index into the table of descriptors that the parent hands over.
    pub from: u32,
    /// Number in the task.
    pub to: u32,
}

impl Field<'_> for Dup {
    fn encode<S: Sink>(&self, sink: &mut S) {
        self.from.encode(sink);
        self.to.encode(sink);
    }
    fn decode(input: &mut &[u8]) -> Result<Self, Malformed> {
        Ok(Dup { from: u32::decode(input)?, to: u32::decode(input)? })
    }
}

macro_rules! ops {
    ($(
        $(#[$doc:meta])*
        $code:literal $name:ident { $( $(#[$fdoc:meta])* $field:ident : $t:ty ),* $(,)? }
    )*) => {
        /// One operation of init. What a user would name is one operation; the system calls that it is
        /// made of are fixed, and a plan prints them in order.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Op<'a> {
            $( $(#[$doc])* $name { $( $(#[$fdoc])* $field: $t ),* } ),*
        }

        impl<'a> Field<'a> for Op<'a> {
            fn encode<S: Sink>(&self, sink: &mut S) {
                match self {
                    $( Op::$name { $($field),* } => {
                        sink.put(&[$code]);
                        $( $field.encode(sink); )*
                    } )*
                }
            }
            fn decode(input: &mut &'a [u8]) -> Result<Self, Malformed> {
                match u8::decode(input)? {
                    $( $code => Ok(Op::$name { $( $field: Field::decode(input)? ),* }), )*
                    _ => Err(Malformed),
                }
            }
        }
    };
}

ops! {
    /// Wait until the parent has written the id maps of the new user namespace.
    1 AwaitIdMaps {}
    /// A session of its own, default signal dispositions, umask 0 until the end.
    2 Session {}
    /// Nothing of how the caller is scheduled and treated: policy, nice, I/O priority, timer slack, memory policy,
    /// personality, securebits.
    43 Ordinary {}
    /// Become a user who is mapped in the user namespace, and keep every capability there.
    45 Become {
        /// User id.
        uid: u32,
        /// Group id.
        gid: u32,
    }
    /// Any processor of the cpuset.
    44 Affinity {}
    /// Arrange the descriptors of the task and close all others.
    3 Fds {
        /// Which descriptor becomes which.
        map: List<'a, Dup>,
    }
    /// Join a namespace.
    4 Join {
        /// Index into the table of descriptors.
        fd: u32,
        /// The `CLONE_NEW*` bit that says which kind it must be.
        kind: u32,
        /// The path that the parent opened, for the printed plan.
        path: Str<'a>,
    }
    /// Leave namespaces for new ones.
    5 Unshare {
        /// `CLONE_NEW*` bits.
        flags: u32,
    }
    /// Enter a version 1 cgroup.
    6 Enter {
        /// Index into the table of descriptors: the group's `tasks` file, open for writing.
        fd: u32,
        /// Its path, for the printed plan.
        path: Str<'a>,
    }
    /// Write `/proc/self/oom_score_adj`.
    7 OomScore {
        /// -1000 to 1000, in decimal.
        value: Str<'a>,
    }
    /// Bring the loopback interface up.
    8 Loopback {}
    /// Set the host name.
    9 Hostname {
        /// At most 64 bytes.
        name: Str<'a>,
    }
    /// Set the propagation of every mount.
    10 Propagation {
        /// `MS_SLAVE` or `MS_PRIVATE`.
        flags: u64,
    }
    /// Open a file or directory of the host again, refuse unless it is the one whose descriptor was handed over, and
    /// clone its mount tree, which takes the place of that descriptor. Only where the caller may clone none itself.
    11 Tree {
        /// Index into the table of descriptors.
        fd: u32,
        /// Path on the host, without symbolic links.
        source: Str<'a>,
        /// Whether what is mounted below comes along.
        recursive: bool,
    }
    /// The root is a new tmpfs.
    12 RootTmpfs {
        /// `MOUNT_ATTR_*` bits.
        attrs: u64,
        /// Options, key and value in turn.
        options: List<'a, Str<'a>>,
    }
    /// The root is a directory of the host.
    13 RootBind {
        /// Path on the host, for the printed plan.
        source: Str<'a>,
        /// `MOUNT_ATTR_*` bits, set recursively.
        attrs: u64,
        /// Index into the table of descriptors: a detached mount tree.
        fd: u32,
    }
    /// Make a directory in the root, with its parents, unless it is there.
    14 Dir {
        /// Path in the sandbox.
        path: Str<'a>,
        /// Permission bits of the last component when it is made.
        mode: u32,
    }
    /// Bind a file or a directory of the host, with all that is mounted below it.
    15 Bind {
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
    16 Mount {
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
    17 Symlink {
        /// What it holds.
        text: Str<'a>,
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// Make a character device node, mode 0666.
    18 Node {
        /// Path in the sandbox.
        path: Str<'a>,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    }
    /// Cover a file with the sandbox's own `/dev/null`, when it is there.
    19 MaskFile {
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// Cover a directory with an empty read-only tmpfs, when it is there.
    20 MaskDir {
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// Bind a path on itself with more mount attributes.
    21 Restrict {
        /// Path in the sandbox.
        path: Str<'a>,
        /// `MOUNT_ATTR_*` bits, set recursively.
        attrs: u64,
        /// Whether an absent path or a symbolic link is refused. Else init skips the operation there.
        must: bool,
    }
    /// Add attributes to the mount at a path, and to no other.
    22 Seal {
        /// Path in the sandbox.
        path: Str<'a>,
        /// `MOUNT_ATTR_*` bits.
        attrs: u64,
    }
    /// Make the root `/` and detach the host's.
    23 PivotRoot {}
    /// Make the root `/` by moving it over the host's, which stays below it.
    24 MoveRoot {}
    /// Set a resource limit.
    25 Rlimit {
        /// `RLIMIT_*`.
        resource: u32,
        /// Soft limit; `u64::MAX` is none.
        soft: u64,
        /// Hard limit; `u64::MAX` is none.
        hard: u64,
    }
    /// Stay as PID 1, to reap and to record the exit. What follows is done by a child, once PID 1 has given up all
    /// that it does not need for that.
    26 Fork {
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
    27 Bounding {
        /// Bits to keep.
        keep: u64,
        /// The highest capability that the kernel knows.
        last: u32,
    }
    /// Become the user.
    28 Ids {
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
    29 Caps {
        /// Permitted and effective bits.
        permitted: u64,
        /// Inheritable bits.
        inheritable: u64,
        /// Ambient bits.
        ambient: u64,
    }
    /// No more privileges by execve.
    30 NoNewPrivs {}
    /// Change to a directory, and verify that it lies in the root.
    31 Cwd {
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// Set the umask.
    32 Umask {
        /// Permission bits.
        mask: u32,
    }
    /// Execute the first of some paths that is a regular file.
    33 Exec {
        /// Arguments after the name, which is the path that was found.
        args: List<'a, Str<'a>>,
        /// `KEY=value`.
        env: List<'a, Str<'a>>,
    }
    /// Open the sandbox's own `/dev/null` for standard streams. The host's would be a way to its mode.
    34 Null {
        /// A bit for each of 0, 1 and 2.
        streams: u8,
    }
    /// A filter of what neither PID 1 nor the task needs from here on: no user namespace is made or joined (`seccomp(2)`).
    35 NoUserNamespaces {
        /// An array of `struct sock_filter`.
        program: Blob<'a>,
    }
    /// The task's filter.
    46 Filter {
        /// An array of `struct sock_filter`.
        program: Blob<'a>,
    }
    /// A Landlock domain (`landlock(7)`).
    48 Landlock {
        /// `LANDLOCK_ACCESS_FS_*` bits that it handles: of these only `REFER` is allowed, everywhere.
        fs: u64,
        /// `LANDLOCK_SCOPE_*` bits.
        scoped: u64,
    }
    /// Find the command, and tell the parent that it is there.
    47 Find {
        /// Absolute paths in the sandbox, in order of preference.
        candidates: List<'a, Str<'a>>,
    }
    /// A tmpfs for what overlays are written to, out of the sandbox's sight.
    36 Upper {
        /// Options, key and value in turn.
        options: List<'a, Str<'a>>,
    }
    /// A directory of the host for what overlays are written to.
    42 UpperBind {
        /// Path on the host, for the printed plan.
        source: Str<'a>,
        /// Index into the table of descriptors: a detached mount of it.
        fd: u32,
    }
    /// An overlay file system over a directory of the host, written to what [`Op::Upper`] or [`Op::UpperBind`] mounted.
    37 Overlay {
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
    41 Share {
        /// Path in the sandbox.
        source: Str<'a>,
        /// Path in the sandbox; made when it is absent.
        target: Str<'a>,
    }
    /// A file of the sandbox's own, read-only, over whatever is at a path.
    38 File {
        /// Path in the sandbox; made when it is absent.
        path: Str<'a>,
        /// What is in it.
        content: Blob<'a>,
    }
    /// Make an empty file in the root, with its parents, unless there is something.
    40 Empty {
        /// Path in the sandbox.
        path: Str<'a>,
    }
    /// A new file in a directory of the sandbox's own.
    39 Write {
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

/// How many descriptors the parent may hand over.
pub const FDS: u32 = 512;
