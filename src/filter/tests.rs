//! Tests of the default profile call by call, and of the compiler against the uncompiled rules.

use super::*;

fn grants(capabilities: &[&str]) -> Grants {
    let capabilities = capabilities.iter().map(|name| (*name).to_string()).collect();
    Grants { capabilities, ..Grants::default() }
}

fn call(arch: Arch, name: &str, args: &[u64]) -> Call {
    let mut all = [0; 6];
    all[..args.len()].copy_from_slice(args);
    Call { arch, number: number(arch, name).unwrap(), args: all }
}

const EPERM: Action = Action::Errno(1);
const ENOSYS: Action = Action::Errno(38);

/// The action of the default profile for an x86_64 call of a task with these capabilities.
fn says(capabilities: &[&str], name: &str, args: &[u64]) -> Action {
    compile(&Profile::default(), &grants(capabilities)).unwrap().decide(&call(Arch::X86_64, name, args))
}

#[test]
fn default_profile_allows_privileged_calls_only_with_their_capability() {
    for (name, capability) in [
        ("bpf", "bpf"),
        ("perf_event_open", "perfmon"),
        ("open_by_handle_at", "dac_read_search"),
        ("mount", "sys_admin"),
        ("init_module", "sys_module"),
        ("reboot", "sys_boot"),
        ("chroot", "sys_chroot"),
        ("acct", "sys_pacct"),
        ("clock_settime", "sys_time"),
        ("syslog", "syslog"),
        ("iopl", "sys_rawio"),
        ("pidfd_getfd", "sys_ptrace"),
        ("mbind", "sys_nice"),
        ("vhangup", "sys_tty_config"),
    ] {
        assert_eq!(says(&[], name, &[]), EPERM, "{name}");
        assert_eq!(says(&[capability], name, &[]), Action::Allow, "{name}");
    }
    // No capability allows these.
    let all: Vec<&str> =
        "sys_admin dac_read_search sys_boot sys_ptrace sys_module bpf perfmon".split(' ').collect();
    for name in ["setns", "io_uring_setup", "keyctl", "add_key", "request_key", "userfaultfd", "kexec_load"] {
        assert_eq!(says(&all, name, &[]), EPERM, "{name}");
    }
    assert_eq!(says(&all, "clone3", &[]), ENOSYS);
    for name in ["read", "openat", "process_vm_readv", "seccomp", "landlock_restrict_self", "clone"] {
        assert_eq!(says(&[], name, &[]), Action::Allow, "{name}");
    }
    // 1024 is F_SETLEASE, 1040 F_SETDELEG.
    for name in ["fcntl", "fcntl64"] {
        let arch = if name == "fcntl" { Arch::X86_64 } else { Arch::I386 };
        for (command, lease) in
            [(0, false), (1, false), (16, false), (1024, true), (1025, false), (1040, true)]
        {
            let call = call(arch, name, &[3, command]);
            let decided = |capabilities: &[&str]| {
                compile(&Profile::default(), &grants(capabilities)).unwrap().decide(&call)
            };
            assert_eq!(decided(&[]), if lease { EPERM } else { Action::Allow }, "{name} {command}");
            assert_eq!(decided(&["lease"]), Action::Allow, "{name} {command}");
        }
    }
}

/// The caller would be the tracer of a child that no process of init watches.
#[test]
fn default_profile_lets_a_command_be_traced_by_its_parent_only_under_an_init() {
    for init in [true, false] {
        let program = compile(&Profile::default(), &Grants { init, ..Grants::default() }).unwrap();
        for (request, refused) in [(0, !init), (1, false), (16, false), (0x4206, false)] {
            let expected = if refused { EPERM } else { Action::Allow };
            assert_eq!(
                program.decide(&call(Arch::X86_64, "ptrace", &[request])),
                expected,
                "{request} {init}"
            );
        }
    }
}

#[test]
fn default_profile_compares_arguments_as_the_kernel_reads_them() {
    const HIGH: u64 = 1 << 32;
    for (name, args, expected) in [
        ("clone", &[0x0100_0011][..], Action::Allow),
        ("clone", &[0x1000_0011], EPERM),
        ("clone", &[0x0002_0000], EPERM),
        ("clone", &[0x8000], EPERM),
        // The kernel reads the lower 32 bits only.
        ("clone", &[HIGH | 0x1000_0000], EPERM),
        ("unshare", &[0x400], Action::Allow),
        ("unshare", &[0x1000_0000], EPERM),
        ("unshare", &[0x80], EPERM),
        ("socket", &[1], Action::Allow),
        ("socket", &[10], Action::Allow),
        ("socket", &[HIGH | 2], Action::Allow),
        ("socket", &[40], Action::Errno(97)),
        ("socket", &[HIGH | 40], Action::Errno(97)),
        ("socket", &[38], Action::Errno(97)),
        ("socketpair", &[30], Action::Errno(97)),
        ("socket", &[16, 3, 0], Action::Allow),
        ("socket", &[16, 3, 11], Action::Errno(93)),
        ("socket", &[HIGH | 16, 3, HIGH | 11], Action::Errno(93)),
        ("ioctl", &[0, 0x5412], EPERM),
        ("ioctl", &[0, HIGH | 0x5412], EPERM),
        ("ioctl", &[0, 0x541c], EPERM),
        ("ioctl", &[0x5412, 0x5413], Action::Allow),
        ("personality", &[0], Action::Allow),
        ("personality", &[8], Action::Allow),
        ("personality", &[0xffff_ffff], Action::Allow),
        ("personality", &[0x0004_0000], EPERM),
        ("personality", &[0x0040_0000], EPERM),
    ] {
        assert_eq!(says(&[], name, args), expected, "{name} {args:x?}");
    }
    assert_eq!(says(&["sys_admin"], "clone", &[0x1000_0011]), Action::Allow);
    assert_eq!(says(&["net_raw"], "socket", &[44]), Action::Allow);
    let own = Grants { user_namespaces: true, ..grants(&[]) };
    let program = compile(&Profile::default(), &own).unwrap();
    for name in ["unshare", "clone", "mount", "pivot_root", "move_mount", "sethostname"] {
        assert_eq!(program.decide(&call(Arch::X86_64, name, &[0x1000_0000])), Action::Allow, "{name}");
    }
    for name in ["setns", "open_by_handle_at"] {
        assert_eq!(program.decide(&call(Arch::X86_64, name, &[])), EPERM, "{name}");
    }
}

#[test]
fn i386_calls_are_filtered_by_i386_numbers_and_x32_calls_fail_with_enosys() {
    let program = compile(&Profile::default(), &grants(&[])).unwrap();
    let says = |name, args: &[u64]| program.decide(&call(Arch::I386, name, args));
    assert_eq!(says("setns", &[]), EPERM);
    assert_eq!(says("unshare", &[0x1000_0000]), EPERM);
    assert_eq!(says("umount", &[]), EPERM);
    assert_eq!(says("vm86", &[]), EPERM);
    assert_eq!((says("socketcall", &[1]), says("socketcall", &[8])), (ENOSYS, ENOSYS));
    assert_eq!(says("socketcall", &[3]), Action::Allow);
    assert_eq!(says("socket", &[40]), Action::Errno(97));
    for name in ["read", "mmap2", "set_thread_area", "fcntl64", "waitpid"] {
        assert_eq!(says(name, &[]), Action::Allow, "{name}");
    }
    // Number 56 is clone on x86_64 and mpx on i386.
    let numbered = |arch, number| program.decide(&Call { arch, number, args: [0x1000_0000; 6] });
    assert_eq!((numbered(Arch::X86_64, 56), numbered(Arch::I386, 56)), (EPERM, ENOSYS));
    for number in [0, 56, 272, 512, 520, 547] {
        assert_eq!(numbered(Arch::X86_64, number | 0x4000_0000), ENOSYS);
    }
    for number in [512, 547, 1000, u32::MAX] {
        assert_eq!((numbered(Arch::X86_64, number), numbered(Arch::I386, number)), (ENOSYS, ENOSYS));
    }
    let off = Profile { i386: false, ..Profile::default() };
    let off = compile(&off, &grants(&[])).unwrap();
    assert_eq!(off.decide(&call(Arch::I386, "read", &[])), ENOSYS);
    assert_eq!(off.decide(&call(Arch::X86_64, "read", &[])), Action::Allow);
}

#[test]
fn every_refused_call_exists_and_is_in_one_group() {
    let mut seen = BTreeSet::new();
    for group in GROUPS {
        assert!(!group.why.is_empty());
        for name in group.calls {
            assert!(calls::known(name), "{name}");
            assert!(seen.insert(*name), "{name} is refused twice");
        }
    }
}

#[test]
fn invalid_profiles_are_refused_with_the_reason() {
    let wrong = |profile: Profile| match compile(&profile, &Grants::default()) {
        Err(crate::Error::Spec { field, message }) => format!("{field}: {message}"),
        other => panic!("{other:?}"),
    };
    let rule = |name: &str, action, args| Profile {
        rules: vec![Rule { calls: vec![name.into()], action, args }],
        ..Profile::default()
    };
    let compare = Compare { arg: 6, is: Is::Eq, value: 0, mask: 1 };
    assert_eq!(
        wrong(rule("opn", Action::Allow, Vec::new())),
        "filter: \"opn\" is not a system call of x86_64 or i386"
    );
    assert!(wrong(rule("open", Action::Errno(0), Vec::new())).contains("1 to 4095"));
    assert!(wrong(rule("open", Action::Errno(4096), Vec::new())).contains("1 to 4095"));
    assert!(
        wrong(rule("open", Action::Allow, vec![compare]))
            .contains("arguments 0 to 5, but a comparison uses argument 6")
    );
    let many = |n: usize| vec![Compare { arg: 0, is: Is::Ne, value: 1 << 40, mask: u64::MAX }; n];
    assert!(
        wrong(rule("open", Action::Allow, many(33)))
            .contains("33 comparisons in a rule exceed the limit of 32")
    );
    let rules = vec![Rule { calls: vec!["open".into()], action: Action::Allow, args: Vec::new() }; 1025];
    assert!(wrong(Profile { rules, ..Profile::default() }).contains("1025 rules exceed the limit of 1024"));
    let far = Compare { arg: 0, is: Is::Eq, value: 1, mask: u64::MAX };
    let mut long = rule("open", Action::Trap, vec![far]);
    long.rules = vec![long.rules[0].clone(); 1000];
    assert!(wrong(long).contains("instructions, which exceeds the kernel's limit of 4096"));
}

/// A pseudo-random number generator with a fixed seed.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33).checked_rem(below).unwrap()
    }

    fn any<T: Copy>(&mut self, of: &[T]) -> T {
        of[usize::try_from(self.next(of.len() as u64)).unwrap()]
    }
}

/// Compares compiled programs with the uncompiled rules, for random profiles and calls.
#[test]
fn compiled_program_decides_as_the_uncompiled_rules() {
    let values = [0, 1, 2, 0xffff_ffff, 1 << 32, (1 << 32) + 1, u64::MAX, 0x1000_0000];
    let masks = [u64::MAX, 0xffff_ffff, 0xffff_ffff_0000_0000, 1, 0x1000_0001];
    let actions =
        [Action::Allow, Action::Log, Action::Errno(7), Action::Trap, Action::KillThread, Action::Kill];
    let every = [Is::Eq, Is::Ne, Is::Lt, Is::Le, Is::Gt, Is::Ge];
    let mut numbers = Numbers(7);
    let names: Vec<&str> = all(Arch::X86_64).chain(all(Arch::I386)).map(|(_, name)| name).collect();
    for _ in 0..150 {
        let mut rules = Vec::new();
        for _ in 0..numbers.next(12) {
            let calls = (0..=numbers.next(4)).map(|_| numbers.any(&names).to_string()).collect();
            let compare = |numbers: &mut Numbers| Compare {
                arg: u8::try_from(numbers.next(6)).unwrap(),
                is: numbers.any(&every),
                value: numbers.any(&values),
                mask: numbers.any(&masks),
            };
            // Sometimes up to the maximum of 32 comparisons.
            let most = if numbers.next(20) == 0 { 33 } else { 4 };
            let args = (0..numbers.next(most)).map(|_| compare(&mut numbers)).collect();
            rules.push(Rule { calls, action: numbers.any(&actions), args });
        }
        let base = match numbers.next(2) {
            0 => Base::Default,
            _ => Base::Action(numbers.any(&actions)),
        };
        let profile = Profile { base, rules, i386: numbers.next(4) != 0 };
        let capability = numbers.any(&["sys_admin", "net_raw", "sys_ptrace"]);
        let grants = Grants { user_namespaces: numbers.next(2) == 0, ..grants(&[capability]) };
        let program = compile(&profile, &grants).unwrap();
        let named: Vec<String> = profile.rules.iter().flat_map(|rule| rule.calls.clone()).collect();
        for _ in 0..200 {
            let arch = numbers.any(&Arch::ALL);
            let chosen = match numbers.next(3) {
                0 if !named.is_empty() => {
                    let at = usize::try_from(numbers.next(named.len() as u64)).unwrap();
                    number(arch, &named[at])
                }
                1 => number(arch, numbers.any(&["clone", "socket", "ioctl", "personality", "unshare"])),
                _ => Some(u32::try_from(numbers.next(520)).unwrap()),
            };
            let high = if numbers.next(9) == 0 { 0x4000_0000 } else { 0 };
            let mut args = [0; 6].map(|_| numbers.any(&values));
            if arch == Arch::I386 {
                args = args.map(|arg| arg & 0xffff_ffff);
            }
            let call = Call { arch, number: chosen.unwrap_or(9999) | high, args };
            assert_eq!(program.decide(&call), decide(&profile, &grants, &call), "{call:x?} {profile:?}");
        }
    }
}

#[test]
fn call_refused_by_name_is_refused_through_i386_multiplexed_calls() {
    let rule =
        |name: &str, args: Vec<Compare>| Rule { calls: vec![name.into()], action: Action::Errno(13), args };
    let executable = vec![Compare::any_of(2, 4)];
    let rules = vec![rule("connect", Vec::new()), rule("shmget", Vec::new()), rule("mmap", executable)];
    let profile = Profile { rules, ..Profile::default() };
    let program = compile(&profile, &Grants::default()).unwrap();
    let says = |name, args: &[u64]| program.decide(&call(Arch::I386, name, args));
    let refused = Action::Errno(13);
    assert_eq!(
        (says("connect", &[]), says("socketcall", &[3]), says("socketcall", &[2])),
        (refused, refused, Action::Allow)
    );
    assert_eq!(
        (says("shmget", &[]), says("ipc", &[23]), says("ipc", &[0x1_0017])),
        (refused, refused, refused)
    );
    assert_eq!(
        (says("ipc", &[1]), says("mmap", &[0x1000]), says("mmap2", &[0, 0, 3])),
        (Action::Allow, refused, Action::Allow)
    );
}

#[test]
fn may_execute_is_false_only_if_the_rules_always_refuse() {
    let rule = |name: &str, action, args: Vec<Compare>| Rule { calls: vec![name.into()], action, args };
    let may = |rules: Vec<Rule>, name: &str, known| {
        let profile = Profile { rules, base: Base::Action(Action::Allow), i386: true };
        compiled(profile, Grants::default()).unwrap().may_execute(Arch::X86_64, name, known)
    };
    let vsock = |compare: Compare| may(vec![rule("socket", EPERM, vec![compare])], "socket", Some((0, 40)));
    assert!(!vsock(Compare::int(0, Is::Eq, 40)));
    // A comparison of all 64 bits does not match a value with an upper bit set, while the kernel reads the lower 32
    // bits only.
    assert!(vsock(Compare { mask: u64::MAX, ..Compare::int(0, Is::Eq, 40) }));
    assert!(vsock(Compare::int(1, Is::Eq, 1)));
    let narrow = vec![
        rule("keyctl", Action::Allow, vec![Compare::int(0, Is::Eq, 11)]),
        rule("keyctl", EPERM, Vec::new()),
    ];
    assert!(may(narrow, "keyctl", None));
    assert!(!may(vec![rule("keyctl", EPERM, Vec::new())], "keyctl", None));
    let default = compiled(Profile::default(), Grants::default()).unwrap();
    assert!(!default.may_execute(Arch::X86_64, "io_uring_setup", None));
    assert!(!default.may_execute(Arch::X86_64, "socket", Some((0, 40))));
}
