//! The ids that are mapped in a user namespace (`user_namespaces(7)`).

use serde::Serialize;

/// An id map of a user namespace, as `/proc/PID/uid_map` and `gid_map` print it.
///
/// ```
/// let map = cofferdam::ids::IdMap::parse("0 1000 1\n1 100000 65536\n").unwrap();
/// assert_eq!((map.outside(0), map.outside(2), map.outside(65537)), (Some(1000), Some(100001), None));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct IdMap(Vec<Range>);

/// `count` ids starting at `inside`, which are the ids starting at `outside` in the parent namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Range {
    inside: u32,
    outside: u32,
    count: u32,
}

impl IdMap {
    /// The map of the initial user namespace: every id is mapped to itself.
    pub fn identity() -> IdMap {
        IdMap(vec![Range { inside: 0, outside: 0, count: u32::MAX }])
    }

    /// Parses the text of a map file; `None` if a line is not three numbers.
    pub fn parse(text: &str) -> Option<IdMap> {
        let range = |line: &str| {
            let mut numbers = line.split_whitespace().map(str::parse::<u32>);
            let mut next = || numbers.next()?.ok();
            Some(Range { inside: next()?, outside: next()?, count: next()? })
        };
        text.lines().map(range).collect::<Option<_>>().map(IdMap)
    }

    /// What `id` is in the parent namespace; `None` if it is not mapped.
    pub fn outside(&self, id: u32) -> Option<u32> {
        let found = self.0.iter().filter(|range| range.inside <= id);
        let offset = |range: &Range| (*range, id.wrapping_sub(range.inside));
        let within = found.map(offset).find(|(range, offset)| *offset < range.count);
        within.and_then(|(range, offset)| range.outside.checked_add(offset))
    }

    /// Whether `id` is mapped.
    pub fn has(&self, id: u32) -> bool {
        self.outside(id).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_maps_are_parsed_and_applied() {
        let whole = IdMap::parse("         0          0 4294967295\n").unwrap();
        assert_eq!(whole, IdMap::identity());
        assert_eq!((whole.outside(0), whole.outside(u32::MAX - 1), whole.outside(u32::MAX)), {
            (Some(0), Some(u32::MAX - 1), None)
        });
        let two = IdMap::parse("0 1000 1\n5 100000 2\n").unwrap();
        let expected =
            [(0, Some(1000)), (1, None), (4, None), (5, Some(100_000)), (6, Some(100_001)), (7, None)];
        for (id, outside) in expected {
            assert_eq!(two.outside(id), outside, "{id}");
        }
        // The map of a namespace before one is written.
        assert!(!IdMap::parse("").unwrap().has(0));
        for text in ["0 0\n", "a 0 1\n", "0 0 -1\n"] {
            assert_eq!(IdMap::parse(text), None, "{text:?}");
        }
    }
}
