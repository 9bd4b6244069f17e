//! Ids, capabilities, and the Landlock domain.

use crate::call::{At, Done};
use crate::sys;
use crate::uapi::{
    AT_FDCWD, CAP_BITS, O_PATH, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP, PR_SET_DUMPABLE, PR_SET_KEEPCAPS,
};
use crate::wire::List;

/// Sets all user and group ids. `first` is the index of the first of the three calls.
pub fn set_ids(uid: u32, gid: u32, first: usize) -> Done {
    sys::setresgid(gid).at(first)?;
    sys::setresuid(uid).at(first + 1)?;
    // Becoming another user set it to the value of fs.suid_dumpable.
    sys::prctl(PR_SET_DUMPABLE, 0, 0).at(first + 2).map(drop)
}

/// Sets the supplementary groups and the ids, and keeps the permitted capabilities.
pub fn become_user(uid: u32, gid: u32, set_groups: bool, groups: List<'static, u32>) -> Done {
    sys::prctl(PR_SET_KEEPCAPS, 1, 0).at(0)?;
    let mut calls = 1;
    if set_groups {
        let list = sys::map_words(groups.len() / 2 + 1).at(1)?;
        for (i, group) in groups.iter().enumerate() {
            if let Some(word) = list.get_mut(i / 2) {
                *word |= (group as usize) << (32 * (i % 2));
            }
        }
        sys::setgroups(list, groups.len()).at(1)?;
        calls = 2;
    }
    set_ids(uid, gid, calls)
}

/// Drops all but the capabilities in `keep` from the bounding set, up to `last`. `index` is that of the call.
pub fn drop_bounding(keep: u64, last: u32, index: usize) -> Done {
    for cap in (0..CAP_BITS).filter(|cap| *cap <= last && keep & (1 << cap) == 0) {
        sys::prctl(PR_CAPBSET_DROP, cap as usize, 0).at(index)?;
    }
    Ok(())
}

/// Sets the capabilities of the thread.
pub fn set_caps(permitted: u64, inheritable: u64, ambient: u64) -> Done {
    sys::capset(permitted, inheritable).at(0)?;
    sys::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0).at(1)?;
    for cap in (0..CAP_BITS).filter(|cap| ambient & (1 << cap) != 0) {
        sys::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap as usize).at(2)?;
    }
    Ok(())
}

/// Enters a Landlock domain, in which only `REFER` is allowed, everywhere.
pub fn enter_landlock_domain(fs: u64, scoped: u64) -> Done {
    let ruleset = sys::landlock_create_ruleset(fs, scoped).at(0)?;
    let mut calls = 1;
    if fs != 0 {
        let root = sys::openat2(AT_FDCWD, c"/", O_PATH, 0).at(1)?;
        sys::landlock_allow_refer(ruleset, root).at(1)?;
        sys::close(root);
        calls = 2;
    }
    sys::landlock_restrict_self(ruleset).at(calls)?;
    sys::close(ruleset);
    Ok(())
}
