//! Everything that a process can observe of itself and that a spawn could change.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;

macro_rules! call {
    ($number:expr $(, $argument:expr)*) => {{
        // SAFETY: the arguments are numbers, or pointers to values that outlive the call.
        let ret = unsafe { libc::syscall($number $(, $argument)*) };
        if ret < 0 { Err(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(ret) }
    }};
}

/// Names and values. The values of a process that a spawn must not touch are the same before and after it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeMap<String, String>);

/// Lines of `/proc/thread-self/status` that change by themselves: memory, context switches, and the number of signals
/// that are queued for all processes of the user.
const VOLATILE: [&str; 8] = ["Vm", "Rss", "Hugetlb", "voluntary", "nonvoluntary", "State", "SigQ", "FDSize"];

impl Snapshot {
    /// The state of this process and of this thread.
    pub fn take() -> Snapshot {
        let mut shot = Snapshot::default();
        shot.status();
        shot.stat();
        shot.files();
        shot.descriptors();
        shot.signals();
        shot.settings();
        shot.timers();
        shot.children();
        shot
    }

    /// The names whose values differ, with both values.
    pub fn differences(&self, after: &Snapshot) -> Vec<String> {
        let names = self.0.keys().chain(after.0.keys()).collect::<std::collections::BTreeSet<_>>();
        let differ = names.into_iter().filter(|name| self.0.get(*name) != after.0.get(*name));
        differ.map(|name| format!("{name}: {:?} -> {:?}", self.0.get(name), after.0.get(name))).collect()
    }

    /// The number of values.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// One value; empty if there is none.
    pub fn get(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    fn set(&mut self, name: impl Into<String>, value: impl std::fmt::Display) {
        self.0.insert(name.into(), value.to_string());
    }

    fn status(&mut self) {
        let text = fs::read_to_string("/proc/thread-self/status").unwrap_or_default();
        for (key, value) in text.lines().filter_map(|line| line.split_once(':')) {
            if !VOLATILE.iter().any(|prefix| key.starts_with(prefix)) {
                self.set(format!("status {key}"), value.trim());
            }
        }
    }

    /// Fields of `proc_pid_stat(5)` that only the process itself changes.
    fn stat(&mut self) {
        let text = fs::read_to_string("/proc/thread-self/stat").unwrap_or_default();
        let Some((_, fields)) = text.rsplit_once(") ") else { return };
        let fields: Vec<&str> = fields.split(' ').collect();
        let named = [
            ("ppid", 4),
            ("pgrp", 5),
            ("session", 6),
            ("tty_nr", 7),
            ("priority", 18),
            ("nice", 19),
            ("num_threads", 20),
            ("starttime", 22),
            ("exit_signal", 38),
            ("rt_priority", 40),
            ("policy", 41),
        ];
        for (name, number) in named {
            self.set(format!("stat {name}"), fields.get(number - 3).copied().unwrap_or_default());
        }
    }

    fn files(&mut self) {
        for name in ["cwd", "root", "exe"] {
            let path = fs::read_link(format!("/proc/thread-self/{name}"));
            self.set(name, format!("{path:?}"));
        }
        for entry in fs::read_dir("/proc/thread-self/ns").into_iter().flatten().flatten() {
            let target = fs::read_link(entry.path()).map_err(|e| e.kind());
            self.set(format!("ns {}", entry.file_name().display()), format!("{target:?}"));
        }
        for name in [
            "oom_score_adj",
            "limits",
            "coredump_filter",
            "timerslack_ns",
            "personality",
            "loginuid",
            "sessionid",
            "setgroups",
            "uid_map",
            "gid_map",
            "cgroup",
            "comm",
            "cmdline",
            "environ",
            "mountinfo",
            "attr/current",
        ] {
            let text = fs::read(format!("/proc/self/{name}")).map_err(|e| e.kind());
            self.set(name, format!("{:?}", text.map(|text| String::from_utf8_lossy(&text).into_owned())));
        }
    }

    /// Number, object and flags of every descriptor, except for the one that reads the list.
    fn descriptors(&mut self) {
        let Ok(dir) = fs::read_dir("/proc/self/fd") else { return };
        let entries: Vec<PathBuf> = dir.flatten().map(|entry| entry.path()).collect();
        for path in entries {
            let Ok(target) = fs::read_link(&path) else { continue };
            let number = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let fd: i32 = number.parse().unwrap_or(-1);
            // The C library's allocator opens this file for a moment, in any thread.
            if target.ends_with("overcommit_memory") {
                continue;
            }
            let flags = [libc::F_GETFD, libc::F_GETFL].map(|what| call!(libc::SYS_fcntl, fd, what));
            self.set(format!("fd {number}"), format!("{} {flags:?}", target.display()));
        }
    }

    fn signals(&mut self) {
        let mut text = String::new();
        for signal in 1..=64 {
            let mut action = [0u64; 4];
            let done = call!(libc::SYS_rt_sigaction, signal, 0, action.as_mut_ptr(), 8);
            let _ = write!(text, "{signal}={done:?} {action:x?} ");
        }
        self.set("sigaction", text);
        let mut stack = [0u64; 3];
        let done = call!(libc::SYS_sigaltstack, 0, stack.as_mut_ptr());
        self.set("sigaltstack", format!("{done:?} {stack:x?}"));
        let mut pending = 0u64;
        let done = call!(libc::SYS_rt_sigpending, &raw mut pending, 8);
        self.set("sigpending", format!("{done:?} {pending:x}"));
    }

    fn settings(&mut self) {
        for (name, option) in [
            ("dumpable", libc::PR_GET_DUMPABLE),
            ("keepcaps", libc::PR_GET_KEEPCAPS),
            ("securebits", libc::PR_GET_SECUREBITS),
            ("timer slack", libc::PR_GET_TIMERSLACK),
            ("no_new_privs", libc::PR_GET_NO_NEW_PRIVS),
            ("thp", libc::PR_GET_THP_DISABLE),
            ("mdwe", 66),
            ("io flusher", 58),
            ("ksm", 68),
            ("timing", libc::PR_GET_TIMING),
        ] {
            self.set(name, format!("{:?}", call!(libc::SYS_prctl, option, 0, 0, 0, 0)));
        }
        for (name, option) in [
            ("pdeathsig", libc::PR_GET_PDEATHSIG),
            ("subreaper", libc::PR_GET_CHILD_SUBREAPER),
            ("tsc", libc::PR_GET_TSC),
        ] {
            let mut value = 0i32;
            let done = call!(libc::SYS_prctl, option, &raw mut value, 0, 0, 0);
            self.set(name, format!("{done:?} {value}"));
        }
        for cap in 0..=40 {
            let both = [libc::PR_CAPBSET_READ, libc::PR_CAP_AMBIENT].map(|option| {
                let (a, b) = if option == libc::PR_CAPBSET_READ { (cap, 0) } else { (1, cap) };
                call!(libc::SYS_prctl, option, a, b, 0, 0)
            });
            self.set(format!("capability {cap}"), format!("{both:?}"));
        }
        let mut mask = [0u64; 128];
        let done = call!(libc::SYS_sched_getaffinity, 0, 1024, mask.as_mut_ptr());
        self.set("affinity", format!("{done:?} {mask:x?}"));
        self.set("scheduler", format!("{:?}", call!(libc::SYS_sched_getscheduler, 0)));
        self.set("ioprio", format!("{:?}", call!(libc::SYS_ioprio_get, 1, 0)));
        let mut mode = 0i32;
        let done = call!(libc::SYS_get_mempolicy, &raw mut mode, 0, 0, 0, 0);
        self.set("mempolicy", format!("{done:?} {mode}"));
        for (name, keyring) in [("thread", -1), ("process", -2), ("session", -3), ("user", -4)] {
            let id = call!(libc::SYS_keyctl, 0 /* GET_KEYRING_ID */, keyring, 0);
            self.set(format!("keyring {name}"), format!("{id:?}"));
        }
        for resource in 0..16 {
            let mut limit = [0u64; 2];
            let done = call!(libc::SYS_prlimit64, 0, resource, 0, limit.as_mut_ptr());
            self.set(format!("rlimit {resource}"), format!("{done:?} {limit:?}"));
        }
    }

    /// The timers of the process. What is left of a running one is not compared.
    fn timers(&mut self) {
        for which in 0..3 {
            let mut timer = [0i64; 4];
            let done = call!(libc::SYS_getitimer, which, timer.as_mut_ptr());
            let [seconds, micros, left, rest] = timer;
            let runs = left != 0 || rest != 0;
            self.set(format!("itimer {which}"), format!("{done:?} every {seconds}.{micros:06} runs {runs}"));
        }
        let timers = fs::read_to_string("/proc/self/timers").unwrap_or_default();
        self.set("posix timers", timers);
    }

    fn children(&mut self) {
        let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
        let lists = tasks.map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default());
        let mut children: Vec<String> =
            lists.flat_map(|list| list.split(' ').map(str::to_owned).collect::<Vec<_>>()).collect();
        children.sort();
        self.set("children", children.join(" ").trim());
    }
}
