//! The list for the files of the v1 controller.

use std::path::Path;

use super::Rule;
use crate::cgroup::layout::{Need, Value, Write};
use crate::report::{Control, Reason};

/// Nothing at first, then each rule: a `write(2)` is one rule.
///
/// The leaf is new and has no children: the kernel denies all (`a`) to no other. Who may not deny has no filter. A
/// rule that is refused after that is one that the cgroup above does not have, and that no cgroup below it can have.
pub(in crate::cgroup) fn writes<'a>(leaf: &'a Path, rules: &'a [Rule]) -> impl Iterator<Item = Write> + 'a {
    let why = "the devices controller takes no rules".to_owned();
    let must = Need::Else(Reason { control: Control::DEVICES, why });
    let deny = Write { path: leaf.join("devices.deny"), value: Value::Text("a".to_owned()), need: must };
    let allow = rules.iter().map(|rule| {
        let why = format!("the task is refused {:?}", rule.to_string());
        let need = Need::Less(Reason { control: Control::DEVICES, why });
        Write { path: leaf.join("devices.allow"), value: Value::Text(rule.to_string()), need }
    });
    std::iter::once(deny).chain(allow)
}

#[cfg(test)]
mod tests {
    use super::super::{Access, Kind, rules};
    use super::*;

    #[test]
    fn all_is_denied_before_anything_is_allowed() {
        let device = Rule { kind: Kind::Block, major: Some(7), minor: None, access: Access::READ };
        let list = rules([device]);
        let writes: Vec<Write> = writes(Path::new("/cg/devices/x"), &list).collect();
        let text = |w: &Write| match &w.value {
            Value::Text(text) => format!("{} = {text}", w.path.display()),
            Value::Inherit => panic!("{w:?}"),
        };
        let texts: Vec<String> = writes.iter().map(text).collect();
        assert_eq!(texts[0], "/cg/devices/x/devices.deny = a");
        assert_eq!(texts[1], "/cg/devices/x/devices.allow = c *:* m");
        assert_eq!(texts.last().unwrap(), "/cg/devices/x/devices.allow = b 7:* r");
        assert_eq!(texts.len(), list.len().saturating_add(1));
        assert!(matches!(&writes[0].need, Need::Else(reason) if reason.control == Control::DEVICES));
    }
}
