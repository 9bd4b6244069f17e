//! `prune`: kills and removes what killed drivers have left.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use cofferdam::{Host, StaleSandbox, notation};

use crate::state::Store;
use crate::{Failure, args};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only print what would be removed
    #[arg(long)]
    dry_run: bool,
    /// Leave what was made or changed less than this time ago; at least 5s
    #[arg(long, value_name = "TIME", value_parser = notation::duration, default_value = "30s")]
    grace: Duration,
    /// Name of a sandbox to leave (repeatable)
    #[arg(long, value_name = "NAME")]
    keep: Vec<String>,
    /// Read the operator's policy from a JSON file: its cgroup_parent, temp_dir and state_dir are searched
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
}

/// Prints one line for each stale sandbox, and removes it. Exits with 1 if one could not be removed.
///
/// Without a driver, a detached task looks stale, so those that are stored are left. Without a policy file, what is left
/// in the directories of detached tasks is found too.
pub(crate) fn prune(args: &Args) -> Result<ExitCode, Failure> {
    let policy = args::read_policy(args.policy.as_ref())?;
    let mut policies = Vec::new();
    let store = Store::existing()?;
    if let Some(store) = store.as_ref().filter(|_| args.policy.is_none()) {
        let mut detached = policy.clone();
        store.places(&mut detached);
        policies.push(detached);
    }
    // Looked up anew for each sandbox, because tasks may be started meanwhile: a handle is stored before its task has no owner.
    let is_stored = |id: &str| store.as_ref().is_some_and(|store| store.has(id));
    let is_claimed = |id: &str| args.keep.iter().any(|kept| kept == id) || is_stored(id);
    policies.push(policy);
    let host = Host::probe()?;
    let (mut printed, mut failed) = (BTreeSet::new(), false);
    for policy in policies {
        for stale in StaleSandbox::find(&policy, &host, args.grace, is_claimed)? {
            if printed.insert(stale.id().to_owned()) {
                let _ = writeln!(std::io::stdout(), "{stale}");
            }
            if !args.dry_run
                && let Err(error) = stale.remove()
            {
                Failure::from(error).print();
                failed = true;
            }
        }
    }
    Ok(ExitCode::from(u8::from(failed)))
}
