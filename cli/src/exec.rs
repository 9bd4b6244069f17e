//! `exec`: runs another command in a running task.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use cofferdam::{ExecSpec, Stdio};

use crate::signals::Signals;
use crate::state::Store;
use crate::streams::Streams;
use crate::{Failure, args, terminal};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Use the caller's standard input; without it, /dev/null
    #[arg(short, long)]
    interactive: bool,
    /// Give the command a pseudo-terminal, whose output is printed; with -i, the caller's terminal is its input
    #[arg(short, long)]
    tty: bool,
    /// Environment variable (repeatable)
    #[arg(short, long, value_name = "K=V")]
    env: Vec<OsString>,
    /// Working directory, an absolute path [default: that of the task]
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<PathBuf>,
    /// User, and optionally a group [default: those of the task]
    #[arg(short, long, value_name = "NAME|UID[:GID]")]
    user: Option<String>,
    /// Name of the task
    name: String,
    /// Command and arguments
    #[arg(required = true, value_name = "COMMAND", trailing_var_arg = true)]
    command: Vec<OsString>,
}

impl Args {
    fn spec(&self) -> Result<ExecSpec, Failure> {
        let (command, rest) =
            self.command.split_first().ok_or_else(|| Failure::new("no command is given"))?;
        let mut spec = ExecSpec::command(command.clone()).args(rest.iter().cloned());
        for variable in &self.env {
            let (key, value) = args::variable(variable)?;
            spec.env.insert(key, value);
        }
        args::default_env(&mut spec.env);
        spec.work_dir = self.workdir.clone();
        spec.user = self.user.clone();
        match self.tty {
            true => spec.terminal = Some(terminal::size(self.interactive)?),
            false => {
                spec.stdin = if self.interactive { Stdio::Inherit } else { Stdio::Null };
                (spec.stdout, spec.stderr) = (Stdio::Inherit, Stdio::Inherit);
            }
        }
        Ok(spec)
    }
}

/// Runs the command and returns its exit status. Other calls have access to the task while the command runs.
pub(crate) fn exec(args: &Args) -> Result<ExitCode, Failure> {
    let store = Store::open()?;
    let signals = Signals::block()?;
    let mut spec = args.spec()?;
    let mut pipes = Streams::of([&mut spec.stdin, &mut spec.stdout, &mut spec.stderr])?;
    let running = store.recover(&args.name)?.exec(&spec);
    // The spec holds the command's ends of the pipes.
    drop(spec);
    let running = running.map_err(|e| Failure::of(&args.name, e))?;
    pipes.start();
    let status = terminal::wait(&running, &signals, args.interactive)?;
    pipes.finish();
    Ok(crate::exit_code(&status))
}
