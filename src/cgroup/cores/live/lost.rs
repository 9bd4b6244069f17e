//! What an owner leaves behind who was killed.

use super::*;
use crate::cgroup::cores::Reserved;

#[test]
fn processors_without_an_owner_and_without_processes_are_anyones() {
    let Some(at) = Place::new("abandoned", 2) else { return };
    let (last, rest) = (at.nth(1).to_string(), at.without(&[at.nth(1)]));
    let left = at.group("left", &last, true).unwrap();
    let sleeper = Sleeper::new(&left);
    let paths = left.into_paths();
    assert!(at.refused("next", &last, true).ends_with("is reserved by \"left\""), "its process lives");
    drop(sleeper);
    assert_eq!((at.book().share, at.book().holders), (at.usable.clone(), vec![]));
    // An owner that found it again after a restart has it again.
    let left = Group::reopen(paths).unwrap();
    assert!(at.refused("next", &last, true).ends_with(", which has no processes"));
    let paths = left.into_paths();
    // And has it no more when another one got it.
    let next = at.group("next", &last, false).unwrap();
    assert!(matches!(at.book().holders.as_slice(), [only] if only.name == "next"), "{:?}", at.book());
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

    // What a task without reserved processors needs, and what one needs that would leave it nothing. Nested cgroups
    // are in nobody's way.
    fs::create_dir_all(at.leaf("next").join("nested/deep")).unwrap();
    let _ = next.into_paths();
    let most = at.group("most", &rest.to_string(), true).unwrap();
    assert_eq!(at.book().share.to_string(), last);
    let guest = at.group("guest", "", false).unwrap();
    assert_eq!((Sleeper::new(&guest).cores().to_string(), at.leaf("next").exists()), (last.clone(), false));
    let _ = most.into_paths();
    let more = at.group("more", &last, false).unwrap();
    assert_eq!(
        (at.file(&at.leaf("more"), "cpuset.cpus"), at.leaf("most").exists()),
        (at.usable.clone(), false)
    );
    drop((more, guest));
    // A guest that was left behind needs no processor.
    let _ = at.group("guest", "", false).unwrap().into_paths();
    drop(at.group("all", &at.usable.to_string(), true).unwrap());
    // The directories that hold nothing go when their names come again.
    for (name, cores) in [("next", &*last), ("most", &*last), ("guest", "")] {
        drop(at.group(name, cores, false).unwrap());
    }
    at.assert_gone();
}

/// Whoever was killed between two writes left the tree in one of these states.
#[test]
fn what_a_crash_leaves_is_healed_by_the_next() {
    let Some(at) = Place::new("crash", 2) else { return };
    let (first, last) = (at.nth(0).to_string(), at.nth(1).to_string());
    let guest = at.group("guest", "", false).unwrap();
    let guests = Sleeper::new(&guest);
    let held = at.group("held", &last, false).unwrap();
    let (rest, share) = (at.without(&[at.nth(1)]), at.site.share());
    let heal = |at: &Place| drop(at.group("other", "", false).unwrap());
    let write = |dir: &Path, text: &str| fs::write(dir.join("cpuset.cpus"), text).unwrap();

    // The share was not rewritten.
    write(&share, &at.usable.to_string());
    assert_eq!(guests.cores(), at.usable);
    heal(&at);
    assert_eq!(guests.cores(), rest);

    // The share was rewritten for a task that did not come to be.
    drop(held);
    assert!(!at.site.reserve().exists(), "nothing is divided");
    fs::create_dir(at.site.reserve()).unwrap();
    write(&share, &first);
    heal(&at);
    assert_eq!(guests.cores(), at.usable);

    // It had its directory already, and its record too, but no processors yet.
    let leaf = at.leaf("half");
    fs::create_dir_all(&leaf).unwrap();
    heal(&at);
    assert_eq!((guests.cores(), at.book().holders.len()), (at.usable.clone(), 0));
    let reserved = Reserved { cores: CpuSet::parse(&last).unwrap(), exclusive: true };
    files::set_record(&leaf, &reserved).unwrap();
    if at.site.version == Version::V2 {
        fs::write(at.site.reserve().join("cgroup.subtree_control"), "+cpuset").unwrap();
    }
    heal(&at);
    assert_eq!((guests.cores(), at.file(&leaf, "cpuset.cpus").to_string()), (rest.clone(), last.clone()));
    // Its owner is gone, and no process was there: whoever asks for its processors has them.
    assert_eq!((at.book().share, at.book().holders), (at.usable.clone(), vec![]));
    drop(at.group("other", &last, true).unwrap());
    assert_eq!(guests.cores(), at.usable);

    // Its name is taken by the next one, with or without processors of its own.
    let _ = at.group("half", &last, true).unwrap().into_paths();
    for cores in ["", &last] {
        let half = at.group("half", cores, !cores.is_empty()).unwrap();
        assert_eq!(at.book().holders.len(), usize::from(!cores.is_empty()));
        let _ = half.into_paths();
    }
    // A record that cannot be read holds nothing.
    let nonsense = Reserved { cores: CpuSet::default(), exclusive: false };
    files::set_record(&leaf, &nonsense).unwrap();
    heal(&at);
    assert_eq!(guests.cores(), at.usable);
    fs::remove_dir(&leaf).unwrap();
    drop((guests, guest));
    if let Some(v2) = at.host.v2.as_ref().filter(|v2| !at.site.parent.starts_with(&v2.mount)) {
        // What the test let go of in the tree that has no book.
        let slice = v2.mount.join(at.parent.as_ref()).join("reserve.slice");
        let _ = fs::remove_dir(slice.join("half.scope"));
        let _ = fs::remove_dir(slice);
    }
    let _ = fs::remove_dir(at.site.reserve());
    at.assert_gone();
}
