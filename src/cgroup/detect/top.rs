//! The highest cgroup of the v2 tree that the caller may manage. It is found by the kernel's rule, and confirmed by
//! making a cgroup in it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::stat::Mode;
use nix::unistd::{AccessFlags, eaccess, mkdir};

use super::read;
use crate::cgroup::fs::remove_tree;
use crate::cgroup::name::levels;

/// Maximum number of names that are tried for the probe cgroup. The next one is tried if a cgroup of that name exists.
const NAMES: u32 = 8;

/// Message for a cgroup with processes of its own, which cannot enable controllers (`cgroup-v2.rst`, "No Internal
/// Process Constraint").
const INTERNAL: &str = "it contains processes; move them, the caller included, to a child cgroup \
    (systemd: DelegateSubgroup=)";

/// The highest manageable cgroup.
#[derive(Clone, Debug, Default)]
pub(super) struct Top {
    /// Path of the cgroup; `/` is the cgroup at the mount point.
    pub name: String,
    pub dir: PathBuf,
    /// Text of its `cgroup.controllers`.
    pub controllers: String,
    /// Text of its `cgroup.subtree_control`.
    pub enabled: String,
    /// The cgroups above, from the mount point down, each with the text of its `cgroup.subtree_control`.
    pub above: Vec<(String, String)>,
    /// Why no further controller can be enabled in it.
    pub closed: Option<String>,
    /// Why no cgroup can be made in it, although its permissions allow that.
    pub refused: Option<String>,
}

impl Top {
    /// Goes from the mount point down to the caller's cgroup, and takes the first cgroup whose directory and
    /// `cgroup.procs` may be written.
    ///
    /// The kernel requires no more than that: to start a process in another cgroup, the caller must be able to write
    /// `cgroup.procs` of that cgroup and of the *common ancestor* of the two (`cgroup-v2.rst`, "Delegation
    /// Containment"). The caller's own cgroup and the cgroups in between are not checked, because they do not matter.
    /// `None` for a caller that is neither root nor below the mount point: no common ancestor is visible.
    pub fn find(mount: &Path, own: Option<&str>, root: bool) -> Option<Top> {
        let mut chain = vec![mount.to_owned()];
        match own {
            Some(own) => chain.extend(levels(mount, own)),
            None if root => {}
            None => return None,
        }
        let at = chain.iter().position(|dir| writable(dir))?;
        let dir = chain.get(at)?.clone();
        let above = chain.iter().take(at);
        let above = above.map(|dir| (name(mount, dir), read(dir.join("cgroup.subtree_control")))).collect();
        // The root of the whole tree has no cgroup.events. It is the only cgroup that may have both processes and
        // enabled controllers.
        let delegated = dir.join("cgroup.events").exists();
        let name = name(mount, &dir);
        let mut top = Top {
            controllers: read(dir.join("cgroup.controllers")),
            enabled: read(dir.join("cgroup.subtree_control")),
            above,
            closed: delegated.then(|| closed(&dir)).flatten(),
            refused: None,
            dir,
            name,
        };
        if delegated {
            top.refused = attempt(&top.dir).err().map(|why| format!("cgroup {}: {why}", top.name));
        }
        Some(top)
    }
}

/// Path of the cgroup at `dir`; `/` is the cgroup at the mount point.
fn name(mount: &Path, dir: &Path) -> String {
    format!("/{}", dir.strip_prefix(mount).unwrap_or(dir).to_string_lossy())
}

/// Whether the permissions allow making a cgroup in `dir` and moving a process to it.
pub(super) fn writable(dir: &Path) -> bool {
    let may = |path: &Path| eaccess(path, AccessFlags::W_OK).is_ok();
    may(dir) && may(&dir.join("cgroup.procs"))
}

/// Why no controller can be enabled in a cgroup that is not the root of the whole tree. A blank
/// `cgroup.subtree_control` is no reason: a newly delegated cgroup has no controllers enabled.
fn closed(dir: &Path) -> Option<String> {
    if !read(dir.join("cgroup.procs")).is_empty() {
        return Some(INTERNAL.to_owned());
    }
    let refused = eaccess(&dir.join("cgroup.subtree_control"), AccessFlags::W_OK).err()?;
    Some(format!("its cgroup.subtree_control cannot be written ({refused})"))
}

/// Makes a cgroup in `dir` and removes it. This shows what permissions do not: limits of depth and number, security
/// modules, threaded parents.
fn attempt(dir: &Path) -> Result<(), String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    for _ in 0..NAMES {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("cofferdam.probe.{}.{count}", std::process::id()));
        match mkdir(&path, Mode::from_bits_truncate(0o755)) {
            Ok(()) => {
                let kind = fs::read_to_string(path.join("cgroup.type")).unwrap_or_default();
                let removed = remove_tree(&path, Duration::from_secs(1));
                removed.map_err(|e| format!("rmdir({path:?}): {e}"))?;
                return fit(kind.trim());
            }
            // A process in another PID namespace may have the same PID.
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(refusal(errno)),
        }
    }
    Err(refusal(Errno::EEXIST))
}

/// Whether a cgroup of this `cgroup.type` accepts processes.
fn fit(kind: &str) -> Result<(), String> {
    match kind {
        "domain invalid" | "threaded" => {
            Err("it is threaded, so cgroups created in it do not accept processes".to_owned())
        }
        _ => Ok(()),
    }
}

fn refusal(errno: Errno) -> String {
    let why = match errno {
        Errno::EAGAIN => "; it or a cgroup above it has reached cgroup.max.descendants or cgroup.max.depth",
        Errno::ENOSPC => "; the kernel's maximum number of cgroups is reached",
        _ => "",
    };
    format!("cannot create a cgroup in it: mkdir: {errno}{why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Makes a directory that looks like a delegated cgroup, on a tmpfs or another ordinary file system.
    fn fake(dir: &Path, procs: &str, enabled: &str) {
        fs::create_dir_all(dir).unwrap();
        for (file, text) in [
            ("cgroup.procs", procs),
            ("cgroup.events", "populated 1\n"),
            ("cgroup.controllers", "cpu memory\n"),
            ("cgroup.subtree_control", enabled),
        ] {
            fs::write(dir.join(file), text).unwrap();
        }
    }

    #[test]
    fn top_is_the_highest_writable_cgroup_above_the_caller() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path();
        // Neither the cgroups above nor the caller's own have a writable cgroup.procs. That does not matter.
        fs::create_dir_all(mount.join("a/b/own")).unwrap();
        fs::write(mount.join("cgroup.subtree_control"), "cpu io\n").unwrap();
        fs::write(mount.join("a/cgroup.subtree_control"), "cpu\n").unwrap();
        fake(&mount.join("a/b"), "", "");
        let top = Top::find(mount, Some("/a/b/own"), false).unwrap();
        assert_eq!(top.name, "/a/b");
        assert_eq!((top.controllers.as_str(), top.enabled.as_str()), ("cpu memory\n", ""));
        assert_eq!((top.closed, top.refused), (None, None), "a blank subtree_control is no reason");
        assert_eq!(top.above, [("/".into(), "cpu io\n".into()), ("/a".into(), "cpu\n".into())]);
        let left: Vec<_> = fs::read_dir(mount.join("a/b")).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left.len(), 5, "{left:?}");
        assert!(Top::find(mount, Some("/a"), false).is_none());
        assert!(Top::find(mount, None, false).is_none());
    }

    #[test]
    fn delegated_cgroup_with_processes_enables_no_controllers() {
        let dir = tempfile::tempdir().unwrap();
        fake(dir.path(), "1\n", "");
        let top = Top::find(dir.path(), Some("/"), false).unwrap();
        assert_eq!(top.name, "/");
        let why = top.closed.unwrap();
        assert!(why.contains("it contains processes") && why.contains("DelegateSubgroup="), "{why}");
        // Without cgroup.events it is the root of the whole tree, which may have processes.
        fs::remove_file(dir.path().join("cgroup.events")).unwrap();
        assert_eq!(Top::find(dir.path(), Some("/"), false).unwrap().closed, None);
        assert!(Top::find(dir.path(), None, true).is_some());
    }

    #[test]
    fn probe_error_names_the_errno_and_its_cause() {
        let gone = tempfile::tempdir().unwrap().path().join("gone");
        assert!(attempt(&gone).unwrap_err().contains("mkdir: ENOENT"));
        for (errno, needle) in [
            (Errno::EACCES, "EACCES"),
            (Errno::EROFS, "EROFS"),
            (Errno::ENOSPC, "maximum number of cgroups"),
            (Errno::EAGAIN, "cgroup.max.descendants"),
        ] {
            let why = refusal(errno);
            assert!(why.contains(needle) && why.contains(&format!("mkdir: {errno}")), "{why}");
        }
        assert!(fit("domain").is_ok() && fit("").is_ok());
        assert!(fit("domain invalid").unwrap_err().contains("threaded"));
    }

    /// A cgroup of the test's own, below the highest one that the test may manage. Removed on drop.
    struct Scratch {
        top: PathBuf,
        dir: PathBuf,
    }

    impl Scratch {
        fn new(name: &str) -> Option<Scratch> {
            let v2 = crate::cgroup::tests::detected()?.v2;
            let Some((mount, top)) = v2.and_then(|v2| Some((v2.mount, v2.top?))) else {
                crate::skip::note("cgroup v2 is not mounted");
                return None;
            };
            let top = levels(&mount, &top).pop().unwrap_or(mount);
            let dir = top.join(format!("cofferdam-test-{name}-{}", std::process::id()));
            fs::create_dir(&dir).unwrap();
            Some(Scratch { top, dir })
        }

        fn below(&self) -> Vec<PathBuf> {
            let entries = fs::read_dir(&self.dir).unwrap().map(|e| e.unwrap().path());
            entries.filter(|path| path.is_dir()).collect()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = remove_tree(&self.dir, Duration::from_secs(5));
        }
    }

    #[test]
    fn probe_finds_depth_limits_and_threaded_cgroups_on_this_kernel() {
        let Some(scratch) = Scratch::new("top") else { return };
        let dir = &scratch.dir;
        assert_eq!(attempt(dir), Ok(()));
        assert_eq!(closed(dir), None);
        fs::write(dir.join("cgroup.max.descendants"), "0").unwrap();
        let why = attempt(dir).unwrap_err();
        assert!(why.contains("mkdir: EAGAIN") && why.contains("cgroup.max.descendants"), "{why}");
        fs::write(dir.join("cgroup.max.descendants"), "max").unwrap();
        assert_eq!(attempt(dir), Ok(()));
        // The search goes down from the given mount point. The first writable cgroup is the mount point itself.
        let own = format!("/{}", dir.strip_prefix(&scratch.top).unwrap().display());
        let found = Top::find(&scratch.top, Some(&own), false).unwrap();
        assert_eq!((&found.dir, found.name.as_str(), found.refused), (&scratch.top, "/", None));
        assert_eq!(scratch.below(), [] as [PathBuf; 0]);
        let own = dir.join("own");
        fs::create_dir(&own).unwrap();
        fs::write(own.join("cgroup.type"), "threaded").unwrap();
        assert!(attempt(&own).unwrap_err().contains("threaded"));
        assert_eq!(scratch.below(), [own]);
    }

    #[test]
    fn cgroup_with_a_live_process_is_closed() {
        let Some(scratch) = Scratch::new("busy") else { return };
        let sleep = std::process::Command::new("sleep").arg("60").stdin(std::process::Stdio::null()).spawn();
        let mut child = sleep.unwrap();
        let moved = fs::write(scratch.dir.join("cgroup.procs"), child.id().to_string());
        let why = closed(&scratch.dir);
        child.kill().unwrap();
        child.wait().unwrap();
        moved.unwrap();
        assert!(why.unwrap().contains("DelegateSubgroup="));
    }
}
