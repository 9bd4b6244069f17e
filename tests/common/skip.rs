//! Tests that a machine cannot run.

use std::fmt::Display;
use std::io::Write as _;

/// Says that a test is skipped, and why. Fails where `COFFERDAM_MUST_HAVE`, a list separated by commas, has one of
/// `abilities`: what this machine is known to have.
pub fn skip(abilities: &[&str], why: impl Display) {
    let listed = abilities.iter().find(|ability| must_have(ability));
    assert!(listed.is_none(), "this machine must have {}: {why}", listed.unwrap());
    // Past libtest's capture, so that it is seen when the test passes.
    let _ = writeln!(std::io::stderr(), "skipped: needs {}: {why}", abilities.join(" or "));
}

/// Whether `COFFERDAM_MUST_HAVE` lists the ability.
pub fn must_have(ability: &str) -> bool {
    let list = std::env::var("COFFERDAM_MUST_HAVE").unwrap_or_default();
    list.split(',').any(|listed| listed.trim() == ability)
}
