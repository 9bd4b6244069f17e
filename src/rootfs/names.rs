//! Name resolution in the sandbox: the text of its own `resolv.conf` and `hosts`.
//!
//! The host's `/etc/resolv.conf` is often a symbolic link to a file that the root does not contain, or names a resolver
//! that a sandbox in another network cannot reach. So if a spec sets anything about names, a new file is made and
//! mounted read-only. This module converts text to text; the survey reads the host's files.

use std::fmt::Write;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The content of `/etc/resolv.conf` in the sandbox (`resolv.conf(5)`). An empty part is taken from the host's file. If
/// all three parts are empty, the host's file is copied.
///
/// ```
/// use cofferdam::{Dns, HostsEntry, Sandbox};
///
/// let dns = Dns { servers: vec!["192.0.2.53".into()], searches: vec!["example.org".into()], ..Dns::default() };
/// let db = HostsEntry { address: "192.0.2.7".into(), names: vec!["db".into(), "db.example.org".into()] };
/// let sandbox = Sandbox::command("curl").dns(dns).hosts([db]);
/// # let _ = sandbox;
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", default, deny_unknown_fields)]
pub struct Dns {
    /// Addresses of name servers, IPv4 or IPv6. An IPv6 address may have a zone (`fe80::1%eth0`).
    pub servers: Vec<String>,
    /// Domains in which short names are searched.
    pub searches: Vec<String>,
    /// Options, for example `ndots:2`.
    pub options: Vec<String>,
}

/// One line of `/etc/hosts` (`hosts(5)`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(remote = "Self", deny_unknown_fields)]
pub struct HostsEntry {
    /// An IPv4 or IPv6 address.
    pub address: String,
    /// Its names, at least one.
    pub names: Vec<String>,
}

/// Path of the resolver's configuration.
pub(crate) const RESOLV_CONF: &str = "/etc/resolv.conf";
/// The directory with the sockets and files of systemd-resolved.
pub(crate) const RESOLVER: &str = "/run/systemd/resolve";
/// Path of the table of host names.
pub(crate) const HOSTS: &str = "/etc/hosts";

/// Path of each of the two files that a spec sets.
pub(crate) fn paths(dns: bool, hosts: bool) -> impl Iterator<Item = &'static str> {
    dns.then_some(RESOLV_CONF).into_iter().chain(hosts.then_some(HOSTS))
}

impl Dns {
    /// Returns the text of the file. `host` is the text of the host's file.
    ///
    /// # Errors
    /// [`Error::Spec`] for a server that is not an address, and for a part with blanks or control characters.
    pub(crate) fn render(&self, host: &str) -> Result<String> {
        let address = |s: &String| s.split('%').next().unwrap_or_default().parse::<IpAddr>().is_ok();
        if let Some(wrong) = self.servers.iter().find(|s| !address(s) || !word(s)) {
            return Err(Error::spec("dns", format!("{wrong:?} is not the IP address of a name server")));
        }
        if let Some(wrong) = self.searches.iter().chain(&self.options).find(|s| !word(s)) {
            return Err(Error::spec("dns", format!("{wrong:?} is not a single word")));
        }
        let Dns { servers, searches, options } = self;
        if servers.is_empty() && searches.is_empty() && options.is_empty() {
            return Ok(host.to_string());
        }
        let host = Dns::parse(host);
        let either =
            |ours: &[String], hosts: Vec<String>| if ours.is_empty() { hosts } else { ours.to_vec() };
        let mut text = String::new();
        for server in either(servers, host.servers) {
            let _ = writeln!(text, "nameserver {server}");
        }
        for (key, words) in
            [("search", either(searches, host.searches)), ("options", either(options, host.options))]
        {
            if !words.is_empty() {
                let _ = writeln!(text, "{key} {}", words.join(" "));
            }
        }
        Ok(text)
    }

    /// Parses a `resolv.conf`. Of several `search` and `domain` lines the last one counts, as in the C library.
    pub(crate) fn parse(text: &str) -> Dns {
        let mut dns = Dns::default();
        for line in text.lines() {
            let line = line.split(['#', ';']).next().unwrap_or_default();
            let mut words = line.split_whitespace();
            let key = words.next();
            let words: Vec<String> = words.map(str::to_string).collect();
            match key {
                Some("nameserver") => dns.servers.extend(words.into_iter().take(1)),
                Some("search" | "domain") => dns.searches = words,
                Some("options") => dns.options.extend(words),
                _ => {}
            }
        }
        dns
    }

    /// Whether all servers are loopback addresses, which cannot be reached from another network namespace.
    pub(crate) fn is_local(&self) -> bool {
        let local = |s: &String| s.parse::<IpAddr>().is_ok_and(|a| a.is_loopback());
        !self.servers.is_empty() && self.servers.iter().all(local)
    }
}

/// Returns the text of a `hosts` file: the loopback names, the host name of the sandbox if it has one, and `entries`.
///
/// # Errors
/// [`Error::Spec`] for an invalid address or name.
pub(crate) fn hosts(entries: &[HostsEntry], hostname: Option<&str>) -> Result<String> {
    let mut text = String::from("127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n");
    if let Some(name) = hostname.filter(|name| word(name)) {
        let _ = writeln!(text, "127.0.1.1 {name}");
    }
    for HostsEntry { address, names } in entries {
        if address.parse::<IpAddr>().is_err() {
            return Err(Error::spec("hosts", format!("{address:?} is not an IP address")));
        }
        if let Some(wrong) = names.iter().find(|name| !word(name)) {
            return Err(Error::spec("hosts", format!("{wrong:?} is not a host name")));
        }
        if names.is_empty() {
            return Err(Error::spec("hosts", format!("no host names are given for {address:?}")));
        }
        let _ = writeln!(text, "{address} {}", names.join(" "));
    }
    Ok(text)
}

/// Whether the text is one field of a line: no blanks, comments or control characters.
fn word(text: &str) -> bool {
    !text.is_empty() && text.len() < 256 && text.chars().all(|c| c.is_ascii_graphic() && c != '#' && c != ';')
}

crate::notation::from_maps! {
    Dns: "an object with servers, searches and options",
    HostsEntry: "an object with address and names",
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOST: &str = "# made by hand\nnameserver 10.0.0.1 ; first\nnameserver 10.0.0.2\ndomain old\nsearch a.example b.example\n\
                        options ndots:3\noptions rotate\nsortlist 1.2.3.4\n";

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> Dns {
        let own = |list: &[&str]| list.iter().map(|s| s.to_string()).collect();
        Dns { servers: own(servers), searches: own(searches), options: own(options) }
    }

    #[test]
    fn dns_parts_that_are_not_set_come_from_the_host() {
        for (given, expect) in [
            (dns(&[], &[], &[]), HOST),
            (
                dns(&["1.1.1.1", "fe80::1%eth0"], &[], &[]),
                "nameserver 1.1.1.1\nnameserver fe80::1%eth0\nsearch a.example b.example\noptions ndots:3 rotate\n",
            ),
            (
                dns(&[], &["c.example"], &[]),
                "nameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch c.example\noptions ndots:3 rotate\n",
            ),
            (
                dns(&[], &[], &["edns0"]),
                "nameserver 10.0.0.1\nnameserver 10.0.0.2\nsearch a.example b.example\noptions edns0\n",
            ),
        ] {
            assert_eq!(given.render(HOST).unwrap(), expect, "{given:?}");
        }
        assert_eq!(dns(&["1.1.1.1"], &[], &[]).render("").unwrap(), "nameserver 1.1.1.1\n");
    }

    #[test]
    fn dns_entries_must_be_single_words_and_servers_must_be_addresses() {
        for wrong in ["", "x", "1.1.1.1\nsearch evil", "1.1.1", "1.1.1.1%a b", "1.1.1.1#"] {
            assert!(dns(&[wrong], &[], &[]).render("").is_err(), "{wrong:?}");
        }
        for wrong in ["", "a b", "a\nnameserver 6.6.6.6", "a;b", "\u{a0}"] {
            assert!(dns(&[], &[wrong], &[]).render("").is_err(), "{wrong:?}");
            assert!(dns(&[], &[], &[wrong]).render("").is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_resolver_on_the_loopback_interface_is_recognized() {
        for (text, local) in [
            ("nameserver 127.0.0.53", true),
            ("nameserver ::1\nnameserver 127.0.0.1", true),
            ("nameserver 127.0.0.53\nnameserver 10.0.0.1", false),
            ("", false),
        ] {
            assert_eq!(Dns::parse(text).is_local(), local, "{text:?}");
        }
    }

    #[test]
    fn hosts_lists_loopback_own_name_and_entries() {
        let entry = |address: &str, names: &[&str]| HostsEntry {
            address: address.into(),
            names: names.iter().map(|s| s.to_string()).collect(),
        };
        let text = hosts(&[entry("10.0.0.7", &["db", "db.example"])], Some("box")).unwrap();
        assert_eq!(
            text,
            "127.0.0.1 localhost\n::1 localhost ip6-localhost ip6-loopback\n127.0.1.1 box\n10.0.0.7 db db.example\n"
        );
        for wrong in [entry("10.0.0", &["a"]), entry("10.0.0.7", &[]), entry("10.0.0.7", &["a b"])] {
            assert!(hosts(&[wrong], None).is_err());
        }
    }
}
