//! A limit as a line of a control file, and what turns one list of lines into another.
//!
//! A task is born with the lines that limit something. An update writes the lines that differ.

use serde::{Deserialize, Serialize};

use crate::cgroup::detect::{Swap, Version};
use crate::report::{Control, Effect, Report};
use crate::step::OnRefusal;

/// What one file, or one line of it, should say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cgroup) struct Row {
    /// The v1 or v2 name of the controller.
    pub controller: &'static str,
    pub control: Control,
    pub file: String,
    /// The device, where the file has a line for each.
    pub device: String,
    /// What is written, after the device.
    pub text: String,
    /// Whether it limits anything. What does not is the default of a new cgroup.
    pub limits: bool,
    /// How much it allows: a larger number is a wider limit. A limit without such an order has the same number always.
    pub allows: u64,
    pub on_refusal: OnRefusal,
}

impl Row {
    pub fn new(
        controller: &'static str,
        control: Control,
        file: &str,
        text: impl Into<String>,
        limits: bool,
    ) -> Row {
        let (file, text, device) = (file.to_owned(), text.into(), String::new());
        Row { controller, control, file, device, text, limits, allows: 0, on_refusal: OnRefusal::Fail }
    }

    /// A number that may not be exceeded; `none` is how the file spells that there is none.
    pub fn ceiling(
        controller: &'static str,
        control: Control,
        file: &str,
        max: Option<u64>,
        none: &str,
    ) -> Row {
        let text = max.map_or_else(|| none.to_owned(), |max| max.to_string());
        Row::new(controller, control, file, text, max.is_some()).allows(max.unwrap_or(u64::MAX))
    }

    /// A weight, or the default of a new cgroup.
    pub fn weight(
        controller: &'static str,
        control: Control,
        file: &str,
        value: Option<u64>,
        none: u64,
    ) -> Row {
        Row::new(controller, control, file, value.unwrap_or(none).to_string(), value.is_some())
    }

    pub fn allows(self, allows: u64) -> Row {
        Row { allows, ..self }
    }

    pub fn on(self, device: &str) -> Row {
        Row { device: device.to_owned(), ..self }
    }

    /// Its control does not hold if the kernel refuses it, because of `why`.
    pub fn degrades(self, why: &str) -> Row {
        let on_refusal = OnRefusal::Degrade(vec![Effect::lost(self.control, why)]);
        Row { on_refusal, ..self }
    }

    /// Nothing is lost if the kernel refuses it.
    pub fn skips(self) -> Row {
        Row { on_refusal: OnRefusal::Skip, ..self }
    }

    /// What is written.
    pub fn line(&self) -> String {
        if self.device.is_empty() { self.text.clone() } else { format!("{} {}", self.device, self.text) }
    }
}

/// What the rows depend on beside the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Terms {
    pub version: Version,
    /// Where huge pages are counted.
    pub hugetlb: Version,
    pub swap: Swap,
    pub extra_pids: u64,
}

/// Adds to `report` that nothing limits swap because of `why`; without swap on the host that is no loss.
pub(in crate::cgroup) fn unlimited_swap(effect: Effect, active: bool, report: &mut Report) {
    match active {
        true => report.add(&effect, None),
        false => report.note(Control::SWAP, format!("{}, but the host has none", effect.why)),
    }
}

/// The writes that turn `old` into `new`, each with the write that takes it back. Wider limits are written first and
/// tighter ones last: so the kernel accepts each write, and no limit is wider on the way than before or after.
pub(in crate::cgroup) fn changes(old: &[Row], new: &[Row]) -> Vec<(Row, Row)> {
    let same = |a: &Row, b: &Row| a.file == b.file && a.device == b.device;
    // A limit that only `old` has is lifted; one that only `new` has is set.
    let gone =
        old.iter().filter(|was| was.limits && !new.iter().any(|now| same(was, now))).filter_map(|was| {
            let text = without_limit(was)?;
            let lifted = Row { text, limits: false, allows: u64::MAX, ..was.clone() };
            Some((was.clone(), lifted))
        });
    let kept = new.iter().filter_map(|now| {
        let (was, new) = match old.iter().find(|was| same(was, now)) {
            Some(was) => (was.clone(), false),
            None => {
                let text = without_limit(now).unwrap_or_else(|| now.text.clone());
                (Row { text, limits: false, allows: u64::MAX, ..now.clone() }, now.limits)
            }
        };
        (new || was.text != now.text).then(|| (was, now.clone()))
    });
    let all: Vec<(Row, Row)> = kept.chain(gone).collect();
    let is_burst = |s: &Row| s.file.ends_with("burst") || s.file == "cpu.cfs_burst_us";
    // No quota may pass below a burst that is still there.
    let bursts = all.iter().filter(|(was, _)| is_burst(was) && was.limits);
    let none = bursts.map(|(was, now)| (was.clone(), Row { text: "0".into(), ..now.clone() }));
    let mut ordered: Vec<(Row, Row)> = none.collect();
    let (wider, rest): (Vec<_>, Vec<_>) = all
        .into_iter()
        .filter(|(was, now)| !is_burst(was) || now.limits)
        .partition(|(was, now)| now.allows > was.allows && !is_burst(was));
    ordered.extend(wider.into_iter().rev());
    ordered.extend(rest);
    period_beside_quota(&mut ordered);
    ordered
}

/// v1 has two files for what v2 says in one. Of the two orders the one is taken in which the task never has more than
/// before and after; it may have less for a moment.
fn period_beside_quota(changes: &mut Vec<(Row, Row)>) {
    let find = |list: &[(Row, Row)], file: &str| list.iter().position(|(_, now)| now.file == file);
    let Some(at) = find(changes, PERIOD) else { return };
    if find(changes, QUOTA).is_none() {
        return;
    }
    let period = changes.remove(at);
    let Some(quota) = find(changes, QUOTA) else { return };
    let number = |s: &Row| s.text.parse::<u64>().unwrap_or(u64::MAX);
    let most = changes.get(quota).map_or(u64::MAX, |(was, now)| was.allows.max(now.allows));
    let between = changes.get(quota).map(|(was, _)| share_of_time(number(was), number(&period.1)));
    let first = between.is_some_and(|share| share <= most);
    changes.insert(if first { quota } else { quota.saturating_add(1) }, period);
}

/// How a line of the table spells that nothing is limited; `None` where a new list always has the line.
fn without_limit(s: &Row) -> Option<String> {
    match s.file.as_str() {
        "io.max" => Some("rbps=max wbps=max riops=max wiops=max".into()),
        file if file.starts_with("blkio.throttle.") => Some("0".into()),
        file if file.starts_with("hugetlb.") => {
            Some(if file.ends_with(".max") { "max" } else { "-1" }.into())
        }
        _ => None,
    }
}

/// The two files of v1 that v2 has as one.
pub(in crate::cgroup) const PERIOD: &str = "cpu.cfs_period_us";
pub(in crate::cgroup) const QUOTA: &str = "cpu.cfs_quota_us";

/// Millionths of a processor.
pub(in crate::cgroup) fn share_of_time(quota: u64, period: u64) -> u64 {
    match quota {
        u64::MAX => u64::MAX,
        _ => quota.saturating_mul(1_000_000).checked_div(period).unwrap_or(u64::MAX),
    }
}
