//! What is done for a seat, as the plan prints it.

use super::super::layout::{Write, call};
use super::super::probe::Version;
use super::{Reserved, Seat};

impl Seat {
    /// The system calls of [`admit`](super::admit), in order. What is written is often known only then; a line
    /// that ends in `# if` is made only when the file says something else.
    pub(in super::super) fn calls(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.parents.iter().map(|dir| call::mkdir(&dir.path)).collect();
        lines.extend([call::open_dir(&self.site.parent), call::lock(&self.site.parent)]);
        lines.extend(self.inherit.iter().flat_map(Write::calls));
        for dir in &self.enable {
            lines.extend(changed(dir, "cgroup.subtree_control", "\"+cpuset\""));
        }
        lines.push(call::open_dir(&self.site.reserve()));
        match &self.reserved {
            Some(reserved) => self.reserving(reserved, &mut lines),
            None => self.sharing(&mut lines),
        }
        lines
    }

    fn sharing(&self, lines: &mut Vec<String>) {
        let share = self.site.share();
        lines.push(call::mkdir(&share));
        if self.site.version == Version::V1 {
            lines.extend(Write::inherit(&share, "cpuset.mems").calls());
        }
        lines.extend(changed(&share, "cpuset.cpus", UNRESERVED));
        match &self.leaf {
            Some(leaf) => lines.push(call::mkdir(leaf)),
            None => lines.extend([call::open_dir(&share), call::pin(&share)]),
        }
    }

    fn reserving(&self, reserved: &Reserved, lines: &mut Vec<String>) {
        let (slice, leaf) = (self.site.reserve(), self.place());
        lines.extend([call::open_read(&self.site.effective()), call::mkdir(&slice)]);
        match self.site.version {
            Version::V1 => lines.extend(Write::inherit(&slice, "cpuset.mems").calls()),
            Version::V2 => lines.extend(changed(&slice, "cgroup.subtree_control", "\"+cpuset\"")),
        }
        lines.extend(changed(&self.site.share(), "cpuset.cpus", UNRESERVED));
        lines.extend([call::mkdir(&leaf), call::open_dir(&leaf)]);
        lines.push(call::set_record(&leaf, &reserved.record()));
        if self.site.version == Version::V1 {
            lines.extend(Write::inherit(&leaf, "cpuset.mems").calls());
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
fn changed(dir: &std::path::Path, file: &str, value: &str) -> [String; 3] {
    let file = dir.join(file);
    [
        call::open_read(&file),
        format!("{} # if it says otherwise", call::open_write(&file)),
        format!("write({file:?}, {value}) # if it says otherwise"),
    ]
}
