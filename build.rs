//! Compiles `init/` for the target, into a small static program that the library embeds.
//!
//! `init/` has no dependencies and no manifest: one call of `rustc` builds it. Its lints are checked by the target
//! named `init` in `Cargo.toml`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

/// Linker arguments if a C compiler calls the linker. It passes those after `-Wl` on.
const BY_COMPILER: [&str; 4] = [
    "-nostartfiles",
    "-nostdlib",
    "-static",
    "-Wl,--gc-sections,--build-id=none,-z,noexecstack,-z,norelro,--no-eh-frame-hdr",
];

/// The same arguments for a linker that rustc calls directly.
const BY_LINKER: [&str; 8] = [
    "-static",
    "--gc-sections",
    "--build-id=none",
    "-z",
    "noexecstack",
    "-z",
    "norelro",
    "--no-eh-frame-hdr",
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let target = var("TARGET");
    let out = PathBuf::from(var("OUT_DIR")).join("init");
    // Init cannot be built for other targets. The library's own compile_error gives the reason.
    if var("CARGO_CFG_TARGET_OS") != "linux" || var("CARGO_CFG_TARGET_ARCH") != "x86_64" {
        fs::write(&out, b"").ok();
        return;
    }
    // Variables by which Cargo chooses a linker, a compiler or a wrapper. Cargo does not track changes of the ones that
    // it sets itself.
    let own = format!("CARGO_TARGET_{}_", target.to_uppercase().replace(['-', '.'], "_"));
    for name in ["LINKER", "RUSTFLAGS"] {
        println!("cargo::rerun-if-env-changed={own}{name}");
    }
    for name in ["RUSTC", "RUSTC_WRAPPER", "RUSTFLAGS", "CARGO_BUILD_RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let mut refusals = Vec::new();
    for linker in linkers() {
        match compile(&target, &linker, &out) {
            Ok(()) => return,
            Err(why) => refusals.push((linker, why)),
        }
    }
    for (linker, why) in refusals {
        eprintln!("init/ with {}:\n{why}", linker.as_deref().unwrap_or("rustc's default linker"));
    }
    println!(
        "cargo::error=init/, the program that runs inside of every sandbox, could not be built for {target}. If a linker is \
         missing, name one for this target: {own}LINKER=x86_64-linux-gnu-gcc, or ld.lld. rustc's messages are below"
    );
    std::process::exit(1);
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_default()
}

/// The linkers to try, in order; `None` is rustc's default.
fn linkers() -> Vec<Option<String>> {
    if let Some(told) = told("linker") {
        return vec![Some(told)];
    }
    let host = var("HOST");
    if host.starts_with("x86_64-") && host.contains("-linux-") {
        return vec![None];
    }
    // rustc's default would be the host's C compiler, which links for the host's processor. rustc ships a linker for
    // every target (rust-lld). A distribution that leaves it out may have a cross compiler.
    ["rust-lld", "x86_64-linux-gnu-gcc"].map(|name| Some(name.to_owned())).into()
}

/// The value of the codegen option `option` that the user set for this target by a `-C` flag. The last flag wins.
/// Without a flag, the linker is the one of `target.<triple>.linker` in Cargo's configuration, or of its environment
/// variable.
fn told(option: &str) -> Option<String> {
    let flags = var("CARGO_ENCODED_RUSTFLAGS");
    let mut by_flag = None;
    let mut flags = flags.split('\x1f');
    while let Some(flag) = flags.next() {
        let codegen = match flag {
            "-C" | "--codegen" => flags.next(),
            _ => flag.strip_prefix("-C").or_else(|| flag.strip_prefix("--codegen=")),
        };
        let value = codegen.and_then(|codegen| codegen.strip_prefix(option)?.strip_prefix('='));
        by_flag = value.map(str::to_owned).or(by_flag);
    }
    by_flag
        .or_else(|| env::var("RUSTC_LINKER").ok().filter(|linker| option == "linker" && !linker.is_empty()))
}

/// Whether `path` is a linker, not a compiler that calls one. Decides by the file name, as rustc does.
fn is_linker(path: &str) -> bool {
    let name = Path::new(path).file_name().and_then(|name| name.to_str()).unwrap_or_default();
    matches!(name, "ld" | "lld" | "rust-lld") || name.starts_with("ld.") || name.ends_with("-ld")
}

/// Compiles and links init.
///
/// # Errors
/// The compiler's messages.
fn compile(target: &str, linker: &Option<String>, out: &Path) -> Result<(), String> {
    let dependencies = out.with_extension("d");
    let mut command = rustc();
    command
        .args(["--edition", "2024", "--crate-name", "cofferdam_init", "--crate-type", "bin"])
        .args(["--target", target, "--cap-lints", "allow"])
        .args(["-Copt-level=s", "-Cpanic=abort", "-Ccodegen-units=1", "-Coverflow-checks=off"])
        .args(["-Cdebug-assertions=off", "-Crelocation-model=static", "-Cstrip=symbols"])
        .arg(format!("--emit=link={},dep-info={}", out.display(), dependencies.display()));
    // On musl, rustc would add the C library's startup objects. On other targets the option would disable rustc's
    // bundled linker.
    if var("CARGO_CFG_TARGET_ENV") == "musl" {
        command.arg("-Clink-self-contained=no");
    }
    let flavor = told("linker-flavor");
    let direct = match (&flavor, linker) {
        (Some(flavor), _) => !flavor.contains("gcc") && !flavor.contains("-cc"),
        (None, Some(linker)) => is_linker(linker),
        (None, None) => false,
    };
    if let Some(linker) = linker {
        command.arg(format!("-Clinker={linker}"));
    }
    match &flavor {
        Some(flavor) => {
            command.arg(format!("-Clinker-flavor={flavor}"));
        }
        None if direct => {
            // lld contains several linkers, and needs to be told which one to be.
            let lld = linker.as_deref().is_some_and(|linker| linker.ends_with("lld"));
            command.arg(if lld { "-Clinker-flavor=ld.lld" } else { "-Clinker-flavor=ld" });
        }
        None => {}
    }
    let arguments: &[&str] = if direct { &BY_LINKER } else { &BY_COMPILER };
    command.args(arguments.iter().map(|argument| format!("-Clink-arg={argument}"))).arg("init/main.rs");
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    // The dependency file has one line per source file, which ends with a colon.
    for line in fs::read_to_string(dependencies).unwrap_or_default().lines() {
        if let Some(file) = line.strip_suffix(':') {
            println!("cargo::rerun-if-changed={}", file.replace("\\ ", " "));
        }
    }
    Ok(())
}

/// The command that runs rustc, through `RUSTC_WRAPPER` if that is set: a compiler cache, or a program that prepares
/// the environment. `RUSTC_WORKSPACE_WRAPPER` is ignored: it is for linters such as clippy, which expect Cargo's own
/// calls.
fn rustc() -> Command {
    match env::var("RUSTC_WRAPPER").ok().filter(|wrapper| !wrapper.is_empty()) {
        None => Command::new(var("RUSTC")),
        Some(wrapper) => {
            let mut command = Command::new(wrapper);
            command.arg(var("RUSTC"));
            command
        }
    }
}
