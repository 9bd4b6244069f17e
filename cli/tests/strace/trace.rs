//! Parses the output of `strace -f -y` into calls and their arguments.

use std::collections::BTreeMap;

/// A system call, from a trace or from a line of a plan.
#[derive(Clone, Debug)]
pub struct Call {
    pub pid: u32,
    pub name: String,
    pub args: Vec<String>,
    /// The result that strace shows after `=`; empty for a line of a plan.
    pub result: String,
}

impl Call {
    /// Parses `name(arguments)` and the result.
    pub fn parse(pid: u32, text: &str) -> Option<Call> {
        let (name, rest) = text.trim().split_once('(')?;
        let (inside, behind) = split_at_end(rest)?;
        let result = behind.trim().strip_prefix('=').unwrap_or_default().trim();
        Some(Call { pid, name: name.to_owned(), args: split(inside, ','), result: result.to_owned() })
    }

    /// An argument; empty if there is none.
    pub fn arg(&self, index: usize) -> &str {
        self.args.get(index).map_or("", String::as_str)
    }

    /// The content of an argument that is a quoted string.
    pub fn text(&self, index: usize) -> Option<&str> {
        text(self.arg(index))
    }

    /// The object of a descriptor argument, `/dev` in `5</dev>`. An unprivileged strace cannot examine init, which is
    /// not dumpable, and shows only the number.
    pub fn object(&self, index: usize) -> Option<&str> {
        let (_, path) = self.arg(index).split_once('<')?;
        path.rsplit_once('>').map(|(path, _)| path)
    }

    pub fn failed(&self) -> bool {
        self.result.starts_with("-1")
    }
}

/// The content of a quoted string; `None` for anything else.
pub fn text(arg: &str) -> Option<&str> {
    arg.strip_prefix('"')?.strip_suffix('"').filter(|inside| !inside.contains('"'))
}

/// Splits the text after an opening parenthesis at the closing one.
fn split_at_end(text: &str) -> Option<(&str, &str)> {
    let end = scan(text).find(|(_, c, depth)| *c == ')' && *depth == 0)?.0;
    Some((&text[..end], &text[end + 1..]))
}

/// Splits at separators outside of quotes and brackets.
pub fn split(text: &str, separator: char) -> Vec<String> {
    let (mut parts, mut start) = (Vec::new(), 0);
    for (at, _, _) in scan(text).filter(|(_, c, depth)| *c == separator && *depth == 0) {
        parts.push(text[start..at].trim().to_owned());
        start = at + 1;
    }
    parts.push(text[start..].trim().to_owned());
    parts.retain(|part| !part.is_empty());
    parts
}

/// Yields the characters outside of quotes, each with its offset and the number of open brackets. A shift, as in
/// `1<<CAP_KILL`, is no bracket.
fn scan(text: &str) -> impl Iterator<Item = (usize, char, i32)> {
    let (mut quoted, mut escaped, mut depth) = (false, false, 0);
    let bytes = text.as_bytes();
    let at = move |i: usize| bytes.get(i).copied().unwrap_or(b' ');
    text.char_indices().filter_map(move |(i, c)| {
        if quoted {
            quoted = escaped || c != '"';
            escaped = !escaped && c == '\\';
            return None;
        }
        let shift = c == '<' && (at(i + 1) == b'<' || i > 0 && at(i - 1) == b'<');
        let arrow = c == '>' && i > 0 && matches!(at(i - 1), b'=' | b'-');
        match c {
            '"' => {
                quoted = true;
                return None;
            }
            '(' | '[' | '{' => depth += 1,
            '<' if !shift => depth += 1,
            ')' if depth == 0 => return Some((i, c, 0)),
            ')' | ']' | '}' => depth -= 1,
            '>' if !arrow => depth -= 1,
            _ => {}
        }
        Some((i, c, depth))
    })
}

/// The calls of a trace in the order in which they began. A call that strace splits (`<unfinished ...>` and `resumed`)
/// is joined.
pub fn calls(trace: &str) -> Vec<Call> {
    let mut begun: BTreeMap<u32, (usize, String)> = BTreeMap::new();
    let mut calls: Vec<Option<Call>> = Vec::new();
    for line in trace.lines() {
        let Some((pid, text)) = line.split_once(' ') else { continue };
        let (pid, text): (u32, _) = (pid.parse().unwrap(), text.trim());
        if let Some(front) = text.strip_suffix("<unfinished ...>") {
            begun.insert(pid, (calls.len(), front.trim_end().to_owned()));
            calls.push(None);
        } else if let Some((_, rest)) = text.strip_prefix("<... ").and_then(|t| t.split_once("resumed>")) {
            let Some((at, front)) = begun.remove(&pid) else { continue };
            calls[at] = Call::parse(pid, &format!("{front}{rest}"));
        } else {
            calls.push(Call::parse(pid, text));
        }
    }
    // A process that ended within a call has only the first part.
    for (pid, (at, front)) in begun {
        calls[at] = Call::parse(pid, &format!("{front})"));
    }
    calls.into_iter().flatten().collect()
}

#[test]
fn strace_output_is_parsed() {
    let trace = "\
7 openat2(5</dev>, \"a,\\\")b\", {flags=O_PATH, resolve=RESOLVE_IN_ROOT}, 24) = 3</dev/x, y>
7 capset({pid=0}, {effective=1<<CAP_CHOWN|1<<CAP_KILL, permitted=0}) = 0
7 clone3({flags=CLONE_VM} <unfinished ...>
8 <... setsid resumed>) = 1
8 umask(022)     = 000
7 <... clone3 resumed> => {pidfd=[3<anon_inode:[pidfd]>]}, 88) = 8
7 +++ exited with 0 +++
8 read(3<pipe:[1]>, <unfinished ...>";
    let calls = calls(trace);
    let names: Vec<&str> = calls.iter().map(|call| call.name.as_str()).collect();
    assert_eq!(names, ["openat2", "capset", "clone3", "umask", "read"]);
    assert_eq!(calls[0].args, ["5</dev>", "\"a,\\\")b\"", "{flags=O_PATH, resolve=RESOLVE_IN_ROOT}", "24"]);
    assert_eq!((calls[0].object(0), calls[0].result.as_str()), (Some("/dev"), "3</dev/x, y>"));
    assert_eq!(calls[1].args, ["{pid=0}", "{effective=1<<CAP_CHOWN|1<<CAP_KILL, permitted=0}"]);
    assert_eq!((calls[2].pid, calls[2].result.as_str()), (7, "8"));
    assert_eq!(calls[4].args, ["3<pipe:[1]>"]);
}
