//! Which process an object belongs to.
//!
//! A forked child inherits our memory, but none of our threads, and shares NIXL's with its parent: what it inherited it
//! may neither use nor take apart, only leave alone.

use std::process;

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
