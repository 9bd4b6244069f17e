//! System calls of the parent, made or recorded.
//!
//! An operation of the parent makes each call through [`Kernel::call`], next to the text of the call. A plan is printed
//! by running the operation with a recorder. So the printed line, the line in an error and the call are the same.

use std::cell::RefCell;
use std::io;

use crate::error::{Error, Result};

/// An executor of system calls, or a recorder of their text.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    /// The recorded lines; `None` if calls are made.
    recorded: Option<RefCell<Vec<String>>>,
}

impl Kernel {
    /// A kernel that makes each call.
    pub(crate) fn real() -> Kernel {
        Kernel::default()
    }

    /// A recorder: makes no call. It answers as a host on which no sandbox has run yet.
    pub(crate) fn recorder() -> Kernel {
        Kernel { recorded: Some(RefCell::default()) }
    }

    /// Whether calls are recorded and not made.
    pub(crate) fn records(&self) -> bool {
        self.recorded.is_some()
    }

    /// The recorded lines.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.recorded.map(RefCell::into_inner).unwrap_or_default()
    }

    /// Makes the call `real`. A recorder records `line` instead, and returns `assumed`.
    ///
    /// # Errors
    /// [`Error::Prepare`] with `line` as the step.
    pub(crate) fn call<T, E>(
        &self,
        line: impl FnOnce() -> String,
        assumed: T,
        real: impl FnOnce() -> Result<T, E>,
    ) -> Result<T>
    where
        io::Error: From<E>,
    {
        match &self.recorded {
            Some(lines) => {
                lines.borrow_mut().push(line());
                Ok(assumed)
            }
            None => real().map_err(|e| Error::Prepare { step: line(), source: e.into() }),
        }
    }

    /// Runs `calls` if `holds`. A recorder always runs them, and appends the condition to their lines: `# if remark`.
    pub(crate) fn only_if(
        &self,
        remark: &str,
        holds: bool,
        calls: impl FnOnce() -> Result<()>,
    ) -> Result<()> {
        let Some(lines) = &self.recorded else { return if holds { calls() } else { Ok(()) } };
        let start = lines.borrow().len();
        calls()?;
        for line in lines.borrow_mut().iter_mut().skip(start).filter(|line| !line.contains(" # ")) {
            line.push_str(" # if ");
            line.push_str(remark);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn recorder_makes_no_call_and_appends_the_condition_to_lines() {
        let kernel = Kernel::recorder();
        let unreached = || -> io::Result<u8> { unreachable!() };
        assert_eq!(kernel.call(|| "a()".into(), 7, unreached).unwrap(), 7);
        kernel.only_if("it is so", false, || kernel.call(|| "b()".into(), 0, unreached).map(drop)).unwrap();
        assert_eq!(kernel.into_lines(), ["a()", "b() # if it is so"]);
    }

    #[test]
    fn error_of_a_real_call_names_its_line() {
        let kernel = Kernel::real();
        let refused = || -> io::Result<()> { Err(io::ErrorKind::NotFound.into()) };
        let error = kernel.call(|| "a()".into(), (), refused).unwrap_err();
        assert_eq!(error.to_string(), "a()");
        kernel.only_if("it is so", false, || unreachable!()).unwrap();
    }
}
