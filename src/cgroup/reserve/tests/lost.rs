//! Tests of reservations whose owner was killed.

use super::*;

#[test]
fn the_cpus_of_a_reservation_without_owner_and_processes_can_be_reserved_again() {
    let Some(at) = Parent::new("abandoned", 2) else { return };
    let (last, rest) = (at.nth(1).to_string(), at.without(&[at.nth(1)]));
    let left = at.group("left", &last, true).unwrap();
    let sleeper = Sleeper::new(&left);
    let paths = left.into_paths();
    assert!(at.refused("next", &last, true).ends_with("is reserved by \"left\""), "its process lives");
    drop(sleeper);
    assert_eq!((at.reservations().share, at.reservations().holders), (at.usable.clone(), vec![]));
    // An owner that reopens its group after a restart has its reservation again.
    let left = Group::reopen(paths).unwrap();
    assert!(at.refused("next", &last, true).ends_with(", which has no processes"));
    let paths = left.into_paths();
    // It loses the reservation to a task that reserved the same CPU meanwhile.
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
        // Its cgroups in other hierarchies still exist and can be read and removed.
        (Version::V1, left) => left.unwrap().remove().unwrap(),
        (Version::V2, left) => assert!(left.is_err()),
    }
    assert!(at.refused("left", &last, true).contains("by \"next\""));

    // A stale reservation is removed for a task without a reservation, and for a reservation that would leave no CPU
    // for such a task. Nested cgroups do not prevent this.
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
    // A stale task without a reservation needs no CPU.
    let _ = at.group("sharer", "", false).unwrap().into_paths();
    drop(at.group("all", &at.usable.to_string(), true).unwrap());
    // The remaining stale directories are removed when tasks of the same names are created.
    for (name, cores) in [("next", &*last), ("most", &*last), ("sharer", "")] {
        drop(at.group(name, cores, false).unwrap());
    }
    at.assert_gone();
}

/// A process that is killed between two writes leaves the tree in one of these states.
#[test]
fn the_next_task_repairs_the_cpusets_after_a_crash() {
    let Some(at) = Parent::new("crash", 2) else { return };
    let (first, last) = (at.nth(0).to_string(), at.nth(1).to_string());
    let sharer = at.group("sharer", "", false).unwrap();
    let sharers = Sleeper::new(&sharer);
    let held = at.group("held", &last, false).unwrap();
    let (rest, share) = (at.without(&[at.nth(1)]), at.site.share());
    let heal = |at: &Parent| drop(at.group("other", "", false).unwrap());
    let write = |dir: &Path, text: &str| fs::write(dir.join("cpuset.cpus"), text).unwrap();

    // The shared cpuset was not rewritten.
    write(&share, &at.usable.to_string());
    assert_eq!(sharers.cores(), at.usable);
    heal(&at);
    assert_eq!(sharers.cores(), rest);

    // The shared cpuset was rewritten for a reservation that was never made.
    drop(held);
    assert!(!at.site.reserve().exists(), "nothing is divided");
    fs::create_dir(at.site.reserve()).unwrap();
    write(&share, &first);
    heal(&at);
    assert_eq!(sharers.cores(), at.usable);

    // The reservation's directory was created and its record written, but `cpuset.cpus` was not.
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
    // The reservation has neither an owner nor a process: the next task that requests its CPUs gets them.
    assert_eq!((at.reservations().share, at.reservations().holders), (at.usable.clone(), vec![]));
    drop(at.group("other", &last, true).unwrap());
    assert_eq!(sharers.cores(), at.usable);

    // The next task of the same name replaces it, with or without a reservation of its own.
    let _ = at.group("half", &last, true).unwrap().into_paths();
    for cores in ["", &last] {
        let half = at.group("half", cores, !cores.is_empty()).unwrap();
        assert_eq!(at.reservations().holders.len(), usize::from(!cores.is_empty()));
        let _ = half.into_paths();
    }
    // A record that cannot be parsed reserves nothing.
    let nonsense = Reserved { cores: CpuSet::default(), exclusive: false };
    record::set(&Kernel::real(), &leaf, &nonsense).unwrap();
    heal(&at);
    assert_eq!(sharers.cores(), at.usable);
    fs::remove_dir(&leaf).unwrap();
    // Its leaves in the other hierarchies stay until a task of the same name is created.
    drop(at.group("half", "", false).unwrap());
    drop((sharers, sharer));
    if let Some(v2) = at.host.v2.as_ref().filter(|v2| !at.site.parent.starts_with(&v2.mount)) {
        // The leftovers of this test in the v2 tree, which has no reservations on this host.
        let slice = v2.mount.join(at.parent.as_ref()).join("reserve.slice");
        let _ = fs::remove_dir(slice.join("half.scope"));
        let _ = fs::remove_dir(slice);
    }
    let _ = fs::remove_dir(at.site.reserve());
    at.assert_gone();
}
