//! Steps that populate the root: read-only bind mounts, overlays, or read-only mounts over hard-linked files.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::{RootEntry, RootRequest, Steps};
use crate::report::Control;
use crate::rootfs::{FileKind, Method};
use crate::step::wire::Op;
use crate::step::{ATTR_RDONLY, Encoded, InitStep, path, text};

pub(super) fn lower(req: &RootRequest<'_>, steps: &mut Steps<'_>) {
    match req.method {
        Method::Overlay => overlays(req, steps),
        Method::Bind => req.entries.iter().for_each(|entry| bound(req, entry, steps)),
        Method::Link if req.restricts() => restricted(req, steps),
        _ => {}
    }
    steps.draft.report.enforce(Control::HOST_FILES);
    if req.method == Method::Link && req.root.writable {
        steps.draft.report.miss(
            Control::HOST_FILES,
            "the root is writable and consists of hard links: the task can change the host's own files",
        );
    }
}

/// Adds the mount that overlays write to. It covers `/` until the root is mounted over it.
pub(super) fn upper(req: &RootRequest<'_>, steps: &mut Steps<'_>) {
    let overlays = req.method == Method::Overlay && req.entries.iter().any(|e| e.kind == FileKind::Dir);
    match &req.root.upper {
        _ if !overlays => {}
        Some(upper) => {
            let fd = steps.tree(upper, false);
            steps.push(InitStep::new(Control::HOST_FILES, Op::UpperBind { source: path(upper), fd }));
        }
        None => {
            let size = req.tmpfs_size().to_string();
            let options = Encoded::strings(["mode", "0700", "size", &size]);
            steps.push(InitStep::new(Control::HOST_FILES, Op::Upper { options: options.list() }));
        }
    }
}

/// Adds a read-only bind mount. It is private, because a later mount of the host would propagate without these
/// attributes.
fn read_only(req: &RootRequest<'_>, source: (&Path, FileKind), target: &Path, steps: &mut Steps<'_>) {
    steps.bind_common(Control::HOST_FILES, source, target, req.attrs(ATTR_RDONLY));
}

fn bound(req: &RootRequest<'_>, entry: &RootEntry, steps: &mut Steps<'_>) {
    if req.unowned == Some(&entry.target) {
        steps.bind_unowned(&entry.source, &entry.target, req.attrs(ATTR_RDONLY));
    } else {
        read_only(req, (&entry.source, entry.kind), &entry.target, steps);
    }
    emptied(entry, steps);
}

/// Covers the directories that are left empty.
fn emptied(entry: &RootEntry, steps: &mut Steps<'_>) {
    for skip in &entry.skip {
        let at = entry.target.join(skip);
        let op = Op::MaskDir { path: path(&at) };
        steps.common(&at, |_| InitStep::new(Control::HOST_FILES, op));
    }
}

/// Adds an overlay for each directory, and a read-only bind mount for each file, which cannot have an overlay. An
/// overlay does not show mounts below its lower layer, so those are bind-mounted on top.
fn overlays(req: &RootRequest<'_>, steps: &mut Steps<'_>) {
    for entry in req.entries {
        if entry.kind != FileKind::Dir {
            bound(req, entry, steps);
            continue;
        }
        if shared(req, entry).is_some() {
            continue;
        }
        let name = layer_name(&entry.target);
        let op = Op::Overlay {
            source: path(&entry.source),
            fd: steps.tree(&entry.source, false),
            target: path(&entry.target),
            name: text(&name),
            mode: entry.owner.mode & 0o7777,
            // In a user namespace, the owners of the host are not mapped. The task owns the directory instead.
            uid: if req.privileged { entry.owner.uid } else { req.user.0 },
            gid: if req.privileged { entry.owner.gid } else { req.user.1 },
            userxattr: !req.privileged,
            attrs: req.attrs(0),
        };
        steps.push(InitStep::new(Control::HOST_FILES, op));
        for (below, kind) in &entry.submounts {
            read_only(req, (&entry.real.join(below), *kind), &entry.target.join(below), steps);
        }
        emptied(entry, steps);
    }
    for entry in req.entries {
        if let Some(at) = shared(req, entry) {
            let op = Op::Share { source: path(&at), target: path(&entry.target) };
            steps.push(InitStep::new(Control::HOST_FILES, op));
        }
    }
}

/// Returns the path in the sandbox at which another entry's overlay already shows the source of `entry`. For example,
/// `/bin` is a symbolic link to `/usr/bin` on the host: then the overlay of `/usr` shows the source of `/bin` too.
/// `/bin` needs no overlay of its own and becomes a bind mount of `/usr/bin` in the sandbox.
///
/// `None` if the two paths would not show the same files. This is so if a third entry is above or below either path, or
/// if a mount of the host or a directory that is left empty is above or below the source.
fn shared(req: &RootRequest<'_>, entry: &RootEntry) -> Option<PathBuf> {
    let others = || req.entries.iter().filter(|other| *other != entry);
    let apart = |at: &Path, but: Option<&RootEntry>| {
        let within = |other: &RootEntry| other.target.starts_with(at) || at.starts_with(&other.target);
        !others().any(|other| Some(other) != but && within(other))
    };
    if entry.kind != FileKind::Dir || !apart(&entry.target, None) {
        return None;
    }
    // The outer entry must have an overlay of its own: if it is a bind mount of a third entry's overlay, it may be
    // mounted after `entry`. The recursion ends because each outer source is above the inner one.
    let own = |outer: &&RootEntry| {
        let below = outer.real != entry.real && entry.real.starts_with(&outer.real);
        outer.kind == FileKind::Dir && below && shared(req, outer).is_none()
    };
    others().filter(own).find_map(|outer| {
        let rest = entry.real.strip_prefix(&outer.real).ok()?;
        let mounted = outer.submounts.iter().map(|(at, _)| at).chain(&outer.skip);
        let at = outer.target.join(rest);
        let plain = !mounted.into_iter().any(|m| rest.starts_with(m) || m.starts_with(rest));
        (plain && apart(&at, Some(outer))).then_some(at)
    })
}

/// Name of the directory that contains the layers of the overlay at `target`: the path with `%2F` for `/` and `%25` for
/// `%`.
pub(crate) fn layer_name(target: &Path) -> Vec<u8> {
    let mut name = Vec::new();
    for byte in target.as_os_str().as_bytes().iter().skip(1) {
        match byte {
            b'/' => name.extend(b"%2F"),
            b'%' => name.extend(b"%25"),
            byte => name.push(*byte),
        }
    }
    name
}

/// Makes hard-linked files read-only, by a read-only bind mount of each entry on itself. Mount points inside the
/// entries are created before that. They change nothing on the host, because only files are hard links: the directories
/// belong to the root.
fn restricted(req: &RootRequest<'_>, steps: &mut Steps<'_>) {
    let within = |target: &Path| req.entries.iter().any(|e| target.starts_with(&e.target));
    let volumes = req.volumes.iter().map(|(volume, kind)| (volume.target.as_path(), *kind));
    let devices = req.devices.iter().map(|(_, target)| (*target, FileKind::Device));
    let files = req.files.iter().map(|(at, _)| (Path::new(at), FileKind::File));
    let points = volumes.chain(devices).chain(files).chain(req.work_dir.map(|dir| (dir, FileKind::Dir)));
    for (at, kind) in points.filter(|(at, _)| within(at)) {
        let path = path(at);
        let op = match kind {
            FileKind::Dir => Op::Dir { path, mode: 0o755 },
            _ => Op::Empty { path },
        };
        steps.push(InitStep::new(Control::MOUNT_NS, op));
    }
    // An entry below another one gets its own mount too: a symbolic link in the root may have led it out of the other.
    for target in req.entries.iter().map(|e| e.target.as_path()).filter(|t| *t != Path::new("/")) {
        let op = Op::Restrict { path: path(target), attrs: ATTR_RDONLY, must: true };
        steps.push(InitStep::new(Control::HOST_FILES, op));
    }
}
