//! Attacks on the way to a source: a directory on it is exchanged for a link, over and over, while sandboxes are made.
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
use cofferdam::{Device, Error, Method, Network, Policy, Root, Sandbox, TaskDirs, Volume};
use common::{asked, can, emulated, probe, run_probe, sandboxes};

/// What runs inside: what the file `READ` holds, at most eight bytes of it.
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

/// A directory with one of everything that can be a source, each of which tells `who`.
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

/// Everything below a directory, by path.
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

/// Runs `work` while `one` and `other` change places without an end.
fn while_exchanging<T>(one: &Path, other: &Path, work: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0_u32;
            let pause = if emulated() { 5000 } else { 100 };
            // Ends with each in its place.
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

/// Ends the exchange, also when the work panics.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn rounds(usual: u32) -> u32 {
    if emulated() { 2 } else { usual }
}

/// How a source is named by a spec, and where what it holds is read inside.
type Way = (&'static str, &'static str, fn(Sandbox, PathBuf) -> Sandbox);

fn mapped(sandbox: Sandbox, source: PathBuf, populate: Method) -> Sandbox {
    let mut map = cofferdam::rootfs::default_chroot_env();
    // Links and copies of the whole host take too long.
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
        s.with(|s| s.devices = vec![Device { source, target, permissions: "r".into() }])
    }),
];

/// A directory on the way to a source becomes a link to another tree and back, by a user who owns the link. Whatever
/// the source is for, the task sees what is not behind the link, or there is an error that names the link.
#[test]
fn cve_2017_1002101_nomad_2026_14896_no_source_is_reached_by_a_link_that_another_user_plants() {
    if !can("root") || !sandboxes() {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    let top = site.path().canonicalize().unwrap();
    fs::set_permissions(&top, fs::Permissions::from_mode(0o755)).unwrap();
    let (way, link, secret) = (top.join("way"), top.join("link"), top.join("secret"));
    // The good node is null, of which nothing is read; the other is zero.
    tree(&way, "good", 3);
    tree(&secret, "secret", 5);
    symlink(&secret, &link).unwrap();
    lchown(&link, Some(1234), Some(1234)).unwrap();
    let before = list(&secret);
    // The attack is a real one: who follows links reads the secret now and then.
    let plain = while_exchanging(&way, &link, || {
        (0..100_000).any(|_| fs::read(way.join("file")).is_ok_and(|bytes| bytes == b"secret"))
    });
    assert!(plain, "the attack is none any more");
    let (shown, refused) = (AtomicU32::new(0), AtomicU32::new(0));
    // Where the file system is mounted nodev, nobody opens a node of it.
    let node = fs::File::open(way.join("node")).map_or_else(|e| e.to_string(), |_| String::new());
    let check = |what: &str, expected: &[&str], sandbox: Sandbox| match run_probe(sandbox) {
        Ok(seen) => {
            assert!(expected.contains(&seen.get("read")), "{what}: {}", seen.get("read"));
            shown.fetch_add(1, Ordering::Relaxed);
        }
        Err(Error::Spec { message, .. }) => {
            let link = format!("the symbolic link {way:?} on the way is not followed: user 1234");
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
        // What is written goes to the same place.
        for _ in 0..rounds(8) {
            let root = Root { populate: Method::Overlay, upper: Some(way.join("up")), ..Root::default() };
            check(
                "upper",
                &["good"],
                volume(probe("read").env("READ", "/v/who").root(root), way.join("dir")),
            );
            let policy = Policy { temp_dir: way.join("tmp"), ..Policy::default() };
            let sandbox = mapped(probe("read").env("READ", "/m/who"), way.join("dir"), Method::Copy);
            check("temp_dir", &["good"], sandbox.policy(&policy));
        }
    });
    assert_eq!(list(&secret), before, "something was made behind the link");
    let (shown, refused) = (shown.into_inner(), refused.into_inner());
    let least = if emulated() { 0 } else { 10 };
    assert!(shown > least && refused > least, "{shown} shown, {refused} refused");
}

/// The same for the network namespace: a task never joins the one behind the link.
#[test]
fn no_network_is_joined_by_a_link_that_another_user_plants() {
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
        // Who follows links joins the other one now and then.
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
                Err(error) => assert!(error.to_string().contains("user 1234 may have planted it"), "{error}"),
            }
        }
    });
}

/// A process that holds a namespace.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Two directories of the caller's change places on the way. The task sees one of them as a whole, or there is an error.
#[test]
fn what_is_mounted_is_what_was_looked_at() {
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
                // Few rounds may show only one of the two.
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
                    // Without privileges init opens the path again.
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

/// The strict policy runs a command where everything holds, and no other.
#[test]
fn under_the_strict_policy_everything_holds() {
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
