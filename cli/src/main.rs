//! `cofferdam`: run a command in a sandbox, explain what would be done, say what this host can do.
//!
//! A thin front: it turns flags into a `Policy` and a `SandboxSpec` and prints what the library answers.
//! Exit status as `docker run` and `env` have it: the command's own; 128 plus the signal that ended it;
//! 125 when cofferdam refused or failed; 126 found but not executable; 127 not found.
#![forbid(unsafe_code)]

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod args;
mod doctor;
mod progress;
mod run;
mod streams;
mod values;

/// Exit status for what the command itself is not to blame for.
const REFUSED: u8 = 125;

#[derive(Parser)]
#[command(name = "cofferdam", version, about = "A watertight enclosure around a process")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Run a command in a sandbox and exit with its status
    Run(Box<args::Args>),
    /// Print the plan for the same flags, strace-like, and the report; touch nothing
    Explain(Box<args::Explain>),
    /// Say what this host can do, and why not
    Doctor {
        /// As JSON
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
        Verb::Doctor { json } => doctor::doctor(json),
    };
    done.unwrap_or_else(|failure| {
        let _ = writeln!(std::io::stderr(), "cofferdam: {}", failure.message);
        ExitCode::from(failure.code)
    })
}

/// One line for standard error, and the exit status that goes with it.
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
