//! Detached tasks: `run -d`, `ps`, `inspect`, `wait`, `exec`, `stop`, `kill`, `pause`, `unpause`, `rm`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

mod common;
use common::{State, binary, skip, text, until};

/// Runs until it is signalled, and exits with 43 then.
const LOOP: &str = "trap 'exit 43' TERM; echo ready; while :; do sleep 0.02; done";

/// Ignores SIGTERM.
const STUBBORN: &str = "trap '' TERM; echo ready; while :; do sleep 0.02; done";

#[test]
fn detached_task_is_listed_waited_for_and_removed() {
    let Some(state) = State::new("life") else { return };
    let name = state.name("a");
    state.start(&name, "sleep 1; exit 43");
    let table = state.ok(&["ps"]);
    let row: Vec<&str> = table.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!(row[..2], [name.as_str(), "running"], "{table}");
    assert!(table.contains("sh -c sleep 1; exit 43"), "{table}");
    let facts: serde_json::Value = serde_json::from_str(&state.ok(&["inspect", &name])).unwrap();
    assert_eq!(facts[0]["state"], "running");
    assert_eq!(facts[0]["command"][2], "sleep 1; exit 43");
    assert!(
        facts[0]["pid"].is_number()
            && facts[0]["exit"].is_null()
            && facts[0]["report"]["asked"].is_array()
            && facts[0]["finished"].is_null()
    );
    assert_eq!(state.ok(&["wait", &name]), "43");
    assert_eq!(state.ok(&["wait", &name, &name]), "43\n43");
    assert_eq!(state.status(&name), "exited (43)");
    let facts: serde_json::Value = serde_json::from_str(&state.ok(&["inspect", &name])).unwrap();
    assert_eq!((&facts[0]["state"], &facts[0]["exit"]["code"]), (&"exited".into(), &43.into()));
    // RFC 3339 times of one length are ordered as text.
    let [created, finished] = ["created", "finished"].map(|key| facts[0][key].as_str().unwrap());
    assert!(created.len() == "2026-01-02T03:04:05Z".len() && created.ends_with('Z'), "{created}");
    assert!(created < finished && finished.len() == created.len(), "{created} {finished}");
    let table = state.ok(&["ps", "-a"]);
    let row = table.lines().nth(1).unwrap();
    assert!(row.contains("   exited (43) ") && row.matches(" ago").count() == 2, "{table}");
    assert_eq!(state.ok(&["ps", "-q"]), "");
    assert_eq!(state.ok(&["ps", "-aq"]), name);
    assert_eq!(state.ok(&["rm", &name]), name);
    assert_eq!(state.ok(&["ps", "-aq"]), "");
    assert!(state.refused(&["rm", &name]).contains(&format!("no task {name}")));
}

#[test]
fn a_wait_does_not_keep_other_calls_from_the_task() {
    let Some(state) = State::new("shared") else { return };
    let name = state.name("a");
    state.start(&name, LOOP);
    let waiting = state.command(&["wait", &name]).stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut exec = state.command(&["exec", &name, "sh", "-c", "echo ready; sleep 100"]);
    let mut running = exec.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut ready = [0; 6];
    running.stdout.take().unwrap().read_exact(&mut ready).unwrap();
    assert_eq!(state.status(&name), "running");
    state.await_ready(&name);
    assert_eq!(state.ok(&["stop", &name]), name);
    assert_eq!(text(&waiting.wait_with_output().unwrap().stdout), "43");
    assert_eq!(running.wait().unwrap().code(), Some(137));
}

#[test]
fn exec_has_the_exit_code_environment_directory_and_streams_of_its_flags() {
    let Some(state) = State::new("exec") else { return };
    let name = state.name("a");
    state.start(&name, LOOP);
    let script = "echo $A $B; pwd; cat; exit 9";
    let output =
        state.call(&["exec", "-e", "A=1", "--env", "B=x y", "-w", "/tmp", &name, "sh", "-c", script]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(9), "1 x y\n/tmp".into()), "{output:?}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "some input").unwrap();
    for (flags, read) in [(&["exec", "-i"][..], "some input"), (&["exec"], "")] {
        let mut command = state.command(&[flags, &[&name, "cat"]].concat());
        let output = command.stdin(std::fs::File::open(file.path()).unwrap()).output().unwrap();
        assert_eq!((output.status.code(), text(&output.stdout).as_str()), (Some(0), read));
    }
    // A process that is left behind has the pipe to the file.
    let start = Instant::now();
    let mut command = state.command(&["exec", &name, "sh", "-c", "sleep 60 & echo done"]);
    assert!(command.stdout(file.reopen().unwrap()).status().unwrap().success());
    assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    assert!(std::fs::read_to_string(file.path()).unwrap().starts_with("done\n"));
    for (command, code) in
        [(&["no-such-command"][..], 127), (&["/etc/passwd"], 126), (&["sh", "-c", "kill -9 $$"], 137)]
    {
        let output = state.call(&[&["exec", &name], command].concat());
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
    assert!(state.refused(&["exec", "-e", "A", &name, "true"]).contains("\"A\" is not K=V"));
    assert!(state.refused(&["exec", "-it", &name, "true"]).contains("standard input is not a terminal"));
    state.ok(&["stop", &name]);
    let refused = state.refused(&["exec", &name, "true"]);
    assert!(refused.contains(&format!("task {name}: exec in a task that has ended")), "{refused}");
}

#[test]
fn stop_and_kill_end_a_task_and_its_status_is_stored() {
    let Some(state) = State::new("stop") else { return };
    let [gentle, stubborn, killed, signalled] =
        ["gentle", "stubborn", "killed", "usr"].map(|n| state.name(n));
    for (name, script) in [(&gentle, LOOP), (&stubborn, STUBBORN), (&killed, LOOP)] {
        state.start(name, script);
    }
    state.start(&signalled, "trap 'exit 6' USR1; echo ready; while :; do sleep 0.02; done");
    for name in [&gentle, &stubborn, &killed, &signalled] {
        state.await_ready(name);
    }
    assert_eq!(state.ok(&["stop", "-t", "0", &stubborn]), stubborn);
    assert_eq!(state.ok(&["stop", &gentle]), gentle);
    assert_eq!(state.ok(&["kill", &killed]), killed);
    assert_eq!(state.ok(&["kill", "-s", "USR1", &signalled]), signalled);
    assert_eq!(state.ok(&["wait", &gentle, &stubborn, &killed, &signalled]), "43\n137\n137\n6");
    assert_eq!(state.status(&gentle), "exited (43)");
    assert_eq!(state.status(&stubborn), "signal 9");
    assert_eq!(state.status(&killed), "signal 9");
    assert!(state.refused(&["kill", &gentle]).contains("it has ended"));
    assert_eq!(state.ok(&["stop", &gentle]), gentle);
    assert_eq!(state.status(&gentle), "exited (43)");
    assert!(state.refused(&["kill", "-s", "NOPE", &gentle]).contains("is not a signal"));
}

#[test]
fn a_running_task_is_removed_only_by_force() {
    let Some(state) = State::new("rm") else { return };
    let name = state.name("a");
    state.start(&name, LOOP);
    let refused = state.refused(&["rm", &name]);
    assert!(refused.contains(&format!("task {name}: it is running")), "{refused}");
    assert_eq!(state.status(&name), "running");
    assert_eq!(state.ok(&["rm", "-f", &name]), name);
    assert_eq!(state.ok(&["ps", "-a", "--format", "json"]), "[]");
}

#[test]
fn pause_freezes_a_task_and_unpause_thaws_it() {
    let Some(state) = State::new("pause") else { return };
    let name = state.name("a");
    let args = ["run", "-d", "--name", &name, "--accounting", "--require", "best_effort", "sh", "-c", LOOP];
    state.ok(&args);
    state.await_ready(&name);
    let paused = state.call(&["pause", &name]);
    if !paused.status.success() {
        return skip::skip(&["cgroups"], text(&paused.stderr));
    }
    assert_eq!(state.status(&name), "frozen");
    assert!(state.refused(&["exec", &name, "true"]).contains("frozen"));
    assert_eq!(state.ok(&["unpause", &name]), name);
    assert_eq!(state.status(&name), "running");
    // A frozen task is thawed to get the signal.
    state.ok(&["pause", &name]);
    assert_eq!(state.ok(&["stop", "-t", "60", &name]), name);
    assert_eq!(state.status(&name), "exited (43)");
}

#[test]
fn prune_leaves_detached_tasks() {
    let Some(state) = State::new("prune") else { return };
    let [stored, unknown] = ["stored", "unknown"].map(|part| state.name(part));
    state.start(&stored, LOOP);
    // Without a cgroup, a task that runs is not stale.
    state.start(&unknown, "exit 0");
    assert_eq!(state.ok(&["wait", &unknown]), "0");
    let file = state.path().join("tasks").join(format!("{unknown}.json"));
    let aside = state.path().join("aside");
    std::fs::rename(&file, &aside).unwrap();
    let all = state.ok(&["prune", "--dry-run", "--grace", "5s"]);
    assert!(!all.contains(&stored), "{all}");
    until("prune", || {
        let all = state.ok(&["prune", "--dry-run", "--grace", "5s"]);
        assert!(!all.contains(&stored), "{all}");
        all.contains(&unknown)
    });
    // A dry run removes nothing.
    std::fs::rename(&aside, &file).unwrap();
    assert_eq!(state.status(&unknown), "exited (0)");
    assert_eq!(state.status(&stored), "running");
}

#[test]
fn a_name_in_use_is_refused_until_its_task_is_removed() {
    let Some(state) = State::new("name") else { return };
    let name = state.name("a");
    state.start(&name, LOOP);
    let running = format!("the name {name} is in use by a running task");
    for flags in [&["run", "-d", "--name"][..], &["run", "-d", "--id"], &["run", "--name"], &["run", "--id"]]
    {
        let refused = state.refused(&[flags, &[&name, "true"]].concat());
        assert!(refused.contains(&running), "{flags:?}: {refused}");
    }
    assert_eq!(state.status(&name), "running");
    state.ok(&["kill", &name]);
    let refused = state.refused(&["run", "-d", "--name", &name, "true"]);
    assert!(
        refused.contains(&format!("is in use by an ended task: remove it with cofferdam rm {name}")),
        "{refused}"
    );
    state.ok(&["rm", &name]);
    state.start(&name, "exit 0");
    assert_eq!(state.ok(&["wait", &name]), "0");
    for wrong in ["-a", ".a", "a/b", "", "a b"] {
        let refused = state.refused(&["run", "-d", &format!("--name={wrong}"), "true"]);
        assert!(refused.contains("is not a valid name"), "{refused}");
    }
    assert!(state.refused(&["run", "-d", "-t", "true"]).contains("'--detach' cannot be used with '--tty'"));
    assert!(state.refused(&["run", "-d", "-i", "true"]).contains("cannot be used with '--interactive'"));
}

#[test]
fn replace_kills_and_removes_the_task_that_has_the_name() {
    let Some(state) = State::new("replace") else { return };
    let name = state.name("a");
    let run = |flags: &[&str], script: &str| {
        let all =
            [&["run"], flags, &["--name", &name, "--require", "best_effort", "sh", "-c", script]].concat();
        state.call(&all)
    };
    // There is nothing to replace.
    assert!(run(&["-d", "--replace"], LOOP).status.success());
    let pid = || {
        let facts: serde_json::Value = serde_json::from_str(&state.ok(&["inspect", &name])).unwrap();
        facts[0]["pid"].as_i64().unwrap()
    };
    let first = pid();
    assert_eq!(run(&["-d", "--replace", "--user", "no-such-user"], LOOP).status.code(), Some(125));
    assert_eq!(pid(), first, "a wrong flag costs nothing");
    assert!(run(&["-d", "--replace"], LOOP).status.success());
    assert_ne!(pid(), first);
    assert!(!std::path::Path::new(&format!("/proc/{first}")).exists());
    assert_eq!(text(state.ok(&["ps", "-aq"]).as_bytes()), name, "one task is left");
    // A task in the foreground replaces it too, and leaves no handle of it.
    assert_eq!(run(&["--replace"], "exit 7").status.code(), Some(7));
    assert_eq!(state.ok(&["ps", "-aq"]), "");
    let refused = state.refused(&["run", "--replace", "true"]);
    assert!(refused.contains("replace: a sandbox without an id"), "{refused}");
}

#[test]
fn stop_does_not_kill_a_task_that_replaces_the_one_it_has_signalled() {
    let Some(state) = State::new("stopped") else { return };
    let name = state.name("a");
    for _ in 0..5 {
        state.start(&name, "trap 'echo signalled' TERM; while :; do sleep 0.1; done");
        let stop = state.command(&["stop", "-t", "60", &name]).stdout(std::process::Stdio::null()).spawn();
        let start = std::time::Instant::now();
        while !state.ok(&["logs", &name]).contains("signalled") {
            assert!(start.elapsed().as_secs() < 60, "no signal");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        let replaced = state.call(&["run", "-d", "--replace", "--name", &name, "sh", "-c", LOOP]);
        assert!(replaced.status.success(), "{}", text(&replaced.stderr));
        stop.unwrap().wait().unwrap();
        assert_eq!(state.status(&name), "running");
        state.ok(&["rm", "-f", &name]);
    }
}

#[test]
fn of_concurrent_runs_with_one_name_one_starts_a_task() {
    let Some(state) = State::new("race") else { return };
    let name = state.name("a");
    let run = || {
        let mut command = state.command(&["run", "-d", "--name", &name, "sh", "-c", LOOP]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn().unwrap()
    };
    let all: Vec<_> = (0..4).map(|_| run()).collect();
    let started = all.into_iter().filter_map(|mut run| run.wait().ok()).filter(|status| status.success());
    assert_eq!(started.count(), 1);
    assert_eq!(state.status(&name), "running");
}

#[test]
fn an_unknown_name_is_refused_by_every_verb() {
    let Some(state) = State::new("unknown") else { return };
    for verb in ["inspect", "wait", "stop", "kill", "pause", "unpause", "rm"] {
        for name in ["nobody", "../nobody"] {
            assert!(state.refused(&[verb, name]).contains(&format!("no task {name}")), "{verb}");
        }
    }
    assert!(state.refused(&["exec", "nobody", "true"]).contains("no task nobody"));
}

#[test]
fn a_damaged_state_file_is_named_and_does_not_hide_other_tasks() {
    let Some(state) = State::new("damaged") else { return };
    let [whole, torn] = ["whole", "torn"].map(|part| state.name(part));
    state.start(&whole, LOOP);
    state.start(&torn, "exit 0");
    assert_eq!(state.ok(&["wait", &torn]), "0");
    let file = state.path().join("tasks").join(format!("{torn}.json"));
    let text_of_file = std::fs::read(&file).unwrap();
    let no_data = String::from_utf8_lossy(&text_of_file).replace("\"data\":\"", "\"data\":\"00");
    for damaged in [&text_of_file[..text_of_file.len() / 2], b"", b"no JSON", no_data.as_bytes()] {
        std::fs::write(&file, damaged).unwrap();
        let output = state.call(&["ps", "-a", "-q"]);
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(125), whole.clone()));
        let message = text(&output.stderr);
        assert!(message.contains("is damaged") && message.contains(file.to_str().unwrap()), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
        assert!(state.refused(&["inspect", &torn]).contains(file.to_str().unwrap()));
    }
    std::fs::remove_file(&file).unwrap();
    nix::unistd::mkfifo(&file, nix::sys::stat::Mode::S_IRWXU).unwrap();
    assert!(text(&state.call(&["ps", "-a", "-q"]).stderr).contains("it is not a regular file"));
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, text_of_file).unwrap();
    assert_eq!(state.status(&torn), "exited (0)");
}

#[test]
fn the_state_is_private_and_a_directory_that_others_can_write_is_refused() {
    let Some(state) = State::new("private") else { return };
    let name = state.name("a");
    state.start(&name, "exit 0");
    let mode = |path: &std::path::Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&state.path()), 0o700);
    assert_eq!(mode(&state.path().join("tasks")), 0o700);
    assert_eq!(mode(&state.path().join("tasks").join(format!("{name}.json"))), 0o600);
    for wrong in [0o770, 0o702] {
        std::fs::set_permissions(state.path(), std::fs::Permissions::from_mode(wrong)).unwrap();
        let refused = state.refused(&["ps"]);
        assert!(refused.contains("other users can write to it"), "{refused}");
    }
    std::fs::set_permissions(state.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
}

/// Whoever can rename a directory of the path puts another state in its place, with handles that name what to kill and
/// remove.
#[test]
fn a_state_that_another_user_can_replace_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let above = dir.path().join("above");
    let own = above.join("state");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::set_permissions(&own, std::fs::Permissions::from_mode(0o700)).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&own, &link).unwrap();
    let listed = |state: &std::path::Path| {
        let ps =
            std::process::Command::new(binary()).args(["ps"]).env("COFFERDAM_STATE", state).output().unwrap();
        (ps.status.code(), text(&ps.stderr))
    };
    for (mode, allowed) in [(0o755, true), (0o1777, true), (0o777, false), (0o775, false)] {
        std::fs::set_permissions(&above, std::fs::Permissions::from_mode(mode)).unwrap();
        for path in [&own, &link] {
            let (code, why) = listed(path);
            assert_eq!(code == Some(0), allowed, "{mode:o} {path:?}: {why}");
            assert_eq!(why.contains("other users can replace it"), !allowed, "{mode:o}: {why}");
        }
    }
    std::fs::set_permissions(&above, std::fs::Permissions::from_mode(0o755)).unwrap();
    match std::os::unix::fs::chown(&above, Some(12345), None) {
        Err(e) => skip::skip(&["root"], e),
        Ok(()) => assert!(listed(&own).1.contains("user 12345 owns"), "{:?}", listed(&own)),
    }
}

#[test]
fn a_task_that_outlives_the_caller_has_no_streams_of_it() {
    let Some(state) = State::new("streams") else { return };
    let name = state.name("a");
    // `output` waits for the end of the pipes, which a task would hold open.
    state.start(&name, LOOP);
    let links = state.ok(&["exec", &name, "sh", "-c", "readlink /proc/1/fd/1 || echo none"]);
    assert!(!links.contains("pipe"), "{links}");
    until("running", || state.status(&name) == "running");
}
