//! A judge: runs a submission on an input, under limits of memory, time and processes, without a network, and prints a
//! verdict.
//!
//!     cargo run --example judge -- /path/to/submission < input

use std::error::Error as _;
use std::io::{self, Write as _};
use std::process::ExitCode;
use std::time::Duration;

use cofferdam::{
    Control, Deadline, ExitKind, ExitStatus, Limits, Network, Policy, Resource, Sandbox, Stdio, Volume,
};

const MEMORY: u64 = 64 << 20;
const OUTPUT: usize = 1 << 20;
/// CPU time of all processes of the submission.
const CPU_TIME: Duration = Duration::from_secs(2);
/// Time since the start, for a submission that sleeps.
const TIME: Duration = Duration::from_secs(10);

fn sandbox(submission: &str) -> Sandbox {
    let limits = Limits { memory: Some(MEMORY), pids_max: Some(16), ..Limits::default() };
    let program = Volume { read_only: true, ..Volume::new(submission, "/submission") };
    Sandbox::command("/submission")
        // Nothing runs unless all that is asked for holds without reservation.
        .policy(&Policy::strict())
        .network(Network::None)
        .volume(program)
        .limits(limits)
        .cpu_deadline(CPU_TIME)
        .deadline(TIME)
        .rlimit(Resource::Fsize, 1 << 20)
        .rlimit(Resource::Core, 0)
        .stdin(Stdio::Piped)
        .stdout(Stdio::Piped)
}

fn verdict(status: ExitStatus) -> String {
    match status.kind() {
        // First: after a process was killed for memory, the kernel may take two seconds to free that memory.
        _ if status.oom_killed => format!("memory limit exceeded ({} MiB)", MEMORY >> 20),
        ExitKind::Deadline(Deadline::Cpu) => {
            format!("time limit exceeded ({} s of CPU time)", CPU_TIME.as_secs())
        }
        ExitKind::Deadline(_) => format!("time limit exceeded ({} s)", TIME.as_secs()),
        ExitKind::Exited(0) => "accepted".into(),
        ExitKind::Exited(code) => format!("exit code {code}"),
        ExitKind::Signalled { signal, .. } => format!("signal {signal}"),
        other => format!("{other:?}"),
    }
}

fn judge(submission: &str) -> cofferdam::Result<()> {
    let task = sandbox(submission).spawn()?;
    assert!(task.report().enforced.contains(Control::MEMORY | Control::PIDS | Control::NET_NS));
    if let Some(mut stdin) = task.take_stdin() {
        std::thread::spawn(move || io::copy(&mut io::stdin(), &mut stdin));
    }
    let output = task.wait_with_output(OUTPUT, None)?;
    let _ = io::stdout().write_all(&output.stdout);
    let stats = task.stats()?;
    eprintln!("verdict: {}", verdict(output.status));
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
