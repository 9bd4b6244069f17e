//! Asks the kernel about namespaces: whether an unprivileged caller may make user namespaces, and what
//! a namespace file refers to.

use std::io;
use std::path::Path;

/// Why an unprivileged process could not make a user namespace, from the sysctls that forbid it.
/// Each argument is the text of a file below `/proc/sys`, or `None` where there is no such file.
///
/// An empty answer is no promise: the clone itself tells.
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

/// Reads those sysctls.
pub(crate) fn user_ns() -> Option<String> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/sys/{name}")).ok();
    user_ns_forbidden(
        read("user/max_user_namespaces").as_deref(),
        read("kernel/unprivileged_userns_clone").as_deref(),
        read("kernel/apparmor_restrict_unprivileged_userns").as_deref(),
    )
}

/// Whether `path` refers to a network namespace: a file of nsfs, which the kernel names `net:[...]`
/// when it is opened through `/proc` and whose file system is nsfs wherever it is bound.
pub(crate) fn is_namespace(path: &Path) -> io::Result<bool> {
    const NSFS_MAGIC: i64 = 0x6e73_6673;
    let stat = nix::sys::statfs::statfs(path)?;
    Ok(stat.filesystem_type().0 == NSFS_MAGIC)
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
    fn a_namespace_file_is_told_from_another() {
        assert!(is_namespace(Path::new("/proc/self/ns/net")).unwrap());
        assert!(!is_namespace(Path::new("/proc/self/status")).unwrap());
    }
}
