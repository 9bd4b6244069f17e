//! Any filter profile: the compiled program decides each call as the rules do when they are evaluated one by one.

#![no_main]

use cofferdam::filter::{Action, Arch, Base, Call, Compare, Grants, Is, Profile, Rule, all, compile, decide};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct Input {
    base: Option<u8>,
    i386: bool,
    user_namespaces: bool,
    capability: u8,
    rules: Vec<AnyRule>,
    calls: Vec<(bool, u32, [u64; 6])>,
}

#[derive(Arbitrary, Debug)]
struct AnyRule {
    calls: Vec<u16>,
    action: u8,
    args: Vec<(u8, u8, u64, u64)>,
}

fn action(n: u8) -> Action {
    match n % 6 {
        0 => Action::Allow,
        1 => Action::Log,
        2 => Action::Errno(1 + u16::from(n)),
        3 => Action::Trap,
        4 => Action::KillThread,
        _ => Action::Kill,
    }
}

fn profile(input: &Input) -> Profile {
    let names: Vec<&str> = all(Arch::X86_64).chain(all(Arch::I386)).map(|(_, name)| name).collect();
    let rule = |any: &AnyRule| Rule {
        calls: any.calls.iter().take(8).map(|n| names[usize::from(*n) % names.len()].to_string()).collect(),
        action: action(any.action),
        args: any
            .args
            .iter()
            .take(32)
            .map(|(arg, is, value, mask)| Compare {
                arg: arg % 6,
                is: [Is::Eq, Is::Ne, Is::Lt, Is::Le, Is::Gt, Is::Ge][usize::from(is % 6)],
                value: *value,
                mask: *mask,
            })
            .collect(),
    };
    Profile {
        base: input.base.map_or(Base::Default, |n| Base::Action(action(n))),
        rules: input.rules.iter().take(12).map(rule).collect(),
        i386: input.i386,
    }
}

fuzz_target!(|input: Input| {
    let profile = profile(&input);
    let capability =
        ["sys_admin", "net_raw", "sys_boot", "dac_read_search"][usize::from(input.capability % 4)];
    let grants = Grants {
        capabilities: [capability.to_string()].into(),
        user_namespaces: input.user_namespaces,
        host_processes: input.capability & 4 != 0,
        init: input.capability & 8 != 0,
    };
    // Rules with many comparisons exceed the kernel's maximum program length, and are refused.
    let Ok(program) = compile(&profile, &grants) else { return };
    for (i386, number, args) in input.calls.iter().take(64) {
        let arch = if *i386 { Arch::I386 } else { Arch::X86_64 };
        let args = if *i386 { args.map(|arg| arg & 0xffff_ffff) } else { *args };
        // Mostly numbers of existing calls.
        let number = if number & 7 == 0 { *number } else { number >> 3 & 511 };
        let call = Call { arch, number, args };
        assert_eq!(program.decide(&call), decide(&profile, &grants, &call), "{call:x?} {profile:?}");
    }
});
