//! The parent's side of a spawn: open what is handed over, clone, write the id maps, and listen until
//! the command runs or a step was refused.
//!
//! Everything that is made here is owned by a value that takes it back when it is dropped, so an early
//! return is a rollback.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use nix::sys::stat::Mode;

use crate::error::{Error, Result};
use crate::host::Survey;
use crate::plan::Plan;
use crate::report::Report;
use crate::rootfs::source::HostFile;
use crate::spec::{SandboxSpec, Stdio};
use crate::step::Handed;
use crate::step::wire::{Op, RECORD, Record};
use crate::sys;
use crate::task::{Child, Streams};

mod clone;

/// The static program that does the child's half.
static INIT: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/init"));

/// Where the sandbox is born.
pub(crate) struct Birth<'a> {
    /// The version 2 cgroup of the task.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// Standard input, output and error.
    pub stdio: [Stdio; 3],
    /// What the spec names of the host.
    pub survey: &'a Survey,
    /// The temporary root, if there is one, with its path.
    pub root: Option<(&'a Path, BorrowedFd<'a>)>,
}

impl Birth<'_> {
    /// The descriptor of a source.
    fn source(&self, path: &Path) -> Result<BorrowedFd<'_>> {
        let root = self.root.filter(|(at, _)| *at == path).map(|(_, fd)| fd);
        let held = || self.survey.sources.get(path).map(HostFile::fd);
        root.or_else(held).ok_or_else(|| Error::prepare(format!("openat2({path:?}, O_PATH)"))(Errno::ENOENT))
    }
}

/// Runs the plan up to the point where the command has been executed. The report is the plan's,
/// less what optional steps could not do.
pub(crate) fn spawn(plan: &Plan, birth: &Birth<'_>) -> Result<(Child, Streams, Report)> {
    let (handed, streams) = open_handed(plan, birth)?;
    let flags = SockFlag::SOCK_CLOEXEC;
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)
        .map_err(Error::prepare(line::SOCKET))?;
    let numbers: Vec<u32> = handed.iter().map(|fd| fd.as_raw_fd().unsigned_abs()).collect();
    let program = plan.encode(theirs.as_raw_fd().unsigned_abs(), &numbers);
    let program =
        sys::sealed_memfd(c"cofferdam-plan", &program, false).map_err(Error::prepare(line::PLAN))?;
    let init = init_program()?;
    let child = execute(plan, birth, &init, &program, &theirs, &handed)?;
    drop((theirs, handed, program, init));
    let mut child = Child::new(child, ours);
    if let Some(maps) = &plan.maps {
        write_maps(child.pidfd(), maps)?;
        sys::send(child.status(), b"g").map_err(|e| unheard(&child, "sendto(status)", e))?;
    }
    let mut report = plan.report.clone();
    listen(plan, &mut child, &mut report)?;
    Ok((child, streams, report))
}

/// Refuses a number that is no descriptor now. What is opened for the sandbox from here on, a directory of the
/// host among it, would get that number, and be handed to the task as what the caller meant.
pub(crate) fn check_declared(spec: &SandboxSpec) -> Result<()> {
    let streams =
        [spec.stdin, spec.stdout, spec.stderr].into_iter().zip(0..).filter_map(|(how, n)| match how {
            Stdio::Inherit => Some(n),
            Stdio::Fd(fd) => Some(fd),
            Stdio::Null | Stdio::Piped => None,
        });
    streams
        .chain(spec.fds.iter().map(|fd| fd.from))
        .filter(|fd| *fd >= 0)
        .try_for_each(|fd| callers(fd).map(drop))
}

/// A duplicate of a descriptor of the caller's.
fn callers(fd: RawFd) -> Result<OwnedFd> {
    sys::dup_number(fd).map_err(Error::prepare(format!("fcntl({fd}, F_DUPFD_CLOEXEC)")))
}

fn execute(
    plan: &Plan,
    birth: &Birth<'_>,
    init: &OwnedFd,
    program: &OwnedFd,
    status: &OwnedFd,
    handed: &[OwnedFd],
) -> Result<OwnedFd> {
    let number = |fd: &OwnedFd| CString::new(fd.as_raw_fd().to_string()).unwrap_or_default();
    let mut inherit: Vec<RawFd> = handed.iter().map(AsRawFd::as_raw_fd).collect();
    inherit.extend([program.as_raw_fd(), status.as_raw_fd()]);
    let request = clone::Request {
        namespaces: plan.namespaces,
        cgroup: birth.cgroup,
        program: init.as_fd(),
        argv: [c"cofferdam-init".into(), number(program), number(status)],
        inherit,
    };
    clone::clone(&request).map_err(|refused| match refused {
        clone::Refused::Clone(source) => {
            Error::Prepare { step: line::clone(plan.namespaces, birth.cgroup.is_some()), source }
        }
        clone::Refused::Exec(source) => Error::Prepare { step: line::EXEC.into(), source },
    })
}

/// The system calls of every spawn, in order, as the plan and the errors print them.
pub(crate) mod line {
    pub(crate) const SOCKET: &str = "socketpair(AF_UNIX, SOCK_SEQPACKET)";
    pub(crate) const PLAN: &str = "memfd_create(\"cofferdam-plan\")";
    pub(crate) const INIT: &str = "memfd_create(\"cofferdam-init\", MFD_EXEC)";
    pub(crate) const EXEC: &str = "execveat(memfd \"cofferdam-init\")";

    pub(crate) fn tree(source: &std::path::Path, recursive: bool) -> String {
        let recursive = if recursive { "|AT_RECURSIVE" } else { "" };
        format!("open_tree(held {source:?}, OPEN_TREE_CLONE|AT_EMPTY_PATH{recursive})")
    }

    pub(crate) fn clone(namespaces: u32, into_cgroup: bool) -> String {
        let cgroup = if into_cgroup { "|CLONE_INTO_CGROUP" } else { "" };
        let namespaces = crate::step::namespaces(namespaces);
        format!("clone3(CLONE_VM|CLONE_VFORK|CLONE_PIDFD|CLONE_CLEAR_SIGHAND|{namespaces}{cgroup})")
    }
}

/// Init as a descriptor that can be executed: a sealed memfd, or where those may not be executed
/// (`vm.memfd_noexec` = 2, Linux 6.3) an unlinked file that nobody can write any more.
fn init_program() -> Result<OwnedFd> {
    match sys::sealed_memfd(c"cofferdam-init", INIT, true) {
        Err(e) if e.raw_os_error() == Some(libc::EACCES) => unlinked_init().map_err(Error::prepare(
            "openat(temporary directory, O_TMPFILE), since memfds may not be executed here",
        )),
        other => other.map_err(Error::prepare(line::INIT)),
    }
}

fn unlinked_init() -> io::Result<OwnedFd> {
    let dir = std::env::temp_dir();
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let file = nix::fcntl::open(&dir, flags, Mode::S_IRWXU)?;
    sys::write_all(&file, INIT)?;
    // A file that is open for writing cannot be executed (ETXTBSY).
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(nix::fcntl::open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn open_handed(plan: &Plan, birth: &Birth<'_>) -> Result<(Vec<OwnedFd>, Streams)> {
    let mut streams = Streams::default();
    let mut fds = Vec::with_capacity(plan.handed.len());
    for item in &plan.handed {
        fds.push(match item {
            Handed::Stdio(number) => stdio(*number, birth, &mut streams)?,
            Handed::Caller(number) => callers(*number)?,
            Handed::Driver => sys::own_pidfd().map_err(Error::prepare("pidfd_open(this process)"))?,
            Handed::Namespace(path) => duplicate(birth.survey.namespace.as_ref().map(AsFd::as_fd), path)?,
            Handed::Tree { source, recursive } => sys::fs::clone_tree(birth.source(source)?, *recursive)
                .map_err(Error::prepare(line::tree(source, *recursive)))?,
            Handed::Source(path) => duplicate(birth.source(path).ok(), path)?,
            Handed::Tasks(path) => open(path, OFlag::O_WRONLY)?,
        });
    }
    Ok((fds, streams))
}

/// A duplicate of a descriptor that is held for `path`.
fn duplicate(held: Option<BorrowedFd<'_>>, path: &Path) -> Result<OwnedFd> {
    let held = held.ok_or(io::ErrorKind::NotFound.into());
    held.and_then(|fd| fd.try_clone_to_owned())
        .map_err(Error::prepare(format!("fcntl({path:?}, F_DUPFD_CLOEXEC)")))
}

fn open(path: &std::path::Path, flags: OFlag) -> Result<OwnedFd> {
    let mode = if flags.contains(OFlag::O_WRONLY) { "O_WRONLY" } else { "O_RDONLY" };
    nix::fcntl::open(path, flags | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(Error::prepare(format!("openat({path:?}, {mode})")))
}

fn stdio(number: u32, birth: &Birth<'_>, streams: &mut Streams) -> Result<OwnedFd> {
    let how = usize::try_from(number).ok().and_then(|n| birth.stdio.get(n)).copied().unwrap_or_default();
    match how {
        Stdio::Inherit => callers(number.cast_signed()),
        Stdio::Fd(fd) => callers(fd),
        Stdio::Null => nix::fcntl::open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(Error::prepare("openat(\"/dev/null\", O_RDWR)")),
        Stdio::Piped => {
            let (read, write) =
                nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(Error::prepare("pipe2(O_CLOEXEC)"))?;
            Ok(streams.keep(number, read, write))
        }
    }
}

/// Writes the maps of the child's user namespace. `setgroups` must be denied first where the caller
/// has no `CAP_SETGID` over it (`user_namespaces(7)`).
fn write_maps(child: BorrowedFd<'_>, maps: &crate::step::IdMaps) -> Result<()> {
    // A caller in a new PID namespace may have the old one's /proc, where its numbers are other processes'.
    let pid = sys::proc_pid(child).ok_or_else(|| {
        let source = io::Error::other("/proc shows another PID namespace than the caller's");
        Error::Prepare { step: "read(\"/proc/self/fdinfo/PIDFD\")".into(), source }
    })?;
    let files = [("setgroups", "deny"), ("uid_map", &maps.uid), ("gid_map", &maps.gid)];
    for (file, text) in files.into_iter().skip(usize::from(maps.set_groups)) {
        let path = format!("/proc/{pid}/{file}");
        std::fs::write(&path, text)
            .map_err(Error::prepare(format!("write(\"/proc/PID/{file}\", {text:?})")))?;
    }
    Ok(())
}

/// Reads init's records until the command runs.
fn listen(plan: &Plan, child: &mut Child, report: &mut Report) -> Result<()> {
    let mut ready = false;
    loop {
        let mut buffer = [0u8; RECORD];
        let (n, fd) = sys::recv_with_fd(child.status(), &mut buffer, true)
            .map_err(|e| unheard(child, "recvmsg(status)", e))?;
        if n == 0 {
            // The end of the stream: the command was executed, or init died before it got there.
            return if ready { Ok(()) } else { Err(init_died(child)) };
        }
        match Record::decode(buffer.get(..n).unwrap_or_default()) {
            Ok(Record::Ready) => ready = true,
            Ok(Record::Running) => {
                child.runs_as(fd);
                return Ok(());
            }
            Ok(Record::Failed { step, call, errno }) => return Err(refused(plan, step, call, errno)),
            Ok(Record::Degraded { step, call, errno }) => degrade(plan, report, step, call, errno),
            Ok(Record::Exited { .. }) | Err(_) => return Err(init_died(child)),
        }
    }
}

fn refused(plan: &Plan, step: u32, call: u8, errno: i32) -> Error {
    let source = io::Error::from_raw_os_error(errno);
    let op = usize::try_from(step).ok().and_then(|i| plan.init.get(i)).and_then(crate::step::Step::op);
    let found = match op {
        Some(Op::Find { .. }) => None,
        Some(Op::Exec { .. }) => plan.candidates.get(usize::from(call)),
        _ => {
            let source = match plan.meaning(step, call, errno) {
                Some(why) => io::Error::new(source.kind(), format!("{why} ({source})")),
                None => source,
            };
            return Error::Setup { step: plan.call(step, call), source };
        }
    };
    let (program, source) = match (found, errno) {
        (None, _) => (plan.command.clone(), source),
        (Some(path), libc::ENOENT) => {
            let why = format!("{path:?} is there, but the interpreter that it names is not");
            (path.clone(), io::Error::new(io::ErrorKind::NotFound, why))
        }
        (Some(path), _) => (path.clone(), source),
    };
    Error::Exec { program, source }
}

fn degrade(plan: &Plan, report: &mut Report, step: u32, call: u8, errno: i32) {
    let control = usize::try_from(step).ok().and_then(|i| plan.init.get(i)).map(|s| s.control);
    let why = format!("{}: {}", plan.call(step, call), io::Error::from_raw_os_error(errno));
    report.miss(control.unwrap_or_default(), why);
}

/// The socket failed: because init is gone, or for a reason of its own.
fn unheard(child: &Child, call: &str, e: io::Error) -> Error {
    match e.raw_os_error() {
        Some(libc::EPIPE | libc::ECONNRESET) => init_died(child),
        _ => Error::prepare(call)(e),
    }
}

/// Init ended without a word: say how.
fn init_died(child: &Child) -> Error {
    let source = match sys::wait_pidfd(child.pidfd(), true, false) {
        Ok(Some(sys::Ended::Signal(libc::SIGKILL))) => io::Error::other(Killed),
        Ok(Some(sys::Ended::Signal(signal))) => {
            io::Error::other(format!("init was killed by signal {signal}"))
        }
        Ok(Some(sys::Ended::Code(code))) => io::Error::other(format!("init exited with {code}")),
        _ => io::Error::other("init is gone"),
    };
    Error::Setup { step: "init".into(), source }
}

#[derive(Debug, thiserror::Error)]
#[error("init was killed by signal 9")]
struct Killed;

/// Whether a spawn failed because init was killed (SIGKILL) before it could say anything.
pub(crate) fn was_killed(error: &Error) -> bool {
    let Error::Setup { source, .. } = error else { return false };
    source.get_ref().is_some_and(|e| e.is::<Killed>())
}
