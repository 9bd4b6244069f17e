//! A cache of compiled filters, because a process usually makes many sandboxes from few profiles.

use std::sync::{Arc, Mutex, PoisonError};

use super::bpf::Program;
use super::calls::Arch;
use super::compile::{Rules, assemble, rules};
use super::{Grants, Profile};
use crate::error::Result;

/// A compiled filter with its rules, which `crate::compile` queries for every task.
#[derive(Debug)]
pub(crate) struct CompiledFilter {
    pub program: Program,
    x86_64: Rules,
    /// `None` if the profile refuses all i386 calls.
    i386: Option<Rules>,
}

impl CompiledFilter {
    fn of(profile: &Profile, grants: &Grants) -> Result<CompiledFilter> {
        let (x86_64, i386) = rules(profile, grants)?;
        Ok(CompiledFilter { program: assemble(&x86_64, i386.as_ref())?, x86_64, i386 })
    }

    /// Whether a call may be executed with some arguments; see [`Rules::may_execute`]. The architecture must have the
    /// call.
    pub(crate) fn may_execute(&self, arch: Arch, name: &str, known: Option<(u8, u32)>) -> bool {
        let rules = match arch {
            Arch::X86_64 => Some(&self.x86_64),
            Arch::I386 => self.i386.as_ref(),
        };
        rules.is_some_and(|rules| rules.may_execute(name, known))
    }
}

type Known = Vec<((Profile, Grants), Arc<CompiledFilter>)>;

/// The cached filters, most recently used first.
static KNOWN: Mutex<Known> = Mutex::new(Vec::new());
const MOST: usize = 32;

/// Compiles a profile, or returns the cached filter for the same profile and grants.
///
/// # Errors
/// See [`compile`](super::compile()).
pub(crate) fn compiled(profile: Profile, grants: Grants) -> Result<Arc<CompiledFilter>> {
    let key = (profile, grants);
    // A poisoned lock is used: no code panics while it holds the lock.
    let known = || KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    {
        let mut known = known();
        if let Some(at) = known.iter().position(|(k, _)| *k == key) {
            let found = known.remove(at);
            let program = Arc::clone(&found.1);
            known.insert(0, found);
            return Ok(program);
        }
    }
    let program = Arc::new(CompiledFilter::of(&key.0, &key.1)?);
    let mut known = known();
    known.insert(0, (key, Arc::clone(&program)));
    known.truncate(MOST);
    Ok(program)
}
