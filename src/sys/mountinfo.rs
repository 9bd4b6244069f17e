//! PLACEHOLDER until merged.
use std::path::PathBuf;
pub(crate) fn points(_text: &[u8]) -> impl Iterator<Item = PathBuf> + '_ {
    std::iter::empty()
}
