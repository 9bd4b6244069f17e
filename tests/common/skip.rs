//! Skipping tests that a machine cannot run.

use std::fmt::Display;
use std::io::Write as _;

/// Prints that a test is skipped, and why. Panics if the comma-separated list `COFFERDAM_MUST_HAVE` has one of
/// `abilities`, which this machine is known to have.
pub fn skip(abilities: &[&str], why: impl Display) {
    let listed = abilities.iter().find(|ability| must_have(ability));
    assert!(listed.is_none(), "this machine must have {}: {why}", listed.unwrap());
    note(format_args!("needs {}: {why}", abilities.join(" or ")));
}

/// Prints that a test, or a part of it, is skipped for a reason that is no ability.
pub fn note(why: impl Display) {
    // Written to the real standard error, because libtest hides captured output of tests that pass.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

/// Whether `COFFERDAM_MUST_HAVE` has the ability.
pub fn must_have(ability: &str) -> bool {
    let list = std::env::var("COFFERDAM_MUST_HAVE").unwrap_or_default();
    list.split(',').any(|listed| listed.trim() == ability)
}
