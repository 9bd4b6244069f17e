//! A watertight enclosure around a process on Linux.

#[cfg(not(target_os = "linux"))]
compile_error!("cofferdam builds on Linux only: it is made of Linux namespaces, cgroups and capabilities");

mod error;
mod report;

pub use error::{Error, Result};
pub use report::{Control, Reason, Report};
