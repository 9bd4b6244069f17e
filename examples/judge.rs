//! A judge: runs a submission on an input, under limits of memory, time and processes, without a network, and prints a
//! verdict.
//!
//!     cargo run --example judge -- /path/to/submission < input

use std::error::Error as _;
use std::io::{self, Read};
use std::process::ExitCode;
use std::thread::JoinHandle;
use std::time::Duration;

use cofferdam::{Control, Limits, Network, Policy, Resource, Sandbox, Stdio, Task, Volume};

const MEMORY: u64 = 64 << 20;
const OUTPUT: u64 = 1 << 20;
const TIME: Duration = Duration::from_secs(2);

fn sandbox(submission: &str) -> Sandbox {
    let limits = Limits { memory: Some(MEMORY), pids_max: Some(16), ..Limits::default() };
    let program = Volume { read_only: true, ..Volume::new(submission, "/submission") };
    Sandbox::command("/submission")
        // Nothing runs unless all that is asked for holds without reservation.
        .policy(&Policy::strict())
        .network(Network::None)
        .volume(program)
        .limits(limits)
        .rlimit(Resource::Fsize, 1 << 20)
        .rlimit(Resource::Core, 0)
        .stdin(Stdio::Piped)
        .stdout(Stdio::Piped)
}

/// Passes the input on, and at most [`OUTPUT`] bytes of the output.
fn copy_streams(task: &Task) -> Option<JoinHandle<io::Result<u64>>> {
    let (mut stdin, stdout) = (task.take_stdin()?, task.take_stdout()?);
    std::thread::spawn(move || io::copy(&mut io::stdin(), &mut stdin));
    Some(std::thread::spawn(move || io::copy(&mut stdout.take(OUTPUT), &mut io::stdout())))
}

fn verdict(task: &Task) -> cofferdam::Result<String> {
    let Some(status) = task.wait_timeout(TIME)? else {
        task.kill()?;
        task.wait()?;
        return Ok(format!("time limit exceeded ({} s)", TIME.as_secs()));
    };
    Ok(match (status.code, status.signal) {
        _ if status.oom_killed => format!("memory limit exceeded ({} MiB)", MEMORY >> 20),
        (Some(0), _) => "accepted".into(),
        (Some(code), _) => format!("exit code {code}"),
        (None, Some(signal)) => format!("signal {signal}"),
        (None, None) => "lost".into(),
    })
}

fn judge(submission: &str) -> cofferdam::Result<()> {
    let task = sandbox(submission).spawn()?;
    assert!(task.report().enforced.contains(Control::MEMORY | Control::PIDS | Control::NET_NS));
    let output = copy_streams(&task);
    let verdict = verdict(&task)?;
    output.map(JoinHandle::join);
    let stats = task.stats()?;
    eprintln!("verdict: {verdict}");
    eprintln!("CPU time: {:?}, memory: {:?} bytes", stats.cpu.total, stats.memory.peak);
    Ok(())
}

fn main() -> ExitCode {
    let Some(submission) = std::env::args().nth(1) else {
        eprintln!("usage: judge SUBMISSION");
        return ExitCode::from(2);
    };
    let Err(error) = judge(&submission) else { return ExitCode::SUCCESS };
    let cause = error.source().map_or(String::new(), |cause| format!(": {cause}"));
    eprintln!("{error}{cause} (remedy: {})", error.remedy().unwrap_or("none known"));
    ExitCode::FAILURE
}
