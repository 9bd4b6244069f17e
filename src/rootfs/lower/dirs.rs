//! Steps for the task's directories: `/alloc`, `/local`, `/secrets` and `/tmp`.

use super::{NO, RootRequest, Steps, mount};
use crate::report::Control;
use crate::rootfs::{FileKind, Secrets};
use crate::step::wire::{Blob, Op};
use crate::step::{ATTR_NODEV, ATTR_NOSUID, ATTR_RDONLY, InitStep, MS_PRIVATE, path, text};

pub(super) fn lower(req: &RootRequest<'_>, steps: &mut Steps<'_>) {
    let control = Control::MOUNT_NS;
    for (source, target) in req.task_dirs.binds() {
        steps.bind(control, (source, FileKind::Dir), target, req.attrs(0), MS_PRIVATE);
    }
    if req.task_dirs.alloc.is_some() {
        let path = text(b"/alloc/logs");
        steps.push(InitStep::new(control, Op::Restrict { path, attrs: ATTR_RDONLY, must: false }));
    }
    if let Some(secrets) = &req.task_dirs.secrets {
        self::secrets(req, secrets, steps);
    }
    if let Some(size) = req.task_dirs.tmp {
        let size = size.to_string();
        let attrs = ATTR_NOSUID | ATTR_NODEV;
        steps.push(mount(control, "tmpfs", "/tmp", attrs, &["mode", "1777", "size", &size]));
    }
}

fn secrets(req: &RootRequest<'_>, secrets: &Secrets, steps: &mut Steps<'_>) {
    let control = Control::MOUNT_NS;
    let (uid, gid) = req.user;
    let (size, user, group) = (secrets.bytes().to_string(), uid.to_string(), gid.to_string());
    let mut options = vec!["mode", "0700", "uid", &user, "gid", &group, "size", &size];
    match req.swappable {
        None => options.extend(["noswap", ""]),
        Some(why) => steps.draft.report.note(control, format!("/secrets may be written to swap: {why}")),
    }
    steps.push(mount(control, "tmpfs", "/secrets", NO, &options));
    for (name, content) in &secrets.files {
        let at = std::path::Path::new("/secrets").join(name);
        let content = Blob(content.as_bytes());
        steps.push(InitStep::new(control, Op::Write { path: path(&at), mode: 0o400, uid, gid, content }));
    }
}
