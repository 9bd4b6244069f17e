//! A tracer (`ptrace(2)`) of one program and of all processes that it starts. It makes one system call fail, or kills a
//! process between two calls.
//!
//! The program announces with a signal where tracing begins and ends. Outside of that part it runs at full speed.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use crate::names;

/// The signals by which the program announces the begin of a traced part, its end, and that its result is written.
pub const BEGIN: i32 = libc::SIGUSR1;
pub const END: i32 = libc::SIGUSR2;
pub const DONE: i32 = libc::SIGWINCH;

/// Whose calls are counted. Each has a count of its own, because they run at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// The thread that spawns.
    Parent,
    /// The threads that it starts.
    Worker,
    /// The process that it clones, which becomes PID 1.
    Init,
    /// The processes that init creates.
    Child,
    /// All others, whose calls are not counted.
    Other,
}

/// A system call at its entry.
#[derive(Clone, Debug)]
pub struct Call {
    pub role: Role,
    /// Index among the calls of its role.
    pub index: usize,
    pub name: &'static str,
    pub args: [u64; 6],
    /// The path or the text among the arguments, if the tracer may read it.
    pub text: Option<String>,
    /// The object of the descriptor that is the first argument, if the tracer may see it.
    pub object: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The call is not made, and returns this errno.
    Errno(i32),
    /// The process is killed before the call.
    Kill,
    /// The program is killed before the call.
    KillProgram,
}

/// The call that meets a fault.
#[derive(Clone, Copy, Debug)]
pub struct Aim {
    pub role: Role,
    pub index: usize,
    pub fault: Fault,
}

struct Tracee {
    role: Role,
    /// Whether its system calls are traced.
    traced: bool,
    /// The result that replaces the one of the current call.
    rewrite: Option<i64>,
    execs: u32,
    /// Whether it has created a process.
    forked: bool,
}

/// What the program announced, or that it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    Marker { signal: i32, thread: i32 },
    Ended,
}

pub struct Tracer {
    program: i32,
    tracees: BTreeMap<i32, Tracee>,
    /// New processes that stopped before the event that says who they are.
    early: BTreeSet<i32>,
    /// New processes that ended before that event.
    dead: BTreeSet<i32>,
    on: bool,
    counts: BTreeMap<Role, usize>,
    aim: Option<Aim>,
    /// Every counted call until the fault.
    pub calls: Vec<Call>,
    /// The call that met the fault.
    pub hit: Option<Call>,
}

const OPTIONS: i32 = libc::PTRACE_O_EXITKILL
    | libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACEEXEC;

fn ptrace(request: libc::c_uint, pid: i32, address: usize, data: usize) -> io::Result<i64> {
    // SAFETY: the requests used here take numbers, or pointers to values that outlive the call.
    let ret = unsafe { libc::ptrace(request, pid, address, data) };
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(ret) }
}

/// `struct ptrace_syscall_info` up to the arguments.
#[repr(C)]
#[derive(Default)]
struct Info {
    op: u8,
    pad: [u8; 3],
    arch: u32,
    ip: u64,
    sp: u64,
    number: u64,
    args: [u64; 6],
    more: u64,
}

const GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const ENTRY: u8 = 1;
/// Offsets of registers in `struct user`.
const RAX: usize = 8 * 10;
const ORIG_RAX: usize = 8 * 15;

impl Tracer {
    /// Traces every thread of the program.
    pub fn seize(program: i32) -> Tracer {
        let mut tracer = Tracer {
            program,
            tracees: BTreeMap::new(),
            early: BTreeSet::new(),
            dead: BTreeSet::new(),
            on: false,
            counts: BTreeMap::new(),
            aim: None,
            calls: Vec::new(),
            hit: None,
        };
        for entry in std::fs::read_dir(format!("/proc/{program}/task")).unwrap().flatten() {
            let thread = entry.file_name().to_str().unwrap().parse().unwrap();
            ptrace(libc::PTRACE_SEIZE, thread, 0, OPTIONS as usize).unwrap();
            tracer.add(thread, Role::Worker);
        }
        tracer
    }

    fn add(&mut self, pid: i32, role: Role) {
        self.tracees.insert(pid, Tracee { role, traced: self.on, rewrite: None, execs: 0, forked: false });
    }

    /// Starts to trace calls, from the marker of `thread` on.
    pub fn start(&mut self, thread: i32, aim: Option<Aim>) {
        (self.on, self.aim, self.hit) = (true, aim, None);
        self.counts.clear();
        self.calls.clear();
        // The parent of such a process may have been killed before the event that says who it is. Its PID is used again.
        self.dead.clear();
        for tracee in self.tracees.values_mut() {
            tracee.traced = false;
            if tracee.role != Role::Worker && tracee.role != Role::Parent {
                tracee.role = Role::Other;
            }
        }
        let tracee = self.tracees.get_mut(&thread).unwrap();
        (tracee.role, tracee.traced) = (Role::Parent, true);
    }

    pub fn stop(&mut self) {
        self.on = false;
    }

    /// Number of processes and threads besides those of the program.
    pub fn others(&self) -> usize {
        self.tracees.values().filter(|t| !matches!(t.role, Role::Worker | Role::Parent)).count()
    }

    /// Lets a stopped process go on, with a signal.
    pub fn resume(&mut self, pid: i32, signal: i32) {
        let traced = self.tracees.get(&pid).is_some_and(|t| t.rewrite.is_some() || t.traced && self.on);
        let request = if traced { libc::PTRACE_SYSCALL } else { libc::PTRACE_CONT };
        // ESRCH: it was killed meanwhile.
        let _ = ptrace(request, pid, 0, signal as usize);
    }

    /// Runs everything until the program announces something or has ended.
    pub fn run(&mut self) -> Event {
        loop {
            let mut status = 0;
            // SAFETY: `status` outlives the call.
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::__WALL | libc::__WNOTHREAD) };
            if pid < 0 {
                let error = io::Error::last_os_error();
                match error.raw_os_error() {
                    Some(libc::EINTR) => continue,
                    Some(libc::ECHILD) => return Event::Ended,
                    _ => panic!("waitpid: {error}"),
                }
            }
            if let Some(event) = self.stopped(pid, status) {
                return event;
            }
        }
    }

    /// After the end of the program: calls `bury`, which removes what is left, until it returns true or for at most 30
    /// seconds. Returns the number of processes that are still there, which are then killed.
    pub fn outlive(&mut self, bury: impl Fn() -> bool + Sync) -> usize {
        let gone = std::sync::atomic::AtomicBool::new(false);
        let order = std::sync::atomic::Ordering::SeqCst;
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        std::thread::scope(|scope| {
            // A killed process is reaped by its tracer first, so another thread buries.
            scope.spawn(|| {
                while !bury() && std::time::Instant::now() < end {
                    std::thread::sleep(std::time::Duration::from_millis(20));
                }
                gone.store(true, order);
            });
            while !gone.load(order) {
                self.poll();
            }
        });
        self.end_others()
    }

    /// Handles one event, or sleeps for a moment.
    fn poll(&mut self) -> bool {
        let mut status = 0;
        let flags = libc::__WALL | libc::__WNOTHREAD | libc::WNOHANG;
        // SAFETY: `status` outlives the call.
        match unsafe { libc::waitpid(-1, &raw mut status, flags) } {
            pid if pid > 0 => drop(self.stopped(pid, status)),
            0 => std::thread::sleep(std::time::Duration::from_millis(1)),
            _ => {
                std::thread::sleep(std::time::Duration::from_millis(1));
                return false;
            }
        }
        true
    }

    /// Runs everything until the program has ended, and waits for its processes as [`settle`](Self::settle) does. Kills
    /// those that have not ended then, and returns their number.
    pub fn run_to_the_end(&mut self) -> usize {
        while let Event::Marker { thread, .. } = self.run() {
            self.resume(thread, 0);
        }
        self.end_others()
    }

    fn end_others(&mut self) -> usize {
        let left = self.settle();
        self.tracees.keys().for_each(|pid| kill(*pid));
        while !self.tracees.is_empty() && self.run() != Event::Ended {}
        left
    }

    /// Waits until all processes of the cell have ended, for at most ten seconds. Returns the number that has not.
    pub fn settle(&mut self) -> usize {
        let end = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while self.others() > 0 && std::time::Instant::now() < end && self.poll() {}
        self.others()
    }

    fn stopped(&mut self, pid: i32, status: i32) -> Option<Event> {
        if !libc::WIFSTOPPED(status) {
            if self.tracees.remove(&pid).is_none() {
                self.early.remove(&pid);
                self.dead.insert(pid);
            }
            return (pid == self.program || self.tracees.is_empty()).then_some(Event::Ended);
        }
        let (signal, event) = (libc::WSTOPSIG(status), status >> 16);
        match event {
            libc::PTRACE_EVENT_CLONE | libc::PTRACE_EVENT_FORK | libc::PTRACE_EVENT_VFORK => {
                self.born(pid, event);
                self.resume(pid, 0);
            }
            libc::PTRACE_EVENT_EXEC => {
                if let Some(tracee) = self.tracees.get_mut(&pid) {
                    tracee.execs += 1;
                    // The first exec of the cloned process is init's. Every other one is the command's.
                    if tracee.role != Role::Init || tracee.execs > 1 {
                        tracee.traced = false;
                    }
                }
                self.resume(pid, 0);
            }
            libc::PTRACE_EVENT_STOP => {
                if self.tracees.contains_key(&pid) {
                    self.resume(pid, 0);
                } else {
                    self.early.insert(pid);
                }
            }
            _ if signal == libc::SIGTRAP | 0x80 => self.at_call(pid),
            _ => {
                let own =
                    self.tracees.get(&pid).is_some_and(|t| matches!(t.role, Role::Worker | Role::Parent));
                if own && [BEGIN, END, DONE].contains(&signal) {
                    return Some(Event::Marker { signal, thread: pid });
                }
                self.resume(pid, signal);
            }
        }
        None
    }

    fn born(&mut self, parent: i32, event: i32) {
        let mut new = 0u64;
        if ptrace(libc::PTRACE_GETEVENTMSG, parent, 0, (&raw mut new) as usize).is_err() {
            return;
        }
        let new = new as i32;
        let of = self.tracees.get_mut(&parent).map_or(Role::Other, |t| {
            t.forked = true;
            t.role
        });
        let thread = event == libc::PTRACE_EVENT_CLONE;
        let role = match of {
            Role::Parent | Role::Worker if thread => Role::Worker,
            _ if !self.on && self.hit.is_none() => Role::Other,
            Role::Parent => Role::Init,
            Role::Init | Role::Child => Role::Child,
            _ => Role::Other,
        };
        if self.dead.remove(&new) {
            return;
        }
        self.add(new, role);
        if self.early.remove(&new) {
            self.resume(new, 0);
        }
    }

    fn at_call(&mut self, pid: i32) {
        let Some(tracee) = self.tracees.get_mut(&pid) else { return };
        if let Some(result) = tracee.rewrite.take() {
            let _ = ptrace(libc::PTRACE_POKEUSER, pid, RAX, result as usize);
            return self.resume(pid, 0);
        }
        let role = tracee.role;
        if !self.on || !tracee.traced || role == Role::Other {
            return self.resume(pid, 0);
        }
        let mut info = Info::default();
        let size = size_of::<Info>();
        let known = ptrace(GET_SYSCALL_INFO, pid, size, (&raw mut info) as usize).is_ok();
        if !known || info.op != ENTRY {
            return self.resume(pid, 0);
        }
        let of_init = matches!(role, Role::Init | Role::Child);
        let name = names::name(info.number).or(names::of_init(info.number).filter(|_| of_init));
        // Rust's standard library checks a descriptor with F_GETFD before it closes it, in debug builds.
        let checks = name == Some("fcntl") && info.args[1] == libc::F_GETFD as u64;
        let Some(name) = name.filter(|_| !checks) else { return self.resume(pid, 0) };
        // PID 1 has told that the command runs. From here on it only reaps.
        if of_init && tracee.forked && name == "sendmsg" {
            tracee.traced = false;
        }
        let count = self.counts.entry(role).or_default();
        let index = *count;
        *count += 1;
        let aimed = self.aim.filter(|aim| (aim.role, aim.index) == (role, index));
        let known = self.aim.is_none() || aimed.is_some();
        let text = if known { text(pid, name, &info.args) } else { None };
        let object = if known { object(pid, info.args[0]) } else { None };
        let call = Call { role, index, name, args: info.args, text, object };
        if self.aim.is_none() {
            self.calls.push(call.clone());
        }
        if let Some(aim) = aimed {
            (self.on, self.hit) = (false, Some(call));
            self.strike(pid, aim.fault);
        }
        self.resume(pid, 0);
    }

    fn strike(&mut self, pid: i32, fault: Fault) {
        match fault {
            Fault::Errno(errno) => {
                // Another call takes its place, which changes nothing.
                let _ = ptrace(libc::PTRACE_POKEUSER, pid, ORIG_RAX, libc::SYS_getpid as usize);
                if let Some(tracee) = self.tracees.get_mut(&pid) {
                    tracee.rewrite = Some(-i64::from(errno));
                }
            }
            Fault::Kill => kill(pid),
            Fault::KillProgram => kill(self.program),
        }
    }
}

/// Kills a process of the traced ones, which is not reaped yet.
pub fn kill(pid: i32) {
    // SAFETY: kill(2) takes numbers.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

/// Index of the argument that is a path or another text that the line of a plan shows.
fn text_argument(name: &str) -> Option<usize> {
    match name {
        "chdir" | "chroot" | "umount2" | "fsopen" | "mkdir" | "rmdir" | "open" | "memfd_create"
        | "unlink" | "statfs" | "readlink" => Some(0),
        "openat" | "openat2" | "mkdirat" | "mknodat" | "unlinkat" | "fchownat" | "fchmodat" | "statx"
        | "newfstatat" | "open_tree" | "mount" | "readlinkat" => Some(1),
        "fsconfig" | "symlinkat" => Some(2),
        "linkat" | "move_mount" | "renameat2" => Some(3),
        _ => None,
    }
}

/// The object of a descriptor of a tracee.
fn object(pid: i32, fd: u64) -> Option<String> {
    let path = std::fs::read_link(format!("/proc/{pid}/fd/{}", i32::try_from(fd).ok()?)).ok()?;
    Some(path.display().to_string())
}

/// Reads a text in the memory of a tracee. The kernel forbids it to a tracer without privileges
/// if the tracee is not dumpable, as init.
fn text(pid: i32, name: &str, args: &[u64; 6]) -> Option<String> {
    let address = args[text_argument(name)?];
    if address == 0 {
        return None;
    }
    let mut bytes = Vec::new();
    'words: for at in (0..4096).step_by(8) {
        let mut word = 0u64;
        // The system call stores the word at its fourth argument. The C library's wrapper returns it.
        // SAFETY: `word` outlives the call.
        let ret = unsafe {
            libc::syscall(libc::SYS_ptrace, libc::PTRACE_PEEKDATA, pid, address + at, &raw mut word)
        };
        if ret < 0 {
            return None;
        }
        for byte in word.to_ne_bytes() {
            if byte == 0 {
                break 'words;
            }
            bytes.push(byte);
        }
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
