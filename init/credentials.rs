//! Sets ids, capabilities and the Landlock domain.

use crate::call::{At, Done, NextCall};
use crate::sys;
use crate::uapi::{
    AT_FDCWD, CAP_BITS, O_PATH, PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, PR_CAP_AMBIENT_RAISE,
    PR_CAPBSET_DROP, PR_SET_DUMPABLE, PR_SET_KEEPCAPS,
};
use crate::wire::List;

/// Sets all group and user ids and clears the dumpable flag: three calls.
pub fn set_ids(uid: u32, gid: u32, next: &mut NextCall) -> Done {
    sys::setresgid(gid).at(next.index())?;
    sys::setresuid(uid).at(next.index())?;
    // setresuid(2) sets the flag to the value of fs.suid_dumpable.
    sys::prctl(PR_SET_DUMPABLE, 0, 0).at(next.index()).map(drop)
}

/// Sets the supplementary groups and the ids, and keeps the permitted capabilities.
pub fn become_user(uid: u32, gid: u32, set_groups: bool, groups: List<'static, u32>) -> Done {
    let mut next = NextCall::from(0);
    sys::prctl(PR_SET_KEEPCAPS, 1, 0).at(next.index())?;
    if set_groups {
        let index = next.index();
        let list = sys::map_words(groups.len().div_ceil(2)).at(index)?;
        for (i, group) in groups.iter().enumerate() {
            if let Some(word) = list.get_mut(i / 2) {
                *word |= (group as usize) << if i % 2 == 0 { 0 } else { 32 };
            }
        }
        sys::setgroups(list, groups.len()).at(index)?;
    }
    set_ids(uid, gid, &mut next)
}

/// Drops the capabilities up to `last` from the bounding set, except those in `keep`.
pub fn limit_bounding(keep: u64, last: u32) -> Done {
    let known = u64::MAX >> CAP_BITS.saturating_sub(1).saturating_sub(last);
    drop_bounding(known & !keep, 0)
}

/// Drops the capabilities with these bits from the bounding set. `index` is the index of the call's line.
pub fn drop_bounding(bits: u64, index: u8) -> Done {
    for cap in (0..CAP_BITS).filter(|cap| bits & (1 << cap) != 0) {
        sys::prctl(PR_CAPBSET_DROP, cap as usize, 0).at(index)?;
    }
    Ok(())
}

/// Sets the permitted, effective, inheritable and ambient capabilities of the thread.
pub fn set_caps(permitted: u64, inheritable: u64, ambient: u64) -> Done {
    sys::capset(permitted, inheritable).at(0)?;
    sys::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0).at(1)?;
    for cap in (0..CAP_BITS).filter(|cap| ambient & (1 << cap) != 0) {
        sys::prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, cap as usize).at(2)?;
    }
    Ok(())
}

/// Enters a Landlock domain that handles the rights `fs`. Only `LANDLOCK_ACCESS_FS_REFER` is allowed, below `/`.
pub fn enter_landlock_domain(fs: u64, scoped: u64) -> Done {
    let mut next = NextCall::from(0);
    let ruleset = sys::landlock_create_ruleset(fs, scoped).at(next.index())?;
    if fs != 0 {
        let index = next.index();
        let root = sys::openat2(AT_FDCWD, c"/", O_PATH, 0).at(index)?;
        sys::landlock_allow_refer(ruleset, root).at(index)?;
        sys::close(root);
    }
    sys::landlock_restrict_self(ruleset).at(next.index())?;
    sys::close(ruleset);
    Ok(())
}
