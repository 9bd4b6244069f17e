//! `doctor`: what this host can do, and why not.

use std::collections::BTreeSet;
use std::io::Write;
use std::process::ExitCode;

use cofferdam::cgroup::{Detection, V1_REQUIRED, V2_REQUIRED, Version};
use cofferdam::{Health, Host};
use serde::Serialize;

use crate::Failure;

#[derive(Serialize)]
struct Diagnosis<'a> {
    health: Health,
    privileged: bool,
    host: &'a Host,
}

/// Prints the diagnosis; exits with 0 when the host is healthy, 1 when not, 2 when there is nothing here
/// to build on.
pub(crate) fn doctor(json: bool) -> Result<ExitCode, Failure> {
    let host = Host::probe()?;
    let health = host.health();
    let code = match health {
        Health::Healthy => 0,
        Health::Unhealthy(_) => 1,
        Health::Undetected(_) => 2,
    };
    let text = if json {
        let diagnosis = Diagnosis { health, privileged: host.privileged(), host: &host };
        serde_json::to_string_pretty(&diagnosis).map_err(|e| Failure::new(format!("doctor: {e}")))?
    } else {
        describe(&host, &health)
    };
    let _ = writeln!(std::io::stdout(), "{}", text.trim_end());
    Ok(ExitCode::from(code))
}

fn describe(host: &Host, health: &Health) -> String {
    let lacking = host.lacking();
    let namespaces = match (lacking.is_empty(), &host.user_ns_forbidden) {
        (true, _) => "mount pid ipc uts cgroup net, without a user namespace".to_string(),
        (false, None) => format!("in a user namespace: the caller lacks {lacking}"),
        (false, Some(why)) => format!("none: the caller lacks {lacking}, and {why}"),
    };
    let missing = host.supported.difference(host.held);
    let landlock = match host.landlock_abi {
        0 => "no".to_string(),
        abi => format!("ABI {abi} (not used yet)"),
    };
    let (major, minor) = host.kernel;
    let rows = [
        ("health", health.to_string()),
        ("kernel", format!("{major}.{minor}")),
        ("namespaces", namespaces),
        ("user ns", host.user_ns_forbidden.clone().unwrap_or_else(|| "allowed".into())),
        ("caps held", host.held.to_string()),
        ("caps lacking", if missing.is_empty() { "none".into() } else { missing.to_string() }),
        ("landlock", landlock),
        ("overlay", if host.overlay { "yes" } else { "no: the kernel has no overlay file system" }.into()),
    ];
    let mut text: String = rows.iter().map(|(name, value)| format!("{name:<13} {value}\n")).collect();
    text.push_str(&cgroups(&host.cgroups));
    text
}

/// The mode, and a line for each controller: where it is, or why it is not.
fn cgroups(found: &Detection) -> String {
    let gate = found.gate().map_or_else(|why| why.to_string(), |()| "all that limits need".into());
    let mut text = format!("{:<13} {:?}: {gate}\n", "cgroups", found.mode);
    let available = found.available();
    let names = found.v1.keys().map(String::as_str);
    let required: &[&str] = if found.limits_on == Version::V1 { &V1_REQUIRED } else { &V2_REQUIRED };
    let names = names.chain(required.iter().copied()).chain(available.iter().copied());
    for name in names.collect::<BTreeSet<_>>() {
        let place = match (found.v1.get(name), available.contains(name)) {
            (Some(v1), true) => format!("v1 {}", v1.mount.display()),
            (Some(v1), false) => format!("no: {} cannot be written", v1.mount.display()),
            (None, true) => "v2".to_string(),
            (None, false) => "no".to_string(),
        };
        text.push_str(&format!("  {name:<11} {place}\n"));
    }
    text
}
