//! The kinds of sandboxes of a soak, and what must become of each.

use std::path::Path;
use std::time::{Duration, Instant};

use cofferdam::{
    DieWith, Error, ExecSpec, Host, Limits, Network, Policy, Require, Sandbox, Stdio, Task, Volume,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Cold,
    Prepared,
    PreparedAlone,
    PreparedNetwork,
    Limited,
    Streams,
    Killed,
    Additional,
    Recovered,
    /// The mounts are prepared for one task only.
    Released,
    NoCommand,
    NoDirectory,
    NoSource,
    NoUser,
}

use Kind::{
    Additional, Cold, Killed, Limited, NoCommand, NoDirectory, NoSource, NoUser, Prepared, PreparedAlone,
    PreparedNetwork, Recovered, Released, Streams,
};

/// In turn; those that stand twice are the usual ones.
const TURNS: [Kind; 16] = [
    Cold,
    Prepared,
    PreparedAlone,
    NoCommand,
    Prepared,
    Killed,
    NoDirectory,
    Recovered,
    Cold,
    Prepared,
    Limited,
    Additional,
    NoSource,
    PreparedNetwork,
    Streams,
    Released,
];

impl Kind {
    /// The kinds in turn. `COFFERDAM_SOAK_KINDS` selects.
    pub fn selected() -> Vec<Kind> {
        let wanted = std::env::var("COFFERDAM_SOAK_KINDS").unwrap_or_default();
        let all = TURNS.into_iter().chain([NoUser]);
        all.filter(|kind| kind.name().contains(&wanted)).collect()
    }

    pub fn name(self) -> String {
        format!("{self:?}")
    }
}

/// What one thread spawns.
pub struct Spawner {
    thread: usize,
    policy: Policy,
    host: Host,
    /// Keeps its prepared mounts.
    kept: Sandbox,
    alone: Sandbox,
    network: Sandbox,
}

impl Spawner {
    pub fn new(dir: &Path, thread: usize) -> Spawner {
        let policy = Policy { state_dir: Some(dir.into()), temp_dir: Some(dir.into()), ..Policy::default() };
        let host = Host::probe().unwrap();
        let sandbox = || Sandbox::command("true").policy(&policy).host(&host).require(Require::BestEffort);
        let (kept, alone) = (sandbox(), sandbox().init(false));
        let network = sandbox().network(Network::None);
        let mut spawner = Spawner { thread, kept, alone, network, policy, host };
        // A short warm-up would not run each kind twice on every thread, and the second spawn prepares the mounts.
        for kind in [Prepared, PreparedAlone, PreparedNetwork] {
            for number in 0..3 {
                spawner.one(kind, number);
            }
        }
        spawner
    }

    /// Runs one sandbox to its end. Returns the time of the spawn.
    pub fn one(&mut self, kind: Kind, number: usize) -> Duration {
        let id = format!("soak-{}-{number}", self.thread);
        let new = |command: &str| {
            let new = Sandbox::command(command).policy(&self.policy).host(&self.host).id(&id);
            new.require(Require::BestEffort)
        };
        let start = Instant::now();
        let spawned = |sandbox: &Sandbox| {
            let task = sandbox.spawn().unwrap_or_else(|e| panic!("{kind:?} {number}: {e:?}"));
            (task, start.elapsed())
        };
        let succeeds = |sandbox: &Sandbox| {
            let (task, took) = spawned(sandbox);
            let status = task.wait().unwrap();
            assert!(status.success(), "{kind:?} {number}: {status}");
            took
        };
        match kind {
            Cold => succeeds(&new("true")),
            Prepared => succeeds(&self.kept.clone().arg(&id)),
            PreparedAlone => succeeds(&self.alone),
            PreparedNetwork => succeeds(&self.network),
            Limited => {
                let memory = Some(64 << 20);
                succeeds(&new("true").limits(Limits { memory, pids_max: Some(32), ..Limits::default() }))
            }
            Streams => {
                let (task, took) = spawned(&new("cat").stdin(Stdio::Piped).stdout(Stdio::Piped));
                drop(task.take_stdin());
                assert!(task.wait_with_output(1 << 10, None).unwrap().status.success());
                took
            }
            Killed => spawned(&new("sleep").arg("1000")).1,
            Additional => {
                let (task, took) = spawned(&new("sleep").arg("1000"));
                additional(&task);
                took
            }
            Recovered => {
                let (task, took) = spawned(&new("sleep").arg("1000").die_with(DieWith::Survive));
                let handle = if number.is_multiple_of(2) { task.detach() } else { task.handle() };
                drop(task);
                let task = Sandbox::recover(&handle.unwrap()).unwrap();
                assert!(task.status().unwrap().is_none(), "{number}");
                task.kill().unwrap();
                task.wait_end(None).unwrap();
                task.release().unwrap();
                took
            }
            Released => {
                let sandbox = new("true");
                sandbox.prepare().unwrap();
                let took = succeeds(&sandbox);
                sandbox.release_prepared();
                took
            }
            NoCommand => {
                let failed = new("no-such-command").spawn();
                assert!(matches!(failed, Err(Error::Exec { .. })), "{failed:?}");
                start.elapsed()
            }
            NoDirectory => {
                let failed = new("true").work_dir("/sys/no/such").spawn();
                assert!(matches!(failed, Err(Error::Setup { .. })), "{failed:?}");
                start.elapsed()
            }
            NoSource => {
                let failed = new("true").volume(Volume::new("/no/such", "/x")).spawn();
                assert!(matches!(failed, Err(Error::Spec { .. })), "{failed:?}");
                start.elapsed()
            }
            NoUser => {
                let failed = new("true").user("no-such-user").spawn();
                assert!(matches!(failed, Err(Error::Spec { .. })), "{failed:?}");
                start.elapsed()
            }
        }
    }
}

fn additional(task: &Task) {
    let command = |name: &str| task.exec(&ExecSpec::command(name).args(["1000"]));
    assert!(command("true").unwrap().wait().unwrap().success());
    assert!(matches!(command("no-such-command"), Err(Error::Exec { .. })));
    drop(command("sleep").unwrap());
}
