//! Processes: which one an object belongs to, who this one is to others, and whether another one lives.
//!
//! A forked child inherits our memory, but none of our threads, and shares NIXL's with its parent: what it inherited it
//! may neither use nor take apart, only leave alone.

mod identity;
#[cfg(test)]
mod samples;
mod watch;

use std::process;
use std::sync::OnceLock;

use crate::error::{Error, ErrorKind, Result};
pub use identity::{Liveness, here, is_stopped, liveness};
pub(crate) use watch::end as end_watches;
pub use watch::{Watch, watch};

/// The process that used NIXL first.
static FIRST_USE: OnceLock<Origin> = OnceLock::new();

/// Whether this process may use NIXL: not where one did that it was forked off, since half of what NIXL and UCX set up for
/// a process are threads, which a child has none of.
pub(crate) fn may_use_nixl() -> bool {
    FIRST_USE.get_or_init(Origin::here).is_here()
}

/// Whether this process may use an object that was made by `origin`.
///
/// # Errors
/// [`ErrorKind::Forked`].
pub(crate) fn refuse_forked(origin: Origin) -> Result<()> {
    if origin.is_here() && may_use_nixl() {
        return Ok(());
    }
    let message = "this process was forked off one that had used NIXL, and shares with it what cannot be shared";
    Err(Error::new(ErrorKind::Forked, "use connector", message)
        .with_hint("start processes with multiprocessing's `spawn`, or use no connector before the fork"))
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
