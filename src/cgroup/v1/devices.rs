//! A task's device list, in the files of the v1 devices controller.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use crate::cgroup::devices::DeviceRule;
use crate::cgroup::fs::call;
use crate::error::{Error, Result};
use crate::report::{Control, Report};
use crate::step::Kernel;

/// Denies all devices in `leaf`, then allows each rule with one `write(2)`.
///
/// The leaf is new and has no children, as the kernel requires for denying all devices (`a`). The kernel refuses a rule
/// that the parent cgroup does not allow. The task then lacks that device, which the report notes.
///
/// # Errors
/// [`Error::Prepare`] with the call, if denying all devices fails, or if the kernel refuses a rule for another reason. The
/// leaf then allows what it allowed before.
pub(in crate::cgroup) fn set(
    kernel: &Kernel,
    leaf: &Path,
    rules: &[DeviceRule],
    report: &mut Report,
) -> Result<()> {
    let [deny, allow] = ["devices.deny", "devices.allow"].map(|name| leaf.join(name));
    // Both are opened first. Otherwise a task whose device cgroup is optional would have no device at all.
    let (mut denied, mut allowed) = (open(kernel, &deny)?, open(kernel, &allow)?);
    write_line(kernel, &deny, &mut denied, "a")?;
    for rule in rules {
        match write_line(kernel, &allow, &mut allowed, &rule.to_string()) {
            Err(Error::Prepare { step, source }) if source.raw_os_error() == Some(libc::EPERM) => {
                let why = format!("device access {:?} is denied: {step}: {source}", rule.to_string());
                report.note(Control::DEVICES, why);
            }
            done => done.inspect_err(|_| {
                // Allows what the parent allows, as before.
                let _ = write_line(kernel, &allow, &mut allowed, "a");
            })?,
        }
    }
    Ok(())
}

fn open(kernel: &Kernel, file: &Path) -> Result<Option<File>> {
    let open = || OpenOptions::new().write(true).open(file).map(Some);
    kernel.call(|| call::open_write(file), None, open)
}

fn write_line(kernel: &Kernel, path: &Path, file: &mut Option<File>, text: &str) -> Result<()> {
    let write = || file.as_mut().map_or(Ok(()), |file| file.write_all(text.as_bytes()));
    kernel.call(|| call::write(path, text), (), write)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cgroup::devices::{Access, DeviceKind, rules};

    #[test]
    fn all_devices_are_denied_before_any_is_allowed() {
        let device =
            DeviceRule { kind: DeviceKind::Block, major: Some(7), minor: None, access: Access::READ };
        let list = rules([device]);
        let kernel = Kernel::recorder();
        set(&kernel, Path::new("/cg/devices/x"), &list, &mut Report::default()).unwrap();
        let lines = kernel.into_lines();
        assert_eq!(lines[2], "write(\"/cg/devices/x/devices.deny\", \"a\")");
        assert_eq!(lines[3], "write(\"/cg/devices/x/devices.allow\", \"c *:* m\")");
        assert_eq!(lines.last().unwrap(), "write(\"/cg/devices/x/devices.allow\", \"b 7:* r\")");
        assert_eq!(lines.len(), list.len().saturating_add(3));
    }
}
