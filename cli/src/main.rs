//! `cofferdam`: runs a command in a sandbox, explains what would be done, removes what
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
mod progress;
mod prune;
mod run;
mod streams;
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
    Run(Box<args::Args>),
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
        Verb::Explain(explain) => run::explain(&explain),
        Verb::Prune(args) => prune::prune(&args),
        Verb::Doctor { json } => doctor::doctor(json),
    };
    done.unwrap_or_else(|failure| {
        let _ = writeln!(std::io::stderr(), "cofferdam: {}", failure.message);
        ExitCode::from(failure.code)
    })
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
