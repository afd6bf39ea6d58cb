//! Processes: which one an object belongs to, who this one is to others, and whether another one lives.
//!
//! A forked child inherits our memory, but none of our threads, and shares NIXL's with its parent: what it inherited it
//! may neither use nor take apart, only leave alone. What it makes itself is its own.

mod identity;
mod local;
#[cfg(test)]
pub(crate) mod samples;
mod watch;

use std::process;

use crate::error::{Error, ErrorKind, Result};
pub use identity::{Liveness, here, is_stopped, liveness};
pub(crate) use local::PerProcess;
pub(crate) use watch::end as end_watches;
pub use watch::{Watch, watch};

/// Whether this process may use an object that was made by `origin`.
///
/// # Errors
/// [`ErrorKind::Forked`].
pub(crate) fn refuse_forked(origin: Origin) -> Result<()> {
    if origin.is_here() {
        return Ok(());
    }
    let message = "it was made before this process was forked off, and belongs to the parent";
    Err(Error::new(ErrorKind::Forked, "use connector", message).with_hint("make a new connector in this process"))
}

/// The process that made an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Origin(u32);

impl Origin {
    /// This process.
    pub(crate) fn here() -> Self {
        Self(process::id())
    }

    /// Whether the object was made here, and not inherited.
    pub(crate) fn is_here(self) -> bool {
        self.0 == process::id()
    }
}
