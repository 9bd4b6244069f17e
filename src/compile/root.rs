//! What is built before the clone, and what is mounted of the host: the root's directory, its entries,
//! and the volumes.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::Mode;

use crate::error::{Error, Result};
use crate::host::{Survey, chroot_env};
use crate::plan;
use crate::report::{Control, Report};
use crate::rootfs::populate::{self, TempRoot, populate};
use crate::rootfs::{ChrootEnv, Kind, Method, Options, Populated, Volume, check_path};
use crate::spec::{Policy, SandboxSpec};

/// The parent's work on the root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RootWork {
    /// Where a temporary directory is made, when one is needed.
    pub temp: Option<PathBuf>,
    /// The directory that becomes the root; `None` for a tmpfs.
    pub dir: Option<PathBuf>,
    /// What is linked or copied into it, and how.
    pub populate: Option<(Method, ChrootEnv)>,
}

impl RootWork {
    /// Fills the directory that becomes the root, when it is to be filled.
    pub(crate) fn build(&self, temp: Option<&TempRoot>) -> Result<Option<Populated>> {
        let (Some((method, env)), Some(dir)) = (&self.populate, &self.dir) else { return Ok(None) };
        let given;
        let root = match temp {
            Some(temp) => temp.fd(),
            None => {
                let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
                given = nix::fcntl::open(dir, flags, Mode::empty())
                    .map_err(Error::prepare(format!("openat({dir:?}, O_PATH|O_DIRECTORY)")))?;
                given.as_fd()
            }
        };
        populate(root, env, &Options { method: *method, ..Options::default() }).map(Some)
    }
}

/// Source, path in the sandbox, and kind, sorted so that what holds others comes first.
pub(super) type Entries = Vec<(PathBuf, PathBuf, Kind)>;

pub(super) fn work(
    policy: &Policy,
    spec: &SandboxSpec,
    survey: &Survey,
    id: &str,
    report: &mut Report,
) -> Result<(RootWork, Entries)> {
    let root = &spec.root;
    if let Some(path) = &root.path {
        check_path("root", path)?;
        match survey.kind(path) {
            Some(Kind::Dir) => {}
            Some(_) => return Err(Error::spec("root", format!("{path:?} is not a directory"))),
            None => return Err(Error::spec("root", format!("there is no directory {path:?}"))),
        }
    }
    if root.populate == Method::None && root.path.is_none() {
        return Err(Error::spec(
            "root",
            "populate \"none\" needs the path of a directory to be used as it is",
        ));
    }
    let env = if root.populate == Method::None { ChrootEnv::new() } else { chroot_env(policy, spec) };
    populate::validate(&env)?;
    let (env, absent): (ChrootEnv, ChrootEnv) =
        env.into_iter().partition(|(source, _)| survey.kind(source).is_some());
    // The default list is a list of what a host may have; one that somebody wrote means what it says.
    let written = !spec.root.chroot_env.is_empty() || !policy.chroot_env.is_empty();
    for source in absent.keys().filter(|_| written) {
        report.note(Control::HOST_FILES, format!("left out of the root: the host has no {source:?}"));
    }
    let mut entries: Entries = env
        .iter()
        .map(|(s, d)| (s.clone(), Path::new("/").join(d), survey.kind(s).unwrap_or(Kind::File)))
        .collect();
    entries.sort_by(|a, b| a.1.cmp(&b.1));
    let over_root = entries.iter().find(|(_, target, _)| target == Path::new("/"));
    if let (Method::Bind, Some((source, ..))) = (root.populate, over_root) {
        let why = format!("{source:?} cannot be bound over the new root: give it as the path of the root");
        return Err(Error::spec("chroot_env", why));
    }
    let writes = matches!(root.populate, Method::Link | Method::Copy);
    let base =
        if policy.temp_dir.as_os_str().is_empty() { std::env::temp_dir() } else { policy.temp_dir.clone() };
    let temp = (writes && root.path.is_none()).then_some(base);
    let dir = root.path.clone().or_else(|| temp.as_deref().map(|base| TempRoot::path_in(base, id)));
    let populate = writes.then_some((root.populate, env));
    Ok((RootWork { temp, dir, populate }, entries))
}

pub(super) fn volumes(spec: &SandboxSpec, survey: &Survey) -> Result<Vec<(Volume, Kind)>> {
    if spec.volumes.len() > plan::wire::SLOTS as usize {
        return Err(Error::spec("volumes", format!("more than {} volumes", plan::wire::SLOTS)));
    }
    spec.volumes
        .iter()
        .map(|volume| {
            check_path("volumes", &volume.source)?;
            check_path("volumes", &volume.target)?;
            if volume.target == Path::new("/") || volume.target.starts_with("/proc") {
                let target = &volume.target;
                return Err(Error::spec("volumes", format!("nothing can be mounted at {target:?}")));
            }
            let kind = survey.kind(&volume.source).ok_or_else(|| {
                Error::spec("volumes", format!("there is no {:?} on the host", volume.source))
            })?;
            Ok((volume.clone(), kind))
        })
        .collect()
}
