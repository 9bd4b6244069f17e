//! The code of a search tree over ranges of call numbers. A filter's length is what a spawn pays: the kernel translates
//! each instruction twice, and then runs the filter for every call number.

use super::bpf::{GREATER_EQUAL, Instruction};

/// Call numbers with the same decision, from `first` to the next range.
pub(super) struct Range {
    pub first: u32,
    pub leaf: Leaf,
}

/// What is done with the calls of a range.
pub(super) enum Leaf {
    /// The same action for all arguments: its return value.
    Gives(u32),
    /// Code that looks at the arguments. It ends with a return.
    Looks(Vec<Instruction>),
}

/// Where an instruction of a tree continues.
#[derive(Clone, Copy)]
enum To {
    /// At the instruction with this index.
    At(usize),
    /// At the return of this value, behind the tree.
    Gives(u32),
}

/// Code that decides by the call number, which is in the accumulator.
pub(super) fn tree(ranges: &[Range]) -> Vec<Instruction> {
    if let Some(code) = compact(ranges) {
        return code;
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let [first, ..] = right else { return Vec::new() };
    let (below, from) = (tree(left), tree(right));
    let mut code = Vec::with_capacity(below.len().saturating_add(from.len()).saturating_add(2));
    code.push(Instruction::jump(GREATER_EQUAL, first.first, 0, 1));
    code.push(Instruction::go(u32::try_from(below.len()).unwrap_or(u32::MAX)));
    code.extend(below);
    code.extend(from);
    code
}

/// A tree in which each value is returned in one place, behind all comparisons. `None` if a comparison would have to jump
/// over more than 255 instructions.
fn compact(ranges: &[Range]) -> Option<Vec<Instruction>> {
    let mut code = Vec::new();
    match ranges {
        [] => return Some(Vec::new()),
        [Range { leaf: Leaf::Gives(word), .. }] => return Some(vec![Instruction::give(*word)]),
        ranges => grow(ranges, &mut code),
    }
    let mut words: Vec<u32> = Vec::new();
    for to in code.iter().flat_map(|(_, to)| to.iter().flatten()) {
        if let To::Gives(word) = to
            && !words.contains(word)
        {
            words.push(*word);
        }
    }
    let end = code.len();
    let over = |at: usize, to: To| {
        let target = match to {
            To::At(target) => target,
            To::Gives(word) => end.checked_add(words.iter().position(|known| *known == word)?)?,
        };
        u8::try_from(target.checked_sub(at)?.checked_sub(1)?).ok()
    };
    let line = |(at, (instruction, to)): (usize, (Instruction, Option<[To; 2]>))| match to {
        Some([yes, no]) => Some(instruction.to(over(at, yes)?, over(at, no)?)),
        None => Some(instruction),
    };
    let lines: Option<Vec<Instruction>> = code.into_iter().enumerate().map(line).collect();
    Some(lines?.into_iter().chain(words.iter().map(|word| Instruction::give(*word))).collect())
}

/// Adds the comparisons of a tree, with where they continue.
fn grow(ranges: &[Range], code: &mut Vec<(Instruction, Option<[To; 2]>)>) {
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let ([.., _], [first, ..]) = (left, right) else {
        if let [Range { leaf: Leaf::Looks(own), .. }] = ranges {
            code.extend(own.iter().map(|instruction| (*instruction, None)));
        }
        return;
    };
    let at = code.len();
    code.push((Instruction::jump(GREATER_EQUAL, first.first, 0, 0), None));
    let mut side = |ranges: &[Range]| match ranges {
        [Range { leaf: Leaf::Gives(word), .. }] => To::Gives(*word),
        ranges => {
            let from = code.len();
            grow(ranges, code);
            To::At(from)
        }
    };
    let no = side(left);
    let yes = side(right);
    if let Some((_, to)) = code.get_mut(at) {
        *to = Some([yes, no]);
    }
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::super::bpf::Program;
    use super::super::{Action, Arch, Call};
    use super::*;

    /// A tree that does not fit into one jump decides as a small one does.
    #[test]
    fn trees_of_every_size_find_the_range_of_a_number() {
        for count in [1u32, 2, 3, 7, 80, 255, 256, 257, 600] {
            let action =
                |n: u32| if n.is_multiple_of(3) { Action::Allow } else { Action::Errno((n % 5 + 1) as u16) };
            let leaf = |n: u32| match n % 7 {
                0 => Leaf::Looks(vec![Instruction::load(16), Instruction::give(action(n).word())]),
                _ => Leaf::Gives(action(n).word()),
            };
            let ranges: Vec<Range> = (0..count).map(|n| Range { first: n * 2, leaf: leaf(n) }).collect();
            let code = tree(&ranges);
            // A comparison between two ranges, two instructions for each range that looks, and six returns.
            let most = if count < 150 { count + 2 * count.div_ceil(7) + 5 } else { count * 3 };
            assert!(code.len() <= most as usize, "{count}: {}", code.len());
            let program = Program([vec![Instruction::load(0)], code].concat());
            for number in 0..count * 2 {
                let call = Call { arch: Arch::X86_64, number, args: [0; 6] };
                assert_eq!(program.decide(&call), action(number / 2), "{number} of {count}");
            }
        }
    }
}
