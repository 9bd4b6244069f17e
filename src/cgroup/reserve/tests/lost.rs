//! Reservations whose owner was killed.

use super::*;

#[test]
fn a_reservation_without_owner_and_processes_is_given_to_the_next() {
    let Some(at) = Parent::new("abandoned", 2) else { return };
    let (last, rest) = (at.nth(1).to_string(), at.without(&[at.nth(1)]));
    let left = at.group("left", &last, true).unwrap();
    let sleeper = Sleeper::new(&left);
    let paths = left.into_paths();
    assert!(at.refused("next", &last, true).ends_with("is reserved by \"left\""), "its process lives");
    drop(sleeper);
    assert_eq!((at.reservations().share, at.reservations().holders), (at.usable.clone(), vec![]));
    // An owner that found it again after a restart has it again.
    let left = Group::reopen(paths).unwrap();
    assert!(at.refused("next", &last, true).ends_with(", which has no processes"));
    let paths = left.into_paths();
    // And has it no more when another one got it.
    let next = at.group("next", &last, false).unwrap();
    assert!(
        matches!(at.reservations().holders.as_slice(), [only] if only.name == "next"),
        "{:?}",
        at.reservations()
    );
    assert_eq!(
        (at.file(&at.leaf("next"), "cpuset.cpus"), at.leaf("left").exists()),
        (at.usable.clone(), false)
    );
    match (at.site.version, Group::reopen(paths)) {
        // What it had in other hierarchies is still there, to be read and to be removed.
        (Version::V1, left) => left.unwrap().remove().unwrap(),
        (Version::V2, left) => assert!(left.is_err()),
    }
    assert!(at.refused("left", &last, true).contains("by \"next\""));

    // Stale reservations go to a task without a reservation, and to one that would leave none for it. Nested cgroups
    // do not keep them.
    fs::create_dir_all(at.leaf("next").join("nested/deep")).unwrap();
    let _ = next.into_paths();
    let most = at.group("most", &rest.to_string(), true).unwrap();
    assert_eq!(at.reservations().share.to_string(), last);
    let sharer = at.group("sharer", "", false).unwrap();
    assert_eq!((Sleeper::new(&sharer).cores().to_string(), at.leaf("next").exists()), (last.clone(), false));
    let _ = most.into_paths();
    let more = at.group("more", &last, false).unwrap();
    assert_eq!(
        (at.file(&at.leaf("more"), "cpuset.cpus"), at.leaf("most").exists()),
        (at.usable.clone(), false)
    );
    drop((more, sharer));
    // A stale task without a reservation needs no processor.
    let _ = at.group("sharer", "", false).unwrap().into_paths();
    drop(at.group("all", &at.usable.to_string(), true).unwrap());
    // The directories that hold nothing go when their names come again.
    for (name, cores) in [("next", &*last), ("most", &*last), ("sharer", "")] {
        drop(at.group(name, cores, false).unwrap());
    }
    at.assert_gone();
}

/// A process that is killed between two writes leaves the tree in one of these states.
#[test]
fn what_a_crash_leaves_is_healed_by_the_next_task() {
    let Some(at) = Parent::new("crash", 2) else { return };
    let (first, last) = (at.nth(0).to_string(), at.nth(1).to_string());
    let sharer = at.group("sharer", "", false).unwrap();
    let sharers = Sleeper::new(&sharer);
    let held = at.group("held", &last, false).unwrap();
    let (rest, share) = (at.without(&[at.nth(1)]), at.site.share());
    let heal = |at: &Parent| drop(at.group("other", "", false).unwrap());
    let write = |dir: &Path, text: &str| fs::write(dir.join("cpuset.cpus"), text).unwrap();

    // The share was not rewritten.
    write(&share, &at.usable.to_string());
    assert_eq!(sharers.cores(), at.usable);
    heal(&at);
    assert_eq!(sharers.cores(), rest);

    // The share was rewritten for a task that did not come to be.
    drop(held);
    assert!(!at.site.reserve().exists(), "nothing is divided");
    fs::create_dir(at.site.reserve()).unwrap();
    write(&share, &first);
    heal(&at);
    assert_eq!(sharers.cores(), at.usable);

    // It had its directory already, and its record too, but no processors yet.
    let leaf = at.leaf("half");
    fs::create_dir_all(&leaf).unwrap();
    heal(&at);
    assert_eq!((sharers.cores(), at.reservations().holders.len()), (at.usable.clone(), 0));
    let reserved = Reserved { cores: CpuSet::parse(&last).unwrap(), exclusive: true };
    record::set(&Kernel::real(), &leaf, &reserved).unwrap();
    if at.site.version == Version::V2 {
        fs::write(at.site.reserve().join("cgroup.subtree_control"), "+cpuset").unwrap();
    }
    heal(&at);
    assert_eq!((sharers.cores(), at.file(&leaf, "cpuset.cpus").to_string()), (rest.clone(), last.clone()));
    // Its owner is gone, and it has no process: the next task that asks for its processors has them.
    assert_eq!((at.reservations().share, at.reservations().holders), (at.usable.clone(), vec![]));
    drop(at.group("other", &last, true).unwrap());
    assert_eq!(sharers.cores(), at.usable);

    // Its name is taken by the next one, with or without processors of its own.
    let _ = at.group("half", &last, true).unwrap().into_paths();
    for cores in ["", &last] {
        let half = at.group("half", cores, !cores.is_empty()).unwrap();
        assert_eq!(at.reservations().holders.len(), usize::from(!cores.is_empty()));
        let _ = half.into_paths();
    }
    // A record that cannot be read holds nothing.
    let nonsense = Reserved { cores: CpuSet::default(), exclusive: false };
    record::set(&Kernel::real(), &leaf, &nonsense).unwrap();
    heal(&at);
    assert_eq!(sharers.cores(), at.usable);
    fs::remove_dir(&leaf).unwrap();
    drop((sharers, sharer));
    if let Some(v2) = at.host.v2.as_ref().filter(|v2| !at.site.parent.starts_with(&v2.mount)) {
        // What the test let go of in the tree, which has no reservations.
        let slice = v2.mount.join(at.parent.as_ref()).join("reserve.slice");
        let _ = fs::remove_dir(slice.join("half.scope"));
        let _ = fs::remove_dir(slice);
    }
    let _ = fs::remove_dir(at.site.reserve());
    at.assert_gone();
}
