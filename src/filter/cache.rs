//! Programs that were compiled before: sandboxes are many, and their profiles few.

use std::sync::{Arc, Mutex, PoisonError};

use super::bpf::Program;
use super::{Grants, Profile, compile};
use crate::error::Result;

type Known = Vec<((Profile, Grants), Arc<Program>)>;

/// The last ones, the latest in front.
static KNOWN: Mutex<Known> = Mutex::new(Vec::new());
const MOST: usize = 32;

/// [`compile`], or what it gave before for the same profile and task.
///
/// # Errors
/// As `compile`.
pub(crate) fn compiled(profile: Profile, grants: Grants) -> Result<Arc<Program>> {
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
    let program = Arc::new(compile(&key.0, &key.1)?);
    let mut known = known();
    known.insert(0, (key, Arc::clone(&program)));
    known.truncate(MOST);
    Ok(program)
}
