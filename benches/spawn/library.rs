//! Other libraries, in the process of the program `benches/peers`, which measures them.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use cofferdam::Host;

use crate::ours::Files;
use crate::peers;

const PROGRAM: &str = "cofferdam-bench-peers";

/// A running program that makes a sandbox of one library for each line that it reads.
pub struct Library {
    child: Child,
    /// `None` once the program is to end.
    streams: Mutex<Option<(ChildStdin, BufReader<ChildStdout>)>>,
}

impl Library {
    /// # Errors
    /// The program was not built.
    pub fn start(name: &str, dir: &Path, files: &Files, host: &Host) -> Result<Library, String> {
        let program = program().ok_or("benches/peers was not built")?;
        let bundle = peers::bundle(name, dir, files, host)?;
        let mut command = Command::new(program);
        command.arg(name).arg(bundle).stdin(Stdio::piped()).stdout(Stdio::piped());
        // hakoniwa makes a directory there for each sandbox, which takes long on some file systems.
        command.env("TMPDIR", dir);
        let mut child = command.spawn().map_err(|error| error.to_string())?;
        let streams = child.stdin.take().zip(child.stdout.take().map(BufReader::new));
        Ok(Library { child, streams: Mutex::new(streams) })
    }

    /// The time of one sandbox.
    pub fn run(&self) -> Result<Duration, String> {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        let (ask, answers) = streams.as_mut().ok_or("it has ended")?;
        let mut line = String::new();
        writeln!(ask).and_then(|()| answers.read_line(&mut line)).map_err(|error| error.to_string())?;
        line.trim().parse().map(Duration::from_nanos).map_err(|_| format!("{PROGRAM}: {}", line.trim()))
    }
}

impl Drop for Library {
    fn drop(&mut self) {
        // It ends with its standard input.
        *self.streams.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let _ = self.child.wait();
    }
}

/// The program, below the target directory of its own package, or of this bench (`target/release/deps/spawn-HASH`).
fn program() -> Option<PathBuf> {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/peers/target");
    let exe = std::env::current_exe().ok()?;
    let targets = [own, exe.parent()?.parent()?.parent()?.to_owned()];
    targets.iter().map(|target| target.join("release").join(PROGRAM)).find(|path| path.exists())
}
