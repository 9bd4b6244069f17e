//! Compiles `init/` for the target, to a small static program that the library embeds.
//!
//! `init/` has no dependencies and no manifest: one call of `rustc` makes it.

use std::path::PathBuf;
use std::process::Command;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=init");
    println!("cargo::rerun-if-changed=src/step/wire.rs");
    println!("cargo::rerun-if-changed=src/step/record.rs");
    println!("cargo::rerun-if-changed=src/step/program.rs");
    println!("cargo::rerun-if-changed=build.rs");
    let var = |name: &str| env::var(name).unwrap_or_default();
    let out = PathBuf::from(var("OUT_DIR")).join("init");
    // Only where init can be built: elsewhere the crate's own compile_error says what is wrong.
    if var("CARGO_CFG_TARGET_OS") != "linux" || var("CARGO_CFG_TARGET_ARCH") != "x86_64" {
        fs::write(&out, b"").ok();
        return;
    }
    let status = Command::new(var("RUSTC"))
        .args(["--edition", "2024", "--crate-name", "cofferdam_init", "--crate-type", "bin"])
        .args(["--target", &var("TARGET"), "--cap-lints", "warn"])
        .args(["-Copt-level=s", "-Cpanic=abort", "-Ccodegen-units=1", "-Coverflow-checks=off"])
        .args(["-Cdebug-assertions=off", "-Crelocation-model=static", "-Cstrip=symbols"])
        .args(["-Clink-arg=-nostartfiles", "-Clink-arg=-nostdlib", "-Clink-arg=-static"])
        .arg("-Clink-arg=-Wl,--gc-sections,--build-id=none,-z,noexecstack,-z,norelro,--no-eh-frame-hdr")
        .arg("init/main.rs")
        .arg("-o")
        .arg(&out)
        .status();
    // Its own messages stand above this one; without a good exit there is nothing to embed.
    if !status.is_ok_and(|status| status.success()) {
        println!("cargo::error=rustc could not build init/");
    }
}
