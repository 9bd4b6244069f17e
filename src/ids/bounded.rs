//! Looks up a user, and gives up at a deadline.
//!
//! The host's database may be a service that does not answer, and the C library waits for it without limit. A process of
//! its own cannot make the call, because the library's state may be locked when it is forked. So a thread makes it.

use std::io;
use std::time::Instant;

use super::Identity;
use super::users::{is_given, lookup};
use crate::error::Error;
use crate::sys::thread::{Done, within};

/// As [`lookup`], with a deadline. If the database has not answered then, a thread is left behind, which ends when it does.
///
/// # Errors
/// As [`lookup`], and [`Error::Prepare`] with `TimedOut`.
pub(crate) fn lookup_until(user: &str, until: Option<Instant>) -> Result<Identity, Error> {
    let Some(until) = until.filter(|_| !is_given(user)) else { return lookup(user) };
    let asked = user.to_owned();
    let why = match within(until, "cofferdam-user", move || lookup(&asked)) {
        Done::InTime(found) => return found,
        Done::NoThread => return lookup(user),
        Done::Late => "the user database does not answer",
        Done::Crowded => "the user database has not answered many earlier lookups",
    };
    let user = if user.is_empty() { "nobody" } else { user };
    Err(Error::prepare(format!("look up the user {user:?}"))(io::Error::new(io::ErrorKind::TimedOut, why)))
}
