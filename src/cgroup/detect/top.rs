//! The highest cgroup of the v2 tree that the caller may manage: found by the kernel's rule, and by trying.

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

/// How often a name that is taken makes the trial take another.
const NAMES: u32 = 8;

/// What to do about a cgroup that has processes of its own.
const INTERNAL: &str = "it has processes of its own; run the caller, and whatever else is in it, in a leaf below it, \
    as systemd's DelegateSubgroup= does";

/// What was found.
#[derive(Clone, Debug, Default)]
pub(super) struct Top {
    /// As below the mount point.
    pub name: String,
    pub dir: PathBuf,
    /// The text of `cgroup.controllers`.
    pub controllers: String,
    /// The text of `cgroup.subtree_control`.
    pub enabled: String,
    /// The cgroups above, from the mount point down, each with its `cgroup.subtree_control`.
    pub above: Vec<(String, String)>,
    /// Why no further controller can be enabled there.
    pub closed: Option<String>,
    /// Why nothing can be made there after all.
    pub refused: Option<String>,
}

impl Top {
    /// Goes from the mount point down to the caller's cgroup, and takes the first whose directory and whose
    /// `cgroup.procs` may be written.
    ///
    /// That is all that the kernel asks for: to start a process in another cgroup, its `cgroup.procs` and that
    /// of the *common ancestor* of here and there must be writable (`cgroup-v2.rst`, "Delegation Containment").
    /// Neither the caller's own cgroup nor what is between matters, so they are not asked about. A caller
    /// without root who is not below the mount point has no such ancestor that could be seen.
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
        // The real root has no cgroup.events, and is the one cgroup that may have processes and controllers.
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

/// As below the mount point.
fn name(mount: &Path, dir: &Path) -> String {
    format!("/{}", dir.strip_prefix(mount).unwrap_or(dir).to_string_lossy())
}

/// Whether a cgroup can be made in `dir` and a process put there, as far as the modes say.
pub(super) fn writable(dir: &Path) -> bool {
    let may = |path: &Path| eaccess(path, AccessFlags::W_OK).is_ok();
    may(dir) && may(&dir.join("cgroup.procs"))
}

/// Why no controller can be enabled in a cgroup that is not the real root. A blank `cgroup.subtree_control` is no
/// reason: it is what every cgroup has after it was delegated.
fn closed(dir: &Path) -> Option<String> {
    if !read(dir.join("cgroup.procs")).is_empty() {
        return Some(INTERNAL.to_owned());
    }
    let refused = eaccess(&dir.join("cgroup.subtree_control"), AccessFlags::W_OK).err()?;
    Some(format!("its cgroup.subtree_control cannot be written ({refused})"))
}

/// Makes a cgroup in `dir` and removes it again. Modes do not show what this does: limits of depth and
/// number, security modules, threaded parents.
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
            // Of another PID namespace, which has the same numbers.
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(refusal(errno)),
        }
    }
    Err(refusal(Errno::EEXIST))
}

/// Whether a cgroup of this type takes processes.
fn fit(kind: &str) -> Result<(), String> {
    match kind {
        "domain invalid" | "threaded" => {
            Err("it is threaded, and what is made below it takes no processes".to_owned())
        }
        _ => Ok(()),
    }
}

fn refusal(errno: Errno) -> String {
    let why = match errno {
        Errno::EAGAIN => "; cgroup.max.descendants or cgroup.max.depth is reached, here or above",
        Errno::ENOSPC => "; the kernel has no room for more cgroups",
        _ => "",
    };
    format!("no cgroup can be made in it: mkdir: {errno}{why}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like a delegated cgroup. What is tried in it is tried on a tmpfs or the like.
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
    fn a_leaf_below_a_delegated_cgroup() {
        let dir = tempfile::tempdir().unwrap();
        let mount = dir.path();
        // Nothing above may be written, and the caller's own leaf belongs to another user: neither matters.
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
    fn processes_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        fake(dir.path(), "1\n", "");
        let top = Top::find(dir.path(), Some("/"), false).unwrap();
        assert_eq!(top.name, "/");
        let why = top.closed.unwrap();
        assert!(why.contains("processes of its own") && why.contains("DelegateSubgroup="), "{why}");
        // Where there is no cgroup.events it is the real root, and that one may.
        fs::remove_file(dir.path().join("cgroup.events")).unwrap();
        assert_eq!(Top::find(dir.path(), Some("/"), false).unwrap().closed, None);
        assert!(Top::find(dir.path(), None, true).is_some());
    }

    #[test]
    fn refusals_are_named() {
        let gone = tempfile::tempdir().unwrap().path().join("gone");
        assert!(attempt(&gone).unwrap_err().contains("mkdir: ENOENT"));
        for (errno, needle) in [
            (Errno::EACCES, "EACCES"),
            (Errno::EROFS, "EROFS"),
            (Errno::ENOSPC, "no room for more cgroups"),
            (Errno::EAGAIN, "cgroup.max.descendants"),
        ] {
            let why = refusal(errno);
            assert!(why.contains(needle) && why.contains(&format!("mkdir: {errno}")), "{why}");
        }
        assert!(fit("domain").is_ok() && fit("").is_ok());
        assert!(fit("domain invalid").unwrap_err().contains("threaded"));
    }

    /// A cgroup of the test's own below the highest that it may manage; removed in the end.
    struct Scratch {
        top: PathBuf,
        dir: PathBuf,
    }

    impl Scratch {
        fn new(name: &str) -> Option<Scratch> {
            let v2 = crate::cgroup::tests::detected()?.v2;
            let Some((mount, top)) = v2.and_then(|v2| Some((v2.mount, v2.top?))) else {
                eprintln!("skipped: no cgroup v2 tree");
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
    fn what_this_kernel_answers() {
        let Some(scratch) = Scratch::new("top") else { return };
        let dir = &scratch.dir;
        assert_eq!(attempt(dir), Ok(()));
        assert_eq!(closed(dir), None);
        fs::write(dir.join("cgroup.max.descendants"), "0").unwrap();
        let why = attempt(dir).unwrap_err();
        assert!(why.contains("mkdir: EAGAIN") && why.contains("cgroup.max.descendants"), "{why}");
        fs::write(dir.join("cgroup.max.descendants"), "max").unwrap();
        assert_eq!(attempt(dir), Ok(()));
        // The search begins at the mount point, whatever is below.
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
    fn a_process_in_the_way() {
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
