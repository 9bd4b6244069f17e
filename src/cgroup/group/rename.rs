//! Gives the cgroups of a plan to a task of another name.

use std::path::PathBuf;

use super::{CgroupOp, Cgroups, Joined, Paths};
use crate::cgroup::fs::NewDir;
use crate::cgroup::reserve::{JoinShare, Reserve, Site};

/// A change of a path.
pub(crate) type Rename<'a> = &'a dyn Fn(&mut PathBuf);

impl Cgroups {
    /// Changes every path of the record. The steps of a compiled plan are in the plan itself.
    pub(crate) fn rename(&mut self, rename: Rename<'_>) {
        let Cgroups { steps, paths, share, cpu_time } = self;
        steps.iter_mut().for_each(|step| step.op.rename(rename));
        paths.rename(rename);
        share.iter_mut().for_each(|share| share.rename(rename));
        cpu_time.iter_mut().for_each(|counter| rename(&mut counter.file));
    }
}

impl Paths {
    fn rename(&mut self, rename: Rename<'_>) {
        let Paths { leaves, parents, unit, enter, v1, levels, elsewhere, joined, reservation, share, .. } =
            self;
        elsewhere.iter_mut().for_each(|dirs| dirs_renamed(dirs, rename));
        let lists = [leaves, parents, enter, levels];
        lists.into_iter().flatten().chain(unit).chain(v1.values_mut()).for_each(rename);
        match joined {
            Some(Joined::V1(path) | Joined::V2(path)) => rename(path),
            None => {}
        }
        reservation.iter_mut().chain(share).for_each(|site| site.rename(rename));
    }
}

impl CgroupOp {
    /// Changes every path of the operation.
    pub(crate) fn rename(&mut self, rename: Rename<'_>) {
        match self {
            CgroupOp::RemoveStale(path)
            | CgroupOp::Hold { unit: path, .. }
            | CgroupOp::HoldMemory(path)
            | CgroupOp::Inherit(path)
            | CgroupOp::Write { file: path, .. }
            | CgroupOp::DeviceProgram { cgroup: path, .. }
            | CgroupOp::DeviceFiles { cgroup: path, .. } => rename(path),
            CgroupOp::Make(dirs) => dirs_renamed(dirs, rename),
            CgroupOp::Reserve(reserve) => {
                let Reserve { site, parents, enable, inherit, leaf, reserved: _ } = reserve;
                site.rename(rename);
                dirs_renamed(parents, rename);
                enable.iter_mut().chain(inherit).for_each(rename);
                rename(leaf);
            }
            CgroupOp::JoinShare(share) => share.rename(rename),
        }
    }
}

impl JoinShare {
    fn rename(&mut self, rename: Rename<'_>) {
        self.site.rename(rename);
        self.inherit.iter_mut().for_each(rename);
    }
}

impl Site {
    fn rename(&mut self, rename: Rename<'_>) {
        let Site { version: _, parent, own, tasks } = self;
        rename(parent);
        own.iter_mut().chain(tasks).for_each(rename);
    }
}

fn dirs_renamed(dirs: &mut [NewDir], rename: Rename<'_>) {
    dirs.iter_mut().for_each(|dir| rename(&mut dir.path));
}
