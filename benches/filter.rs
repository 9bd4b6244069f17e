//! Cost of a system call filter: to compile, to load, and on each call. `cargo bench --bench filter`.
//!
//! Loading is timed on a new thread, because a loaded filter cannot be removed. For comparison, the same profile is
//! also loaded as a chain with one comparison a call, which is what other compilers produce.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::time::{Duration, Instant};

use cofferdam::filter::{Action, Arch, Base, Grants, Profile, Rule, all, compile};
use criterion::{Criterion, criterion_group, criterion_main};

fn no_new_privs() {
    // SAFETY: PR_SET_NO_NEW_PRIVS takes numbers only.
    assert_eq!(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }, 0);
}

fn load(program: &[u8]) {
    let fprog = libc::sock_fprog {
        len: u16::try_from(program.len() / 8).unwrap(),
        filter: program.as_ptr().cast_mut().cast(),
    };
    let flags = libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW;
    // SAFETY: the program outlives the call, and the kernel copies it.
    let loaded =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const fprog) };
    assert_eq!(loaded, 0);
}

/// Total time of `times` loads, each on a new thread.
fn loading(program: &[u8], times: u64) -> Duration {
    let one = || {
        no_new_privs();
        let start = Instant::now();
        load(program);
        start.elapsed()
    };
    (0..times).map(|_| std::thread::scope(|scope| scope.spawn(one).join().unwrap())).sum()
}

/// The default profile's allowed x86_64 calls as a program with one comparison a call.
fn chain(grants: &Grants) -> Vec<u8> {
    let allowed: Vec<u32> = {
        let program = compile(&Profile::default(), grants).unwrap();
        let decide =
            |number| program.decide(&cofferdam::filter::Call { arch: Arch::X86_64, number, args: [0; 6] });
        all(Arch::X86_64)
            .map(|(number, _)| number)
            .filter(|number| decide(*number) == Action::Allow)
            .collect()
    };
    let instruction = |code: u16, yes: u8, no: u8, k: u32| {
        let ([a, b], [c, d, e, f]) = (code.to_ne_bytes(), k.to_ne_bytes());
        [a, b, yes, no, c, d, e, f]
    };
    let mut program = instruction(0x20, 0, 0, 0).to_vec();
    for number in allowed {
        program.extend(instruction(0x15, 0, 1, number));
        program.extend(instruction(0x06, 0, 0, 0x7fff_0000));
    }
    program.extend(instruction(0x06, 0, 0, 0x0005_0001));
    program
}

/// Total time of `times` calls that every filter allows, on a thread with this filter.
fn calling(program: Option<&[u8]>, times: u64) -> Duration {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            if let Some(program) = program {
                no_new_privs();
                load(program);
            }
            let start = Instant::now();
            for _ in 0..times {
                // SAFETY: getppid(2) has no arguments.
                unsafe { libc::syscall(libc::SYS_getppid) };
            }
            start.elapsed()
        });
        thread.join().unwrap()
    })
}

fn filter(c: &mut Criterion) {
    let grants = Grants::default();
    let tree = compile(&Profile::default(), &grants).unwrap().bytes();
    let chain = chain(&grants);
    // A small filter still allows what a thread needs to end.
    let calls = ["setns", "keyctl", "bpf"].map(String::from).to_vec();
    let rules = vec![Rule { calls, action: Action::Errno(1), args: Vec::new() }];
    let small = Profile { base: Base::Action(Action::Allow), rules, i386: true };
    let small = compile(&small, &grants).unwrap().bytes();
    println!(
        "instructions: tree {}, chain {}, a refusal of three calls {}",
        tree.len() / 8,
        chain.len() / 8,
        small.len() / 8
    );
    let mut group = c.benchmark_group("filter");
    group.bench_function("compile the default profile", |b| {
        b.iter(|| compile(&Profile::default(), &grants).unwrap())
    });
    for (name, program) in
        [("the default profile", &tree), ("a chain of it", &chain), ("a refusal of three calls", &small)]
    {
        group.bench_function(format!("load {name}"), |b| b.iter_custom(|times| loading(program, times)));
    }
    group.bench_function("a call without a filter", |b| b.iter_custom(|times| calling(None, times)));
    for (name, program) in [("the default profile", &tree), ("a chain of it", &chain)] {
        group.bench_function(format!("a call under {name}"), |b| {
            b.iter_custom(|times| calling(Some(program), times))
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(2)).warm_up_time(Duration::from_millis(500));
    targets = filter
}
criterion_main!(benches);
