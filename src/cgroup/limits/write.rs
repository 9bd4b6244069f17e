//! Writes to control files, with readback.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;

use super::readback::agrees;
use crate::cgroup::fs::{call, read_existing, write};
use crate::error::Result;
use crate::report::{Control, Report};
use crate::step::Kernel;

/// Writes `text` to `file` and reads it back. If the kernel stored a different value, the report gets a note on
/// `control`.
pub(in crate::cgroup) fn set(
    kernel: &Kernel,
    file: &Path,
    text: &str,
    control: Control,
    report: &mut Report,
) -> Result<()> {
    let opened = kernel.call(|| call::open_set(file), None, || open(file))?;
    if opened.is_none() && !kernel.records() {
        return Ok(());
    }
    let written = || -> io::Result<Option<String>> {
        let Some(mut opened) = opened else { return Ok(None) };
        opened.write_all(text.as_bytes())?;
        Ok(changed(&mut opened, name(file), text))
    };
    let changed = kernel.call(|| call::write(file, text), None, written)?;
    changed.into_iter().for_each(|why| report.note(control, why));
    Ok(())
}

/// Opens a control file to set it. `None` if `io.weight` cannot be opened and `io.bfq.weight` exists, which sets the
/// same limit: a kernel with BFQ and without `io.cost` has only the latter.
fn open(file: &Path) -> io::Result<Option<File>> {
    let opened = OpenOptions::new().read(call::holds_a_value(name(file))).write(true).open(file);
    match opened {
        Err(_) if file.ends_with("io.weight") && file.with_file_name("io.bfq.weight").exists() => Ok(None),
        opened => opened.map(Some),
    }
}

/// Describes the value that the kernel stored, if it differs from `text`.
fn changed(file: &mut File, name: &str, text: &str) -> Option<String> {
    let mut found = String::new();
    if !call::holds_a_value(name) || file.rewind().is_err() || file.read_to_string(&mut found).is_err() {
        return None;
    }
    let (text, found) = (text.trim(), found.trim());
    (!agrees(name, text, found)).then(|| format!("{name}: wrote {text:?}, but the kernel stored {found:?}"))
}

/// Enables a v2 controller for the children of `dir`, if it is not enabled yet.
pub(in crate::cgroup) fn enable(kernel: &Kernel, dir: &Path, controller: &str) -> Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let now = read_existing(kernel, &file, Some(String::new()))?.unwrap_or_default();
    let enabled = now.split_whitespace().any(|name| name == controller);
    kernel.only_if("the controller is not enabled yet", !enabled, || {
        write(kernel, &file, &format!("+{controller}"))
    })
}

fn name(file: &Path) -> &str {
    file.file_name().and_then(OsStr::to_str).unwrap_or_default()
}
