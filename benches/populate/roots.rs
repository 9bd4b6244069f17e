//! Roots made of mounts, which init assembles during the spawn. Measures how much longer a list of directories takes
//! than a list with one empty directory, from the plan to the running command.

use std::error::Error;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam::rootfs::default_chroot_env;
use cofferdam::{ChrootEnv, Host, Method, Root, Sandbox, Volume};

use crate::place::Place;
use crate::table::{median, millis};
use crate::{Call, clear, tree};

/// Builds `exit(0)`: 400 bytes of code and headers, without a C library.
fn payload(dir: &Path) -> Result<PathBuf, String> {
    let source = dir.join("exit.s");
    let program = dir.join("exit");
    std::fs::write(&source, ".globl _start\n_start: mov $60,%eax\n xor %edi,%edi\n syscall\n").unwrap();
    let built = Command::new("cc").args(["-static", "-nostdlib", "-o"]).arg(&program).arg(&source).status();
    match built {
        Ok(status) if status.success() => Ok(program),
        other => Err(format!("cc could not build the payload: {other:?}")),
    }
}

fn sandbox(host: &Host, program: &Path, method: Method, map: &ChrootEnv) -> Sandbox {
    let root = Root { populate: method, chroot_env: map.clone(), ..Root::default() };
    let exit =
        Volume { source: program.to_owned(), target: "/exit".into(), read_only: true, ..Volume::default() };
    Sandbox::command("/exit").host(host).root(root).volume(exit)
}

fn spawn(sandbox: &Sandbox) -> Result<Duration, String> {
    let began = Instant::now();
    let task = sandbox.spawn().map_err(told)?;
    let took = began.elapsed();
    let status = task.wait().map_err(told)?;
    if status.success() { Ok(took) } else { Err(status.to_string()) }
}

/// The failed step and its cause.
fn told(error: cofferdam::Error) -> String {
    error.source().map_or(error.to_string(), |cause| format!("{error}: {cause}"))
}

pub fn table(call: &Call, place: &Place) {
    if !call.wants("roots of mounts") {
        return;
    }
    let dir = place.tmpfs.join("roots");
    std::fs::create_dir(&dir).unwrap();
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
    tree::build(&dir.join("source"), call.shape());
    std::fs::create_dir(dir.join("tiny")).unwrap();
    println!("\nroots of mounts, from the plan to the command");
    println!("  {:36} {:>10} {:>10} {:>10}", "", "median us", "tiny us", "more us");
    match payload(&dir) {
        Ok(program) => rows(call, &dir, &program),
        Err(why) => println!("  skipped: {why}"),
    }
    clear(&dir);
}

fn rows(call: &Call, dir: &Path, program: &Path) {
    let host = Host::probe().unwrap();
    let tops = std::fs::read_dir(dir.join("source")).unwrap().map(|e| e.unwrap().path());
    let tree: ChrootEnv = tops
        .filter(|p| p.is_dir())
        .map(|p| (p.clone(), Path::new("/").join(p.file_name().unwrap())))
        .collect();
    let tiny: ChrootEnv = [(dir.join("tiny"), "/tiny".into())].into();
    for method in [Method::Bind, Method::Overlay] {
        for (name, map) in [("tree A", &tree), ("the host's default list", &default_chroot_env())] {
            let name = format!("{method}, {name}, {} entries", map.keys().filter(|p| p.exists()).count());
            let full = sandbox(&host, program, method, map);
            let tiny = sandbox(&host, program, method, &tiny);
            let rounds = if call.test { 1 } else { call.rounds * 10 };
            match made_of(method, &full).and_then(|()| turns(rounds, &full, &tiny)) {
                Ok((full, tiny)) => {
                    let [full, tiny] = [full, tiny].map(|t| millis(t) * 1e3);
                    println!("  {name:36} {full:>10.0} {tiny:>10.0} {:>10.0}", full - tiny);
                }
                Err(why) => println!("  {name:36} skipped: {why}"),
            }
        }
    }
}

/// Checks that the plan contains the method's mounts, since a plan without them would be the fastest.
fn made_of(method: Method, sandbox: &Sandbox) -> Result<(), String> {
    let plan = sandbox.plan().map_err(told)?.to_string();
    let shown = method != Method::Overlay || plan.contains("overlay");
    if shown { Ok(()) } else { Err("the plan has no overlay".into()) }
}

fn turns(rounds: usize, full: &Sandbox, tiny: &Sandbox) -> Result<(Duration, Duration), String> {
    let (mut fulls, mut tinies) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        fulls.push(spawn(full)?);
        tinies.push(spawn(tiny)?);
    }
    Ok((median(&fulls), median(&tinies)))
}
