//! The command lines of other implementations, and of `cofferdam run`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use cofferdam::rootfs::default_chroot_env;
use cofferdam::{FileKind, Host};
use serde_json::{Value, json};

use crate::floor::masked;
use crate::ours::Files;

/// Runs a command to its end, without its output.
pub fn run(command: &[OsString]) -> Result<(), String> {
    let mut run = Command::new(&command[0]);
    run.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let status = run.status().map_err(|error| format!("{}: {error}", command[0].display()))?;
    if status.success() { Ok(()) } else { Err(format!("{}: {status}", command[0].display())) }
}

/// Runs the command once. The error is what it printed.
pub fn check(command: &[OsString]) -> Result<(), String> {
    let out = Command::new(&command[0]).args(&command[1..]).stdin(Stdio::null()).output();
    let name = command[0].display();
    let out = out.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => format!("{name} is not installed"),
        _ => format!("{name}: {error}"),
    })?;
    let printed = String::from_utf8_lossy(&out.stderr).trim().replace('\n', "; ");
    if out.status.success() { Ok(()) } else { Err(format!("{name}: {}: {printed}", out.status)) }
}

fn words(text: &str) -> Vec<OsString> {
    text.split_whitespace().map(Into::into).collect()
}

/// The binds of the default plan that this host has.
fn binds() -> impl Iterator<Item = (PathBuf, PathBuf)> {
    default_chroot_env().into_iter().filter(|(source, _)| source.exists())
}

/// The command line program, which must have been built beside this bench.
pub fn cofferdam(files: &Files, more: &str) -> Result<Vec<OsString>, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    // target/release/deps/spawn-HASH
    let built = own.parent().and_then(Path::parent).map(|dir| dir.join("cofferdam"));
    let program =
        built.filter(|path| path.exists()).ok_or("cargo build -p cofferdam-cli has not been run")?;
    let mut command = vec![program.into(), "run".into()];
    command.extend(words(more));
    let mut volume = files.program.clone().into_os_string();
    volume.push(":/exit:ro");
    command.extend(words("--user 65534:65534 --volume"));
    command.extend([volume, "/exit".into()]);
    Ok(command)
}

/// `unshare` of util-linux: the same as the floor.
pub fn unshare(files: &Files) -> Vec<OsString> {
    let mut command = words("unshare --mount --pid --ipc --fork --mount-proc=/proc --root");
    command.extend([files.root.clone().into(), "/exit".into()]);
    command
}

/// bubblewrap with every mount of the default plan. `/dev` and the read-only paths of `/proc` that it always makes are
/// its own.
pub fn bubblewrap(files: &Files, host: &Host) -> Vec<OsString> {
    let mut command = words("bwrap --unshare-pid --unshare-ipc --new-session");
    let two = |command: &mut Vec<OsString>, flag: &str, from: &Path, to: &Path| {
        command.extend([flag.into(), from.into(), to.into()]);
    };
    for (source, target) in binds() {
        two(&mut command, "--ro-bind", &source, &target);
    }
    command.extend(words("--dir /tmp --dev /dev --tmpfs /dev/shm --mqueue /dev/mqueue --proc /proc"));
    command.extend(words("--ro-bind /sys /sys"));
    two(&mut command, "--ro-bind", &files.program, Path::new("/exit"));
    let own = ["/proc/sys", "/proc/irq", "/proc/bus"].map(Path::new);
    for (path, _) in host.read_only.iter().filter(|(path, _)| !own.contains(&&**path)) {
        two(&mut command, "--ro-bind", path, path);
    }
    for (path, kind) in masked(host) {
        if kind == FileKind::Dir {
            command.extend(["--tmpfs".into(), (&path).into(), "--remount-ro".into(), path.into()]);
        } else {
            two(&mut command, "--ro-bind", Path::new("/dev/null"), &path);
        }
    }
    command.extend(words("--remount-ro /dev /exit"));
    command
}

/// `crun` or `runc` with a bundle of every mount of the default plan.
pub fn oci(runtime: &str, dir: &Path, files: &Files, host: &Host) -> Result<Vec<OsString>, String> {
    let bundle = bundle(runtime, dir, files, host)?;
    let mut command = vec![runtime.into(), "--root".into(), bundle.join("state").into()];
    command.extend(words("run --bundle"));
    command.extend([bundle.into(), name(runtime).into()]);
    Ok(command)
}

/// Name of a container and of its cgroup, which is at the top of the hierarchies, and which the runtime removes.
fn name(runtime: &str) -> String {
    format!("cofferdam-bench-{}-{runtime}", std::process::id())
}

/// A directory with `config.json` for a container of this host.
pub fn bundle(runtime: &str, dir: &Path, files: &Files, host: &Host) -> Result<PathBuf, String> {
    let bundle = dir.join(runtime);
    let config = config(&name(runtime), files, host).to_string();
    let written = std::fs::create_dir_all(bundle.join("root"))
        .and_then(|()| std::fs::write(bundle.join("config.json"), config));
    written.map(|()| bundle).map_err(|error| error.to_string())
}

fn config(cgroup: &str, files: &Files, host: &Host) -> Value {
    let mount = |to: &str, kind: &str, options: &[&str]| json!({ "destination": to, "type": kind, "source": kind, "options": options });
    let bind = |from: &Path, to: &Path| json!({ "destination": to, "type": "bind", "source": from, "options": ["rbind", "ro", "nosuid", "nodev"] });
    let mut mounts: Vec<Value> = binds().map(|(source, target)| bind(&source, &target)).collect();
    mounts.extend([
        mount("/proc", "proc", &["nosuid", "nodev", "noexec"]),
        mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755"]),
        mount(
            "/dev/pts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/shm", "tmpfs", &["nosuid", "nodev", "noexec", "mode=1777", "size=64m"]),
        mount("/dev/mqueue", "mqueue", &["nosuid", "nodev", "noexec"]),
        mount("/sys", "sysfs", &["nosuid", "nodev", "noexec", "ro"]),
        bind(&files.program, Path::new("/exit")),
    ]);
    let read_only: Vec<&Path> = host.read_only.iter().map(|(path, _)| &**path).collect();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 65534, "gid": 65534 },
            "args": ["/exit"],
            "cwd": "/",
            "env": ["PATH=/"],
            "noNewPrivileges": true,
        },
        "root": { "path": "root" },
        "mounts": mounts,
        "linux": {
            "namespaces": [{ "type": "mount" }, { "type": "pid" }, { "type": "ipc" }],
            "cgroupsPath": format!("/{cgroup}"),
            "maskedPaths": masked(host).map(|(path, _)| path).collect::<Vec<_>>(),
            "readonlyPaths": read_only,
        },
    })
}
