//! Constants of the kernel's interface, named as in its headers (`include/uapi`). System call numbers depend on the
//! processor and are in a file per processor.

// errno, positive.
pub const EPERM: i32 = 1;
pub const EPIPE: i32 = 32;
pub const ECONNRESET: i32 = 104;
pub const ENOENT: i32 = 2;
pub const EINTR: i32 = 4;
pub const EACCES: i32 = 13;
pub const EBUSY: i32 = 16;
pub const EEXIST: i32 = 17;
pub const ENODEV: i32 = 19;
pub const EAGAIN: i32 = 11;
pub const ENODATA: i32 = 61;
pub const ENOTDIR: i32 = 20;
pub const EISDIR: i32 = 21;
pub const EINVAL: i32 = 22;
pub const ETXTBSY: i32 = 26;
pub const ENOSPC: i32 = 28;
pub const ENAMETOOLONG: i32 = 36;
pub const ENOSYS: i32 = 38;
pub const ELOOP: i32 = 40;
pub const ESTALE: i32 = 116;

// prctl(2)
pub const PR_SET_DUMPABLE: usize = 4;
pub const PR_SET_KEEPCAPS: usize = 8;
pub const PR_SET_NAME: usize = 15;
pub const PR_CAPBSET_DROP: usize = 24;
pub const PR_GET_SECUREBITS: usize = 27;
pub const PR_SET_SECUREBITS: usize = 28;
pub const PR_SET_TIMERSLACK: usize = 29;
pub const PR_SET_NO_NEW_PRIVS: usize = 38;
pub const PR_SET_PDEATHSIG: usize = 1;
pub const PR_SET_THP_DISABLE: usize = 41;
pub const PR_CAP_AMBIENT: usize = 47;
pub const PR_CAP_AMBIENT_RAISE: usize = 2;
pub const PR_CAP_AMBIENT_CLEAR_ALL: usize = 4;
/// Linux 5.6.
pub const PR_SET_IO_FLUSHER: usize = 57;
/// Linux 6.4.
pub const PR_SET_MEMORY_MERGE: usize = 67;

// openat(2), openat2(2), and the *at calls
pub const AT_FDCWD: i32 = -100;
pub const AT_SYMLINK_NOFOLLOW: usize = 0x100;
pub const AT_EMPTY_PATH: usize = 0x1000;
pub const AT_RECURSIVE: usize = 0x8000;
pub const O_WRONLY: usize = 0o1;
pub const O_RDWR: usize = 0o2;
pub const O_CREAT: usize = 0o100;
pub const O_EXCL: usize = 0o200;
pub const O_DIRECTORY: usize = 0o200_000;
pub const O_NOFOLLOW: usize = 0o400_000;
pub const O_CLOEXEC: usize = 0o2_000_000;
pub const O_RDONLY: usize = 0;
pub const O_PATH: usize = 0o10_000_000;
pub const RESOLVE_NO_MAGICLINKS: u64 = 0x02;
pub const RESOLVE_NO_SYMLINKS: u64 = 0x04;
pub const RESOLVE_IN_ROOT: u64 = 0x10;
pub const S_IFMT: u16 = 0o170_000;
pub const S_IFREG: u16 = 0o100_000;
pub const S_IFDIR: u16 = 0o040_000;
pub const S_IFCHR: usize = 0o020_000;

// statx(2)
pub const STATX_TYPE: usize = 0x1;
pub const STATX_INO: usize = 0x100;
pub const STATX_MNT_ID: usize = 0x1000;

// mount(2) and its successors
pub const MS_REC: u64 = 0x4000;
pub const MS_PRIVATE: u64 = 1 << 18;
pub const MNT_DETACH: usize = 2;
pub const OPEN_TREE_CLONE: usize = 1;
pub const MOVE_MOUNT_F_EMPTY_PATH: usize = 0x4;
pub const MOVE_MOUNT_T_EMPTY_PATH: usize = 0x40;
pub const FSOPEN_CLOEXEC: usize = 1;
pub const FSMOUNT_CLOEXEC: usize = 1;
pub const FSCONFIG_SET_FLAG: usize = 0;
pub const FSCONFIG_SET_STRING: usize = 1;
pub const FSCONFIG_CMD_CREATE: usize = 6;
pub const MOUNT_ATTR_RDONLY: u64 = 0x1;
pub const MOUNT_ATTR_NOSUID: u64 = 0x2;
pub const MOUNT_ATTR_NODEV: u64 = 0x4;
pub const MOUNT_ATTR_NOEXEC: u64 = 0x8;

// mmap(2)
pub const PROT_READ: usize = 0x1;
pub const PROT_WRITE: usize = 0x2;
pub const MAP_PRIVATE: usize = 0x02;
pub const MAP_ANONYMOUS: usize = 0x20;

// sockets: socket(2), send(2), unix(7), netdevice(7)
pub const AF_UNIX: usize = 1;
pub const AF_INET: usize = 2;
pub const SOCK_DGRAM: usize = 2;
pub const SOCK_SEQPACKET: usize = 5;
pub const SOCK_CLOEXEC: usize = O_CLOEXEC;
pub const MSG_PEEK: usize = 0x2;
pub const MSG_DONTWAIT: usize = 0x40;
pub const MSG_NOSIGNAL: usize = 0x4000;
pub const SOL_SOCKET: u32 = 1;
pub const SCM_RIGHTS: u32 = 1;
pub const SIOCSIFFLAGS: usize = 0x8914;
pub const IFF_UP: u8 = 0x1;
pub const IFF_RUNNING: u8 = 0x40;

pub const TIOCSCTTY: usize = 0x540e;
pub const TIOCSWINSZ: usize = 0x5414;
pub const TIOCSPTLCK: usize = 0x4004_5431;
pub const TIOCGPTPEER: usize = 0x5441;
pub const O_NOCTTY: usize = 0o400;

// processes and signals
pub const CLONE_PIDFD: usize = 0x1000;
pub const CLONE_PARENT: usize = 0x8000;
pub const CLONE_NEWNS: u32 = 0x2_0000;
pub const CLONE_NEWPID: u32 = 0x2000_0000;
pub const CLONE_INTO_CGROUP: usize = 0x2_0000_0000;
pub const SIGCHLD: usize = 17;
pub const SIGKILL: usize = 9;
pub const SIG_SETMASK: usize = 2;
/// The highest signal number; signals are numbered from 1.
pub const NSIG: usize = 64;
pub const SFD_CLOEXEC: usize = O_CLOEXEC;
pub const TFD_CLOEXEC: usize = O_CLOEXEC;
pub const CLOCK_REALTIME: usize = 0;
pub const CLOCK_MONOTONIC: usize = 1;
pub const POLLIN: i16 = 1;
pub const WNOHANG: usize = 1;
pub const WALL: usize = 0x4000_0000;
pub const WCLONE: usize = 0x8000_0000;
pub const F_DUPFD_CLOEXEC: usize = 1030;
pub const F_SETLK: usize = 6;
pub const F_WRLCK: u64 = 1;

// scheduling
pub const SCHED_OTHER: usize = 0;
pub const PRIO_PROCESS: usize = 0;
pub const IOPRIO_WHO_PROCESS: usize = 1;
pub const MPOL_DEFAULT: usize = 0;

// credentials
pub const KEYCTL_JOIN_SESSION_KEYRING: usize = 1;
pub const LINUX_CAPABILITY_VERSION_3: u32 = 0x2008_0522;
/// Number of bits in a capability set.
pub const CAP_BITS: u32 = 64;
pub const CAP_KILL: u32 = 5;

// seccomp(2), with the BPF instructions of PID 1's own filter
pub const SECCOMP_SET_MODE_FILTER: usize = 1;
pub const SECCOMP_FILTER_FLAG_SPEC_ALLOW: usize = 4;
pub const SECCOMP_RET_ERRNO: u32 = 0x0005_0000;
pub const SECCOMP_RET_ALLOW: u32 = 0x7fff_0000;
/// `BPF_LD | BPF_W | BPF_ABS`.
pub const BPF_LOAD: u16 = 0x20;
/// `BPF_JMP | BPF_JEQ | BPF_K`.
pub const BPF_JUMP_IF_EQUAL: u16 = 0x15;
/// `BPF_RET | BPF_K`.
pub const BPF_RETURN: u16 = 0x06;

// landlock(7)
pub const LANDLOCK_RULE_PATH_BENEATH: usize = 1;
pub const LANDLOCK_ACCESS_FS_REFER: u32 = 1 << 13;

// combinations
/// Flags of a new file: O_CREAT | O_EXCL | O_NOFOLLOW, for writing.
pub const O_NEW: usize = O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW;
/// openat2(2) resolve flags: resolution stays below `dir`.
pub const IN_ROOT: u64 = RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
/// openat2(2) resolve flags: no symbolic link is followed.
pub const NO_LINKS: u64 = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
/// openat2(2) resolve flags: resolution stays below `dir` and follows no symbolic link.
pub const IN_ROOT_NO_LINKS: u64 = RESOLVE_IN_ROOT | NO_LINKS;
