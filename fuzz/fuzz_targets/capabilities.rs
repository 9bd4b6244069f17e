//! Three lists of capability names, most of them valid. The resulting set is within what the policy allows, contains
//! everything added, and contains nothing that was dropped and not added. An invalid name is always an error.

#![no_main]

use cofferdam::Error;
use cofferdam::caps::{self, CapSet, Sets};
use libfuzzer_sys::arbitrary::{self, Arbitrary};
use libfuzzer_sys::fuzz_target;

#[derive(Arbitrary, Debug)]
struct List {
    bits: u64,
    /// Removes from `bits` what the kernel does not support; otherwise most lists would be refused at once.
    known: bool,
    upper: bool,
    all: bool,
    /// Arbitrary text, rarely a valid name.
    noise: Vec<String>,
}

#[derive(Arbitrary, Debug)]
struct Input {
    allow: Option<List>,
    add: List,
    drop: List,
    last_cap: u8,
    held: u64,
    uid: u32,
    status: String,
}

impl List {
    fn explicit(&self, supported: CapSet) -> CapSet {
        let set = CapSet::from_bits(self.bits);
        if self.known { set.intersection(supported) } else { set }
    }

    fn names(&self, supported: CapSet) -> Vec<String> {
        let set = self.explicit(supported);
        let names = if self.upper { set.names_upper() } else { set.names() };
        let all = self.all.then(|| if self.upper { "CAP_ALL" } else { "all" }.to_owned());
        names.into_iter().chain(all).chain(self.noise.iter().cloned()).collect()
    }

    /// The set that the list denotes; `None` if it contains a name that is unknown or not supported.
    fn set(&self, supported: CapSet) -> Option<CapSet> {
        let mut set = self.explicit(supported);
        if self.all {
            set = set.union(supported);
        }
        for name in &self.noise {
            let name = name.trim().to_ascii_lowercase();
            match name.strip_prefix("cap_").unwrap_or(&name) {
                "" => {}
                "all" => set = set.union(supported),
                _ => set = set.union(CapSet::from_name(&name)?),
            }
        }
        Some(set).filter(|&set| supported.contains(set))
    }
}

fuzz_target!(|input: Input| {
    let supported = CapSet::up_to(input.last_cap % 64);
    let (add, drop) = (input.add.names(supported), input.drop.names(supported));
    let allow = input.allow.as_ref().map(|list| list.names(supported));
    let result = caps::calculate(allow.as_deref(), &add, &drop, supported);

    let default = CapSet::DEFAULT.intersection(supported);
    let allowed = input.allow.as_ref().map_or(Some(default), |list| list.set(supported));
    match (allowed, input.add.set(supported), input.drop.set(supported)) {
        (Some(allowed), Some(added), Some(dropped)) => match result {
            Ok(set) => {
                assert!(allowed.contains(set), "more than the policy allows");
                assert!(set.contains(added), "less than was added");
                assert!(default.union(added).contains(set), "more than default and added");
                assert!(set.intersection(dropped.difference(added)).is_empty(), "dropped and still there");
                assert!(
                    dropped.union(set).contains(default.intersection(allowed)),
                    "lost without being dropped"
                );
                check_set(set, &input);
            }
            Err(Error::Denied { message }) => {
                let (_, names) = message.split_once(": ").unwrap();
                let named = CapSet::from_names(names.split(", ")).unwrap();
                assert_eq!(named, added.difference(allowed));
                assert!(!named.is_empty());
            }
            Err(other) => panic!("{other}"),
        },
        _ => assert!(matches!(result, Err(Error::Spec { .. })), "{result:?}"),
    }
    // These parsers must not panic.
    let _ = caps::parse_last_cap(&input.status);
    let _ = caps::parse_status(&input.status);
});

fn check_set(set: CapSet, input: &Input) {
    assert_eq!(CapSet::from_names(set.names()), Ok(set));
    assert_eq!(CapSet::from_names(set.names_upper()), Ok(set));
    assert!(set.names().is_sorted());

    let held = CapSet::from_bits(input.held);
    let withheld = caps::withheld(set, held);
    assert!(withheld.intersection(held).is_empty() && held.union(withheld).contains(set));

    let sets = Sets::for_uid(input.uid, set);
    assert_eq!((sets.bounding, sets.permitted, sets.effective), (set, set, set));
    assert!(sets.inheritable.contains(sets.ambient), "ambient must be inheritable");
    let text = format!(
        "CapInh:\t{:016x}\nCapPrm:\t{:016x}\nCapEff:\t{:016x}\nCapBnd:\t{:016x}\nCapAmb:\t{:016x}\n",
        sets.inheritable, sets.permitted, sets.effective, sets.bounding, sets.ambient
    );
    assert_eq!(caps::parse_status(&text), Some(sets));
}
