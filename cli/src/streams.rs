//! Standard streams that are regular files, passed through pipes.
//!
//! A task that holds a file can open it anew through `/proc/self/fd`, for reading and writing, and change its mode and
//! owner: of a log that root redirects to it can make a setuid program. So it gets a pipe, and threads copy.

use std::fs::File;
use std::io::{self, PipeReader, PipeWriter, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::thread::JoinHandle;

use cofferdam::{CallerFd, SandboxSpec, Stdio};

/// The pipes, from before the spawn until after the end.
#[derive(Default)]
pub(crate) struct Streams {
    input: Option<(File, PipeWriter)>,
    outputs: Vec<(File, PipeReader)>,
    /// The task's ends of the pipes that it writes to, with device and inode of the file.
    written: Vec<((u64, u64), CallerFd)>,
    copies: Vec<JoinHandle<()>>,
}

/// A duplicate of a stream that is inherited and a regular file.
fn regular(how: &Stdio, stream: BorrowedFd<'_>) -> io::Result<Option<File>> {
    if *how != Stdio::Inherit {
        return Ok(None);
    }
    // A stream that is closed is the library's to refuse.
    let Ok(file) = stream.try_clone_to_owned().map(File::from) else { return Ok(None) };
    Ok(file.metadata()?.is_file().then_some(file))
}

impl Streams {
    /// Puts pipes in the place of regular files. Streams that are one file share one pipe, so that what is written keeps
    /// its order.
    pub(crate) fn of(spec: &mut SandboxSpec) -> io::Result<Streams> {
        let mut streams = Streams::default();
        if let Some(file) = regular(&spec.stdin, io::stdin().as_fd())? {
            let (read, write) = io::pipe()?;
            spec.stdin = OwnedFd::from(read).into();
            streams.input = Some((file, write));
        }
        let (out, err) = (io::stdout(), io::stderr());
        for (how, stream) in [(&mut spec.stdout, out.as_fd()), (&mut spec.stderr, err.as_fd())] {
            if let Some(file) = regular(how, stream)? {
                *how = Stdio::Fd(streams.output(file)?);
            }
        }
        Ok(streams)
    }

    /// The pipe that leads to `file`.
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

    /// Starts to copy. The task has its ends by now, and the sandbox, which held them too, must be gone.
    pub(crate) fn start(&mut self) {
        self.written.clear();
        if let Some((mut file, mut pipe)) = self.input.take() {
            // It ends with the file or with the task's last reader; nobody waits for it.
            std::thread::spawn(move || io::copy(&mut file, &mut pipe));
        }
        for (mut file, mut pipe) in self.outputs.drain(..) {
            self.copies.push(std::thread::spawn(move || drain(&mut pipe, &mut file)));
        }
    }

    /// Waits until all that the task wrote is where it belongs.
    pub(crate) fn finish(self) {
        for copy in self.copies {
            let _ = copy.join();
        }
    }
}

/// Copies to the end, also where the file takes no more: the task must not wait for a full disk.
fn drain(pipe: &mut PipeReader, file: &mut File) {
    let mut buffer = [0; 16 << 10];
    let mut takes = true;
    while let Ok(n @ 1..) = pipe.read(&mut buffer) {
        let bytes = buffer.get(..n).unwrap_or_default();
        takes = takes && file.write_all(bytes).is_ok();
    }
    if !takes {
        let _ = writeln!(io::stderr(), "cofferdam: the end of the output could not be written");
    }
}
