//! `doctor`: what this host supports, and why something is not supported.

use std::io::Write;
use std::process::ExitCode;

use cofferdam::cgroup::{Controller, Detection, RequiredControllers, Where};
use cofferdam::{Control, Health, Host, Policy, StaleSandbox};
use serde::Serialize;

use crate::Failure;

#[derive(Serialize)]
struct Diagnosis<'a> {
    health: Health,
    privileged: bool,
    host: &'a Host,
    /// Number of sandboxes that `prune` would remove. `None` if that is unknown.
    stale: Option<usize>,
}

/// Prints the diagnosis. Exits with 0 if the host is healthy, 1 if it is not, 2 if no sandbox can be made.
pub(crate) fn doctor(json: bool) -> Result<ExitCode, Failure> {
    let host = Host::probe()?;
    let health = host.health();
    let stale = StaleSandbox::find(&Policy::default(), &host, StaleSandbox::GRACE, |_| false).ok();
    let stale = stale.map(|found| found.len());
    let code = match health {
        Health::Healthy => 0,
        Health::Unhealthy(_) => 1,
        Health::Undetected(_) => 2,
    };
    let text = if json {
        let diagnosis = Diagnosis { health, privileged: host.privileged(), host: &host, stale };
        serde_json::to_string_pretty(&diagnosis).map_err(|e| Failure::new(format!("doctor: {e}")))?
    } else {
        describe(&host, &health, stale)
    };
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    Ok(ExitCode::from(code))
}

fn describe(host: &Host, health: &Health, stale: Option<usize>) -> String {
    let hindrance = host.hindrance();
    let namespaces = match (host.privileged(), &host.user_ns_forbidden) {
        (true, _) => "mount pid ipc uts cgroup net, without a user namespace".to_string(),
        (false, None) => format!("in a user namespace: the caller {hindrance}"),
        (false, Some(why)) => format!("none: the caller {hindrance}, and {why}"),
    };
    let missing = host.supported.difference(host.held);
    let landlock = match host.landlock_abi {
        0 => "no".to_string(),
        abi @ ..6 => {
            format!(
                "ABI {abi}: signals and abstract unix sockets are not restricted (needs ABI 6, Linux 6.12)"
            )
        }
        abi => format!("ABI {abi}"),
    };
    let (major, minor) = host.kernel;
    let ids = match (host.nested, host.uid_map.outside(host.uid)) {
        (true, Some(outside)) => format!("in a user namespace: uid {} is {outside} outside of it", host.uid),
        (true, None) => "in a user namespace that does not map the caller".to_string(),
        (false, _) => format!("uid {} of the host", host.uid),
    };
    let rows = [
        ("health", health.to_string()),
        ("kernel", format!("{major}.{minor}")),
        ("caller", ids),
        ("namespaces", namespaces),
        ("user ns", host.user_ns_forbidden.clone().unwrap_or_else(|| "allowed".into())),
        ("caps held", host.held.to_string()),
        ("caps lacking", if missing.is_empty() { "none".into() } else { missing.to_string() }),
        ("landlock", landlock),
        ("overlay", if host.overlay { "yes" } else { "no: the kernel has no overlay file system" }.into()),
        ("stale", stale.map_or("unknown".into(), |n| format!("{n} (see cofferdam prune --dry-run)"))),
    ];
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:<13} {value}\n")).collect();
    text.push_str(&cgroups(&host.cgroups));
    text
}

/// Prints the cgroup mode, whether each set of required controllers is available, and a line for each controller.
fn cgroups(found: &Detection) -> String {
    let gate = |set| found.requiring(set, Control::empty()).can_limit().map_err(str::to_owned).err();
    let shut = gate(RequiredControllers::Minimal);
    let limits = shut.as_deref().unwrap_or("all required controllers are available");
    let mut text = format!("{:<13} {:?}: {limits}\n", "cgroups", found.mode);
    let documented = match gate(RequiredControllers::Documented) {
        None => "yes".into(),
        Some(why) if Some(&why) == shut.as_ref() => "no: see above".into(),
        Some(why) => format!("no: {why}"),
    };
    text.push_str(&format!("  {:<11} {documented}\n", "documented"));
    text.push_str(&format!("  {:<11} {:<8} where\n", "controller", "enabled"));
    for row in &found.controllers {
        let enabled = if row.enabled { "yes" } else { "no" };
        text.push_str(&format!("  {:<11} {enabled:<8} {}\n", row.name, place(row, limits)));
    }
    text
}

/// Where a controller is, and why tasks cannot use it. The reason is left out if `said`, which is printed above,
/// contains it.
fn place(row: &Controller, said: &str) -> String {
    let place = match &row.place {
        Where::V1 { mount } => format!("v1 {}", mount.display()),
        Where::V2 { name } if *name == row.name => "v2".into(),
        Where::V2 { name } => format!("v2 {name}"),
        Where::V2Core { by } => format!("v2 core: {by}"),
        Where::Nowhere => "not available".into(),
    };
    match &row.why {
        None => place,
        Some(why) if row.place == Where::Nowhere && said.contains(why) => place,
        Some(why) if row.place == Where::Nowhere => format!("{place}: {why}"),
        Some(why) if said.contains(why) => format!("{place}, not usable for tasks"),
        Some(why) => format!("{place}, not usable for tasks: {why}"),
    }
}
