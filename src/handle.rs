//! An operation as its owner holds it.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::exposure::Exposure;
use crate::operation::{Operation, Outcome};
use crate::process::{self, Origin};
use crate::reactor::lane::Lane;
use crate::region::KeepAlive;
use crate::wire::Encoding;

/// An operation as its owner holds it. Dropping it cancels the operation, if it is unfinished; the wire's last pieces are
/// still driven to their end with their memory pinned.
///
/// In a child process that inherited it, it does nothing and lets nothing go.
pub struct OperationHandle {
    operation: Arc<Operation>,
    origin: Origin,
    side: ManuallyDrop<Side>,
    /// An operation outlives its connector's last other holder.
    connector: ManuallyDrop<KeepAlive>,
}

#[derive(Debug)]
pub(crate) enum Side {
    Active(Arc<Lane>),
    Passive(Exposure),
}

impl OperationHandle {
    pub(crate) fn new(operation: Arc<Operation>, side: Side, connector: KeepAlive) -> Self {
        Self {
            operation,
            origin: Origin::here(),
            side: ManuallyDrop::new(side),
            connector: ManuallyDrop::new(connector),
        }
    }

    /// The operation's state.
    #[must_use]
    pub fn operation(&self) -> &Arc<Operation> {
        &self.operation
    }

    /// The text for `RdmaMetadata.nixl_metadata`; the passive side's, once it has started.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] on the active side; [`ErrorKind::Forked`]; else as the export fails.
    pub fn metadata(&self, encoding: Encoding) -> Result<String> {
        process::refuse_forked(self.origin)?;
        match &*self.side {
            Side::Passive(exposure) => exposure.metadata(encoding),
            Side::Active(_) => Err(Error::new(
                ErrorKind::InvalidArgument,
                "export metadata",
                "only the side that exposes memory has metadata",
            )),
        }
    }

    /// Ends an unfinished operation as cancelled. True if this call ended it. On the passive side its registrations are
    /// given back, also where it was finished.
    pub fn cancel(&self) -> bool {
        if !self.origin.is_here() {
            return false;
        }
        match &*self.side {
            Side::Active(lane) => {
                let ended = self.operation.finish(Outcome::Cancelled);
                if ended {
                    lane.touch();
                }
                ended
            }
            Side::Passive(exposure) => exposure.end(),
        }
    }

    /// Whether this process may wait for the operation, or look at more of it than its status: in a forked child it never
    /// ends, and its lock may be held for ever.
    ///
    /// # Errors
    /// [`ErrorKind::Forked`].
    pub fn refuse_forked(&self) -> Result<()> {
        process::refuse_forked(self.origin)
    }

    /// Changes when an exposure ends for want of a peer: `lease` from now, or never.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] on the active side, or where it has ended; [`ErrorKind::Forked`].
    pub fn renew(&self, lease: Option<Duration>) -> Result<()> {
        process::refuse_forked(self.origin)?;
        match &*self.side {
            Side::Passive(exposure) => exposure.renew(lease),
            Side::Active(_) => Err(Error::new(
                ErrorKind::InvalidArgument,
                "renew lease",
                "only the side that exposes memory has a lease",
            )),
        }
    }
}

impl fmt::Debug for OperationHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("OperationHandle")
            .field("operation", &self.operation)
            .field("side", &self.side)
            .finish_non_exhaustive()
    }
}

impl Drop for OperationHandle {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            return;
        }
        self.cancel();
        // SAFETY: neither is touched again, since this is the drop. In a forked child they are leaked on purpose: taking
        // them apart waits for locks that threads of the parent held, and writes to memory that NIXL shares with it.
        unsafe {
            ManuallyDrop::drop(&mut self.side);
            ManuallyDrop::drop(&mut self.connector);
        }
    }
}
