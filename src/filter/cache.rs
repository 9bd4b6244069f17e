//! Programs that were compiled before: sandboxes are many, and their profiles few.

use std::sync::{Arc, Mutex, PoisonError};

use super::bpf::Program;
use super::calls::Arch;
use super::compile::{Rules, compile};
use super::{Grants, Profile};
use crate::error::Result;

/// A program, and the rules that it was made of: what they leave open is asked for every task.
#[derive(Debug)]
pub(crate) struct CompiledFilter {
    pub program: Program,
    x86_64: Rules,
    /// None where the profile refuses all of i386.
    i386: Option<Rules>,
}

impl CompiledFilter {
    fn of(profile: &Profile, grants: &Grants) -> Result<CompiledFilter> {
        let program = compile(profile, grants)?;
        let rules = |arch| Rules::of(profile, grants, arch);
        let i386 = profile.i386.then(|| rules(Arch::I386));
        Ok(CompiledFilter { program, x86_64: rules(Arch::X86_64), i386 })
    }

    /// See [`Rules::may_execute`]; the architecture has the call.
    pub(crate) fn may_execute(&self, arch: Arch, name: &str, known: Option<(u8, u32)>) -> bool {
        let rules = match arch {
            Arch::X86_64 => Some(&self.x86_64),
            Arch::I386 => self.i386.as_ref(),
        };
        rules.is_some_and(|rules| rules.may_execute(name, known))
    }
}

type Known = Vec<((Profile, Grants), Arc<CompiledFilter>)>;

/// The last ones, the latest in front.
static KNOWN: Mutex<Known> = Mutex::new(Vec::new());
const MOST: usize = 32;

/// [`compile`], or what it gave before for the same profile and task.
///
/// # Errors
/// As `compile`.
pub(crate) fn compiled(profile: Profile, grants: Grants) -> Result<Arc<CompiledFilter>> {
    let key = (profile, grants);
    // Nothing that is done while it is locked can panic.
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
