//! Compiles rules into a program for the kernel (`seccomp(2)`). For each architecture, the program is a search tree
//! over ranges of call numbers with the same decision ([`tree`](super::tree)). The leaves of the tree compare arguments.
//!
//! The kernel verifies the program and runs it for each call, except calls that it allows for all arguments: these are
//! in a bitmap (Linux 5.11). A tree loads in a fifth of the time of a linear list of all calls.

use super::bpf::{EQUAL, GREATER, GREATER_EQUAL, Instruction, Program};
use super::calls::{self, Arch};
use super::default::ENOSYS;
use super::profile::{Action, Base, Call, Compare, Is, Profile, Rule};
use super::tree::{Leaf, Range, tree};
use super::{Grants, default, multiplex};
use crate::error::{Error, Result};

/// The decision for a call: the action of the first arm whose comparisons all hold, otherwise `last`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Decision {
    arms: Vec<(Vec<Compare>, Action)>,
    last: Action,
}

impl Decision {
    fn always(last: Action) -> Decision {
        Decision { arms: Vec::new(), last }
    }
}

/// The first x32 call number.
const X32: u32 = 0x4000_0000;

/// The rules of one architecture, in order, and the actions for calls without a matching rule: one for calls in the
/// tables, one for unknown calls.
#[derive(Debug)]
pub(super) struct Rules {
    rules: Vec<Rule>,
    known: Action,
    unknown: Action,
}

impl Rules {
    fn of(profile: &Profile, grants: &Grants, arch: Arch) -> Rules {
        let mut rules = match arch {
            Arch::X86_64 => profile.rules.clone(),
            Arch::I386 => multiplex::expanded(&profile.rules),
        };
        let (known, unknown) = match profile.base {
            Base::Default => {
                rules.extend(default::rules(grants));
                (Action::Allow, ENOSYS)
            }
            Base::Action(action) if action.executes() => (action, action),
            // Programs fall back to older calls when a call newer than the table fails with ENOSYS.
            Base::Action(action) => (action, ENOSYS),
        };
        Rules { rules, known, unknown }
    }

    /// Whether the rules allow the call for at least some arguments. If one argument is known, `known` is its index and
    /// its lower 32 bits. True if that depends on arguments that are not known.
    pub(super) fn may_execute(&self, name: &str, known: Option<(u8, u32)>) -> bool {
        let answer = |compare: &Compare| match known {
            Some((arg, value)) if arg == compare.arg && upper(compare.mask) == 0 => {
                let mut args = [0; 6];
                if let Some(word) = args.get_mut(usize::from(arg)) {
                    *word = u64::from(value);
                }
                Some(compare.holds(&args))
            }
            // The comparison covers upper bits, which are unknown, so equal lower bits do not decide.
            Some((arg, value)) if arg == compare.arg && compare.is == Is::Eq => {
                (value & lower(compare.mask) != lower(compare.value)).then_some(false)
            }
            _ => None,
        };
        for rule in self.rules.iter().filter(|rule| rule.calls.iter().any(|n| n == name)) {
            let answers: Vec<Option<bool>> = rule.args.iter().map(answer).collect();
            let never = answers.contains(&Some(false));
            let always = answers.iter().all(|answer| *answer == Some(true));
            if !never && rule.action.executes() {
                return true;
            }
            if always {
                return false;
            }
        }
        self.known.executes()
    }
}

/// Compiles a profile for a task with these grants.
///
/// # Errors
/// [`Error::Spec`] for `filter` if the profile is invalid, or if the program is longer than 4096 instructions, the
/// kernel's limit.
pub fn compile(profile: &Profile, grants: &Grants) -> Result<Program> {
    let (x86_64, i386) = rules(profile, grants)?;
    assemble(&x86_64, i386.as_ref())
}

/// The rules of a profile for both architectures. `None` for i386 if the profile refuses all of its calls.
///
/// # Errors
/// [`Error::Spec`] for `filter` if the profile is invalid.
pub(super) fn rules(profile: &Profile, grants: &Grants) -> Result<(Rules, Option<Rules>)> {
    profile.validate()?;
    let of = |arch| Rules::of(profile, grants, arch);
    Ok((of(Arch::X86_64), profile.i386.then(|| of(Arch::I386))))
}

/// The program for the rules of both architectures.
///
/// # Errors
/// [`Error::Spec`] for `filter` if it is longer than the kernel's limit.
pub(super) fn assemble(x86_64: &Rules, i386: Option<&Rules>) -> Result<Program> {
    let x86_64 = tree(&ranges(x86_64, Arch::X86_64));
    let i386 = match i386 {
        Some(rules) => tree(&ranges(rules, Arch::I386)),
        None => vec![Instruction::give(ENOSYS.word())],
    };
    let mut program = vec![Instruction::load(ARCH)];
    program.push(Instruction::jump(EQUAL, Arch::X86_64.audit(), 1, 0));
    program.push(Instruction::go(length(&x86_64).saturating_add(1)));
    program.push(Instruction::load(NUMBER));
    program.extend(x86_64);
    program.push(Instruction::jump(EQUAL, Arch::I386.audit(), 1, 0));
    program.push(Instruction::give(Action::Kill.word()));
    program.push(Instruction::load(NUMBER));
    program.extend(i386);
    if program.len() > MOST {
        let why = format!(
            "the filter has {} instructions, which exceeds the kernel's limit of {MOST}",
            program.len()
        );
        return Err(Error::spec("filter", why));
    }
    Ok(Program(program))
}

/// Maximum number of instructions (`BPF_MAXINSNS`).
const MOST: usize = 4096;

/// The action of a profile for a call, from the rules themselves, without compiling them.
pub fn decide(profile: &Profile, grants: &Grants, call: &Call) -> Action {
    if call.arch == Arch::I386 && !profile.i386 || call.arch == Arch::X86_64 && call.number >= X32 {
        return ENOSYS;
    }
    let rules = Rules::of(profile, grants, call.arch);
    let mut names = calls::all(call.arch);
    let Some((_, name)) = names.find(|(number, _)| *number == call.number) else { return rules.unknown };
    let fits = |rule: &&Rule| {
        rule.calls.iter().any(|n| n == name) && rule.args.iter().all(|compare| compare.holds(&call.args))
    };
    rules.rules.iter().find(fits).map_or(rules.known, |rule| rule.action)
}

/// Ranges of call numbers with the same decision, over all numbers of an architecture.
fn ranges(rules: &Rules, arch: Arch) -> Vec<Range> {
    let mut decided: Vec<Decision> = (0..calls::END).map(|_| Decision::always(rules.unknown)).collect();
    for (number, _) in calls::all(arch) {
        if let Some(decision) = at(&mut decided, number) {
            decision.last = rules.known;
        }
    }
    // From the last rule to the first, because an earlier rule overrides a later one.
    for rule in rules.rules.iter().rev() {
        for number in rule.calls.iter().filter_map(|name| calls::number(arch, name)) {
            let Some(decision) = at(&mut decided, number) else { continue };
            if rule.args.is_empty() {
                *decision = Decision::always(rule.action);
            } else {
                decision.arms.push((rule.args.clone(), rule.action));
            }
        }
    }
    let end = Decision::always(rules.unknown);
    let x32 = (arch == Arch::X86_64).then(|| (X32, Decision::always(ENOSYS)));
    let mut ranges: Vec<(u32, Decision)> = Vec::new();
    for (first, mut decision) in (0..).zip(decided.into_iter().chain([end])).chain(x32) {
        decision.arms.reverse();
        if ranges.last().is_none_or(|(_, last)| *last != decision) {
            ranges.push((first, decision));
        }
    }
    ranges.into_iter().map(|(first, decision)| Range { first, leaf: leaf(&decision) }).collect()
}

/// The decision for a number of the table.
fn at(decided: &mut [Decision], number: u32) -> Option<&mut Decision> {
    decided.get_mut(usize::try_from(number).ok()?)
}

fn leaf(decision: &Decision) -> Leaf {
    if decision.arms.is_empty() {
        return Leaf::Gives(decision.last.word());
    }
    let arms = decision.arms.iter().flat_map(|(compares, action)| arm(compares, *action));
    Leaf::Looks(arms.chain([Instruction::give(decision.last.word())]).collect())
}

/// Code that returns `action` if all comparisons hold, and otherwise continues after it.
fn arm(compares: &[Compare], action: Action) -> Vec<Instruction> {
    let mut code = vec![Instruction::give(action.word())];
    for compare in compares.iter().rev() {
        let mut front = Comparison::of(compare).assemble(code.len());
        front.append(&mut code);
        code = front;
    }
    code
}

/// The code of a comparison, whose jump distances are not yet known.
struct Comparison(Vec<(Instruction, [To; 2])>);

/// Target of a jump.
#[derive(Clone, Copy)]
enum To {
    /// The next instruction.
    Next,
    /// The code for a comparison that holds.
    Holds,
    /// The code for a comparison that does not hold.
    Fails,
}

impl Comparison {
    /// Compares the upper 32 bits first, unless they are 0 in every masked value. The lower 32 bits decide if they are
    /// equal.
    fn of(compare: &Compare) -> Comparison {
        let (holds, fails) = match compare.is {
            Is::Ne | Is::Lt | Is::Le => (To::Fails, To::Holds),
            Is::Eq | Is::Gt | Is::Ge => (To::Holds, To::Fails),
        };
        let [high, low] = [upper(compare.value), lower(compare.value)];
        let mut code = Comparison(Vec::new());
        let wide = upper(compare.mask) != 0 || high != 0;
        if wide {
            code.load(compare, 4, upper(compare.mask));
        }
        match compare.is {
            Is::Eq | Is::Ne => {
                if wide {
                    code.jump(EQUAL, high, To::Next, fails);
                }
                code.load(compare, 0, lower(compare.mask));
                code.jump(EQUAL, low, holds, fails);
            }
            // Lt is the negation of Ge, and Le the negation of Gt, with the targets exchanged.
            Is::Ge | Is::Lt | Is::Gt | Is::Le => {
                if wide {
                    code.jump(GREATER, high, holds, To::Next);
                    code.jump(EQUAL, high, To::Next, fails);
                }
                code.load(compare, 0, lower(compare.mask));
                let last = if matches!(compare.is, Is::Ge | Is::Lt) { GREATER_EQUAL } else { GREATER };
                code.jump(last, low, holds, fails);
            }
        }
        code
    }

    fn load(&mut self, compare: &Compare, half: u32, mask: u32) {
        let at = ARGS.saturating_add(u32::from(compare.arg).saturating_mul(8)).saturating_add(half);
        self.0.push((Instruction::load(at), [To::Next; 2]));
        if mask != u32::MAX {
            self.0.push((Instruction::and(mask), [To::Next; 2]));
        }
    }

    fn jump(&mut self, code: u16, k: u32, yes: To, no: To) {
        self.0.push((Instruction::jump(code, k, 0, 0), [yes, no]));
    }

    /// Computes the jump distances. If the comparison holds, the next `behind` instructions run; otherwise they are
    /// skipped.
    fn assemble(self, behind: usize) -> Vec<Instruction> {
        let count = self.0.len();
        let line = |at: usize, (instruction, to): (Instruction, [To; 2])| {
            let rest = count.saturating_sub(at).saturating_sub(1);
            let far = |to| match to {
                To::Next => 0,
                To::Holds => rest,
                To::Fails => rest.saturating_add(behind),
            };
            // A rule has at most `MOST_COMPARES` comparisons of seven instructions, so every distance is below 255.
            let [yes, no] = to.map(|to| u8::try_from(far(to)).unwrap_or(u8::MAX));
            if instruction.jumps() { instruction.to(yes, no) } else { instruction }
        };
        self.0.into_iter().enumerate().map(|(at, item)| line(at, item)).collect()
    }
}

fn upper(value: u64) -> u32 {
    u32::try_from(value >> 32).unwrap_or_default()
}

fn lower(value: u64) -> u32 {
    u32::try_from(value & 0xffff_ffff).unwrap_or_default()
}

fn length(code: &[Instruction]) -> u32 {
    u32::try_from(code.len()).unwrap_or(u32::MAX)
}

// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;
