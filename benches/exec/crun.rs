//! A container of `crun` with the root of the bench's task, and `crun exec` in it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::json;

/// A running container, whose first process is `/pause`. Removed when dropped.
pub struct Container {
    dir: tempfile::TempDir,
    id: String,
    /// The mount namespace that this thread was in.
    before: File,
}

impl Container {
    /// Runs a container in `root`. This thread enters a mount namespace without the v2 tree of a hybrid host, where crun
    /// fails.
    ///
    /// # Errors
    /// What crun printed, or the refused call.
    pub fn run(root: &Path) -> Result<Container, String> {
        let before = File::open("/proc/thread-self/ns/mnt").map_err(|error| error.to_string())?;
        let dir = tempfile::tempdir().map_err(|error| error.to_string())?;
        let id = format!("cofferdam-bench-{}", std::process::id());
        let mount = |to: &str, kind: &str| json!({ "destination": to, "type": kind, "source": kind });
        let config = json!({
            "ociVersion": "1.0.2",
            "process": { "user": { "uid": 65534, "gid": 65534 }, "args": ["/pause"], "cwd": "/" },
            "root": { "path": root },
            "mounts": [mount("/proc", "proc"), mount("/dev", "tmpfs")],
            "linux": {
                "namespaces": [{ "type": "mount" }, { "type": "pid" }, { "type": "ipc" }],
                "cgroupsPath": format!("/{id}"),
            },
        });
        std::fs::write(dir.path().join("config.json"), config.to_string())
            .map_err(|error| error.to_string())?;
        let container = Container { dir, id, before };
        leave_v2_tree().map_err(|errno| errno.to_string())?;
        let bundle = container.dir.path().to_owned();
        container.crun(&["run", "--detach", "--bundle"], &[&bundle, Path::new(&container.id)])?;
        Ok(container)
    }

    fn crun(&self, verb: &[&str], words: &[&Path]) -> Result<(), String> {
        let state: PathBuf = self.dir.path().join("state");
        let mut command = Command::new("crun");
        command.arg("--root").arg(state).args(verb).args(words);
        let out = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        match out {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("crun {}: {status}", verb[0])),
            Err(error) => Err(format!("crun: {error}")),
        }
    }

    /// Runs `/exit` in the container.
    pub fn exec(&self) -> Result<(), String> {
        self.crun(&["exec"], &[Path::new(&self.id), Path::new("/exit")])
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.crun(&["delete", "--force"], &[Path::new(&self.id)]);
        let _ = setns(&self.before, CloneFlags::CLONE_NEWNS);
    }
}

/// Unmounts the v2 tree of a hybrid host, in a new mount namespace of this thread.
fn leave_v2_tree() -> nix::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    let tree = "/sys/fs/cgroup/unified";
    if Path::new(tree).exists() { umount2(tree, MntFlags::MNT_DETACH) } else { Ok(()) }
}
