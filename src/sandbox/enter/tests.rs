//! A process that enters a task has the task's namespaces, cgroups, ids, capabilities and filters.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use super::*;
use crate::spec::Stdio;
use crate::status::ExitStatus;
use crate::{Policy, Sandbox};

/// Spawns the sandbox. If this machine does not allow that, the test is skipped; in CI it fails.
fn sandboxes(sandbox: &Sandbox) -> Option<Task> {
    match sandbox.spawn() {
        Ok(task) => Some(task),
        Err(e) => {
            crate::skip::skip(&["root", "userns"], e);
            None
        }
    }
}

fn sleeper() -> Sandbox {
    Sandbox::command("/bin/sleep").args(["600"])
}

fn shell(script: &str) -> ExecSpec {
    ExecSpec::command("/bin/sh").args(["-c", script]).env("PATH", "/usr/bin:/bin").env("X", "entered")
}

/// Runs a script in the task and returns its output and its exit status.
fn run(task: &Task, script: &str) -> (String, ExitStatus) {
    let entered = task.exec(&shell(script).stdout(Stdio::Piped).stderr(Stdio::Inherit)).unwrap();
    let output = entered.wait_with_output(1 << 20, None).unwrap();
    (String::from_utf8(output.stdout).unwrap(), output.status)
}

/// The lines of `/proc/PID/status` with ids, capabilities, filters and CPUs.
fn confinement(status: &str) -> BTreeMap<String, String> {
    const LINES: [&str; 12] = [
        "Uid",
        "Gid",
        "Groups",
        "CapInh",
        "CapPrm",
        "CapEff",
        "CapBnd",
        "CapAmb",
        "NoNewPrivs",
        "Seccomp",
        "Seccomp_filters",
        "Cpus_allowed_list",
    ];
    let pairs = status.lines().filter_map(|line| line.split_once(':'));
    pairs.filter(|(key, _)| LINES.contains(key)).map(|(k, v)| (k.into(), v.trim().into())).collect()
}

fn of_the_task(task: &Task, file: &str) -> String {
    fs::read_to_string(format!("/proc/{}/{file}", task.pid().unwrap())).unwrap()
}

const NAMESPACES: [&str; 7] = ["cgroup", "ipc", "mnt", "net", "pid", "user", "uts"];

fn namespaces_of_the_task(task: &Task) -> Vec<String> {
    let link = |ns| fs::read_link(format!("/proc/{}/ns/{ns}", task.pid().unwrap())).unwrap();
    NAMESPACES.iter().map(|ns| link(ns).display().to_string()).collect()
}

fn same(sandbox: &Sandbox) {
    let Some(task) = sandboxes(sandbox) else { return };
    let links = NAMESPACES.map(|ns| format!("readlink /proc/self/ns/{ns}")).join(" && ");
    let (printed, status) = run(&task, &links);
    assert!(status.success(), "{status}");
    assert_eq!(printed.lines().collect::<Vec<_>>(), namespaces_of_the_task(&task));
    let (printed, _) = run(&task, "cat /proc/self/status");
    let (mut entered, mut main) = (confinement(&printed), confinement(&of_the_task(&task, "status")));
    // A process that forks into a PID namespace has one more filter.
    let filters = [&mut entered, &mut main].map(|lines| lines.remove("Seccomp_filters").unwrap());
    let filters = filters.map(|count| count.parse::<u32>().unwrap());
    assert!([0, 1].map(|more| filters[1].saturating_add(more)).contains(&filters[0]), "{filters:?}");
    assert_eq!(entered, main);
    let (printed, _) = run(&task, "cat /proc/self/mountinfo");
    assert!(printed.lines().count() > 3 && !printed.contains("/proc/self/fd"), "{printed}");
    let (printed, status) = run(&task, "echo $X; pwd; exit 7");
    assert_eq!((printed.as_str(), status.code), ("entered\n/\n", Some(7)));
    task.kill().unwrap();
    task.wait().unwrap();
}

#[test]
fn an_entered_process_has_the_namespaces_ids_capabilities_and_filters_of_the_task() {
    same(&sleeper());
    same(&sleeper().with(|s| {
        s.network = crate::Network::None;
        s.hostname = Some("dam".into());
    }));
}

#[test]
fn an_entered_process_is_confined_like_a_task_without_init() {
    same(&sleeper().with(|s| s.init = false));
}

#[test]
fn an_entered_process_is_confined_like_a_task_in_a_chroot() {
    same(&sleeper().policy(&Policy { no_pivot_root: true, ..Policy::default() }));
}

#[test]
fn an_entered_process_is_in_the_cgroups_of_the_task_and_ends_with_it() {
    let Some(task) = sandboxes(&sleeper()) else { return };
    if !task.report().enforced.contains(crate::Control::KILL) || task.processes().is_err() {
        crate::skip::note("no cgroups");
        return;
    }
    let entered = task.exec(&shell("sleep 600")).unwrap();
    let inside = task.processes().unwrap().len();
    assert!(inside >= 3, "{:?}", task.processes());
    task.kill().unwrap();
    let status = entered.wait().unwrap();
    assert!(!status.success(), "{status}");
    task.wait().unwrap();
}

#[test]
fn an_error_names_the_command_that_cannot_be_executed_in_the_task() {
    let Some(task) = sandboxes(&sleeper()) else { return };
    let refused = task.exec(&ExecSpec::command("/nothing")).unwrap_err();
    assert!(
        matches!(&refused, crate::Error::Exec { program, .. } if program == Path::new("/nothing")),
        "{refused:?}"
    );
    let (printed, _) = run(&task, "echo still");
    assert_eq!(printed, "still\n");
}
