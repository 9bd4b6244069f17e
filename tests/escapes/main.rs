//! The escape suite: published escapes, and attacks on this crate, tried inside sandboxes of every kind.
//!
//! `docs/escape-matrix.md` has the results of one machine; root writes it anew with `COFFERDAM_BLESS=1`. On every
//! machine, an attempt must not succeed if the report calls enforced a control that the attempt undoes.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

#[path = "../attack_tools/mod.rs"]
mod attack_tools;
#[path = "../common/mod.rs"]
mod common;

mod attempts;
mod calls;

use std::collections::BTreeMap;
use std::fs;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command};

use attempts::{ATTEMPTS, Answer, Outside};
use cofferdam::filter::Filter;
use cofferdam::{IsolationMode, Policy, Report, Sandbox};
use common::{asked, can, probe, run_probe, sandboxes};

/// Entry point of this binary inside a sandbox: makes every attempt, and every call that the default profile refuses.
#[test]
fn probe_entry() {
    let Some((what, mut say)) = asked() else { return };
    assert_eq!(what, "escape");
    let outside = Outside::from_env();
    for attempt in &ATTEMPTS {
        say.fact(attempt.name, (attempt.run)(&outside));
    }
    for (name, answer) in calls::refused_by_default() {
        say.fact(&format!("call {name}"), answer);
    }
}

/// Turns the default sandbox into one of another kind.
type Make = fn(Sandbox) -> Sandbox;

const KINDS: [(&str, Make); 7] = [
    ("default", |sandbox| sandbox.user("nobody")),
    ("root", |sandbox| sandbox.user("root")),
    ("all capabilities", |sandbox| {
        let policy = Policy { allow_caps: Some(vec!["all".into()]), ..Policy::default() };
        sandbox.user("root").policy(&policy).with(|s| s.cap_add = vec!["all".into()])
    }),
    ("host PID", |sandbox| {
        sandbox.user("nobody").pid_mode(IsolationMode::Host).ipc_mode(IsolationMode::Host)
    }),
    ("no_pivot_root", |sandbox| {
        sandbox.user("nobody").policy(&Policy { no_pivot_root: true, ..Policy::default() })
    }),
    ("no filter", |sandbox| sandbox.user("nobody").with(|s| s.filter = Filter::None)),
    ("rootless", |sandbox| sandbox.user("nobody")),
];

/// Targets outside of every sandbox: a process of user nobody, an abstract socket and a file.
struct Bait {
    process: Child,
    _socket: UnixListener,
    name: String,
    file: PathBuf,
    _site: tempfile::TempDir,
}

impl Bait {
    fn new() -> Bait {
        let name = format!("cofferdam-escape-{}", std::process::id());
        let socket = UnixListener::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
        let mut process = Command::new("sleep");
        process.arg("600");
        if nix::unistd::geteuid().is_root() {
            process.uid(65534).gid(65534);
        }
        let site = tempfile::tempdir().unwrap();
        let file = site.path().join("file");
        fs::write(&file, "").unwrap();
        Bait { process: process.spawn().unwrap(), _socket: socket, name, file, _site: site }
    }

    /// Tells the probe where the targets are.
    fn shown_to(&self, sandbox: Sandbox) -> Sandbox {
        sandbox
            .env("OUTSIDE_PID", self.process.id().to_string())
            .env("OUTSIDE_SOCKET", &self.name)
            .env("OUTSIDE_FILE", self.file.display().to_string())
    }
}

impl Drop for Bait {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

type Answers = BTreeMap<String, String>;

/// Runs all attempts in a sandbox of this kind. Asserts that the report accounts for each that succeeds.
fn answers(kind: &str, make: Make, bait: &Bait) -> Answers {
    let seen = run_probe(make(bait.shown_to(probe("escape")))).unwrap();
    assert!(seen.status.success(), "{kind}: {} after {:?}", seen.status, seen.facts.keys().last());
    for attempt in &ATTEMPTS {
        if Answer::passed(seen.get(attempt.name)) {
            let told = told(&seen.report, attempt);
            assert!(told, "{kind}: {} got through, and this is the report:\n{}", attempt.name, seen.report);
        }
    }
    let calls = seen.facts.iter().filter(|(name, _)| name.starts_with("call "));
    let through: Vec<&str> =
        calls.filter(|(_, answer)| Answer::passed(answer)).map(|(name, _)| name.as_str()).collect();
    if ["default", "host PID", "no_pivot_root", "rootless"].contains(&kind) {
        // chroot(2) is permitted by one of the 13 default capabilities.
        assert!(through.iter().all(|name| name.starts_with("call chroot")), "{kind}: {through:?}");
    }
    seen.facts
}

/// Whether the report accounts for an attempt that succeeded: it does not call the undone controls enforced, or it has
/// the expected remark.
fn told(report: &Report, attempt: &attempts::Attempt) -> bool {
    let remark = report.reasons.iter().any(|r| attempt.told.split('|').any(|told| r.why.contains(told)));
    let enforced = report.enforced.intersects(attempt.undoes);
    if attempt.undoes.is_empty() { remark } else { !enforced }
}

#[test]
fn no_attempt_defeats_a_control_reported_as_enforced() {
    if !sandboxes() {
        return;
    }
    let bait = Bait::new();
    let privileged = attack_tools::privileged();
    let mut table: BTreeMap<&str, Answers> = BTreeMap::new();
    for (kind, make) in KINDS {
        let answers = match (kind, privileged) {
            // An unprivileged sandbox has no chroot that could be left.
            ("no_pivot_root", false) => continue,
            ("rootless", true) => as_nobody(),
            _ => answers(kind, make, &bait),
        };
        table.insert(kind, answers);
    }
    // The attempts are real: without a filter, some succeed.
    let none = &table["no filter"];
    let through = none.values().filter(|answer| Answer::passed(answer)).count();
    assert!(through >= 10, "{none:?}");
    if privileged {
        page(&table);
    }
}

/// Runs the attempts as uid 65534, in a new process.
fn as_nobody() -> Answers {
    let site = tempfile::tempdir().unwrap();
    fs::set_permissions(site.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let exe = site.path().join("exe");
    fs::copy(std::env::current_exe().unwrap(), &exe).unwrap();
    let mut command = Command::new(exe);
    command
        .args(["--exact", "rootless_entry", "--nocapture", "--test-threads=1"])
        .env("COFFERDAM_ROOTLESS", "1");
    let ran = command.uid(65534).gid(65534).current_dir("/").output().unwrap();
    let text = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{text}{}", String::from_utf8_lossy(&ran.stderr));
    let lines = text.lines().filter_map(|line| line.strip_prefix("answer: ")?.split_once(" = "));
    lines.map(|(name, answer)| (name.to_string(), answer.to_string())).collect()
}

#[test]
fn rootless_entry() {
    if std::env::var_os("COFFERDAM_ROOTLESS").is_none() {
        return;
    }
    if !can("userns") {
        return;
    }
    println!();
    for (name, answer) in answers("rootless", |sandbox| sandbox.user("nobody"), &Bait::new()) {
        println!("answer: {name} = {answer}");
    }
}

/// Writes `docs/escape-matrix.md` if COFFERDAM_BLESS is set. Asserts that the page lists every attempt.
fn page(table: &BTreeMap<&str, Answers>) {
    let path = format!(
        "{}/docs/escape-matrix.md",
        std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").into())
    );
    let text = render(table);
    if std::env::var_os("COFFERDAM_BLESS").is_some() {
        fs::write(&path, &text).unwrap();
    }
    // A machine without a copy of the source tree has no page to compare.
    let Ok(there) = fs::read_to_string(&path) else { return };
    for attempt in &ATTEMPTS {
        assert!(there.contains(attempt.name), "{path} lacks {}: COFFERDAM_BLESS=1 writes it", attempt.name);
    }
}

fn render(table: &BTreeMap<&str, Answers>) -> String {
    let kinds: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
    let cell = |kind: &str, name: &str| match table.get(kind).and_then(|answers| answers.get(name)) {
        Some(answer) => answer.clone(),
        None => "–".into(),
    };
    let row = |name: &str, key: &str| {
        let cells: Vec<String> = kinds.iter().map(|kind| cell(kind, key)).collect();
        format!("| {name} | {} |\n", cells.join(" | "))
    };
    let head = format!("| attempt | {} |\n|---|{}\n", kinds.join(" | "), "---|".repeat(kinds.len()));
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let kernel: Vec<&str> = release.trim().split(['.', '-']).take(2).collect();
    let mut text = format!(
        "# Escape matrix\n\n\
         What each attempt came to, on Linux {}, by kind of sandbox: an errno, or **through**. Where something is \
         through, the report of that sandbox does not call enforced what it undoes. Written by `tests/escapes` \
         (`COFFERDAM_BLESS=1 cargo test --test escapes`), which holds every machine to that.\n\n\
         The kinds: *default* is user nobody with the 13 default capabilities, *root* the same as user 0, *all \
         capabilities* user 0 with every capability, *host PID* shares the host's PID and IPC namespaces, *no_pivot_root* \
         is the default entered by `chroot(2)`, *no filter* is the default without a system call filter, *rootless* was made by uid 65534. All have the host's network.\n\n{head}",
        kernel.join(".")
    );
    for attempt in &ATTEMPTS {
        text.push_str(&row(&format!("{}{}", attempt.name, attempt.source()), attempt.name));
    }
    text.push_str(&format!(
        "\n## Calls that the default profile refuses\n\n\
         Each is made with arguments that are wrong, by its number on x86_64, and with `int 0x80` by that on i386. \
         **through** is any answer but EPERM and ENOSYS: it reached the kernel.\n\n{head}"
    ));
    let names: Vec<&String> = table["default"].keys().filter(|name| name.starts_with("call ")).collect();
    for name in names {
        text.push_str(&row(name.trim_start_matches("call "), name));
    }
    text
}
