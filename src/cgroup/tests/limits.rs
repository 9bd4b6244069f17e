//! Tests of limits on the running kernel: the values in the control files, and the report.

use super::*;
use crate::report::Control;

/// A file of the task's cgroup in the hierarchy of `controller`.
fn file(group: &Group, controller: &str, name: &str) -> Option<String> {
    let dir = group.v1(controller).or_else(|| group.tree())?;
    Some(dir.read(name).ok()?.trim().to_owned())
}

#[test]
fn memory_high_is_written_on_v2_and_reported_on_v1() {
    let Some(host) = detected() else { return };
    let high = |bytes: u64| Limits { memory_high: Some(bytes), ..Limits::default() };
    let both = |bytes: u64| Limits { memory: Some(64 * MB), ..high(bytes) };
    let (cgroups, mut lowered) = lowered(&host, &high(32 * MB), "", "high");
    let mut group = Group::create(&cgroups, &mut lowered).unwrap();
    let why = |report: &Report| report.why(Control::MEMORY);
    if host.limits_on == Version::V2 {
        assert_eq!(
            (lowered.weakened, file(&group, "", "memory.high")),
            (Control::MEMORY, Some((32 * MB).to_string()))
        );
        assert!(why(&lowered).contains("not a hard limit"), "{lowered}");
        let report = group.update(&both(48 * MB)).unwrap();
        assert_eq!(report.enforced, both(48 * MB).asked(), "{report}");
        assert_eq!(file(&group, "", "memory.high"), Some((48 * MB).to_string()));
        group.update(&Limits::default()).unwrap();
        assert_eq!(file(&group, "", "memory.high"), Some("max".to_owned()));
        return;
    }
    assert_eq!((lowered.missing, file(&group, "memory", "memory.high")), (Control::MEMORY, None));
    assert!(why(&lowered).contains("cgroup v1 has no memory.high"), "{lowered}");
    drop(group);
    // A limit that is missing under one set of limits is not missing under another.
    let limits = Limits { accounting: true, ..high(32 * MB) };
    let mut group = create(&super::cgroups(&host, &limits, "", "high"));
    let report = group.update(&Limits { memory: Some(64 * MB), ..Limits::default() }).unwrap();
    assert!(report.enforced.contains(Control::MEMORY), "{report}");
    assert_eq!(file(&group, "memory", "memory.limit_in_bytes"), Some((64 * MB).to_string()));
    let report = group.update(&both(32 * MB)).unwrap();
    assert_eq!(report.weakened, Control::MEMORY, "{report}");
    assert_eq!(why(&report).matches("cgroup v1 has no memory.high").count(), 1, "{report}");
    assert_eq!(file(&group, "memory", "memory.limit_in_bytes"), Some((64 * MB).to_string()));
}

#[test]
fn an_idle_task_is_idle_until_an_update_gives_it_shares() {
    let Some(host) = detected() else { return };
    let idle = Limits { cpu_idle: true, ..Limits::default() };
    let shares = Limits { cpu_shares: Some(512), ..Limits::default() };
    let weight = |group: &Group| match host.limits_on {
        Version::V1 => file(group, "cpu", "cpu.shares"),
        Version::V2 => file(group, "cpu", "cpu.weight"),
    };
    let expected = if host.limits_on == Version::V1 { "512" } else { "59" };
    let (cgroups, mut report) = lowered(&host, &idle, "", "idle");
    let mut group = Group::create(&cgroups, &mut report).unwrap();
    if report.missing == Control::CPU {
        assert!(report.why(Control::CPU).contains("the kernel does not support cpu.idle"), "{report}");
        crate::skip::note("the kernel has no idle cgroups");
        return;
    }
    assert_eq!(report.enforced, Control::CPU | Control::KILL, "{report}");
    assert_eq!(file(&group, "cpu", "cpu.idle").as_deref(), Some("1"));
    for _ in 0..2 {
        let report = group.update(&shares).unwrap();
        assert_eq!(report.enforced, Control::CPU, "{report}");
        assert_eq!(file(&group, "cpu", "cpu.idle").as_deref(), Some("0"));
        assert_eq!(weight(&group).as_deref(), Some(expected));
        let report = group.update(&idle).unwrap();
        assert_eq!(report.enforced, Control::CPU, "{report}");
        assert_eq!(file(&group, "cpu", "cpu.idle").as_deref(), Some("1"));
    }
    group.update(&Limits::default()).unwrap();
    assert_eq!(file(&group, "cpu", "cpu.idle").as_deref(), Some("0"));
}
