//! Writing control files, and reading them again.

use std::ffi::OsStr;
use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::path::Path;

use super::layout::{Value, Write, call};
use super::readback::{agrees, is_state};
use super::settings::control_of;
use crate::error::{Error, Result};
use crate::report::Reason;

/// The file that was written last, still open: many rules go into one file, each by a write of its own.
pub(super) type Last<'a> = Option<(&'a Path, fs::File)>;

/// Obeys one write; what the kernel made of the value, if it is something else.
pub(super) fn apply<'a>(write: &'a Write, last: &mut Last<'a>) -> Result<Option<Reason>> {
    let path = write.path.as_path();
    let text = match &write.value {
        Value::Text(text) => text,
        Value::Inherit => match inherited(write)? {
            Some(text) => &text.clone(),
            None => return Ok(None),
        },
    };
    let mut file = match last.take() {
        Some((open, file)) if open == path => file,
        _ => match open_set(path)? {
            Some(file) => file,
            None => return Ok(None),
        },
    };
    let changed = set_open(&mut file, path, text)?;
    *last = Some((path, file));
    Ok(changed)
}

/// Obeys one write that stands alone.
pub(super) fn obey(write: &Write) -> Result<()> {
    apply(write, &mut None).map(drop)
}

pub(super) fn open_write(path: &Path) -> Result<fs::File> {
    OpenOptions::new().write(true).open(path).map_err(Error::prepare(call::open_write(path)))
}

/// Writes a file and reads it again: what the kernel made of the value, if it is something else.
pub(super) fn set(path: &Path, text: &str) -> Result<Option<Reason>> {
    open_set(path)?.map_or(Ok(None), |mut file| set_open(&mut file, path, text))
}

/// Opens a file to set it. `None` where another file has said the same: a kernel with BFQ and without `io.cost` has
/// one of two.
fn open_set(path: &Path) -> Result<Option<fs::File>> {
    match OpenOptions::new().read(is_state(name(path))).write(true).open(path) {
        Err(_) if path.ends_with("io.weight") && path.with_file_name("io.bfq.weight").exists() => Ok(None),
        opened => opened.map(Some).map_err(Error::prepare(call::open_set(path))),
    }
}

fn set_open(file: &mut fs::File, path: &Path, text: &str) -> Result<Option<Reason>> {
    let name = name(path);
    file.write_all(text.as_bytes()).map_err(Error::prepare(call::write(path, text)))?;
    let mut found = String::new();
    if !is_state(name)
        || file.rewind().is_err()
        || file.read_to_string(&mut found).is_err()
        || agrees(name, text, &found)
    {
        return Ok(None);
    }
    let why = format!("{name}: {:?} was written, the kernel made {:?} of it", text.trim(), found.trim());
    Ok(Some(Reason { control: control_of(name), why }))
}

/// What a refused write means for its control.
pub(super) fn shortfall(reason: &Reason, step: &str, source: &io::Error) -> Reason {
    Reason { control: reason.control, why: format!("{}: {step}: {source}", reason.why) }
}

/// v2: hands a controller down, if it is not yet.
pub(super) fn enable(dir: &Path, controller: &str) -> Result<()> {
    let file = dir.join("cgroup.subtree_control");
    let now = fs::read_to_string(&file).map_err(Error::prepare(call::open_read(&file)))?;
    if now.split_whitespace().any(|name| name == controller) {
        return Ok(());
    }
    set(&file, &format!("+{controller}")).map(drop)
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}

/// What the parent directory's file has; `None` if the file has something of its own already.
fn inherited(write: &Write) -> Result<Option<String>> {
    let read = |path: &Path| fs::read_to_string(path).map_err(Error::prepare(call::open_read(path)));
    if !read(&write.path)?.trim().is_empty() {
        return Ok(None);
    }
    let source = write.source().unwrap_or_default();
    let text = read(&source)?.trim().to_owned();
    if text.is_empty() {
        let blank = io::Error::new(io::ErrorKind::InvalidData, "the parent cgroup has none to give");
        return Err(Error::prepare::<io::Error>(call::open_read(&source))(blank));
    }
    Ok(Some(text))
}
