//! Attacks on the path to a source: one of its directories is exchanged for a link again and again, while sandboxes are
//! spawned.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod attack_tools;
mod common;

use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use attack_tools::z;
use cofferdam::cgroup::devices::Access;
use cofferdam::{Device, Error, Method, Network, Policy, Root, Sandbox, TaskDirs, Volume};
use common::{asked, can, emulated, probe, run_probe, sandboxes};

/// Entry point of this binary inside a sandbox: reports at most eight bytes of the file `READ`.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    if what == "network" {
        return say.fact("network", fs::read_link("/proc/self/ns/net").unwrap().display());
    }
    assert_eq!(what, "read");
    let mut bytes = Vec::new();
    let file = fs::File::open(std::env::var("READ").unwrap());
    let read = file.and_then(|file| file.take(8).read_to_end(&mut bytes));
    say.fact("read", read.map_or_else(|e| e.to_string(), |_| String::from_utf8_lossy(&bytes).into_owned()));
}

/// Creates a directory with one of each kind of source. The content of each is `who`.
fn tree(top: &Path, who: &str, minor: u64) {
    for dir in ["dir", "up", "tmp", "root"] {
        fs::create_dir_all(top.join(dir)).unwrap();
    }
    for file in ["dir/who", "file", "root/who"] {
        fs::write(top.join(file), who).unwrap();
    }
    let node = z(top.join("node"));
    let _ = call!(libc::SYS_mknodat, libc::AT_FDCWD, node.as_ptr(), 0o020666, (1_u64 << 8) | minor);
}

/// All paths below a directory.
fn list(top: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut todo = vec![top.to_owned()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.symlink_metadata().unwrap().is_dir() {
                todo.push(path.clone());
            }
            found.push(path);
        }
    }
    found.sort();
    found
}

fn exchange(one: &Path, other: &Path) {
    const RENAME_EXCHANGE: i32 = 2;
    let (one, other) = (z(one), z(other));
    let cwd = libc::AT_FDCWD;
    call!(libc::SYS_renameat2, cwd, one.as_ptr(), cwd, other.as_ptr(), RENAME_EXCHANGE).unwrap();
}

/// Runs `work` while another thread exchanges `one` and `other` again and again.
fn while_exchanging<T>(one: &Path, other: &Path, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0_u32;
            let pause = if emulated() { 5000 } else { 100 };
            // An even number of exchanges leaves each in its place.
            while !stop.load(Ordering::Relaxed) || swaps % 2 == 1 {
                exchange(one, other);
                swaps += 1;
                std::thread::sleep(std::time::Duration::from_micros(pause * (1 + u64::from(swaps % 7) * 2)));
            }
        });
        let stopped = Stop(&stop);
        let done = work();
        drop(stopped);
        swapper.join().unwrap();
        done
    })
}

/// Stops the exchange, also if the work panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn rounds(usual: u32) -> u32 {
    if emulated() { 2 } else { usual }
}

/// The kind of source, the path inside at which its content is read, and how a spec names it.
type Way = (&'static str, &'static str, fn(Sandbox, PathBuf) -> Sandbox);

fn mapped(sandbox: Sandbox, source: PathBuf, populate: Method) -> Sandbox {
    let mut map = cofferdam::rootfs::default_chroot_env();
    // Linking or copying all of the host takes too long.
    if populate.walks() {
        map.clear();
        let libraries = ["/bin", "/lib", "/lib64", "/usr/bin", "/usr/lib"];
        let volume = |path: &str| Volume {
            source: path.into(),
            target: path.into(),
            read_only: true,
            ..Volume::default()
        };
        let sandbox = libraries
            .into_iter()
            .filter(|path| Path::new(path).is_dir())
            .fold(sandbox, |sandbox, path| sandbox.volume(volume(path)));
        map.insert(source, "/m".into());
        return sandbox.root(Root { populate, chroot_env: map, ..Root::default() });
    }
    map.insert(source, "/m".into());
    sandbox.root(Root { populate, chroot_env: map, ..Root::default() })
}

fn volume(sandbox: Sandbox, source: PathBuf) -> Sandbox {
    sandbox.volume(Volume { source, target: "/v".into(), read_only: true, ..Volume::default() })
}

const WAYS: [Way; 13] = [
    ("dir", "/v/who", volume),
    ("file", "/v", volume),
    ("dir", "/m/who", |s, source| mapped(s, source, Method::Bind)),
    ("file", "/m", |s, source| mapped(s, source, Method::Bind)),
    ("dir", "/m/who", |s, source| mapped(s, source, Method::Overlay)),
    ("dir", "/m/who", |s, source| mapped(s, source, Method::Copy)),
    ("file", "/m", |s, source| mapped(s, source, Method::Copy)),
    ("dir", "/m/who", |s, source| mapped(s, source, Method::Link)),
    ("file", "/m", |s, source| mapped(s, source, Method::Link)),
    ("dir", "/alloc/who", |s, source| {
        s.with(|s| s.task_dirs = TaskDirs { alloc: Some(source), ..TaskDirs::default() })
    }),
    ("dir", "/local/who", |s, source| {
        s.with(|s| s.task_dirs = TaskDirs { local: Some(source), ..TaskDirs::default() })
    }),
    ("root", "/who", |s, source| s.root(Root { path: Some(source), ..Root::default() })),
    ("node", "/dev/node", |s, source| {
        let target = "/dev/node".into();
        s.with(|s| s.devices = vec![Device { source, target, access: Access::READ }])
    }),
];

/// A directory on the path to a source is exchanged for a link that another user owns, to another tree. Whatever the
/// source is used for, the task does not see that tree: spawn uses the original, or returns an error that names the
/// link.
#[test]
fn cve_2017_1002101_nomad_2026_14896_sources_are_not_reached_through_links_of_other_users() {
    if !can("root") || !sandboxes() {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    let top = site.path().canonicalize().unwrap();
    fs::set_permissions(&top, fs::Permissions::from_mode(0o755)).unwrap();
    let (way, link, secret) = (top.join("way"), top.join("link"), top.join("secret"));
    // The original's node is /dev/null, which reads as empty; the other is /dev/zero.
    tree(&way, "good", 3);
    tree(&secret, "secret", 5);
    symlink(&secret, &link).unwrap();
    lchown(&link, Some(1234), Some(1234)).unwrap();
    let before = list(&secret);
    // The attack is real: a reader that follows links sometimes reads the secret.
    let plain = while_exchanging(&way, &link, || {
        (0..100_000).any(|_| fs::read(way.join("file")).is_ok_and(|bytes| bytes == b"secret"))
    });
    assert!(plain, "the attack is none any more");
    let (shown, refused) = (AtomicU32::new(0), AtomicU32::new(0));
    // On a file system mounted nodev, no device node can be opened.
    let node = fs::File::open(way.join("node")).map_or_else(|e| e.to_string(), |_| String::new());
    let check = |what: &str, expected: &[&str], sandbox: Sandbox| match run_probe(sandbox) {
        Ok(seen) => {
            assert!(expected.contains(&seen.get("read")), "{what}: {}", seen.get("read"));
            shown.fetch_add(1, Ordering::Relaxed);
        }
        Err(Error::Spec { message, .. }) => {
            let link = format!("the symbolic link {way:?} in this path is not followed: user 1234");
            assert!(message.contains(&link), "{what}: {message}");
            refused.fetch_add(1, Ordering::Relaxed);
        }
        Err(error) => panic!("{what}: {error}: {:?}", std::error::Error::source(&error)),
    };
    while_exchanging(&way, &link, || {
        for (n, (name, read, set)) in WAYS.into_iter().enumerate() {
            for _ in 0..rounds(8) {
                let sandbox = set(probe("read").env("READ", read).user("root"), way.join(name));
                let nothing = if name == "node" { node.as_str() } else { "good" };
                check(&format!("{n}: {name} at {read}"), &["good", nothing], sandbox);
            }
        }
        // Paths that are written are protected as well.
        for _ in 0..rounds(8) {
            let root = Root { populate: Method::Overlay, upper: Some(way.join("up")), ..Root::default() };
            check(
                "upper",
                &["good"],
                volume(probe("read").env("READ", "/v/who").root(root), way.join("dir")),
            );
            let policy = Policy { temp_dir: Some(way.join("tmp")), ..Policy::default() };
            let sandbox = mapped(probe("read").env("READ", "/m/who"), way.join("dir"), Method::Copy);
            check("temp_dir", &["good"], sandbox.policy(&policy));
        }
    });
    assert_eq!(list(&secret), before, "something was made behind the link");
    let (shown, refused) = (shown.into_inner(), refused.into_inner());
    let least = if emulated() { 0 } else { 10 };
    assert!(shown > least && refused > least, "{shown} shown, {refused} refused");
}

/// A task never joins the network namespace behind the link.
#[test]
fn network_namespace_is_not_joined_through_links_of_other_users() {
    if !can("root") || !sandboxes() || !can("unshare") {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    let top = site.path().canonicalize().unwrap();
    fs::set_permissions(&top, fs::Permissions::from_mode(0o755)).unwrap();
    let (way, link, secret) = (top.join("way"), top.join("link"), top.join("secret"));
    let namespace = |path: &Path| fs::read_link(path).unwrap().display().to_string();
    let own = namespace(Path::new("/proc/self/ns/net"));
    let mut holders: Vec<(Holder, String)> = Vec::new();
    for dir in [&way, &secret] {
        let holder = Holder(Command::new("unshare").args(["--net", "sleep", "600"]).spawn().unwrap());
        let file = PathBuf::from(format!("/proc/{}/ns/net", holder.0.id()));
        while namespace(&file) == own {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
        holders.push((holder, namespace(&file)));
        fs::create_dir(dir).unwrap();
        symlink(&file, dir.join("net")).unwrap();
    }
    symlink(&secret, &link).unwrap();
    lchown(&link, Some(1234), Some(1234)).unwrap();
    let network = || Network::Path(way.join("net"));
    while_exchanging(&way, &link, || {
        // An open that follows links sometimes gets the other one.
        let plain = |_| {
            fs::File::open(way.join("net")).is_ok_and(|file| {
                let ino = file.metadata().unwrap().ino();
                holders[1].1 == format!("net:[{ino}]")
            })
        };
        assert!((0..100_000).any(plain), "the attack is none any more");
        for _ in 0..rounds(20) {
            match run_probe(probe("network").network(network())) {
                Ok(seen) => assert_eq!(seen.get("network"), holders[0].1),
                Err(error) => assert!(error.to_string().contains("user 1234 may have created it"), "{error}"),
            }
        }
    });
}

/// A process in a network namespace.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two directories of the caller are exchanged. The task sees one of them as a whole, or spawn returns an error.
#[test]
fn mounted_source_is_the_one_that_was_checked() {
    if !sandboxes() {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    let top = site.path().canonicalize().unwrap();
    fs::set_permissions(&top, fs::Permissions::from_mode(0o755)).unwrap();
    let (way, other) = (top.join("way"), top.join("other"));
    tree(&way, "one", 3);
    tree(&other, "two", 3);
    let mut seen = [0, 0, 0];
    while_exchanging(&way, &other, || {
        for (name, read, set) in &WAYS[..4] {
            for round in 0..200 {
                // A few rounds may show only one of the two.
                if round >= rounds(15) && seen[0] > 0 && seen[1] > 0 {
                    break;
                }
                let sandbox = set(probe("read").env("READ", *read), way.join(name));
                match run_probe(sandbox) {
                    Ok(inside) => match inside.get("read") {
                        "one" => seen[0] += 1,
                        "two" => seen[1] += 1,
                        none => panic!("{name}: {none}"),
                    },
                    // An unprivileged init opens the path again, and compares the inode.
                    Err(Error::Setup { step, source }) if !attack_tools::privileged() => {
                        assert!(step.starts_with("statx(opened "), "{step}");
                        assert_eq!(source.raw_os_error(), Some(libc::ESTALE), "{step}");
                        seen[2] += 1;
                    }
                    Err(error) => panic!("{name}: {error}: {:?}", std::error::Error::source(&error)),
                }
            }
        }
    });
    assert!(seen[0] > 0 && seen[1] > 0, "{seen:?}");
}

/// The strict policy runs a command only if every control is enforced.
#[test]
fn strict_policy_enforces_every_requested_control() {
    use cofferdam::Control;
    if !can("root") || !sandboxes() {
        return;
    }
    let strict = probe("read").env("READ", "/proc/self/status").policy(&Policy::strict());
    assert!(matches!(strict.plan(), Err(Error::Denied { .. })), "it has a network");
    let seen = run_probe(strict.network(Network::None)).unwrap();
    let report = &seen.report;
    assert!(report.weakened.is_empty() && report.missing.is_empty(), "{report}");
    assert!(report.enforced.contains(Control::NET_NS | Control::CAPS | Control::NO_USER_NS), "{report}");
}
