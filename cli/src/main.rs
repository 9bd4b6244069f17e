//! `cofferdam`: runs a command in a sandbox, manages detached tasks, explains what would be done, removes what
//! killed drivers have left, or prints what this host supports.
//!
//! It turns flags into a `Policy` and a `SandboxSpec`, and prints what the library returns. The exit status is that of
//! `docker run` and `env`: the command's own; 128 plus the number of the signal that killed it; 125 if cofferdam
//! refused or failed; 126 if the command was found but is not executable; 127 if it was not found.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod args;
mod doctor;
mod exec;
mod logs;
mod progress;
mod prune;
mod run;
mod signals;
mod state;
mod streams;
mod tasks;
mod terminal;
mod values;

/// The exit status if cofferdam refused or failed.
const REFUSED: u8 = 125;

#[derive(Parser)]
#[command(
    name = "cofferdam",
    version,
    about = "Run a command in a sandbox of Linux namespaces, cgroups and seccomp filters"
)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a command in a sandbox and exit with its status
    Run(Box<args::Run>),
    /// List the detached tasks
    Ps(tasks::Ps),
    /// Print what is known of detached tasks, as JSON
    Inspect(tasks::Names),
    /// Wait for the end of detached tasks and print their exit codes
    Wait(tasks::Names),
    /// Run another command in a detached task and exit with its status
    Exec(exec::Args),
    /// Print what a detached task has written
    Logs(logs::Args),
    /// Stop detached tasks: send a signal, and kill after a time
    Stop(tasks::Stop),
    /// Send a signal to detached tasks
    Kill(tasks::Kill),
    /// Freeze all processes of detached tasks
    Pause(tasks::Names),
    /// Thaw detached tasks
    Unpause(tasks::Names),
    /// Remove detached tasks that have ended
    Rm(tasks::Rm),
    /// Print the plan for the same flags like strace, and the report; change nothing
    Explain(Box<args::Explain>),
    /// Kill and remove what killed drivers have left, running tasks without a driver included
    Prune(prune::Args),
    /// Print what this host supports, and why something is not supported
    Doctor {
        /// Print JSON
        #[arg(long)]
        json: bool,
    },
}

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { REFUSED } else { 0 });
        }
    };
    let done = match cli.verb {
        Verb::Run(args) => run::run(&args),
        Verb::Ps(args) => tasks::ps(&args),
        Verb::Inspect(args) => tasks::inspect(&args),
        Verb::Wait(args) => tasks::wait(&args),
        Verb::Exec(args) => exec::exec(&args),
        Verb::Logs(args) => logs::logs(&args),
        Verb::Stop(args) => tasks::stop(&args),
        Verb::Kill(args) => tasks::kill(&args),
        Verb::Pause(args) => tasks::pause(&args),
        Verb::Unpause(args) => tasks::unpause(&args),
        Verb::Rm(args) => tasks::rm(&args),
        Verb::Explain(explain) => run::explain(&explain),
        Verb::Prune(args) => prune::prune(&args),
        Verb::Doctor { json } => doctor::doctor(json),
    };
    done.unwrap_or_else(|failure| {
        failure.print();
        ExitCode::from(failure.code)
    })
}

/// The exit status of this program for that of a command.
fn exit_code(status: &cofferdam::ExitStatus) -> ExitCode {
    u8::try_from(status.shell_code()).map_or(ExitCode::from(REFUSED), ExitCode::from)
}

/// A failure of this program: one line for standard error, and the exit status.
struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    fn new(message: impl Into<String>) -> Self {
        Failure { message: message.into(), code: REFUSED }
    }

    /// An error of a step on the named task.
    fn of(name: &str, error: cofferdam::Error) -> Self {
        let Failure { message, code } = Failure::from(error);
        Failure { message: format!("task {name}: {message}"), code }
    }

    fn print(&self) {
        let _ = writeln!(std::io::stderr(), "cofferdam: {}", self.message);
    }
}

impl From<cofferdam::Error> for Failure {
    fn from(error: cofferdam::Error) -> Self {
        let remedy = error.remedy().map(|remedy| format!(" ({remedy})")).unwrap_or_default();
        let mut message = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(cause) = source {
            message = format!("{message}: {cause}");
            source = cause.source();
        }
        message.push_str(&remedy);
        Failure { message, code: error.exit_code() }
    }
}
