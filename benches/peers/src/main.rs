//! Sandbox libraries that `cargo bench --bench spawn` compares with. A package of its own, so that they are no
//! dependencies of the crate. The bench runs this program if it was built:
//! `cargo build --release --manifest-path benches/peers/Cargo.toml`.
//!
//! `cofferdam-bench-peers LIBRARY BUNDLE`: for each line on standard input, runs `/exit` in a sandbox of the library, and
//! writes the nanoseconds, or what failed. BUNDLE is an OCI bundle. hakoniwa takes its bind mounts.

use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use nix::sys::wait::{WaitStatus, waitpid};

type Run = Box<dyn Fn() -> Result<Duration, String>>;

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let [_, library, bundle] = &args[..] else { panic!("two arguments") };
    let run = match &**library {
        "hakoniwa" => hakoniwa(Path::new(bundle)),
        "libcontainer" => libcontainer(PathBuf::from(bundle)),
        other => panic!("no library {other}"),
    };
    let mut out = std::io::stdout();
    for _ in std::io::stdin().lock().lines() {
        match run() {
            Ok(took) => writeln!(out, "{}", took.as_nanos()).unwrap(),
            Err(why) => writeln!(out, "{}", why.replace('\n', "; ")).unwrap(),
        }
    }
}

/// The sources and targets of the bundle's bind mounts.
fn binds(bundle: &Path) -> Vec<(String, String)> {
    let config = std::fs::read_to_string(bundle.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    let mounts = config["mounts"].as_array().unwrap().iter().filter(|mount| mount["type"] == "bind");
    let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
    mounts.map(|mount| (text(&mount["source"]), text(&mount["destination"]))).collect()
}

/// It always makes a user namespace, has no devpts, sysfs and masks, and binds the nodes of `/dev`.
fn hakoniwa(bundle: &Path) -> Run {
    let mut container = hakoniwa::Container::new();
    for (source, target) in binds(bundle) {
        container.bindmount_ro(&source, &target);
    }
    container.unshare(hakoniwa::Namespace::Ipc).devfsmount("/dev").tmpfsmount("/tmp");
    Box::new(move || {
        let began = Instant::now();
        let status = container.command("/exit").status().map_err(|error| error.to_string())?;
        let took = began.elapsed();
        if status.success() { Ok(took) } else { Err(format!("hakoniwa: {status:?}")) }
    })
}

fn libcontainer(bundle: PathBuf) -> Run {
    let state = bundle.join("state");
    let id = format!("cofferdam-bench-{}", std::process::id());
    std::fs::create_dir_all(&state).unwrap();
    Box::new(move || {
        let failed = |error: libcontainer::error::LibcontainerError| format!("libcontainer: {error:?}");
        let began = Instant::now();
        let builder = ContainerBuilder::new(id.clone(), SyscallType::default());
        let builder = builder.with_root_path(state.clone()).map_err(failed)?;
        let mut container =
            builder.as_init(&bundle).with_systemd(false).with_detach(false).build().map_err(failed)?;
        container.start().map_err(failed)?;
        let ended = container.pid().map(|pid| waitpid(nix::unistd::Pid::from_raw(pid.as_raw()), None));
        container.delete(true).map_err(failed)?;
        let took = began.elapsed();
        match ended {
            Some(Ok(WaitStatus::Exited(_, 0))) => Ok(took),
            other => Err(format!("libcontainer: {other:?}")),
        }
    })
}
