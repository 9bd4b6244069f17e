//! Directories that a [`Group`](crate::cgroup::Group) makes.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// A directory that a group makes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NewDir {
    pub path: PathBuf,
    pub owner: DirOwner,
}

/// Owner of a directory. It determines when the directory is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DirOwner {
    /// The operator: the directory is made if it does not exist. If a group of the crate made it, the last group that
    /// leaves it empty removes it. Before Linux 5.7, only the group that made it does.
    Operator,
    /// The crate, for its own parent: the directory is made if it does not exist. The last group that leaves it empty
    /// removes it.
    Crate,
    /// The task: the directory must not exist before. It is removed with the task.
    Task,
}
