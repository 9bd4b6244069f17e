//! Probes namespaces: whether an unprivileged caller may make user namespaces, and whether a file is a namespace.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::{NSFS_MAGIC, fstatfs};

/// The sysctl that forbids unprivileged processes to make user namespaces; `None` if none does. Each argument is the
/// text of a file below `/proc/sys`, or `None` if the file does not exist.
///
/// `None` is no guarantee: other mechanisms can refuse the clone.
pub(crate) fn user_ns_forbidden(
    max: Option<&str>,
    clone_allowed: Option<&str>,
    apparmor_restricts: Option<&str>,
) -> Option<String> {
    let is = |text: Option<&str>, value: &str| text.is_some_and(|t| t.trim() == value);
    if is(max, "0") {
        return Some("user.max_user_namespaces is 0".into());
    }
    if is(clone_allowed, "0") {
        return Some("kernel.unprivileged_userns_clone is 0".into());
    }
    if is(apparmor_restricts, "1") {
        return Some("kernel.apparmor_restrict_unprivileged_userns is 1".into());
    }
    None
}

/// Reads the sysctls of [`user_ns_forbidden`].
pub(crate) fn user_ns() -> Option<String> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).ok();
    user_ns_forbidden(
        read("user/max_user_namespaces").as_deref(),
        read("kernel/unprivileged_userns_clone").as_deref(),
        read("kernel/apparmor_restrict_unprivileged_userns").as_deref(),
    )
}

/// Whether this process is in a user namespace other than the initial one, which has a fixed inode number (Linux 3.8).
pub(crate) fn nested() -> bool {
    const PROC_USER_INIT_INO: u64 = 0xEFFF_FFFD;
    nix::sys::stat::stat("/proc/self/ns/user").is_ok_and(|st| st.st_ino != PROC_USER_INIT_INO)
}

/// Opens the network namespace that an `O_PATH` descriptor refers to; `None` if it is not a namespace. A namespace is a
/// file on nsfs, wherever it is bind-mounted. No other file is opened, as opening a fifo would block.
///
/// # Errors
/// The errno, or `InvalidInput` with the type of another namespace.
pub(crate) fn network_namespace(held: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    if fstatfs(held)?.filesystem_type() != NSFS_MAGIC {
        return Ok(None);
    }
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    let opened = open(path.as_str(), OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    let name = match crate::sys::namespace_type(opened.as_fd())? {
        libc::CLONE_NEWNET => return Ok(Some(opened)),
        libc::CLONE_NEWNS => "mount",
        libc::CLONE_NEWPID => "PID",
        libc::CLONE_NEWIPC => "IPC",
        libc::CLONE_NEWUTS => "UTS",
        libc::CLONE_NEWUSER => "user",
        libc::CLONE_NEWCGROUP => "cgroup",
        _ => "other",
    };
    let why = format!("it is a namespace of another type ({name})");
    Err(io::Error::new(io::ErrorKind::InvalidInput, why))
}

/// Whether this is the network namespace of the calling thread.
pub(crate) fn is_own_network(namespace: &OwnedFd) -> bool {
    let own = nix::sys::stat::stat("/proc/thread-self/ns/net");
    let given = nix::sys::stat::fstat(namespace);
    own.and_then(|own| Ok((own, given?))).is_ok_and(|(a, b)| (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sysctl_that_forbids_is_named() {
        assert_eq!(user_ns_forbidden(Some("96365\n"), None, Some("0\n")), None);
        assert_eq!(user_ns_forbidden(None, None, None), None);
        for (max, clone, apparmor, name) in [
            (Some("0\n"), None, None, "user.max_user_namespaces"),
            (Some("5\n"), Some("0\n"), None, "kernel.unprivileged_userns_clone"),
            (None, Some("1\n"), Some("1\n"), "kernel.apparmor_restrict_unprivileged_userns"),
        ] {
            assert!(user_ns_forbidden(max, clone, apparmor).unwrap().contains(name));
        }
    }

    #[test]
    fn only_files_on_nsfs_are_namespaces() {
        let is = |path: &str| {
            let held = open(path, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
            network_namespace(held.as_fd()).unwrap().is_some()
        };
        assert!(is("/proc/self/ns/net"));
        assert!(!is("/proc/self/status"));
        let held = open("/proc/self/ns/mnt", OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()).unwrap();
        let refused = network_namespace(held.as_fd()).unwrap_err().to_string();
        assert_eq!(refused, "it is a namespace of another type (mount)");
    }
}
