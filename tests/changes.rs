//! What a task has changed in its root, and files taken from there after its end. (CONTRIBUTING.md, ring 2.)
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use cofferdam::{ChrootEnv, Host, Method, Policy, Root, Sandbox, Stdio, Volume};
use common::Start as _;
use common::sandboxes;

/// A shell script, with the host's programs and libraries as volumes, whatever the root is populated with.
fn programs(script: &str) -> Sandbox {
    let dirs = ["/bin", "/lib", "/lib64", "/usr"].into_iter().filter(|path| Path::new(path).exists());
    dirs.fold(common::shell(script), |sandbox, path| {
        let (source, target) = (path.into(), path.into());
        sandbox.volume(Volume { source, target, read_only: true, ..Volume::default() })
    })
}

/// Changes of one task as `kind path`, of its root after the end.
fn changed(sandbox: Sandbox) -> Vec<String> {
    let task = sandbox.stderr(Stdio::Inherit).start().unwrap();
    let (status, changes) = task.wait_with_root(|root| root.changes()).unwrap();
    assert!(status.success(), "{status}");
    let text = |change: &cofferdam::Change| format!("{:?} {}", change.kind, change.path.display());
    changes.unwrap().iter().map(text).collect()
}

/// Whether the file system has attributes of users. Without them an overlay of an unprivileged caller cannot remove a
/// directory of the lower layer (EIO): tmpfs before Linux 6.6.
fn has_user_attributes(dir: &Path) -> bool {
    let dir = std::ffi::CString::new(dir.to_str().unwrap()).unwrap();
    // SAFETY: the strings end with a NUL byte, and the value has one byte.
    let set = unsafe { libc::setxattr(dir.as_ptr(), c"user.test".as_ptr(), c"1".as_ptr().cast(), 1, 0) };
    set == 0
}

#[test]
fn root_lists_the_files_that_the_task_has_changed() {
    if !sandboxes() {
        return;
    }
    let site = common::places::Overlays::new();
    let source = site.path().join("source");
    let upper = site.path().join("upper");
    for dir in
        [site.path().to_owned(), source.clone(), source.join("sub"), source.join("gone"), upper.clone()]
    {
        fs::create_dir_all(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o777)).unwrap();
    }
    for file in ["same", "grows", "chmod", "rm", "sub/deep", "gone/a", "gone/b"] {
        fs::write(source.join(file), file).unwrap();
        fs::set_permissions(source.join(file), fs::Permissions::from_mode(0o666)).unwrap();
    }
    std::os::unix::fs::symlink("same", source.join("link")).unwrap();
    // Only the owner of the directory may have made the link.
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink(source.join("same"), site.path().join("alias")).unwrap();
    // A source that is a symbolic link, at another name, is not changed.
    let chroot_env: ChrootEnv =
        [(source.clone(), "/d".into()), (site.path().join("alias"), "/alias".into())].into();
    let script = "cd /d && cat same >/dev/null && echo more >>grows && rm rm && echo x >new && mkdir dir && \
                  echo y >dir/file && rm -r gone && echo z >>sub/deep && ln -s /etc/passwd out && ln -sfn grows link";
    let user = if nix::unistd::geteuid().is_root() { "root" } else { "nobody" };
    for (populate, upper) in [(Method::Copy, None), (Method::Reflink, None), (Method::Overlay, Some(upper))] {
        if populate == Method::Overlay && !Host::probe().unwrap().overlay {
            common::skip::note("the kernel has no overlay file system");
            continue;
        }
        if let Some(upper) = &upper
            && !nix::unistd::geteuid().is_root()
            && !has_user_attributes(upper)
        {
            common::skip::note("the kernel cannot remove directories from overlays on this file system");
            continue;
        }
        let root = Root { populate, chroot_env: chroot_env.clone(), upper, ..Root::default() };
        let sandbox = programs(script).user(user).root(root);
        let found = changed(sandbox);
        let expected = [
            "Modified /d/grows",
            "Modified /d/link",
            "Modified /d/sub/deep",
            "Added /d/dir/file",
            "Added /d/new",
            "Added /d/out",
            "Removed /d/gone",
            "Removed /d/rm",
        ];
        let mut expected = expected.map(str::to_owned);
        expected.sort_by_key(|line| line.split(' ').nth(1).map(str::to_owned));
        assert_eq!(found, expected, "{populate}");
    }
    // Nothing was written to the sources.
    assert_eq!(fs::read_to_string(source.join("grows")).unwrap(), "grows");
    let bound = programs("true").start().unwrap();
    let (_, (path, changes)) =
        bound.wait_with_root(|root| (root.path().map(Path::to_path_buf), root.changes())).unwrap();
    assert_eq!(path, None);
    assert!(changes.unwrap_err().to_string().contains("compare the root"));
}

#[test]
fn files_can_be_taken_from_the_root_after_the_end_and_nothing_stays() {
    if !sandboxes() {
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let policy = Policy { temp_dir: Some(temp.path().into()), ..Policy::default() };
    let etc = tempfile::tempdir().unwrap();
    fs::set_permissions(etc.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let chroot_env = [(etc.path().to_owned(), "/etc".into())].into();
    let root = Root { populate: Method::Copy, chroot_env, ..Root::default() };
    let user = if nix::unistd::geteuid().is_root() { "root" } else { "nobody" };
    let sandbox = programs("echo made >/etc/artifact; (sleep 100 >/dev/null 2>&1 &); exit 4");
    let task = sandbox.user(user).policy(&policy).root(root).start().unwrap();
    let (status, text) =
        task.wait_with_root(|root| fs::read_to_string(root.path().unwrap().join("etc/artifact"))).unwrap();
    assert_eq!((status.code, text.unwrap().as_str()), (Some(4), "made\n"));
    assert_eq!(fs::read_dir(temp.path()).unwrap().count(), 0);
    assert_eq!(task.wait().unwrap().code, Some(4));
    // Once it is removed there is nothing to look at.
    assert!(task.wait_with_root(|_| ()).is_err());
}
