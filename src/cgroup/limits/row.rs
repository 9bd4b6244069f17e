//! Limits as lines of control files, and the changes between two sets of limits.
//!
//! For a new task, the rows that limit something are written. An update writes the rows that differ.

use serde::{Deserialize, Serialize};

use crate::cgroup::detect::{Swap, Version};
use crate::report::{Control, Effect, Report};
use crate::step::OnRefusal;

/// The value of a control file, or of one line of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::cgroup) struct Row {
    /// Name of the controller on v1 or v2.
    pub controller: &'static str,
    pub control: Control,
    pub file: String,
    /// The device, if the file has one line for each device; else empty.
    pub device: String,
    /// The text to write, without the device.
    pub text: String,
    /// Whether the row limits anything. If not, `text` is the default of a new cgroup.
    pub limits: bool,
    /// How much the row allows: a larger number is a wider limit. Constant for values that have no such order.
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

    /// A maximum. `none` is how the file spells "no limit".
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

    /// A weight. `none` is the default of a new cgroup.
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

    /// If the kernel refuses the row, its control is reported as lost because of `why`.
    pub fn degrades(self, why: &str) -> Row {
        let on_refusal = OnRefusal::Degrade(vec![Effect::lost(self.control, why)]);
        Row { on_refusal, ..self }
    }

    /// If the kernel refuses the row, the refusal is ignored.
    pub fn skips(self) -> Row {
        Row { on_refusal: OnRefusal::Skip, ..self }
    }

    /// The line to write: the device, if any, and the text.
    pub fn line(&self) -> String {
        if self.device.is_empty() { self.text.clone() } else { format!("{} {}", self.device, self.text) }
    }
}

/// Facts about the host and the sandbox that the rows depend on, in addition to the limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Terms {
    pub version: Version,
    /// Version that has the `hugetlb` controller.
    pub hugetlb: Version,
    pub swap: Swap,
    pub extra_pids: u64,
}

/// Adds to `report` that swap is not limited, because of `effect.why`. `active` is whether the host has active swap;
/// without it the report gets only a note.
pub(in crate::cgroup) fn unlimited_swap(effect: Effect, active: bool, report: &mut Report) {
    match active {
        true => report.add(&effect, None),
        false => report.note(Control::SWAP, format!("{}, but the host has no swap", effect.why)),
    }
}

/// Returns the writes that turn `old` into `new`, as pairs of rows (before, after). To revert them, write the `before`
/// rows in reverse order. Wider limits are written first and narrower ones last. So the kernel accepts each write, and
/// no limit is ever wider than the wider of its old and new value.
///
/// The files of rows in `old` that are `unknown` have other values. So a new limit is written, and an old one is lifted,
/// except one that need not hold: it was never set.
pub(in crate::cgroup) fn changes(
    old: &[Row],
    new: &[Row],
    unknown: impl Fn(&Row) -> bool,
) -> Vec<(Row, Row)> {
    let limits = |was: &Row| new.iter().any(|now| same(was, now) && now.limits);
    let known = |was: &Row| match (unknown(was), was.on_refusal == OnRefusal::Fail && !limits(was)) {
        (false, _) => Some(was.clone()),
        // Lifting a limit widens it, whatever the file has.
        (true, true) => Some(Row { text: UNKNOWN.into(), limits: true, allows: 0, ..was.clone() }),
        (true, false) => None,
    };
    let mut changes = known_changes(&old.iter().filter_map(known).collect::<Vec<_>>(), new);
    for (was, now) in changes.iter_mut().filter(|(was, _)| was.text == UNKNOWN) {
        // There is nothing to go back to.
        *was = now.clone();
    }
    changes
}

/// In place of the value of a file that is not known.
const UNKNOWN: &str = "unknown";

/// Whether the two rows are one limit.
pub(in crate::cgroup) fn same(a: &Row, b: &Row) -> bool {
    a.file == b.file && a.device == b.device
}

/// The row that sets no limit in place of `row`.
fn no_limit(row: &Row, text: String) -> Row {
    Row { text, limits: false, allows: u64::MAX, ..row.clone() }
}

fn known_changes(old: &[Row], new: &[Row]) -> Vec<(Row, Row)> {
    // A limit that only `old` has is set to "no limit". One that only `new` has is added.
    let gone = old
        .iter()
        .filter(|was| was.limits && !new.iter().any(|now| same(was, now)))
        .filter_map(|was| Some((was.clone(), no_limit(was, without_limit(was)?))));
    let kept = new.iter().filter_map(|now| {
        let (was, new) = match old.iter().find(|was| same(was, now)) {
            Some(was) => (was.clone(), false),
            None => {
                let text = without_limit(now).unwrap_or_else(|| now.text.clone());
                (no_limit(now, text), now.limits)
            }
        };
        (new || was.text != now.text).then(|| (was, now.clone()))
    });
    let all: Vec<(Row, Row)> = kept.chain(gone).collect();
    let is_burst = |s: &Row| s.file.ends_with("burst") || s.file == "cpu.cfs_burst_us";
    // The kernel refuses a quota below the current burst, so bursts are set to 0 first.
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

/// Orders the writes of the v1 period and quota, which v2 has in a single file. Chooses the order in which the task
/// never gets more CPU time than under the wider of the two limits. It may get less for a moment.
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

/// The text that means "no limit", for rows that exist only while the limit is set. `None` for rows that are always in
/// the table.
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

/// The two v1 files whose values v2 has in `cpu.max`.
pub(in crate::cgroup) const PERIOD: &str = "cpu.cfs_period_us";
pub(in crate::cgroup) const QUOTA: &str = "cpu.cfs_quota_us";

/// CPU time as millionths of one CPU. `u64::MAX` means no limit.
pub(in crate::cgroup) fn share_of_time(quota: u64, period: u64) -> u64 {
    match quota {
        u64::MAX => u64::MAX,
        _ => quota.saturating_mul(1_000_000).checked_div(period).unwrap_or(u64::MAX),
    }
}
