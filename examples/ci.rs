//! A CI runner: runs the steps of a job in one workspace, each in a sandbox of its own, logs what they print, and stops
//! at the first that fails.
//!
//!     cargo run --example ci -- /path/to/workspace 'make' 'make test'

use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use cofferdam::{Error, Limits, Policy, Require, Sandbox, Volume};

const DEADLINE: Duration = Duration::from_secs(600);

/// Steps may use the network, and 2 GiB of memory where that can be limited.
fn sandbox(workspace: &Path, step: &str) -> Sandbox {
    let policy = Policy { allow_host_pid: false, allow_host_ipc: false, ..Policy::default() };
    let limits = Limits { memory: Some(2 << 30), pids_max: Some(512), ..Limits::default() };
    let volume = Volume { source: workspace.into(), target: "/work".into(), ..Volume::default() };
    Sandbox::command("sh")
        .args(["-c", step])
        .policy(&policy)
        .envs([("HOME", "/work"), ("CI", "true"), ("PATH", "/usr/local/bin:/usr/bin:/bin")])
        .volume(volume)
        .work_dir("/work")
        .limits(limits)
        .require(Require::BestEffort)
}

/// Runs one step. Its output goes to a log beside the workspace.
fn run(workspace: &Path, number: usize, step: &str) -> Result<bool, Box<dyn std::error::Error>> {
    let log = workspace.with_extension(format!("{number}.log"));
    let (out, err) = (File::create(&log)?, File::options().append(true).open(&log)?);
    let task = sandbox(workspace, step).stdout(out).stderr(err).spawn()?;
    let missing = task.report().missing;
    if !missing.is_empty() {
        println!("step {number}: not limited: {missing}: {}", task.report().why(missing));
    }
    let Some(status) = task.wait_timeout(DEADLINE)? else {
        task.kill()?;
        println!("step {number}: took more than {} s", DEADLINE.as_secs());
        return Ok(false);
    };
    println!("step {number}: {step}: {status}, log in {}", log.display());
    Ok(status.success())
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1);
    let Some(workspace) = args.next() else {
        eprintln!("usage: ci WORKSPACE STEP...");
        return ExitCode::from(2);
    };
    let workspace = Path::new(&workspace);
    // The steps run as nobody.
    if let Err(error) = std::fs::set_permissions(workspace, std::fs::Permissions::from_mode(0o777)) {
        eprintln!("{}: {error}", workspace.display());
        return ExitCode::FAILURE;
    }
    for (number, step) in args.enumerate() {
        match run(workspace, number, &step) {
            Ok(true) => {}
            Ok(false) => return ExitCode::FAILURE,
            Err(error) => {
                let remedy = error.downcast_ref::<Error>().and_then(Error::remedy).unwrap_or("none known");
                let cause = error.source().map_or(String::new(), |cause| format!(": {cause}"));
                eprintln!("step {number}: {error}{cause} (remedy: {remedy})");
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
