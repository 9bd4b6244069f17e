//! Rules for the sources that no lint checks: which room (ARCHITECTURE.md) may import which, where unsafe code may be,
//! and how long a file may be.
//!
//! The tables below are those of `ARCHITECTURE.md`. Imports are read from the tokens of a file, so comments, strings
//! and line breaks do not matter. Code under `#[cfg(test)]` may import anything. A name that `lib.rs` re-exports counts
//! as the room that defines it. Macros are not expanded, so a path that a macro builds is not seen.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use circles::Modules;
use tokens::{Token, lex, lex_without_tests, use_tree};

mod circles;
mod tokens;

/// Levels, the highest first. A room may import from lower levels; the flag says whether also from its own level.
const LEVELS: &[(&[&str], bool)] = &[
    (&["sandbox"], false),
    (&["spec", "host", "compile", "spawn", "task"], true),
    (&["plan"], false),
    (&["ns", "rootfs", "caps", "ids", "cgroup", "filter"], false),
    (&["step"], false),
    (&["report", "error", "status"], true),
    (&["notation"], false),
    (&["sys"], false),
];

/// The layers of the room `cgroup`, the lowest first. `v1` belongs to no layer.
const CGROUP: &[&[&str]] = &[
    &["name", "set", "fs"],
    &["detect"],
    &["limits", "devices"],
    &["reserve"],
    &["group"],
    &["layout", "observe"],
    &["lower"],
];

/// Where the keyword `unsafe` is allowed.
const UNSAFE_ROOMS: &[&str] = &["src/sys.rs", "src/sys/", "src/spawn.rs", "src/spawn/", "init/"];

const MAX_LINES: usize = 600;

#[test]
fn rooms_import_only_from_lower_levels() {
    let root = root();
    let exports = exports(&fs::read_to_string(root.join("src/lib.rs")).unwrap());
    let sources = sources(&["src"]);
    assert!(!sources.is_empty(), "no sources below {}", root.display());
    hold(sources.iter().flat_map(|(file, text)| import_faults(file, text, &exports)));
}

#[test]
fn no_import_cycle_between_modules() {
    for (folder, top) in [("src", "lib"), ("init", "main"), ("cli/src", "main")] {
        let modules = Modules::read(sources(&[folder]), folder, top);
        assert!(modules.texts.len() > 3, "no sources below {folder}");
        hold(modules.circles().into_iter());
    }
}

#[test]
fn cgroup_layers_import_only_lower_layers() {
    let modules = Modules::read(sources(&["src"]), "src", "lib");
    let layer = |module: &[String]| match module {
        [room, name, ..] if room == "cgroup" => CGROUP.iter().position(|names| names.contains(&&**name)),
        _ => None,
    };
    let mut checked = 0;
    for module in modules.texts.keys() {
        let Some(from) = layer(module) else {
            let beside = module.len() < 2 || module[0] != "cgroup" || module[1] == "v1";
            assert!(beside, "{} has no layer in the table", module.join("/"));
            continue;
        };
        for import in modules.imports(module) {
            let upwards = layer(&import).is_some_and(|to| to > from);
            assert!(!upwards, "{} imports {}, which is above it", module.join("/"), import.join("/"));
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked}");
}

#[test]
fn unsafe_code_is_only_in_sys_spawn_and_init_with_safety_comments() {
    hold(sources(&["src", "init"]).iter().flat_map(|(file, text)| unsafe_faults(file, text)));
}

#[test]
fn no_test_is_ignored_and_no_file_exceeds_600_lines() {
    let all = sources(&["src", "init", "cli", "tests", "benches", "examples", "fuzz"]);
    hold(all.iter().flat_map(|(file, text)| house_faults(file, text)));
}

fn hold(faults: impl Iterator<Item = String>) {
    let faults: Vec<String> = faults.collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// The package's folder. The run-time variable has precedence, because CI runs this binary from a copy of the tree.
fn root() -> PathBuf {
    std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// All `.rs` files below these folders, with paths relative to the package's folder.
fn sources(folders: &[&str]) -> Vec<(String, String)> {
    fn walk(root: &Path, folder: &Path, found: &mut Vec<(String, String)>) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for path in entries.map(|e| e.unwrap().path()) {
            if path.is_dir() {
                if !path.ends_with("target") {
                    walk(root, &path, found);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    let (root, mut found) = (root(), Vec::new());
    folders.iter().for_each(|f| walk(&root, &root.join(f), &mut found));
    found.sort();
    found
}

// ---- imports -------------------------------------------------------------------------------------------------

fn level(room: &str) -> Option<usize> {
    LEVELS.iter().position(|(rooms, _)| rooms.contains(&room))
}

fn may_import(from: &str, to: &str) -> bool {
    match (level(from), level(to)) {
        _ if from == to => true,
        (Some(f), Some(t)) => f < t || f == t && LEVELS[f].1,
        _ => false,
    }
}

/// `src/ns/probe.rs` -> `["ns", "probe"]`; `src/ns/mod.rs` -> `["ns"]`.
fn module_path(file: &str) -> Vec<&str> {
    let inner = file.strip_prefix("src/").unwrap_or(file).trim_end_matches(".rs");
    inner.split('/').filter(|part| *part != "mod").collect()
}

/// Names that `lib.rs` re-exports, with their rooms: `pub use room::...`, also with `crate::` or `self::` in front.
fn exports(lib: &str) -> BTreeMap<String, String> {
    let tokens = lex(lib);
    let mut map = BTreeMap::new();
    for (i, token) in tokens.iter().enumerate() {
        if token.is("use") {
            let mut paths = Vec::new();
            use_tree(&tokens, &mut (i + 1), &[], &mut paths);
            for (mut path, _) in paths {
                path.retain(|p| p != "crate" && p != "self");
                if let ([room, ..], Some(name)) = (&path[..], path.last()) {
                    map.insert(name.clone(), room.clone());
                }
            }
        }
    }
    map
}

/// The forbidden imports of one file below `src/`.
fn import_faults(file: &str, text: &str, exports: &BTreeMap<String, String>) -> Vec<String> {
    let module = module_path(file);
    let Some(room) = module.first().copied().filter(|r| *r != "lib") else { return Vec::new() };
    // Test files may import anything.
    if module.iter().any(|part| *part == "tests" || *part == "live") {
        return Vec::new();
    }
    let Some(_) = level(room) else { return vec![format!("{file}: {room} is no room of the table")] };
    let mut faults = Vec::new();
    for (name, line) in root_names(&lex_without_tests(text), &module) {
        let to = if level(&name).is_some() { Some(&name) } else { exports.get(&name) };
        match to {
            Some(to) if may_import(room, to) => {}
            Some(to) => faults.push(format!("{file}:{line}: {room} may not import from {to}")),
            None => {
                faults.push(format!("{file}:{line}: crate::{name} is no room and not re-exported from one"))
            }
        }
    }
    faults
}

/// The first name after the crate root of every path that goes through it: `crate::NAME`, `use crate::{NAME, ..}`, and
/// chains of `super` that reach it.
fn root_names(tokens: &[Token], module: &[&str]) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    // For each open brace, whether it belongs to `mod name { }`, which adds one to the depth.
    let mut braces: Vec<bool> = Vec::new();
    let mut i = 0;
    while i < tokens.len() {
        let (token, before) = (&tokens[i], i.checked_sub(1).map(|b| &tokens[b]));
        if token.is("{") {
            braces.push(i >= 2 && tokens[i - 2].is("mod"));
        } else if token.is("}") {
            braces.pop();
        } else if token.is("use") || token.is("crate") || token.is("super") {
            // `pub(crate)` and `pub(in crate::x)` are no imports.
            let visibility = before.is_some_and(|b| b.is("in"))
                || before.is_some_and(|b| b.is("(")) && i >= 2 && tokens[i - 2].is("pub");
            let (mut paths, mut next) = (Vec::new(), i + usize::from(token.is("use")));
            use_tree(tokens, &mut next, &[], &mut paths);
            if !visibility {
                let depth = module.len() + braces.iter().filter(|b| **b).count();
                found.extend(
                    paths.into_iter().filter_map(|(path, line)| Some((after_root(path, depth)?, line))),
                );
            }
            i = next.max(i + 1);
            continue;
        }
        i += 1;
    }
    found
}

/// The name after the crate root in a path written `depth` modules below the root; `None` if the path does not reach
/// it.
fn after_root(path: Vec<String>, depth: usize) -> Option<String> {
    let mut parts = path.into_iter().peekable();
    if parts.peek()? == "crate" {
        return parts.nth(1);
    }
    let mut climbed = 0;
    while parts.next_if(|p| p == "self").is_some() {}
    while parts.next_if(|p| p == "super").is_some() {
        climbed += 1;
    }
    if climbed == depth { parts.next() } else { None }
}

// ---- unsafe, ignored tests, long files -----------------------------------------------------------------------

fn unsafe_faults(file: &str, text: &str) -> Vec<String> {
    let (tokens, lines) = (lex(text), text.lines().collect::<Vec<_>>());
    let mut faults = Vec::new();
    for (i, token) in tokens.iter().enumerate().filter(|(_, t)| t.is("unsafe")) {
        if !UNSAFE_ROOMS.iter().any(|room| file.starts_with(room)) {
            faults.push(format!("{file}:{}: unsafe outside of sys, spawn and init", token.line));
        }
        let claims = tokens.get(i + 1).is_some_and(|next| next.is("{") || next.is("impl"));
        if claims && !has_safety_comment(&lines, token.line) {
            faults.push(format!("{file}:{}: unsafe without a SAFETY comment", token.line));
        }
    }
    faults
}

/// Whether a SAFETY comment is on `line`, or directly above the statement that `line` belongs to.
fn has_safety_comment(lines: &[&str], line: usize) -> bool {
    if lines[line - 1].contains("// SAFETY:") {
        return true;
    }
    for text in lines[..line - 1].iter().rev().map(|l| l.trim()) {
        if text.starts_with("//") {
            if text.contains("SAFETY:") {
                return true;
            }
        } else if text.is_empty() || text.ends_with([';', '{', '}', ',']) {
            return false;
        }
    }
    false
}

fn house_faults(file: &str, text: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let tokens = lex(text);
    for at in tokens.windows(3).filter(|w| w[0].is("#") && w[1].is("[") && w[2].is("ignore")) {
        faults.push(format!("{file}:{}: an ignored test; let it say `skipped: why`", at[0].line));
    }
    if text.lines().count() > MAX_LINES {
        faults.push(format!("{file}: {} lines, more than {MAX_LINES}", text.lines().count()));
    }
    faults
}

// ---- the rules, tested on strings ----------------------------------------------------------------------------

fn check_imports(file: &str, text: &str) -> Vec<String> {
    import_faults(
        file,
        text,
        &exports("mod error; pub use error::{Error, Result}; pub use crate::task::Task;"),
    )
}

#[test]
fn allowed_imports_are_accepted() {
    let cases = [
        ("src/sandbox.rs", "use crate::{compile, spec::{self, Command}, error::Error};"),
        (
            "src/compile.rs",
            "use crate::host::Host; use crate::ns::{Namespaces}; fn f() { crate::cgroup::v1::x() }",
        ),
        ("src/spawn/gate.rs", "use super::status; use super::super::task::Task; use self::inner::X;"),
        (
            "src/ns/mod.rs",
            "use crate::step::Step; use crate::Error; pub(crate) mod probe; pub(in crate::caps) fn f() {}",
        ),
        ("src/ns/probe.rs", "use super::Namespaces; use crate::ns::lower; impl super::X for Y {}"),
        ("src/ns/mod.rs", "mod inner { use super::Namespaces; fn f() { super::g() } }"),
        ("src/error.rs", "use crate::report::Control; /* use crate::spawn; */ // crate::task::Task"),
        (
            "src/report.rs",
            "//! [`Task`](crate::Task)\nconst S: &str = \"crate::task\"; const R: &str = r#\"crate::x \" \"#;",
        ),
        (
            "src/caps/mod.rs",
            "#[cfg(test)] use crate::ids::{A, B}; #[cfg(test)] mod tests { use crate::spawn::x; }",
        ),
        ("src/caps/tests.rs", "use crate::ids::IdRanges;"),
        ("src/lib.rs", "pub use sandbox::Sandbox; use crate::sys::x;"),
        (
            "src/plan/mod.rs",
            "use std::fmt; use nix::sched::CloneFlags; fn f<'a>(c: char) { let _ = ('{', '\\'', c); }",
        ),
    ];
    for (file, text) in cases {
        assert_eq!(check_imports(file, text), Vec::<String>::new(), "{file}: {text}");
    }
}

#[test]
fn forbidden_imports_are_reported() {
    let cases = [
        ("src/ns/mod.rs", "use crate::rootfs::Mounts;", "src/ns/mod.rs:1: ns may not import from rootfs"),
        ("src/ns/probe.rs", "use super::super::caps;", "src/ns/probe.rs:1: ns may not import from caps"),
        (
            "src/ns/mod.rs",
            "mod inner {\n use super::super::ids::A; }",
            "src/ns/mod.rs:2: ns may not import from ids",
        ),
        (
            "src/caps/mod.rs",
            "\nfn f() { crate::spec::x() }",
            "src/caps/mod.rs:2: caps may not import from spec",
        ),
        (
            "src/step/mod.rs",
            "use crate::{\n error::Error,\n cgroup::{self, v1}};",
            "src/step/mod.rs:3: step may not import from cgroup",
        ),
        ("src/sys/mod.rs", "use crate::Error;", "src/sys/mod.rs:1: sys may not import from error"),
        ("src/report.rs", "fn f(_: crate::Task) {}", "src/report.rs:1: report may not import from task"),
        (
            "src/task.rs",
            "use crate::Nope;",
            "src/task.rs:1: crate::Nope is no room and not re-exported from one",
        ),
        (
            "src/task/mod.rs",
            "use crate::sandbox::Sandbox;",
            "src/task/mod.rs:1: task may not import from sandbox",
        ),
        ("src/util.rs", "", "src/util.rs: util is no room of the table"),
        (
            "src/ids.rs",
            "#[cfg(test)] mod tests { } use crate::caps::X;",
            "src/ids.rs:1: ids may not import from caps",
        ),
        (
            "src/ids.rs",
            "macro_rules! m { () => { $crate::spawn::x() } }",
            "src/ids.rs:1: ids may not import from spawn",
        ),
    ];
    for (file, text, fault) in cases {
        let found = check_imports(file, text);
        assert!(found.iter().any(|f| f == fault), "{file}: {text}: {found:?}");
    }
}

#[test]
fn misplaced_or_uncommented_unsafe_is_reported() {
    let good =
        "fn f() {\n    // SAFETY: the kernel\n    // copies it.\n    let x =\n        unsafe { g() };\n}";
    assert_eq!(unsafe_faults("src/sys/mod.rs", good), Vec::<String>::new());
    assert_eq!(
        unsafe_faults("init/main.rs", "unsafe fn f() {} unsafe extern \"C\" {}"),
        Vec::<String>::new()
    );
    assert_eq!(unsafe_faults("src/ns/mod.rs", "#![forbid(unsafe_code)] // unsafe {"), Vec::<String>::new());
    assert_eq!(
        unsafe_faults("src/ns/mod.rs", good),
        ["src/ns/mod.rs:5: unsafe outside of sys, spawn and init"]
    );
    assert_eq!(unsafe_faults("src/system.rs", "unsafe fn f() {}").len(), 1);
    let bare = "// SAFETY: of the first\nunsafe { a() };\nunsafe { b() };\nunsafe impl Send for X {}";
    let faults = unsafe_faults("src/spawn/clone.rs", bare);
    assert_eq!(faults, [3, 4].map(|n| format!("src/spawn/clone.rs:{n}: unsafe without a SAFETY comment")));
}

#[test]
fn long_files_and_ignored_tests_are_reported() {
    assert_eq!(
        house_faults("a.rs", "// #[ignore]\n#[test]\nfn f() { \"#[ignore]\"; }"),
        Vec::<String>::new()
    );
    assert_eq!(house_faults("a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}").len(), 1);
    assert_eq!(house_faults("a.rs", &"\n".repeat(MAX_LINES)), Vec::<String>::new());
    assert_eq!(house_faults("a.rs", &"\n".repeat(MAX_LINES + 1)), ["a.rs: 601 lines, more than 600"]);
}
