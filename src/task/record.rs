//! The file of a task's exit record, in the operator's `state_dir`.
//!
//! The owner of the task makes the file with a random mark, and holds an exclusive lock on it (`flock(2)`). Only the
//! process that has the lock may recover the task or remove the file. PID 1 has the file open for writing, with a lock
//! of its own on the first byte while it lives, and writes the exit status to it when the main process has ended.
//!
//! The file is as long as it will be from the start, and the record is written by one call and has a check sum. So a
//! reader finds no record, a whole one, or one that it refuses.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open, openat};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::stat::{Mode, SFlag, fchmod, fstat};
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{UnlinkatFlags, fsync, geteuid, linkat, unlinkat};

use super::{ExitStatus, Lost};
use crate::cgroup::Group;
use crate::error::{Error, Result};
use crate::step::wire::{EXIT_RECORD, EXIT_RECORD_AT, End, ExitRecord, LOG_HEADER, LogHeader};
use crate::sys::fs::is_at;
use crate::sys::lock::{Lock, Locked, first_byte_holder, holder};
use crate::sys::write_all;

/// How often the file is made again because another process has removed it as stale right after it was made.
const RACES: u32 = 16;

/// First bytes of the file.
const MAGIC: [u8; 16] = *b"cofferdam exit\n\x01";

/// Bytes in the smallest ring of a log: room for some entries.
const LEAST_RING: u64 = 16 << 10;

/// Length of the random mark after [`MAGIC`].
const MARK: usize = 16;

/// What distinguishes a file from another one of the same name.
pub(super) type Mark = [u8; MARK];

/// The file of an exit record, locked by this process. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct RecordFile {
    dir: OwnedFd,
    path: PathBuf,
    name: OsString,
    file: Locked,
    mark: Mark,
    /// Whether the file was removed or stays.
    left: bool,
    /// Whether the task may have a log.
    has_log: AtomicBool,
}

impl RecordFile {
    /// Makes the file. A stale one of the same name is removed.
    ///
    /// # Errors
    /// The index of the refused call of the plan's step, and the cause: `ResourceBusy` if another process has the task, or
    /// if the task runs without an owner.
    pub(crate) fn create(path: &Path) -> Result<Self, (usize, io::Error)> {
        for _ in 0..RACES {
            if let Some(made) = RecordFile::try_create(path)? {
                return Ok(made);
            }
        }
        Err((4, in_use("other processes make its exit record at the same time".into())))
    }

    /// As [`create`](Self::create). `None` if another file of the name was there, and may be gone now.
    fn try_create(path: &Path) -> Result<Option<Self>, (usize, io::Error)> {
        let (dir, name) = open_dir(path).map_err(|e| (0, e))?;
        let again = |dir, name| remove_stale(dir, name).map(|()| None).map_err(|e| (4, e));
        let (file, named) = match open_new(&dir, &name) {
            Err(Errno::EEXIST) => return again(&dir, &name),
            opened => opened.map_err(|e| (1, e.into()))?,
        };
        let file = match Locked::new(file, Lock::ExclusiveNow) {
            Err(Errno::EWOULDBLOCK) => return Ok(None),
            locked => locked.map_err(|e| (2, e.into()))?,
        };
        if named && !is_at(file.as_fd(), dir.as_fd(), &*name).map_err(|e| (2, e.into()))? {
            return Ok(None);
        }
        let (path, mark) = (path.to_owned(), random().map_err(|e| (3, e))?);
        // If the mark cannot be written, a file with a name is removed.
        let has_log = AtomicBool::new(false);
        let made = RecordFile { dir, path, name, file, mark, left: false, has_log };
        made.write_mark().map_err(|e| (3, e))?;
        match if named { Ok(()) } else { made.name_it() } {
            Err(Errno::EEXIST) => again(&made.dir, &made.name),
            linked => linked.map(|()| Some(made)).map_err(|e| (4, e.into())),
        }
    }

    /// Gives the file its name.
    fn name_it(&self) -> nix::Result<()> {
        let unnamed = format!("/proc/self/fd/{}", self.file.as_fd().as_raw_fd());
        linkat(AT_FDCWD, unnamed.as_str(), &self.dir, &*self.name, AtFlags::AT_SYMLINK_FOLLOW)
    }

    fn write_mark(&self) -> io::Result<()> {
        fchmod(&self.file, OWN)?;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(self.mark);
        bytes.resize(bytes.len().saturating_add(EXIT_RECORD), 0);
        write_all(&self.file.as_fd().try_clone_to_owned()?, &bytes)
    }

    /// Opens and locks the file that has this mark. `None` if there is none.
    ///
    /// # Errors
    /// `ResourceBusy` with the process that has the task, or the refused call.
    pub(super) fn claim(path: &Path, mark: Mark) -> io::Result<Option<Self>> {
        let absent = |e: &io::Error| e.kind() == io::ErrorKind::NotFound;
        let (dir, name) = match open_dir(path) {
            Err(e) if absent(&e) => return Ok(None),
            opened => opened?,
        };
        let Some(file) = open_own(&dir, &name)? else { return Ok(None) };
        if mark_of(&file)? != Some(mark) {
            return Ok(None);
        }
        let file = lock(file)?;
        // The owner may have removed it before it was locked.
        let there = is_at(file.as_fd(), dir.as_fd(), &*name)?;
        let (path, has_log) = (path.to_owned(), AtomicBool::new(true));
        Ok(there.then_some(RecordFile { dir, path, name, file, mark, left: false, has_log }))
    }

    /// Opens and locks the file of any task at this path. `None` if there is none, or if the file is not a whole one that
    /// this crate and this user have made.
    ///
    /// # Errors
    /// `ResourceBusy` with the process that has the task, or if the file was changed after `before`; or the refused call.
    pub(super) fn claim_any(path: &Path, before: SystemTime) -> io::Result<Option<Self>> {
        let (dir, name) = open_dir(path)?;
        match open_whole(&dir, &name)? {
            // A lock, even a short one, could fail a spawn or a recovery.
            Some(_) if std::fs::symlink_metadata(path)?.modified()? > before => {
                Err(io::ErrorKind::ResourceBusy.into())
            }
            Some((_, mark)) => RecordFile::claim(path, mark),
            None => Ok(None),
        }
    }

    /// Makes the file of the task's log, which is removed with this one. One of an earlier task is removed first.
    ///
    /// # Errors
    /// The index of the refused call of the plan's step, and the cause.
    pub(crate) fn make_log(&self, size: u64) -> Result<OwnedFd, (usize, io::Error)> {
        self.remove_log().map_err(|e| (0, e.into()))?;
        let name = self.log_name();
        let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let file = openat(&self.dir, &*name, flags, OWN).map_err(|e| (1, e.into()))?;
        self.has_log.store(true, Ordering::Relaxed);
        let size = size.min(largest_ring().map_err(|e| (2, e))?);
        let header = LogHeader { size, ..LogHeader::default() };
        write_all(&file, &header.encode()).map_err(|e| (2, e))?;
        Ok(file)
    }

    /// Removes the file of the log, if there is one.
    fn remove_log(&self) -> nix::Result<()> {
        match unlinkat(&self.dir, &*self.log_name(), UnlinkatFlags::NoRemoveDir) {
            Err(Errno::ENOENT) => Ok(()),
            removed => removed,
        }
    }

    /// Path of the task's log.
    pub(super) fn log_path(&self) -> PathBuf {
        self.path.with_file_name(self.log_name())
    }

    /// The name of the log: that of this file, with another ending.
    fn log_name(&self) -> OsString {
        Path::new(&self.name).with_extension("log").into()
    }

    /// PID 1 of the task, if it lives: it has the file open. 0 for a process that the caller cannot see.
    pub(super) fn writer_pid(&self) -> io::Result<Option<i32>> {
        Ok(first_byte_holder(self.file.as_fd())?)
    }

    /// When the file was last changed.
    pub(super) fn made(&self) -> io::Result<SystemTime> {
        std::fs::File::from(self.file.as_fd().try_clone_to_owned()?).metadata()?.modified()
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// The open file.
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn mark(&self) -> Mark {
        self.mark
    }

    /// Opens the file once more, for PID 1. That open file does not share the owner's lock.
    ///
    /// # Errors
    /// The refused call.
    pub(crate) fn writer(&self) -> io::Result<OwnedFd> {
        let flags = OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let writer = openat(&self.dir, &*self.name, flags, Mode::empty())?;
        let (one, other) = (fstat(&writer)?, fstat(&self.file)?);
        if (one.st_dev, one.st_ino) != (other.st_dev, other.st_ino) {
            return Err(Errno::ESTALE.into());
        }
        Ok(writer)
    }

    /// The exit status in the file, and when the task ended. `None` if there is no record yet.
    pub(super) fn read(&self) -> Option<(ExitStatus, Option<SystemTime>)> {
        let mut bytes = [0u8; EXIT_RECORD];
        let n = pread(&self.file, &mut bytes, EXIT_RECORD_AT.cast_signed()).unwrap_or(0);
        if bytes == [0; EXIT_RECORD] && n == bytes.len() {
            return None;
        }
        Some(match ExitRecord::decode(&bytes) {
            Ok(ExitRecord { end, time: (seconds, nanoseconds) }) => {
                (end.into(), UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds)))
            }
            Err(_) => (ExitStatus::lost(Lost::Torn), None),
        })
    }

    /// Writes the record of a task that this process has killed: PID 1 could write none. It is written to the disk.
    ///
    /// # Errors
    /// The refused call.
    pub(super) fn write_killed(&self, when: SystemTime) -> io::Result<()> {
        let time = when.duration_since(UNIX_EPOCH).unwrap_or_default();
        let record = ExitRecord { end: End::Killed, time: (time.as_secs(), time.subsec_nanos()) };
        pwrite(&self.file, &record.encode(), EXIT_RECORD_AT.cast_signed())?;
        Ok(fsync(&self.file)?)
    }

    /// Unlocks the file, which stays.
    pub(super) fn leave(mut self) {
        self.left = true;
    }

    /// Removes the file, and before it that of the log.
    ///
    /// # Errors
    /// [`Error::Task`] with the refused call.
    pub(super) fn remove(&mut self) -> Result<()> {
        if !self.left && is_at(self.file.as_fd(), self.dir.as_fd(), &*self.name).unwrap_or(false) {
            // What could not be replaced by a log is not the task's.
            if let (Err(e), true) = (self.remove_log(), self.has_log.load(Ordering::Relaxed)) {
                return Err(Error::task(format!("unlinkat({:?})", self.log_path()))(e));
            }
            unlinkat(&self.dir, &*self.name, UnlinkatFlags::NoRemoveDir)
                .map_err(Error::task(format!("unlinkat({:?})", self.path)))?;
        }
        self.left = true;
        Ok(())
    }
}

impl Drop for RecordFile {
    fn drop(&mut self) {
        // There is no caller to return an error to. The file then is stale.
        let _ = self.remove();
    }
}

/// How the owner opens the file. `O_NONBLOCK`: a FIFO of that name must not block the caller.
const ACCESS: OFlag = OFlag::O_RDWR.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC).union(OFlag::O_NONBLOCK);

/// The mode of the file: only its user may read and write it.
const OWN: Mode = Mode::S_IRUSR.union(Mode::S_IWUSR);

/// Opens a new file, and says whether it has its name. It gets the name later, when it is whole, so that a killed process
/// leaves no file without a mark. A file system without `O_TMPFILE` names it at once.
fn open_new(dir: &OwnedFd, name: &OsString) -> nix::Result<(OwnedFd, bool)> {
    match openat(dir, c".", ACCESS | OFlag::O_TMPFILE, OWN) {
        // EISDIR: the kernel does not know the flag.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR) => {
            openat(dir, &**name, ACCESS | OFlag::O_CREAT | OFlag::O_EXCL, OWN).map(|file| (file, true))
        }
        unnamed => unnamed.map(|file| (file, false)),
    }
}

/// Opens the directory of a path. Returns it with the name in it.
///
/// # Errors
/// The refused call, or `PermissionDenied` if every user may remove or rename files of others in the directory.
fn open_dir(path: &Path) -> io::Result<(OwnedFd, OsString)> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Err(Errno::EINVAL.into()) };
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let dir = open(dir, flags, Mode::empty())?;
    if fstat(&dir)?.st_mode & (libc::S_IWOTH | libc::S_ISVTX) == libc::S_IWOTH {
        let why = "every user may write to the directory, and could remove the exit record";
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
    }
    Ok((dir, name.to_owned()))
}

/// Opens the file `name`, if it is a file that this user made. `None` if there is none of that name.
fn open_own(dir: &OwnedFd, name: &OsString) -> io::Result<Option<OwnedFd>> {
    let file = match openat(dir, &**name, ACCESS, Mode::empty()) {
        Err(Errno::ENOENT) => return Ok(None),
        opened => opened?,
    };
    let st = fstat(&file)?;
    let regular = SFlag::from_bits_truncate(st.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG;
    if !regular || st.st_uid != geteuid().as_raw() || st.st_nlink > 1 || st.st_mode & 0o077 != 0 {
        return Err(Errno::EEXIST.into());
    }
    Ok(Some(file))
}

/// As [`open_own`], with the mark. `None` also if it is not a whole file that this crate and this user have made.
fn open_whole(dir: &OwnedFd, name: &OsString) -> io::Result<Option<(OwnedFd, Mark)>> {
    // ENXIO: a socket.
    let strange = |e: &io::Error| {
        matches!(
            e.raw_os_error(),
            Some(libc::EEXIST | libc::ELOOP | libc::EACCES | libc::ENXIO | libc::EISDIR)
        )
    };
    let file = match open_own(dir, name) {
        Err(e) if strange(&e) => None,
        opened => opened?,
    };
    let Some(file) = file else { return Ok(None) };
    Ok(whole_mark(&file)?.map(|mark| (file, mark)))
}

/// The file of an exit record, which another process may own.
#[derive(Debug)]
pub(super) struct OwnedRecord {
    dir: OwnedFd,
    name: OsString,
    pub file: OwnedFd,
}

impl OwnedRecord {
    /// Whether the file still has its name.
    pub(super) fn is_there(&self) -> io::Result<bool> {
        Ok(is_at(self.file.as_fd(), self.dir.as_fd(), &*self.name)?)
    }
}

/// Opens the file of any task at this path, and does not lock it. `None` if there is none, or if the file is not a whole
/// one that this crate and this user have made.
///
/// # Errors
/// The refused call.
pub(super) fn look(path: &Path) -> io::Result<Option<OwnedRecord>> {
    let (dir, name) = open_dir(path)?;
    Ok(open_whole(&dir, &name)?.map(|(file, _)| OwnedRecord { dir, name, file }))
}

/// As [`mark_of`], of a file that has room for a record.
fn whole_mark(file: &OwnedFd) -> io::Result<Option<Mark>> {
    let room =
        i64::try_from(MAGIC.len().saturating_add(MARK).saturating_add(EXIT_RECORD)).unwrap_or(i64::MAX);
    let whole = fstat(file)?.st_size >= room;
    Ok(mark_of(file)?.filter(|_| whole))
}

/// The mark of an open file. `None` if it is too short, or no file of this crate.
fn mark_of(file: &OwnedFd) -> io::Result<Option<Mark>> {
    let mut found = [0u8; MAGIC.len() + MARK];
    let n = pread(file, &mut found, 0)?;
    let mark = found.strip_prefix(&MAGIC).and_then(|rest| rest.first_chunk()).copied();
    Ok(mark.filter(|_| n == found.len()))
}

/// Removes the file of a task whose owner and whose PID 1 are gone.
fn remove_stale(dir: &OwnedFd, name: &OsString) -> io::Result<()> {
    let Some(file) = open_own(dir, name)? else { return Ok(()) };
    let file = lock(file)?;
    if first_byte_holder(file.as_fd())?.is_some() {
        return Err(in_use("its task runs without an owner: recover and release it".into()));
    }
    if is_at(file.as_fd(), dir.as_fd(), &**name)? {
        unlinkat(dir, &**name, UnlinkatFlags::NoRemoveDir)?;
    }
    Ok(())
}

/// Takes the owner's lock.
fn lock(file: OwnedFd) -> io::Result<Locked> {
    let holder = || match holder(file.as_fd()) {
        Some(pid) => in_use(format!("process {pid} has its task")),
        None => in_use("another process has its task".into()),
    };
    match crate::sys::lock::flock(file.as_fd(), Lock::ExclusiveNow) {
        Err(Errno::EWOULDBLOCK) => Err(holder()),
        locked => locked.map(|()| Locked::held(file)).map_err(io::Error::from),
    }
}

fn in_use(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::ResourceBusy, format!("the id is in use: {why}"))
}

/// Takes the lock that keeps other processes from recovering a task without an exit record. `None` if it has no cgroup
/// either: then nothing keeps them.
pub(super) fn lock_cgroup(group: &Group) -> io::Result<Option<Locked>> {
    let Some(unit) = &group.paths().unit else { return Ok(None) };
    let file = open(&unit.join("cgroup.procs"), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    match crate::sys::lock::flock(file.as_fd(), Lock::ExclusiveNow) {
        Ok(()) => Ok(Some(Locked::held(file))),
        Err(Errno::EWOULDBLOCK) => {
            let who = holder(file.as_fd()).map_or("another process".into(), |pid| format!("process {pid}"));
            Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{who} has the task")))
        }
        Err(e) => Err(e.into()),
    }
}

/// The largest ring of a log in a file that PID 1 may write to the end: it inherits this process's limit of file sizes.
///
/// # Errors
/// `EFBIG` if not even the smallest ring fits.
fn largest_ring() -> io::Result<u64> {
    let limit = getrlimit(Resource::RLIMIT_FSIZE).map_or(u64::MAX, |(soft, _)| soft);
    let ring = limit.saturating_sub(LOG_HEADER as u64);
    if ring < LEAST_RING { Err(io::Error::from_raw_os_error(libc::EFBIG)) } else { Ok(ring) }
}

/// A random mark (`random(4)`).
fn random() -> io::Result<Mark> {
    let mut mark = [0u8; MARK];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut mark)?;
    Ok(mark)
}
