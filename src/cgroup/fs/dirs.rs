//! Directories that a group is to make.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A directory that a group is to make.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewDir {
    pub path: PathBuf,
    pub owner: DirOwner,
}

/// Whose a directory is, and so who removes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DirOwner {
    /// The operator's: made if it does not exist, removed by the group that made it, when empty.
    Operator,
    /// The crate's own parent: made if it does not exist, removed when empty by whichever group is last.
    Crate,
    /// The task's: must be new, is removed with the task.
    Task,
}
