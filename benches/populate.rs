//! Populating a root from a tree of 2 000 files by links and by copies, beside a floor in the same run.
//!
//! The floor for links is getdents64 and linkat by directory descriptor on one thread; `cp -al` and
//! `cp -a` stand beside. Only the population is timed, not the removal. Compare ratios, not milliseconds:
//! `cargo bench --bench populate`. The tree lies in `COFFERDAM_BENCH_DIR`, /dev/shm when unset.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cofferdam::{ChrootEnv, Host, Method, Policy, Root, Sandbox};
use criterion::{Criterion, criterion_group, criterion_main};
use nix::dir::{Dir, Type};
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

const DIRS: usize = 200;
const FILES: usize = 10;

fn tree(at: &Path) -> PathBuf {
    let top = at.join("tree");
    for d in 0..DIRS {
        let dir = top.join(format!("{}/{d}", d % 20));
        std::fs::create_dir_all(&dir).unwrap();
        for f in 0..FILES {
            std::fs::write(dir.join(format!("file-{f}")), vec![b'x'; 100 + 997 * f]).unwrap();
        }
    }
    top
}

fn open(dir: BorrowedFd<'_>, name: &std::ffi::CStr) -> OwnedFd {
    openat(dir, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).unwrap()
}

fn floor(from: OwnedFd, to: OwnedFd) {
    let mut dir = Dir::from_fd(from.try_clone().unwrap()).unwrap();
    for entry in dir.iter() {
        let entry = entry.unwrap();
        let name = entry.file_name();
        match entry.file_type() {
            Some(Type::Directory) if !matches!(name.to_bytes(), b"." | b"..") => {
                mkdirat(&to, name, Mode::S_IRWXU).unwrap();
                floor(open(from.as_fd(), name), open(to.as_fd(), name));
            }
            Some(Type::File) => nix::unistd::linkat(&from, name, &to, name, AtFlags::empty()).unwrap(),
            _ => {}
        }
    }
}

/// Times `work` on a fresh directory, and removes that directory untimed.
fn timed(base: &Path, rounds: u64, mut work: impl FnMut(&Path)) -> Duration {
    let mut spent = Duration::ZERO;
    for _ in 0..rounds {
        let to = tempfile::tempdir_in(base).unwrap();
        let began = Instant::now();
        work(to.path());
        spent += began.elapsed();
    }
    spent
}

fn populate(c: &mut Criterion) {
    let base =
        std::env::var_os("COFFERDAM_BENCH_DIR").map_or_else(|| PathBuf::from("/dev/shm"), PathBuf::from);
    let dir = tempfile::tempdir_in(base).unwrap();
    let source = tree(dir.path());
    let host = Host::probe().unwrap();
    let mut group = c.benchmark_group("populate");

    let cwd = |path: &Path| OwnedFd::from(std::fs::File::open(path).unwrap());
    group.bench_function("floor: getdents64 and linkat, one thread", |b| {
        b.iter_custom(|n| timed(dir.path(), n, |to| floor(cwd(&source), cwd(to))))
    });
    for flags in ["-al", "-a"] {
        group.bench_function(format!("cp {flags}"), |b| {
            b.iter_custom(|n| {
                timed(dir.path(), n, |to| {
                    assert!(
                        Command::new("cp")
                            .arg(flags)
                            .arg(&source)
                            .arg(to.join("x"))
                            .status()
                            .unwrap()
                            .success()
                    );
                })
            })
        });
    }

    // The sandbox is a whole one; what its population took is what the task says.
    let policy = Policy { temp_dir: dir.path().into(), ..Policy::default() };
    let mut chroot_env: ChrootEnv = [(source.clone(), "/tree".into())].into();
    for program in [
        "/bin/true",
        "/lib64",
        "/lib/x86_64-linux-gnu/libc.so.6",
        "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2",
    ] {
        chroot_env.insert(program.into(), program.into());
    }
    for method in [Method::Link, Method::Copy] {
        let root = Root { populate: method, chroot_env: chroot_env.clone(), ..Root::default() };
        let sandbox = Sandbox::command("true").policy(&policy).host(&host).root(root);
        group.bench_function(format!("cofferdam, {method}"), |b| {
            b.iter_custom(|n| {
                (0..n)
                    .map(|_| {
                        let task = sandbox.spawn().unwrap();
                        assert!(task.wait().unwrap().success());
                        task.populated().unwrap().elapsed
                    })
                    .sum()
            })
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(20);
    targets = populate
}
criterion_main!(benches);
