//! Replaces standard streams that are regular files by pipes.
//!
//! A task that holds a file can reopen it through `/proc/self/fd` for reading and writing, and change its mode and
//! owner. If root redirects the output to a log file, the task could turn that file into a setuid program. So the task
//! gets a pipe, and threads copy between the pipe and the file.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use cofferdam::{CallerFd, Stdio};

use crate::Failure;

/// The pipes of a task.
#[derive(Default)]
pub(crate) struct Streams {
    input: Option<(File, PipeWriter)>,
    outputs: Vec<(File, PipeReader)>,
    /// The task's ends of the pipes that it writes to, each with device and inode of the file behind the pipe.
    written: Vec<((u64, u64), CallerFd)>,
    copies: Vec<JoinHandle<()>>,
    progress: Arc<Progress>,
}

/// What the copying threads have done.
#[derive(Default)]
struct Progress {
    /// How many bytes were read from the pipes.
    read: AtomicUsize,
    /// How many threads write to their file now.
    writing: AtomicUsize,
}

/// Duplicates a stream, if it is inherited and a regular file.
fn regular(how: &Stdio, stream: BorrowedFd<'_>) -> io::Result<Option<File>> {
    if *how != Stdio::Inherit {
        return Ok(None);
    }
    // The library refuses a stream that is closed.
    let Ok(file) = stream.try_clone_to_owned().map(File::from) else { return Ok(None) };
    Ok(file.metadata()?.is_file().then_some(file))
}

impl Streams {
    /// Replaces standard input, output and error by pipes if they are regular files. Streams that are the same file share
    /// one pipe, which keeps the order of what is written.
    pub(crate) fn of(specs: [&mut Stdio; 3]) -> Result<Streams, Failure> {
        Streams::try_of(specs).map_err(|e| Failure::new(format!("pipes for standard streams: {e}")))
    }

    fn try_of([stdin, stdout, stderr]: [&mut Stdio; 3]) -> io::Result<Streams> {
        let mut streams = Streams::default();
        if let Some(file) = regular(stdin, io::stdin().as_fd())? {
            let (read, write) = io::pipe()?;
            *stdin = OwnedFd::from(read).into();
            streams.input = Some((file, write));
        }
        let (out, err) = (io::stdout(), io::stderr());
        for (how, stream) in [(stdout, out.as_fd()), (stderr, err.as_fd())] {
            if let Some(file) = regular(how, stream)? {
                *how = Stdio::Fd(streams.output(file)?);
            }
        }
        Ok(streams)
    }

    /// Returns the task's end of the pipe to `file`.
    fn output(&mut self, file: File) -> io::Result<CallerFd> {
        let st = file.metadata()?;
        let id = (st.dev(), st.ino());
        if let Some((_, pipe)) = self.written.iter().find(|(of, _)| *of == id) {
            return Ok(pipe.clone());
        }
        let (read, write) = io::pipe()?;
        let write = CallerFd::from(OwnedFd::from(write));
        self.outputs.push((file, read));
        self.written.push((id, write.clone()));
        Ok(write)
    }

    /// Starts the copying threads. The task must have been spawned and the sandbox dropped, because both hold the
    /// task's ends of the pipes.
    pub(crate) fn start(&mut self) {
        self.written.clear();
        if let Some((mut file, mut pipe)) = self.input.take() {
            // The thread ends at the end of the file or when the task closes the pipe; it is not joined.
            std::thread::spawn(move || io::copy(&mut file, &mut pipe));
        }
        for (mut file, mut pipe) in self.outputs.drain(..) {
            let progress = Arc::clone(&self.progress);
            self.copies.push(std::thread::spawn(move || drain(&mut pipe, &mut file, &progress)));
        }
    }

    /// Waits until everything that the command wrote is copied. A process that it has left behind, or passed the pipe to,
    /// can hold it open: the wait ends when nothing came for a second, and after ten seconds, but never while a file is written.
    pub(crate) fn finish(self) {
        let begun = Instant::now();
        let (mut seen, mut last) = (0, begun);
        while !self.copies.iter().all(JoinHandle::is_finished) {
            let writing = self.progress.writing.load(Ordering::SeqCst) > 0;
            let now = self.progress.read.load(Ordering::SeqCst);
            if writing || now != seen {
                (seen, last) = (now, Instant::now());
            }
            if !writing && (last.elapsed() > IDLE || begun.elapsed() > MOST) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// How long nothing may have come when the wait for the copies ends, and the longest wait for a pipe.
const IDLE: Duration = Duration::from_secs(1);
const MOST: Duration = Duration::from_secs(10);

/// Copies until the pipe is closed. If writing to the file fails, it keeps reading, so that the task does not block on
/// a full disk.
fn drain(pipe: &mut PipeReader, file: &mut File, progress: &Progress) {
    let mut buffer = [0; 16 << 10];
    let mut takes = true;
    while let Ok(n @ 1..) = pipe.read(&mut buffer) {
        let bytes = buffer.get(..n).unwrap_or_default();
        progress.writing.fetch_add(1, Ordering::SeqCst);
        progress.read.fetch_add(n, Ordering::SeqCst);
        takes = takes && file.write_all(bytes).is_ok();
        progress.writing.fetch_sub(1, Ordering::SeqCst);
    }
    if !takes {
        let _ = writeln!(io::stderr(), "cofferdam: the output could not be written completely");
    }
}
