//! Names of system calls.

macro_rules! names {
    ($($number:ident $name:literal,)*) => {
        /// The name of a call. `None` for one that meets no fault: memory, time and threads of the C library, calls that
        /// cannot fail, and close(2), which frees the descriptor whatever it returns.
        pub fn name(number: u64) -> Option<&'static str> {
            match number as i64 {
                $( libc::$number => Some($name), )*
                _ => None,
            }
        }
    };
}

#[rustfmt::skip]
names! {
    SYS_read "read", SYS_write "write", SYS_open "open", SYS_stat "stat", SYS_fstat "fstat",
    SYS_lstat "lstat", SYS_poll "poll", SYS_lseek "lseek", SYS_pread64 "pread64", SYS_pwrite64 "pwrite64", SYS_ioctl "ioctl",
    SYS_readv "readv", SYS_writev "writev", SYS_access "access", SYS_pipe "pipe", SYS_select "select", SYS_dup "dup",
    SYS_dup2 "dup2", SYS_socket "socket", SYS_connect "connect", SYS_sendto "sendto", SYS_recvfrom "recvfrom", SYS_sendmsg "sendmsg",
    SYS_recvmsg "recvmsg", SYS_shutdown "shutdown", SYS_bind "bind", SYS_listen "listen", SYS_getsockname "getsockname", SYS_getpeername "getpeername",
    SYS_socketpair "socketpair", SYS_setsockopt "setsockopt", SYS_getsockopt "getsockopt", SYS_clone "clone", SYS_fork "fork", SYS_vfork "vfork",
    SYS_execve "execve", SYS_wait4 "wait4", SYS_kill "kill", SYS_uname "uname", SYS_fcntl "fcntl", SYS_flock "flock",
    SYS_fsync "fsync", SYS_fdatasync "fdatasync", SYS_truncate "truncate", SYS_ftruncate "ftruncate", SYS_getdents "getdents", SYS_getcwd "getcwd",
    SYS_chdir "chdir", SYS_fchdir "fchdir", SYS_rename "rename", SYS_mkdir "mkdir", SYS_rmdir "rmdir", SYS_creat "creat",
    SYS_link "link", SYS_unlink "unlink", SYS_symlink "symlink", SYS_readlink "readlink", SYS_chmod "chmod", SYS_fchmod "fchmod",
    SYS_chown "chown", SYS_fchown "fchown", SYS_lchown "lchown", SYS_getrlimit "getrlimit", SYS_getrusage "getrusage",
    SYS_sysinfo "sysinfo", SYS_times "times", SYS_setuid "setuid", SYS_setgid "setgid",
    SYS_setpgid "setpgid", SYS_setsid "setsid",
    SYS_setreuid "setreuid", SYS_setregid "setregid", SYS_getgroups "getgroups", SYS_setgroups "setgroups", SYS_setresuid "setresuid", SYS_getresuid "getresuid",
    SYS_setresgid "setresgid", SYS_getresgid "getresgid", SYS_getpgid "getpgid", SYS_setfsuid "setfsuid", SYS_setfsgid "setfsgid", SYS_getsid "getsid",
    SYS_capget "capget", SYS_capset "capset", SYS_rt_sigpending "rt_sigpending", SYS_rt_sigtimedwait "rt_sigtimedwait", SYS_rt_sigqueueinfo "rt_sigqueueinfo", SYS_rt_sigsuspend "rt_sigsuspend",
    SYS_sigaltstack "sigaltstack", SYS_mknod "mknod", SYS_personality "personality", SYS_statfs "statfs", SYS_fstatfs "fstatfs", SYS_getpriority "getpriority",
    SYS_setpriority "setpriority", SYS_sched_setparam "sched_setparam", SYS_sched_getparam "sched_getparam", SYS_sched_setscheduler "sched_setscheduler", SYS_sched_getscheduler "sched_getscheduler", SYS_pivot_root "pivot_root",
    SYS_prctl "prctl", SYS_setrlimit "setrlimit", SYS_chroot "chroot", SYS_sync "sync", SYS_mount "mount", SYS_umount2 "umount2",
    SYS_sethostname "sethostname", SYS_setxattr "setxattr", SYS_lsetxattr "lsetxattr", SYS_fsetxattr "fsetxattr", SYS_getxattr "getxattr",
    SYS_lgetxattr "lgetxattr", SYS_fgetxattr "fgetxattr", SYS_listxattr "listxattr", SYS_llistxattr "llistxattr", SYS_flistxattr "flistxattr", SYS_removexattr "removexattr",
    SYS_lremovexattr "lremovexattr", SYS_fremovexattr "fremovexattr", SYS_sched_setaffinity "sched_setaffinity", SYS_sched_getaffinity "sched_getaffinity", SYS_getdents64 "getdents64", SYS_fadvise64 "fadvise64",
    SYS_timer_create "timer_create", SYS_timer_settime "timer_settime", SYS_clock_nanosleep "clock_nanosleep", SYS_nanosleep "nanosleep", SYS_waitid "waitid", SYS_set_mempolicy "set_mempolicy",
    SYS_get_mempolicy "get_mempolicy", SYS_add_key "add_key", SYS_request_key "request_key", SYS_keyctl "keyctl", SYS_ioprio_set "ioprio_set", SYS_ioprio_get "ioprio_get",
    SYS_openat "openat", SYS_mkdirat "mkdirat", SYS_mknodat "mknodat", SYS_fchownat "fchownat", SYS_newfstatat "newfstatat", SYS_unlinkat "unlinkat",
    SYS_renameat "renameat", SYS_linkat "linkat", SYS_symlinkat "symlinkat", SYS_readlinkat "readlinkat", SYS_fchmodat "fchmodat", SYS_faccessat "faccessat",
    SYS_pselect6 "pselect6", SYS_ppoll "ppoll", SYS_unshare "unshare", SYS_splice "splice", SYS_utimensat "utimensat", SYS_signalfd "signalfd",
    SYS_timerfd_create "timerfd_create", SYS_eventfd "eventfd", SYS_fallocate "fallocate", SYS_timerfd_settime "timerfd_settime", SYS_signalfd4 "signalfd4", SYS_eventfd2 "eventfd2",
    SYS_epoll_create1 "epoll_create1", SYS_dup3 "dup3", SYS_pipe2 "pipe2", SYS_inotify_init1 "inotify_init1", SYS_preadv "preadv", SYS_pwritev "pwritev",
    SYS_prlimit64 "prlimit64", SYS_name_to_handle_at "name_to_handle_at", SYS_open_by_handle_at "open_by_handle_at", SYS_syncfs "syncfs", SYS_sendmmsg "sendmmsg", SYS_setns "setns",
    SYS_process_vm_readv "process_vm_readv", SYS_sched_setattr "sched_setattr", SYS_renameat2 "renameat2", SYS_seccomp "seccomp", SYS_memfd_create "memfd_create", SYS_bpf "bpf",
    SYS_execveat "execveat", SYS_copy_file_range "copy_file_range", SYS_statx "statx", SYS_pidfd_send_signal "pidfd_send_signal", SYS_open_tree "open_tree", SYS_move_mount "move_mount",
    SYS_fsopen "fsopen", SYS_fsconfig "fsconfig", SYS_fsmount "fsmount", SYS_fspick "fspick", SYS_pidfd_open "pidfd_open", SYS_clone3 "clone3",
    SYS_close_range "close_range", SYS_openat2 "openat2", SYS_pidfd_getfd "pidfd_getfd", SYS_faccessat2 "faccessat2", SYS_mount_setattr "mount_setattr", SYS_landlock_create_ruleset "landlock_create_ruleset",
    SYS_landlock_add_rule "landlock_add_rule", SYS_landlock_restrict_self "landlock_restrict_self", SYS_sendfile "sendfile", SYS_epoll_wait "epoll_wait", SYS_epoll_ctl "epoll_ctl", SYS_inotify_add_watch "inotify_add_watch",
    
}

/// Calls that meet faults in init only. In the caller the C library and the allocator make them.
pub fn of_init(number: u64) -> Option<&'static str> {
    match number as i64 {
        libc::SYS_mmap => Some("mmap"),
        libc::SYS_rt_sigprocmask => Some("rt_sigprocmask"),
        _ => None,
    }
}
