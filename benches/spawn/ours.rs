//! The crate's sandboxes, from the least that it builds to what it builds by default.

use std::error::Error;
use std::path::{Path, PathBuf};

use cofferdam::filter::Filter;
use cofferdam::{Host, Method, Network, Root, Sandbox, Volume};

/// Result of a row that this build of the crate cannot have yet.
pub const NOT_MEASURED: &str = "not measured";

/// How a sandbox comes to its spawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Every spawn makes everything.
    Cold,
    /// What is the same for every task is made before the measurement.
    Prepared,
}

impl Way {
    /// The sandbox that the row spawns.
    fn ready(self, sandbox: Sandbox) -> Result<Sandbox, String> {
        match self {
            Way::Cold => Ok(sandbox),
            Way::Prepared => match sandbox.prepare().map_err(described)? {
                true => Ok(sandbox),
                // Without privileges.
                false => Err(NOT_MEASURED.to_owned()),
            },
        }
    }
}

/// Parts of a sandbox. Each includes those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Extent {
    /// A directory of the host as the root, `/dev`, `/proc` and `/sys`, without masks; ids and capabilities.
    Root,
    /// Every mount of the default plan.
    Mounts,
    Pid1,
    Filter,
    Landlock,
    Cgroup,
    Network,
}

impl Extent {
    pub fn name(self) -> &'static str {
        match self {
            Extent::Root => "namespaces and a root",
            Extent::Mounts => "the default plan's mounts",
            Extent::Pid1 => "+ PID 1",
            Extent::Filter => "+ filter",
            Extent::Landlock => "+ Landlock",
            Extent::Cgroup => "+ cgroup (the default)",
            Extent::Network => "+ new network namespace",
        }
    }
}

/// Where the caller's files are.
pub struct Files {
    /// A directory with `exit` and an empty `proc`.
    pub root: PathBuf,
    /// A static program that exits at once.
    pub program: PathBuf,
}

/// A sandbox of the default spec, without what is beyond `extent`. Its command is `/exit`.
pub fn sandbox(host: &Host, files: &Files, extent: Extent) -> Sandbox {
    let mut host = host.clone();
    if extent < Extent::Cgroup {
        host.cgroups.v1.clear();
        host.cgroups.v2 = None;
    }
    if extent < Extent::Landlock {
        host.landlock_abi = 0;
    }
    if extent < Extent::Mounts {
        host.masked.clear();
        host.read_only.clear();
    }
    let sandbox = Sandbox::command("/exit").user("65534:65534").host(&host).init(extent >= Extent::Pid1);
    sandbox.with(|spec| {
        if extent < Extent::Filter {
            spec.filter = Filter::None;
            // Otherwise a larger filter forbids them. A small one, which forbids cgroup namespaces, remains in each row.
            spec.user_namespaces = true;
        }
        if extent < Extent::Mounts {
            let path = Some(files.root.clone());
            spec.root = Root { path, populate: Method::None, ..Root::default() };
        } else {
            spec.volumes.push(program_volume(&files.program));
        }
        if extent >= Extent::Network {
            spec.network = Network::None;
        }
    })
}

fn program_volume(program: &Path) -> Volume {
    Volume { source: program.to_owned(), target: "/exit".into(), read_only: true, ..Volume::default() }
}

/// Spawns the sandbox and waits for the end of its task and the removal of everything.
pub fn run(sandbox: &Sandbox, way: Way) -> Result<(), String> {
    let task = sandbox.spawn().map_err(described)?;
    let status = task.wait().map_err(described)?;
    drop(task);
    if way == Way::Cold {
        // Otherwise the second spawn would prepare the mounts.
        sandbox.release_prepared();
    }
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}

/// The sandbox of a row.
///
/// # Errors
/// The way does not exist yet, or the plan is not what the row's name says.
pub fn ready(host: &Host, files: &Files, way: Way, extent: Extent) -> Result<Sandbox, String> {
    let sandbox = way.ready(sandbox(host, files, extent))?;
    has_its_parts(&sandbox, extent)?;
    Ok(sandbox)
}

/// Checks the plan against the extent: a row must have what its name says, and no more.
fn has_its_parts(sandbox: &Sandbox, extent: Extent) -> Result<(), String> {
    let plan = sandbox.plan().map_err(described)?.to_string();
    // The small filter, or, with one of the task's own, that of PID 1.
    let filters = plan.matches("seccomp(").count();
    if (filters > 1) != (extent >= Extent::Pid1) {
        return Err(format!("the plan of \"{}\" has {filters} filters", extent.name()));
    }
    for (part, text) in [
        (Extent::Mounts, "# the root is a new tmpfs"),
        (Extent::Mounts, "# mask "),
        (Extent::Pid1, "# stay as PID 1"),
        (Extent::Filter, "# seccomp filter"),
        (Extent::Landlock, "# Landlock domain"),
        (Extent::Cgroup, "# open cgroup"),
        (Extent::Network, "CLONE_NEWNET"),
    ] {
        let optional = matches!(part, Extent::Landlock | Extent::Cgroup); // the host may lack it
        match (extent >= part, plan.contains(text)) {
            (false, true) => return Err(format!("the plan of \"{}\" has {text:?}", extent.name())),
            (true, false) if !optional => {
                return Err(format!("the plan of \"{}\" lacks {text:?}", extent.name()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The failed step and its causes.
pub fn described(error: cofferdam::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
