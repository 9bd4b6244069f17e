//! Any text as a list of id ranges. The parser agrees with a naive reading of the grammar, a parsed list prints and
//! parses back to itself, and it contains exactly the ids of its ranges.

#![no_main]

use cofferdam::ids::{IdRanges, denied_gids, denied_uids};
use libfuzzer_sys::fuzz_target;

/// A naive reading of the grammar, element by element, without merging.
fn naive(list: &str) -> Option<Vec<(u32, u32)>> {
    let id = |text: &str| {
        let digits = !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        if digits { text.parse::<u32>().ok() } else { None }
    };
    if list.is_empty() {
        return Some(Vec::new());
    }
    list.split(',')
        .map(|element| match element.split('-').collect::<Vec<_>>()[..] {
            [only] => id(only).map(|id| (id, id)),
            [first, last] => id(first).zip(id(last)).filter(|(first, last)| first <= last),
            _ => None,
        })
        .collect()
}

fuzz_target!(|list: &str| {
    let naive = naive(list);
    let parsed = IdRanges::parse(list);
    assert_eq!(naive.is_some(), parsed.is_ok(), "the two readings differ");
    assert_eq!(denied_uids(list).is_ok(), parsed.is_ok());
    assert_eq!(denied_gids(list).is_ok(), parsed.is_ok());
    let (naive, ranges) = match (naive, parsed) {
        (Some(naive), Ok(ranges)) => (naive, ranges),
        (_, Err(error)) => return assert!(list.split(',').any(|element| element == error.element)),
        (None, Ok(_)) => unreachable!(),
    };
    assert_eq!(IdRanges::parse(&ranges.to_string()).as_ref(), Ok(&ranges), "round trip");
    assert_eq!(ranges.is_empty(), list.is_empty());

    let intervals: Vec<_> = ranges.intervals().collect();
    for pair in intervals.windows(2) {
        assert!(u64::from(*pair[0].end()) + 1 < u64::from(*pair[1].start()), "overlap, touch or disorder");
    }
    let bounds = naive.iter().flat_map(|&(first, last)| [first, last]);
    let bounds = bounds.chain(intervals.iter().flat_map(|i| [*i.start(), *i.end()]));
    let probes = bounds.flat_map(|id| [id.saturating_sub(1), id, id.saturating_add(1)]);
    // Each probe looks at every element, so at most 1000 probes are made; short lists are checked in full.
    for id in probes.chain([0, u32::MAX]).take(1000) {
        let expect = naive.iter().any(|&(first, last)| first <= id && id <= last);
        assert_eq!(ranges.contains(id), expect, "{id}");
    }
});
