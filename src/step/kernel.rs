//! System calls of the parent, made or recorded.
//!
//! The code that acts is the code that prints: an operation of the parent makes each call through [`Kernel::call`],
//! which has the call's text beside it. A plan is printed by running the operation with a recorder. So the printed
//! line, the line in an error and the call cannot disagree.

use std::cell::RefCell;
use std::io;

use crate::error::{Error, Result};

/// Makes system calls, or records them.
#[derive(Debug, Default)]
pub(crate) struct Kernel {
    /// The lines so far, where nothing is to be touched.
    recorded: Option<RefCell<Vec<String>>>,
}

impl Kernel {
    /// Makes each call.
    pub(crate) fn real() -> Kernel {
        Kernel::default()
    }

    /// Touches nothing. Answers as a host on which no sandbox has run yet.
    pub(crate) fn recorder() -> Kernel {
        Kernel { recorded: Some(RefCell::default()) }
    }

    /// Whether nothing is touched.
    pub(crate) fn records(&self) -> bool {
        self.recorded.is_some()
    }

    /// The lines that were recorded.
    pub(crate) fn into_lines(self) -> Vec<String> {
        self.recorded.map(RefCell::into_inner).unwrap_or_default()
    }

    /// Makes the call `real`, which prints as `line`. A recorder answers `assumed` instead.
    ///
    /// # Errors
    /// [`Error::Prepare`] with the line.
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

    /// Runs `calls` if `holds`. A recorder always runs them, and adds the condition to their lines: `# if remark`.
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
    fn a_recorder_touches_nothing_and_marks_what_depends() {
        let kernel = Kernel::recorder();
        let unreached = || -> io::Result<u8> { unreachable!() };
        assert_eq!(kernel.call(|| "a()".into(), 7, unreached).unwrap(), 7);
        kernel.only_if("it is so", false, || kernel.call(|| "b()".into(), 0, unreached).map(drop)).unwrap();
        assert_eq!(kernel.into_lines(), ["a()", "b() # if it is so"]);
    }

    #[test]
    fn a_real_call_is_made_once_and_its_error_has_the_line() {
        let kernel = Kernel::real();
        let refused = || -> io::Result<()> { Err(io::ErrorKind::NotFound.into()) };
        let error = kernel.call(|| "a()".into(), (), refused).unwrap_err();
        assert_eq!(error.to_string(), "a()");
        kernel.only_if("it is so", false, || unreachable!()).unwrap();
    }
}
