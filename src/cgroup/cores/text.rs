//! What is done for a seat, as the plan prints it.

use std::path::Path;

use super::super::layout::{Dir, Write, call};
use super::super::probe::Version;
use super::{Reserved, Seat};

impl Seat {
    /// The system calls of [`admit`](super::admit), in order, where nothing is reserved and nobody was killed. What
    /// is written is often known only then; a line with `# if` behind it is made only then.
    pub(in super::super) fn calls(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.parents.iter().map(Dir::call).collect();
        lines.extend([call::open_dir(&self.site.parent), call::lock(&self.site.parent)]);
        match (&self.reserved, &self.leaf) {
            (Some(reserved), _) => self.reserving(reserved, &mut lines),
            (None, Some(leaf)) => self.sharing(leaf, &mut lines),
            (None, None) => self.in_share(&mut lines),
        }
        lines
    }

    fn sharing(&self, leaf: &Path, lines: &mut Vec<String>) {
        let share = self.site.share();
        lines.extend([call::open_dir(&self.site.reserve()), call::mkdir_private(&share)]);
        let [read, open, write] = changed(&share, "cpuset.cpus", UNRESERVED);
        let usable = format!("{} # if that was not blank", call::open_read(&self.site.effective()));
        lines.extend([read, usable, open, write, call::mkdir(leaf), call::open_dir(leaf), call::pin(leaf)]);
    }

    fn in_share(&self, lines: &mut Vec<String>) {
        let share = self.site.share();
        let cpus = share.join("cpuset.cpus");
        lines.extend([call::open_dir(&self.site.reserve()), call::open_read(&cpus)]);
        lines.push(format!("{} # if that was not blank", call::open_read(&self.site.effective())));
        let mut new: Vec<String> = self.inherit.iter().flat_map(|write| write.calls(false)).collect();
        new.push(call::mkdir_private(&share));
        new.extend(Write::inherit(&share, "cpuset.mems").calls(false));
        new.extend(changed(&share, "cpuset.cpus", UNRESERVED).into_iter().skip(1));
        lines.extend(new.into_iter().map(|line| match line.contains(" # ") {
            true => line,
            false => format!("{line} # if that was blank or is not all"),
        }));
        lines.extend([call::open_dir(&share), call::pin(&share)]);
    }

    fn reserving(&self, reserved: &Reserved, lines: &mut Vec<String>) {
        let (slice, leaf) = (self.site.reserve(), self.place());
        lines.extend(self.inherit.iter().flat_map(|write| write.calls(false)));
        for dir in &self.enable {
            lines.extend(changed(dir, "cgroup.subtree_control", "\"+cpuset\""));
        }
        lines.push(call::open_dir(&slice));
        lines.extend([call::open_read(&self.site.effective()), call::mkdir_private(&slice)]);
        match self.site.version {
            Version::V1 => lines.extend(Write::inherit(&slice, "cpuset.mems").calls(false)),
            Version::V2 => lines.extend(changed(&slice, "cgroup.subtree_control", "\"+cpuset\"")),
        }
        lines.extend(changed(&self.site.share(), "cpuset.cpus", UNRESERVED));
        lines.extend([call::mkdir_private(&leaf), call::open_dir(&leaf), call::pin(&leaf)]);
        lines.push(call::open_dir(&leaf));
        lines.push(call::set_record(&leaf, &reserved.record()));
        if self.site.version == Version::V1 {
            lines.extend(Write::inherit(&leaf, "cpuset.mems").calls(false));
        }
        let file = leaf.join("cpuset.cpus");
        let cores = &reserved.cores;
        lines.push(call::open_write(&file));
        lines.push(if reserved.exclusive {
            call::write(&file, &cores.to_string())
        } else {
            format!("write({file:?}, <cores {cores} and the unreserved ones>)")
        });
    }
}

const UNRESERVED: &str = "<the unreserved ones>";

/// A file that is read, and written if it says something else.
fn changed(dir: &Path, file: &str, value: &str) -> [String; 3] {
    let file = dir.join(file);
    [
        call::open_read(&file),
        format!("{} # if it says otherwise", call::open_write(&file)),
        format!("write({file:?}, {value}) # if it says otherwise"),
    ]
}
