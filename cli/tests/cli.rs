//! The command line: exit status, messages and output of `cofferdam`.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::io::Write;
use std::process::{Command, Output, Stdio};

/// The program. The run-time variable has precedence, because CI runs this test from a copy of the tree.
fn binary() -> std::ffi::OsString {
    std::env::var_os("CARGO_BIN_EXE_cofferdam").unwrap_or_else(|| env!("CARGO_BIN_EXE_cofferdam").into())
}

fn cofferdam(args: &[&str]) -> Output {
    Command::new(binary()).args(args).stdin(Stdio::null()).output().unwrap()
}

fn run(args: &[&str]) -> Output {
    cofferdam(&[&["run"], args].concat())
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).trim().to_string()
}

#[path = "../../tests/common/skip.rs"]
mod skip;

/// Whether sandboxes can be created. If not, the test prints that it is skipped.
fn sandboxes() -> bool {
    let doctor = cofferdam(&["doctor"]);
    if doctor.status.code() == Some(2) {
        let said = text(&doctor.stdout);
        skip::skip(&["userns", "root"], said.lines().next().unwrap_or_default());
        return false;
    }
    true
}

#[test]
fn exit_status_is_that_of_the_command() {
    if !sandboxes() {
        return;
    }
    for (args, code) in [
        (&["true"][..], 0),
        (&["--", "sh", "-c", "exit 3"], 3),
        (&["sh", "-c", "kill -TERM $$"], 143),
        (&["sh", "-c", "kill -KILL $$"], 137),
        (&["no-such-command"], 127),
        (&["/etc/passwd"], 126),
    ] {
        assert_eq!(run(args).status.code(), Some(code), "{args:?}");
    }
}

#[test]
fn refusal_is_one_line_and_exit_status_125() {
    for (args, needle) in [
        (&["--deny-uids", "1-2-3", "id"][..], "invalid range deniedHostUIDs \"1-2-3\""),
        (&["--deny-gids", "5-", "id"], "invalid range deniedHostGIDs \"5-\""),
        (&["--deny-uids", " 1", "id"], "invalid range deniedHostUIDs \" 1\""),
        (&["--deny-uids", "10-1", "id"], "lower bound cannot be greater than upper bound"),
        (&["--deny-uids", "65534", "id"], "running as uid 65534 is disallowed"),
        (&["--cap-add", "nope", "id"], "cap_add configured with capabilities not supported by system: nope"),
        (&["--cap-add", "net_admin", "id"], "not allow the following capabilities: net_admin"),
        (&["--workdir", "foo", "id"], "work_dir must be absolute but got relative path \"foo\""),
        (&["--pid", "Host", "id"], "pid_mode: must be \"private\" or \"host\", got \"Host\""),
        (&["--net", "/etc/passwd", "id"], "is not a namespace"),
        (&["--populate", "hope", "id"], "populate"),
        (&["--volume", "/a", "id"], "is not SRC:DST"),
        (&["--require", "hope", "id"], "require"),
        (
            &["--require", "uts_ns", "id"],
            "require: uts_ns must be enforced, but the spec does not ask for it",
        ),
        (
            &["--required-controllers", "all", "id"],
            "required_controllers: \"all\" is not \"minimal\", \"documented\" or \"asked\"",
        ),
        (&[], "no command is given"),
        (&["--spec", "/no/such/file"], "/no/such/file"),
    ] {
        let output = run(args);
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{args:?}: {line}");
        assert!(line.contains(needle), "{args:?}: {line}");
        assert_eq!(line.lines().count(), 1, "{args:?}: {line}");
        assert!(line.starts_with("cofferdam: "), "{line}");
    }
    assert_eq!(run(&["--no-such-flag"]).status.code(), Some(125));
}

#[test]
fn filter_flag_selects_the_system_call_profile() {
    if !sandboxes() {
        return;
    }
    let profile = |text: &str| {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    };
    let with = |file: &tempfile::NamedTempFile, args: &[&str]| {
        run(&[&["--filter", file.path().to_str().unwrap()], args].concat())
    };
    // Rules before the default profile, which still refuses its own list.
    let file = profile(r#"{"rules": [{"calls": ["mkdir", "mkdirat"], "action": {"errno": 122}}]}"#);
    let output = with(&file, &["--", "sh", "-c", "mkdir /tmp/a; chroot / true && unshare -U true"]);
    assert!(text(&output.stderr).contains("Disk quota exceeded"), "{}", text(&output.stderr));
    assert!(!output.status.success());
    // Rules instead of the default profile.
    let file =
        profile(r#"{"base": {"action": "kill"}, "rules": [{"calls": ["execve"], "action": "allow"}]}"#);
    assert_eq!(with(&file, &["true"]).status.code(), Some(128 + 31 /* SIGSYS */));
    let nothing = r#"{"base": {"action": "kill"}, "rules": []}"#;
    for wrong in
        [nothing, r#"{"rules": [{"calls": ["opne"], "action": "kill"}]}"#, r#"{"rule": []}"#, "no JSON"]
    {
        let output = with(&profile(wrong), &["true"]);
        assert_eq!(output.status.code(), Some(125), "{wrong}");
        assert_eq!(text(&output.stderr).lines().count(), 1, "{wrong}: {}", text(&output.stderr));
    }
    for (flag, enforced) in [("default", true), ("none", false)] {
        let output = run(&["--filter", flag, "--report", "-", "true"]);
        let report: cofferdam::Report = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(report.enforced.contains(cofferdam::Control::SYSCALLS), enforced, "{report}");
    }
}

#[test]
fn report_flag_writes_the_enforced_controls_as_json() {
    if !sandboxes() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let output = run(&["--report", file.path().to_str().unwrap(), "id", "-u"]);
    assert_eq!(text(&output.stdout), "65534");
    let report: cofferdam::Report = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
    assert!(report.enforced.contains(cofferdam::Control::PID_NS | cofferdam::Control::CAPS), "{report}");
    assert_eq!(report.asked, report.enforced | report.weakened | report.missing);
    let output = run(&["--report", "-", "true"]);
    serde_json::from_slice::<cofferdam::Report>(&output.stdout).unwrap();
}

#[test]
fn flags_override_the_spec_file() {
    if !sandboxes() {
        return;
    }
    let file = tempfile::NamedTempFile::new().unwrap();
    let spec = r#"{"command":"sh","args":["-c","echo $A"],"env":{"A":"file"}}"#;
    std::fs::write(file.path(), spec).unwrap();
    let path = file.path().to_str().unwrap();
    assert_eq!(text(&run(&["--spec", path]).stdout), "file");
    assert_eq!(text(&run(&["--spec", path, "--env", "A=flag"]).stdout), "flag");
    std::fs::write(file.path(), r#"{"comand":"sh"}"#).unwrap();
    let output = run(&["--spec", path]);
    assert!(text(&output.stderr).contains("comand"), "{}", text(&output.stderr));
}

#[test]
fn oom_score_of_the_caller_is_not_inherited() {
    if !sandboxes() {
        return;
    }
    let script = r#"echo 500 >/proc/self/oom_score_adj; exec "$0" run cat /proc/self/oom_score_adj"#;
    let output = Command::new("/bin/sh").args(["-c", script]).arg(binary()).output().unwrap();
    assert_eq!(text(&output.stdout), "0", "{}", text(&output.stderr));
}

#[test]
fn rlimit_fsize_of_the_caller_is_an_error_and_not_a_signal() {
    if !sandboxes() {
        return;
    }
    let output =
        Command::new("/bin/sh").args(["-c", r#"ulimit -f 1; exec "$0" run true"#]).arg(binary()).output();
    let output = output.unwrap();
    assert_eq!(output.status.code(), Some(125), "{:?}", output.status);
    assert!(text(&output.stderr).contains("memfd_create"), "{}", text(&output.stderr));
}

#[test]
fn signal_to_cofferdam_is_forwarded_to_the_command() {
    if !sandboxes() {
        return;
    }
    let mut child = Command::new(binary())
        .args(["run", "sh", "-c", "trap 'echo got; exit 7' TERM; echo ready; while :; do sleep 0.02; done"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "got");
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

#[test]
fn doctor_exit_status_and_json_match_its_health_line() {
    let output = cofferdam(&["doctor"]);
    let first = text(&output.stdout).lines().next().unwrap_or_default().to_string();
    let health = first.split_whitespace().nth(1).unwrap_or_default().trim_end_matches(':').to_string();
    let expect = ["healthy", "unhealthy", "undetected"].iter().position(|h| *h == health);
    assert_eq!(output.status.code(), expect.and_then(|n| i32::try_from(n).ok()), "{first}");
    let json = cofferdam(&["doctor", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(value["health"]["status"], health.as_str());
    assert!(value["host"]["kernel"].is_array());
}

#[test]
fn prune_of_empty_places_prints_nothing_and_removes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.json");
    let places = serde_json::json!({
        "cgroup_parent": "cofferdam-prune-cli",
        "temp_dir": dir.path(),
        "state_dir": dir.path(),
    });
    std::fs::write(&policy, places.to_string()).unwrap();
    std::fs::create_dir(dir.path().join("cofferdam-x")).unwrap();
    let policy = policy.to_str().unwrap();
    for more in [&["--dry-run"][..], &["--grace", "0s", "--keep", "x"]] {
        let output = cofferdam(&[&["prune", "--policy", policy], more].concat());
        assert_eq!((output.status.code(), text(&output.stdout)), (Some(0), String::new()), "{output:?}");
    }
    assert!(dir.path().join("cofferdam-x").exists());
}

/// Twelve rows in the order of `/proc/cgroups`, equal to the rows of the JSON output.
#[test]
fn doctor_lists_every_controller() {
    let output = text(&cofferdam(&["doctor"]).stdout);
    let mut lines = output.lines().skip_while(|line| !line.trim().starts_with("controller ")).skip(1);
    let json = cofferdam(&["doctor", "--json"]);
    let value: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    let rows = value["host"]["cgroups"]["controllers"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, cofferdam::cgroup::CONTROLLERS);
    let listed = std::fs::read_to_string("/proc/cgroups").unwrap_or_default();
    for row in rows {
        let name = row["name"].as_str().unwrap();
        let fields: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        let enabled = row["enabled"].as_bool().unwrap();
        assert_eq!(fields[..2], [name, if enabled { "yes" } else { "no" }], "{output}");
        if let Some(line) = listed.lines().find(|line| line.split_whitespace().next() == Some(name)) {
            assert_eq!(line.split_whitespace().nth(3) == Some("1"), enabled, "{line}");
        }
        assert_eq!(row["delegated"], row["why"].is_null(), "{row}");
        assert_eq!(row["place"] == "nowhere", fields[2] == "not", "{row}");
    }
    assert_eq!(lines.next(), None, "{output}");
}

#[test]
fn explain_without_controller_reports_the_missing_limits() {
    if !sandboxes() {
        return;
    }
    let limits = ["--memory", "64m", "--pids-max", "9", "--cpu-shares", "512", "true"];
    let explain = |flags: &[&str]| cofferdam(&[&["explain"], flags, &limits].concat());
    let missing = |output: &str| {
        let line = output.lines().find_map(|line| line.strip_prefix("#   missing")).map(str::trim);
        line.unwrap_or_else(|| panic!("{output}")).to_string()
    };
    let healthy = cofferdam(&["doctor"]).status.code() == Some(0);
    let here = missing(&text(&explain(&[]).stdout));
    assert!(!healthy || here == "none", "{here}");
    for name in ["cpu", "cpuset", "memory"] {
        let output = text(&explain(&["--without-controller", name]).stdout);
        assert_eq!(missing(&output), "memory,swap,cpu,pids", "{output}");
        assert!(output.contains(&format!("# without {name}: no limits: ")), "{output}");
        if healthy {
            assert!(
                output.contains(&format!("controllers not available: {name} (excluded by the caller)")),
                "{output}"
            );
            assert!(!output.contains("memory.") && !output.contains("pids.max"), "{output}");
        }
    }
    let output = text(&explain(&["--without-controller", "cpu", "--without-controller", "memory"]).stdout);
    assert!(
        !healthy || output.contains("controllers not available: cpu, memory (excluded by the caller)"),
        "{output}"
    );
    // No limit needs net_prio, so it is missed only if the operator requires all controllers.
    let output = text(&explain(&["--without-controller", "net_prio"]).stdout);
    assert_eq!(missing(&output), here, "{output}");
    let all = ["--without-controller", "net_prio", "--required-controllers", "documented"];
    let output = text(&explain(&all).stdout);
    assert_eq!(missing(&output), "memory,swap,cpu,pids", "{output}");
    assert!(!healthy || output.contains("net_prio (excluded by the caller)"), "{output}");
    let refused = explain(&["--without-controller", "memory", "--require", "memory"]);
    assert_eq!(refused.status.code(), Some(125));
    assert!(
        text(&refused.stderr).contains("cannot enforce memory,swap,cpu,pids: "),
        "{}",
        text(&refused.stderr)
    );
    let wrong = explain(&["--without-controller", "mem"]);
    assert_eq!(wrong.status.code(), Some(125));
    assert!(text(&wrong.stderr).contains("without-controller: \"mem\" is not one of cpuset, cpu, "));
}

/// A task that is root cannot make a log file set-user-ID on the host, nor write to the file that is its standard
/// input.
#[test]
fn regular_file_streams_reach_the_task_as_pipes() {
    if !sandboxes() {
        return;
    }
    let site = tempfile::tempdir().unwrap();
    let (log, input) = (site.path().join("log"), site.path().join("input"));
    std::fs::write(&input, "some input").unwrap();
    std::fs::write(&log, "before ").unwrap();
    let script = "cat; echo; echo one; echo two >&2; echo three; chmod 4755 /proc/self/fd/1 /proc/self/fd/0; \
                  echo spoiled >/proc/self/fd/0; exit 9";
    let out = std::fs::OpenOptions::new().append(true).open(&log).unwrap();
    let status = Command::new(binary())
        .args(["run", "--user", "root", "--", "sh", "-c", script])
        .stdin(std::fs::File::open(&input).unwrap())
        .stdout(out.try_clone().unwrap())
        .stderr(out)
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(9));
    let text = std::fs::read_to_string(&log).unwrap();
    assert!(text.starts_with("before some input\none\ntwo\nthree\n"), "{text}");
    assert_eq!(std::fs::read_to_string(&input).unwrap(), "some input");
    use std::os::unix::fs::PermissionsExt;
    for path in [&log, &input] {
        assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o7111, 0, "{path:?}");
    }
    // More than a pipe holds, in both directions, and a task that does not read its input.
    let big = site.path().join("big");
    std::fs::write(&big, vec![b'x'; 1 << 20]).unwrap();
    for (command, expected) in [("cat", 1 << 20), ("true", 0)] {
        let out = std::fs::File::create(&log).unwrap();
        let input = std::fs::File::open(&big).unwrap();
        let run = Command::new(binary()).args(["run", command]).stdin(input).stdout(out).status().unwrap();
        assert!(run.success());
        assert_eq!(std::fs::metadata(&log).unwrap().len(), expected, "{command}");
    }
}
