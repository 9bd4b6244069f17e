//! Which steps are prepared, and that a task that enters the prepared mounts gets what it would have made itself.

use super::*;
use crate::plan::ParentOp;
use crate::step::{ATTR_RDONLY, InitStep, MS_PRIVATE, Phase};

/// Asserts what is true of the prepared mounts of every plan.
pub(super) fn holds(case: &Case, plan: &Plan) {
    let prepared = |step: &&InitStep| step.phase == Phase::Prepare;
    if plan.cold.is_some() {
        assert_eq!(plan.init.iter().filter(prepared).count(), 0);
        return;
    }
    let common = compile(&case.policy, &case.spec, &case.host, &case.survey, "box", Part::Common).unwrap();
    order::prepares_in_order(&common);
    order::survives_the_wire(&common);
    nothing_is_writable(&common);
    let own = plan.clone().on_prepared();
    order::survives_the_wire(&own);
    every_step_is_in_one_of_the_two(plan, &common, &own);
    every_mount_point_is_prepared(&common, &own);
    descriptors(&common, &own);
    assert_eq!(order::clone_flags(&common), libc::CLONE_NEWNS.cast_unsigned());
    assert_eq!(order::clone_flags(&own) | libc::CLONE_NEWNS.cast_unsigned(), order::clone_flags(plan));
    assert_eq!(own.report.to_string(), plan.report.to_string());
}

/// Asserts that no task can write to what is prepared.
fn nothing_is_writable(common: &Plan) {
    let mut sealed = Vec::new();
    for step in &common.init {
        match order::op(step) {
            Op::Bind { attrs, propagation, .. } => {
                assert!(attrs & ATTR_RDONLY != 0 && propagation == MS_PRIVATE, "{}", step.op.title());
            }
            Op::Mount { target, attrs, .. } if attrs & ATTR_RDONLY == 0 => {
                sealed.push(target.bytes().to_vec())
            }
            Op::RootTmpfs { .. } => sealed.push(b"/".to_vec()),
            Op::Seal { path, .. } => sealed.retain(|at| at != path.bytes()),
            Op::MaskSource {}
            | Op::Mount { .. }
            | Op::MaskFile { .. }
            | Op::MaskDir { .. }
            | Op::File { .. }
            | Op::Node { .. }
            | Op::Symlink { .. }
            | Op::Dir { .. }
            | Op::Empty { .. }
            | Op::Session {}
            | Op::OpenPrepared {}
            | Op::Propagation { .. }
            | Op::PivotRoot {}
            | Op::SendPrepared {} => {}
            other => panic!("{other:?} is prepared"),
        }
    }
    assert!(sealed.is_empty(), "{sealed:?} stay writable");
}

/// Asserts that each step of the plan is either prepared or the task's own, in the same order, and that only mount points
/// are added.
fn every_step_is_in_one_of_the_two(plan: &Plan, common: &Plan, own: &Plan) {
    let titles = |plan: &Plan, keep: fn(&InitStep) -> bool| -> Vec<String> {
        plan.init.iter().filter(|step| keep(step)).map(|step| step.op.title()).collect()
    };
    let prepared = titles(plan, |step| step.phase == Phase::Prepare);
    let mut made = titles(common, |_| true).into_iter();
    for title in &prepared {
        assert!(made.any(|made| made == *title), "{title:?} is not prepared");
    }
    let extra = common.init.len().abs_diff(prepared.len());
    let points =
        common.init.iter().filter(|step| matches!(order::op(step), Op::Dir { .. } | Op::Empty { .. }));
    assert!(extra <= points.count().saturating_add(5), "more than mount points is prepared: {common}");
    let mut kept = titles(plan, |step| step.phase != Phase::Prepare);
    let mut own = titles(own, |_| true);
    for (titles, begin, end) in [
        (&mut kept, "stop mount propagation to the host", "switch to the new root"),
        (&mut own, "enter a copy of the prepared mounts", "enter the root"),
    ] {
        let before = titles.len();
        titles.retain(|title| title != begin && title != end);
        assert_eq!(before.abs_diff(titles.len()), 2, "{begin:?} or {end:?} is missing");
    }
    assert_eq!(own, kept);
}

/// Asserts that each mount of the task finds its mount point in the sealed root, or in another mount of the task.
fn every_mount_point_is_prepared(common: &Plan, own: &Plan) {
    let mut made: Vec<Vec<u8>> = Vec::new();
    for step in &common.init {
        match order::op(step) {
            Op::Dir { path, .. } | Op::Empty { path } => made.push(path.bytes().to_vec()),
            Op::Bind { target, .. } => made.push(target.bytes().to_vec()),
            Op::MaskSource {} => made.push(b"/proc".to_vec()),
            _ => {}
        }
    }
    for step in &own.init {
        if let Op::Mount { target, .. } | Op::Bind { target, .. } = order::op(step) {
            let target = target.bytes().to_vec();
            assert!(made.iter().any(|at| target.starts_with(at)), "no mount point for {}", step.op.title());
            made.push(target);
        }
    }
}

/// Asserts that the sources of the prepared binds are handed over for the preparation only.
fn descriptors(common: &Plan, own: &Plan) {
    let nothing = own.handed().filter(|handed| **handed == Handed::Nothing).count();
    assert_eq!(nothing, common.handed().count());
    assert_eq!(own.handed().filter(|handed| **handed == Handed::Prepared).count(), 1);
    assert_eq!(own.handed().last(), Some(&Handed::Prepared));
}

#[test]
fn a_plan_says_why_nothing_is_prepared() {
    let why = |change: fn(&mut Case)| compiled(&case(change)).unwrap().cold;
    assert_eq!(why(|_| ()), None);
    for (change, expected) in [
        ((|c| c.host = rootless()) as fn(&mut Case), "the mounts belong to the task's user namespace"),
        (|c| c.policy.no_pivot_root = true, "the root is entered by chroot"),
        (
            |c| {
                c.policy.allow_caps = Some(strings(&["all"]));
                c.spec.cap_add = strings(&["sys_admin"]);
            },
            "a task with CAP_SYS_ADMIN can change the mounts",
        ),
        (
            |c| {
                c.spec.volumes = vec![Volume {
                    propagation: rootfs::Propagation::HostToTask,
                    ..Volume::new("/srv/a", "/a")
                }];
            },
            "a volume propagates mounts",
        ),
        (
            |c| (c.spec.root.path, c.spec.root.populate) = (Some("/srv/a".into()), Method::None),
            "the root is a directory, which tasks can write to",
        ),
        (|c| c.spec.root.populate = Method::Overlay, "the root has overlays that each task writes to"),
    ] {
        assert_eq!(why(change), Some(expected));
        let text = compiled(&case(change)).unwrap().to_string();
        assert!(text.contains(&format!("# nothing is prepared: {expected}\n")), "{text}");
    }
}

#[test]
fn a_plan_on_prepared_mounts_gets_another_name_everywhere() {
    let all = case(|c| {
        c.policy.state_dir = Some("/srv/b".into());
        c.spec.limits.memory = Some(1 << 30);
        c.spec.cpu_deadline = Some(std::time::Duration::from_secs(9));
        c.spec.stdout = Stdio::Log;
    });
    let plan = compiled(&all).unwrap().on_prepared();
    assert_eq!(plan.cold, None);
    let text = plan.to_string();
    assert!(text.contains("box.scope") && text.contains("box.exit") && text.contains("box.log"), "{text}");
    let named = plan.named("other-name");
    let expected = compiled(&case(|c| {
        (c.policy, c.spec) = (all.policy.clone(), all.spec.clone());
        c.spec.id = Some("other-name".into());
    }));
    let expected = expected.unwrap().on_prepared();
    assert_eq!(named.to_string(), expected.to_string());
    assert_eq!(format!("{:?}", named.cgroups), format!("{:?}", expected.cgroups));
    let steps = |plan: &Plan| plan.parent.iter().map(|step| format!("{step:?}")).collect::<Vec<_>>();
    assert_eq!(steps(&named), steps(&expected));
    assert!(plan.parent.iter().any(|step| matches!(step.op, ParentOp::ExitRecord(_))));
}

#[test]
fn plans_for_other_commands_and_volumes_have_the_same_prepared_mounts() {
    let key = |change: fn(&mut Case)| compiled(&case(change)).unwrap().prepare_key();
    let base = key(|_| ());
    assert_eq!(base, key(|c| c.spec.args = vec!["x".into()]));
    assert_eq!(base, key(|c| c.spec.limits.memory = Some(1 << 30)));
    // What init gets beside the sources.
    assert_eq!(base, key(|c| c.spec.stdout = Stdio::Piped));
    assert_eq!(base, key(|c| c.spec.fds = vec![Fd::new(caller_fd(40), 7)]));
    let volume = |source: &str| vec![Volume::new(source, "/work")];
    let at_work = compiled(&case(|c| c.spec.volumes = volume("/srv/a"))).unwrap().prepare_key();
    assert_ne!(base, at_work, "/work is a mount point");
    assert_eq!(at_work, compiled(&case(|c| c.spec.volumes = volume("/srv/b"))).unwrap().prepare_key());
    // The mount point is a file for a file.
    assert_ne!(at_work, compiled(&case(|c| c.spec.volumes = volume("/srv/file"))).unwrap().prepare_key());
    assert_ne!(base, key(|c| c.spec.root.tmpfs_size = Some(1 << 20)));
    assert_ne!(base, key(|c| c.spec.network = Network::None));
    let sources = |change: [(&str, &str); 2]| {
        let map = change.map(|(source, target)| (source.into(), target.into())).into();
        compiled(&case(|c| c.spec.root.chroot_env = map)).unwrap().prepare_key()
    };
    let two = sources([("/srv/a", "/a"), ("/srv/b", "/b")]);
    assert_ne!(two, sources([("/srv/a", "/b"), ("/srv/b", "/a")]));
}
