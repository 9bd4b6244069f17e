//! The plan of a task that enters prepared mounts.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use super::{ParentOp, Plan};
use crate::report::Control;
use crate::step::wire::{Field, Op};
use crate::step::{self, Handed, InitOp, InitStep, Phase, Step, to_path};

impl Plan {
    /// This plan without the steps that have run once for all tasks of the sandbox: init enters a copy of the prepared
    /// mount namespace in place of making those mounts.
    pub(crate) fn on_prepared(mut self) -> Plan {
        let of_prepare = self.prepare_trees();
        let mut count = 0u32;
        for step in &mut self.parent {
            match &mut step.op {
                ParentOp::Hand(handed) => {
                    if of_prepare.contains(&count) {
                        *handed = Handed::Nothing;
                    }
                    count = count.saturating_add(1);
                }
                ParentOp::Clone { namespaces, .. } => *namespaces &= !libc::CLONE_NEWNS.cast_unsigned(),
                _ => {}
            }
        }
        let last = self.parent.iter().rposition(|step| matches!(step.op, ParentOp::Hand(_)));
        let hand = Step::of(Control::MOUNT_NS, ParentOp::Hand(Handed::Prepared));
        self.parent.insert(last.map_or(0, |last| last.saturating_add(1)), hand);
        self.init.retain(|step| step.phase != Phase::Prepare);
        for step in &mut self.init {
            let op = match step.op() {
                Some(Op::Propagation { .. }) => Op::EnterPrepared { fd: count },
                Some(Op::PivotRoot {}) => Op::EnterRoot {},
                _ => continue,
            };
            *step = InitStep { phase: step.phase, ..InitStep::new(step.control, op) };
        }
        self
    }

    /// The indices of the mount trees that are attached once for all tasks of the sandbox.
    fn prepare_trees(&self) -> BTreeSet<u32> {
        let steps = self.init.iter().filter(|step| step.phase == Phase::Prepare);
        steps.filter_map(|step| tree(&mut step.op()?).copied()).collect()
    }

    /// This plan for a task of another name.
    pub(crate) fn named(&self, id: &str) -> Plan {
        let mut plan = self.clone();
        let old = std::mem::replace(&mut plan.id, id.to_owned());
        let rename = |path: &mut PathBuf| renamed(path, &old, id).into_iter().for_each(|new| *path = new);
        plan.cgroups.rename(&rename);
        for step in &mut plan.parent {
            match &mut step.op {
                ParentOp::Cgroup(op) => op.rename(&rename),
                ParentOp::ExitRecord(path) | ParentOp::Log { path, .. } => rename(path),
                ParentOp::Hand(
                    Handed::Cgroup(path)
                    | Handed::ExitRecord(path)
                    | Handed::Log(path)
                    | Handed::CpuTime(path)
                    | Handed::Tasks(path)
                    | Handed::Share(path),
                ) => rename(path),
                _ => {}
            }
        }
        for step in &mut plan.init {
            let Some(mut op) = step.op() else { continue };
            // Paths that are only printed.
            let (Op::Enter { path, .. }
            | Op::ExitRecord { path, .. }
            | Op::Log { path, .. }
            | Op::CpuDeadline { path, .. }) = &mut op
            else {
                continue;
            };
            let Some(new) = renamed(&to_path(*path), &old, id) else { continue };
            *path = step::path(&new);
            step.op = InitOp::new(op);
        }
        plan
    }

    /// The sources of the host that are bound once for all tasks of the sandbox.
    pub(crate) fn prepare_sources(&self) -> impl Iterator<Item = &Path> {
        let of_prepare = self.prepare_trees();
        self.handed().zip(0..).filter(move |(_, index)| of_prepare.contains(index)).filter_map(
            |(handed, _)| match handed {
                Handed::Tree { source, .. } => Some(source.as_path()),
                _ => None,
            },
        )
    }

    /// The files and directories below `top` that are masked once for all tasks of the sandbox.
    pub(crate) fn prepare_masks(&self, top: &Path) -> Vec<PathBuf> {
        let steps = self.init.iter().filter(|step| step.phase == Phase::Prepare);
        let mask = |step: &InitStep| match step.op()? {
            Op::MaskFile { path } | Op::MaskDir { path } => Some(to_path(path)),
            _ => None,
        };
        steps.filter_map(mask).filter(|path| path.starts_with(top)).collect()
    }

    /// What the prepared mounts are made of: two plans with the same bytes here, and the same sources, can have the same
    /// prepared mounts. The bytes are the steps that prepare, and the mount points of the other steps. A source counts by
    /// its place among the prepared ones, because what else init gets differs between plans: a stream, for example.
    pub(crate) fn prepare_key(&self) -> Vec<u8> {
        let unowned = self.handed().any(|handed| matches!(handed, Handed::Tree { unowned: true, .. }));
        let mut key = vec![u8::from(unowned)];
        let sources = self.prepare_trees();
        let place = |fd: u32| sources.range(..fd).count().try_into().unwrap_or(u32::MAX);
        for step in &self.init {
            match (step.phase, step.op()) {
                (Phase::Prepare, Some(mut op)) => {
                    if let Some(fd) = tree(&mut op) {
                        *fd = place(*fd);
                    }
                    op.encode(&mut key);
                }
                (_, Some(Op::Mount { target, .. })) => target.encode(&mut key),
                (_, Some(Op::Bind { target, file_type, .. })) => {
                    target.encode(&mut key);
                    file_type.encode(&mut key);
                }
                _ => {}
            }
        }
        key
    }
}

/// `path` with each component that is `old`, or `old` with a suffix after a dot, for `new`. `None` if it has none.
fn renamed(path: &Path, old: &str, new: &str) -> Option<PathBuf> {
    let has_old =
        |name: &[u8]| name.strip_prefix(old.as_bytes()).is_some_and(|rest| matches!(rest, [] | [b'.', ..]));
    let names = || path.as_os_str().as_bytes().split(|byte| *byte == b'/');
    if !names().any(has_old) {
        return None;
    }
    let mut bytes = Vec::with_capacity(path.as_os_str().len().saturating_add(new.len()));
    for (index, name) in names().enumerate() {
        if index > 0 {
            bytes.push(b'/');
        }
        let kept = if has_old(name) {
            bytes.extend_from_slice(new.as_bytes());
            old.len()
        } else {
            0
        };
        bytes.extend_from_slice(name.get(kept..).unwrap_or_default());
    }
    Some(OsString::from_vec(bytes).into())
}

/// The index of the mount tree that the operation attaches.
fn tree<'a>(op: &'a mut Op<'_>) -> Option<&'a mut u32> {
    match op {
        Op::Bind { fd, .. } | Op::RootBind { fd, .. } => Some(fd),
        _ => None,
    }
}
