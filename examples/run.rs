//! The program of the README: a command under limits, with a report.

use cofferdam::{Control, Host, Limits, Policy, Require, Sandbox, SandboxSpec, Stdio};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let host = Host::probe()?; // once
    let policy = Policy { denied_host_uids: "0".parse()?, allow_host_pid: false, ..Policy::default() };
    let spec = SandboxSpec {
        command: "sh".into(),
        args: vec!["-c".into(), "id; echo $GREETING".into()],
        env: [("GREETING".into(), "hello".into())].into(),
        limits: Limits { memory: Some(64 << 20), pids_max: Some(32), ..Limits::default() },
        require: Some(Require::BestEffort), // where limits cannot be set, run without them
        stdout: Stdio::Inherit,
        ..SandboxSpec::default()
    };
    let task = Sandbox::new(&policy, spec).host(&host).spawn()?;
    if !task.report().enforced.contains(Control::MEMORY) {
        eprintln!("no memory limit: {}", task.report().why(Control::MEMORY));
    }
    println!("{}", task.wait()?);
    Ok(())
}
