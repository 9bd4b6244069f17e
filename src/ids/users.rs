//! Looks up the field `user` of a spec.

use std::ffi::CString;
use std::fmt::Debug;
use std::path::PathBuf;

use nix::errno::Errno;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};

use super::Identity;
use crate::error::Error;

/// The kernel's overflow id, which is also the id of `nobody` where that user exists (`user_namespaces(7)`).
const NOBODY: u32 = 65534;

/// Looks up `user` in the host's user database.
///
/// | `user` | uid | gid | supplementary groups |
/// |---|---|---|---|
/// | empty | `nobody`'s, or 65534 if the host has none | `nobody`'s, or 65534 | `nobody`'s |
/// | `NAME` | that user's | that user's | that user's (`getgrouplist(3)`) |
/// | `UID` | this one | its user's | its user's |
/// | `NAME:GROUP` | that user's | that group's | none but that group |
/// | `UID:GID` | this one, known to the host or not | this one, likewise | none but that group |
///
/// Each side of the colon is a name or an id. Text that consists of decimal digits is an id and is never looked up as a
/// name. A `UID` alone is refused if the host's database does not contain it, because its group is not known. Two ids are
/// not looked up at all, so the result has neither a name nor a home directory.
///
/// The result depends on `nsswitch.conf(5)`. A lookup in a network service can take long. A program that is linked with a
/// static glibc reads only `/etc/passwd` and `/etc/group`: glibc would load the host's modules into it, and a module that
/// is built for another glibc crashes the program.
///
/// # Errors
/// [`Error::Spec`] for the field `user`: `failed to identify user "x": ` and the reason. The user or group may not
/// exist, or the text may be neither a name nor an id (4294967295 is `(uid_t) -1`, "leave unchanged").
/// [`Error::Prepare`] with the call, if the database has failed: the same spec may succeed later.
///
/// ```
/// let who = cofferdam::ids::lookup("12345:100")?;
/// assert_eq!((who.uid, who.gid, who.groups), (12345, 100, vec![100]));
/// assert!(cofferdam::ids::lookup("no such user").is_err());
/// # Ok::<(), cofferdam::Error>(())
/// ```
pub fn lookup(user: &str) -> Result<Identity, Error> {
    if cfg!(all(target_env = "gnu", target_feature = "crt-static")) {
        lookup_in(&Files::of_host(), user)
    } else {
        lookup_in(&HostAccounts, user)
    }
}

/// Whether the text is two ids, which are not looked up.
pub(super) fn is_given(user: &str) -> bool {
    let is_id = |text| matches!(Key::parse(text), Ok(Key::Id(_)));
    user.split_once(':').is_some_and(|(user, group)| is_id(user) && is_id(group))
}

fn lookup_in(accounts: &impl Accounts, user: &str) -> Result<Identity, Error> {
    identify(accounts, user).map_err(|why| match why {
        Why::Wrong(why) => Error::spec("user", format!("failed to identify user {user:?}: {why}")),
        Why::Failed(call, errno) => Error::prepare(call)(errno),
    })
}

/// Why a user is not identified.
enum Why {
    /// The text is wrong, or the database has no such entry.
    Wrong(String),
    /// The database has failed: the refused call, and the errno.
    Failed(String, Errno),
}

impl<T: Into<String>> From<T> for Why {
    fn from(why: T) -> Why {
        Why::Wrong(why.into())
    }
}

fn identify(accounts: &impl Accounts, user: &str) -> Result<Identity, Why> {
    if user.is_empty() {
        return nobody(accounts);
    }
    let (user, group) = user.split_once(':').map_or((user, None), |(user, group)| (user, Some(group)));
    let group = group.map(Key::parse).transpose()?;
    let (uid, account) = match Key::parse(user)? {
        // Both ids are given, so nothing is looked up.
        Key::Id(uid) if matches!(group, Some(Key::Id(_))) => (uid, None),
        Key::Id(uid) => (uid, answer(accounts.user_by_uid(uid), "getpwuid_r", uid)?),
        Key::Name(name) => {
            let account = answer(accounts.user_by_name(name), "getpwnam_r", name)?.ok_or("no such user")?;
            (valid(account.uid)?, Some(account))
        }
    };
    let gid = group.map(|group| group_id(accounts, group)).transpose()?;
    match (gid, account) {
        (None, Some(account)) => with_all_groups(accounts, uid, account),
        (None, None) => {
            Err("no user has this id, so its group is not known: give the group too, as UID:GID".into())
        }
        (Some(gid), account) => {
            let (name, home) = account.map(|a| (a.name, a.home)).unzip();
            Ok(Identity { uid, gid, groups: vec![gid], name, home })
        }
    }
}

fn nobody(accounts: &impl Accounts) -> Result<Identity, Why> {
    match answer(accounts.user_by_name("nobody"), "getpwnam_r", "nobody")? {
        Some(account) => with_all_groups(accounts, valid(account.uid)?, account),
        None => Ok(Identity { uid: NOBODY, gid: NOBODY, groups: vec![NOBODY], name: None, home: None }),
    }
}

fn with_all_groups(accounts: &impl Accounts, uid: u32, account: Account) -> Result<Identity, Why> {
    let gid = valid(account.gid)?;
    let groups = accounts.groups(&account.name, gid);
    let mut groups = groups.map_err(failed("getgrouplist", &account.name))?;
    groups.push(gid);
    groups.sort_unstable();
    groups.dedup();
    if let Some(&last) = groups.last() {
        valid(last)?;
    }
    Ok(Identity { uid, gid, groups, name: Some(account.name), home: Some(account.home) })
}

fn group_id(accounts: &impl Accounts, group: Key<'_>) -> Result<u32, Why> {
    match group {
        Key::Id(gid) => Ok(gid),
        Key::Name(name) => {
            let found = answer(accounts.group_by_name(name), "getgrnam_r", name)?;
            Ok(valid(found.ok_or_else(|| format!("no such group {name:?}"))?)?)
        }
    }
}

/// A user or a group as it is given: one side of the colon.
enum Key<'a> {
    Id(u32),
    Name(&'a str),
}

impl<'a> Key<'a> {
    /// Parses one side of the colon. A name may contain blanks, as in directory services, but not at its ends, and no
    /// control characters. A leading `+` or `-` is refused: it is syntax of `nsswitch.conf(5)`'s compat mode, or a
    /// mistyped number.
    fn parse(text: &'a str) -> Result<Key<'a>, String> {
        if text.is_empty() {
            return Err("one side of the colon is empty".into());
        }
        if text.bytes().all(|b| b.is_ascii_digit()) {
            let id =
                text.parse().map_err(|_| format!("{text} is greater than the highest id, 4294967294"))?;
            return valid(id).map(Key::Id);
        }
        let bad = text.starts_with(['+', '-'])
            || text.trim() != text
            || text.contains(|c: char| c == ':' || c.is_control());
        if bad { Err(format!("{text:?} is neither a name nor an id")) } else { Ok(Key::Name(text)) }
    }
}

/// Refuses the id that `setresuid(2)` and similar calls take for "leave unchanged".
fn valid(id: u32) -> Result<u32, String> {
    if id == u32::MAX { Err(format!("{id} (-1) is not a valid id")) } else { Ok(id) }
}

/// Turns the errors with which some implementations report a missing entry into `None` (`getpwnam(3)`, NOTES).
fn answer<T>(answer: Result<Option<T>, Errno>, call: &str, key: impl Debug) -> Result<Option<T>, Why> {
    match answer {
        Err(Errno::ENOENT | Errno::ESRCH) => Ok(None),
        answer => answer.map_err(failed(call, key)),
    }
}

/// The failure of a call for this key, as a closure for `map_err`.
fn failed(call: &str, key: impl Debug) -> impl FnOnce(Errno) -> Why {
    move |errno| Why::Failed(format!("{call}({key:?})"), errno)
}

/// An entry of the user database.
#[derive(Clone)]
struct Account {
    name: String,
    uid: u32,
    gid: u32,
    home: PathBuf,
}

/// A user database. The tests have one of their own.
trait Accounts {
    fn user_by_name(&self, name: &str) -> Result<Option<Account>, Errno>;
    fn user_by_uid(&self, uid: u32) -> Result<Option<Account>, Errno>;
    fn group_by_name(&self, name: &str) -> Result<Option<u32>, Errno>;
    /// All groups that list `user` as a member; `primary` may be among them.
    fn groups(&self, user: &str, primary: u32) -> Result<Vec<u32>, Errno>;
}

/// The host's user database, through the C library.
struct HostAccounts;

impl Accounts for HostAccounts {
    fn user_by_name(&self, name: &str) -> Result<Option<Account>, Errno> {
        Ok(User::from_name(name)?.map(Account::from))
    }

    fn user_by_uid(&self, uid: u32) -> Result<Option<Account>, Errno> {
        Ok(User::from_uid(Uid::from_raw(uid))?.map(Account::from))
    }

    fn group_by_name(&self, name: &str) -> Result<Option<u32>, Errno> {
        Ok(Group::from_name(name)?.map(|group| group.gid.as_raw()))
    }

    fn groups(&self, user: &str, primary: u32) -> Result<Vec<u32>, Errno> {
        let user = CString::new(user).map_err(|_| Errno::EINVAL)?;
        let groups = getgrouplist(&user, Gid::from_raw(primary))?;
        Ok(groups.into_iter().map(Gid::as_raw).collect())
    }
}

/// The text of `passwd(5)` and `group(5)`. Lines that are not entries are ignored.
#[derive(Clone, Default)]
struct Files {
    passwd: String,
    group: String,
}

impl Files {
    /// The files of the host. One that cannot be read has no entries.
    fn of_host() -> Files {
        let read = |path| String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned();
        Files { passwd: read("/etc/passwd"), group: read("/etc/group") }
    }

    fn account(&self, matches: impl Fn(&Account) -> bool) -> Option<Account> {
        let accounts = self.passwd.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let (name, uid, gid) =
                (fields.next()?, fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            Some(Account { name: name.to_owned(), uid, gid, home: fields.nth(1)?.into() })
        });
        accounts.into_iter().find(matches)
    }

    /// The name, the id and the members of each group.
    fn groups(&self) -> impl Iterator<Item = (&str, u32, &str)> {
        self.group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            Some((fields.next()?, fields.nth(1)?.parse().ok()?, fields.next()?))
        })
    }
}

impl Accounts for Files {
    fn user_by_name(&self, name: &str) -> Result<Option<Account>, Errno> {
        Ok(self.account(|account| account.name == name))
    }

    fn user_by_uid(&self, uid: u32) -> Result<Option<Account>, Errno> {
        Ok(self.account(|account| account.uid == uid))
    }

    fn group_by_name(&self, name: &str) -> Result<Option<u32>, Errno> {
        Ok(self.groups().find(|group| group.0 == name).map(|group| group.1))
    }

    fn groups(&self, user: &str, primary: u32) -> Result<Vec<u32>, Errno> {
        let listed = self.groups().filter(|group| group.2.split(',').any(|member| member == user));
        Ok(std::iter::once(primary).chain(listed.map(|group| group.1)).collect())
    }
}

impl From<User> for Account {
    fn from(user: User) -> Account {
        Account { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw(), home: user.dir }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    /// A lookup of `broken` fails with `broken`.
    #[derive(Clone)]
    struct Fake {
        files: Files,
        broken: Errno,
    }

    fn fake() -> Fake {
        let passwd = "root:x:0:0::/root:\nnobody:x:65534:65533::/nonexistent:\nann:x:1000:100::/home/ann:\n\
                      # a comment\n+::::::\n\n42:x:43:43::/:\nminus:x:4294967295:1::/:\n\
                      minusgroup:x:9:4294967295::/:";
        let group = "root:x:0:\nusers:x:100:\n# a comment\n+:::\nsudo:x:27:ann\naudio:x:5:ann,root\n7:x:8:\n\
                     minus:x:4294967295:";
        Fake { files: Files { passwd: passwd.into(), group: group.into() }, broken: Errno::EIO }
    }

    impl Accounts for Fake {
        fn user_by_name(&self, name: &str) -> Result<Option<Account>, Errno> {
            if name == "broken" { Err(self.broken) } else { self.files.user_by_name(name) }
        }

        fn user_by_uid(&self, uid: u32) -> Result<Option<Account>, Errno> {
            self.files.user_by_uid(uid)
        }

        fn group_by_name(&self, name: &str) -> Result<Option<u32>, Errno> {
            if name == "broken" { Err(self.broken) } else { self.files.group_by_name(name) }
        }

        fn groups(&self, user: &str, primary: u32) -> Result<Vec<u32>, Errno> {
            Accounts::groups(&self.files, user, primary)
        }
    }

    /// Formats the result as `uid:gid:groups:name:home`, or returns the part of the error after the user's name.
    fn show(accounts: &Fake, user: &str) -> String {
        match lookup_in(accounts, user) {
            Ok(who) => {
                let home = who.home.as_deref().and_then(|h| h.to_str()).unwrap_or("-");
                let groups: Vec<String> = who.groups.iter().map(u32::to_string).collect();
                let name = who.name.as_deref().unwrap_or("-");
                format!("{}:{}:{}:{name}:{home}", who.uid, who.gid, groups.join(","))
            }
            Err(Error::Spec { field: "user", message }) => {
                let prefix = format!("failed to identify user {user:?}: ");
                message.strip_prefix(&prefix).expect(&message).to_owned()
            }
            Err(e) => panic!("{e}"),
        }
    }

    #[test]
    fn known_users_are_looked_up() {
        let table = [
            ("", "65534:65533:65533:nobody:/nonexistent"),
            ("root", "0:0:0,5:root:/root"),
            ("ann", "1000:100:5,27,100:ann:/home/ann"),
            ("1000", "1000:100:5,27,100:ann:/home/ann"),
            ("001000", "1000:100:5,27,100:ann:/home/ann"),
            ("ann:sudo", "1000:27:27:ann:/home/ann"),
            ("ann:0", "1000:0:0:ann:/home/ann"),
            ("1000:sudo", "1000:27:27:ann:/home/ann"),
            // Two ids are not looked up.
            ("1000:99", "1000:99:99:-:-"),
            ("2000:2001", "2000:2001:2001:-:-"),
            ("4294967294:4294967294", "4294967294:4294967294:4294967294:-:-"),
            // A user 42 and a group 7 exist with other ids. Digits are an id.
            ("42:7", "42:7:7:-:-"),
        ];
        for (user, expect) in table {
            assert_eq!(show(&fake(), user), expect, "{user:?}");
        }
    }

    #[test]
    fn unknown_or_malformed_users_are_refused() {
        let unknown = "no user has this id, so its group is not known: give the group too, as UID:GID";
        let minus = "4294967295 (-1) is not a valid id";
        let table = [
            ("no-such-user-xyz", "no such user"),
            ("no-such-user-xyz:0", "no such user"),
            ("ann:nope", "no such group \"nope\""),
            // Nomad accepts only names. This crate refuses an id whose group is not known.
            ("2000", unknown),
            ("42", unknown),
            ("4294967295", minus),
            ("4294967295:1", minus),
            ("1:4294967295", minus),
            ("minus", minus),
            ("minusgroup", minus),
            ("ann:minus", minus),
            ("4294967296", "4294967296 is greater than the highest id, 4294967294"),
            ("ann:", "one side of the colon is empty"),
            (":1", "one side of the colon is empty"),
            (":", "one side of the colon is empty"),
            ("+1", "\"+1\" is neither a name nor an id"),
            ("-1", "\"-1\" is neither a name nor an id"),
            (" 1", "\" 1\" is neither a name nor an id"),
            ("1 ", "\"1 \" is neither a name nor an id"),
            ("ann:+1", "\"+1\" is neither a name nor an id"),
            ("ann:1:2", "\"1:2\" is neither a name nor an id"),
            ("ann\0", "\"ann\\0\" is neither a name nor an id"),
            ("ann\n", "\"ann\\n\" is neither a name nor an id"),
            ("0x10", "no such user"),
        ];
        for (user, expect) in table {
            assert_eq!(show(&fake(), user), expect, "{user:?}");
        }
    }

    #[test]
    fn failed_database_is_no_fault_of_the_spec() {
        for (user, call) in [("broken", "getpwnam_r(\"broken\")"), ("ann:broken", "getgrnam_r(\"broken\")")] {
            let failed = Fake { broken: Errno::EMFILE, ..fake() };
            match lookup_in(&failed, user) {
                Err(Error::Prepare { step, source }) => {
                    assert_eq!(step, call);
                    assert_eq!(source.raw_os_error(), Some(libc::EMFILE));
                }
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn without_nobody_the_overflow_id_is_used() {
        let mut bare = fake();
        bare.files.passwd = "root:x:0:0::/root:".into();
        assert_eq!(show(&bare, ""), "65534:65534:65534:-:-");
        assert_eq!(show(&bare, "nobody"), "no such user");
    }

    #[test]
    fn enoent_and_esrch_mean_no_such_user() {
        for errno in [Errno::ENOENT, Errno::ESRCH] {
            assert_eq!(show(&Fake { broken: errno, ..fake() }, "broken"), "no such user");
        }
    }

    fn numbers_of_id(option: &str, user: &str) -> Option<Vec<u32>> {
        let output = Command::new("id").args([option, user]).output().ok().filter(|o| o.status.success())?;
        let text = String::from_utf8(output.stdout).ok()?;
        let mut numbers: Vec<u32> = text.split_whitespace().map(|n| n.parse().unwrap()).collect();
        numbers.sort_unstable();
        Some(numbers)
    }

    /// Compares every account of this machine with `id(1)`.
    #[test]
    fn agrees_with_id() {
        let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let mut compared = 0_usize;
        for name in passwd.lines().filter_map(|line| line.split(':').next()) {
            let Some(groups) = numbers_of_id("-G", name) else { continue };
            let who = lookup(name).unwrap();
            assert_eq!(who.groups, groups, "{name}");
            assert_eq!(Some(vec![who.uid]), numbers_of_id("-u", name), "{name}");
            assert_eq!(Some(vec![who.gid]), numbers_of_id("-g", name), "{name}");
            assert_eq!(lookup(&format!("{name}:{}", who.gid)).unwrap().groups, [who.gid]);
            compared = compared.saturating_add(1);
        }
        if compared == 0 {
            crate::skip::note("neither /etc/passwd nor id(1) here");
        }
    }
}
