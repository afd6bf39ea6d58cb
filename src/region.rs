//! Registrations of one agent: counted by range, kept alive with their owner, never twice, never pulled from under
//! another holder.
//!
//! Registering a range twice with one agent is unsound in NIXL, so a second holder only adds to a count; deregistration
//! happens when the last holder lets go, under the same lock, so that no one can register the range in between.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::transport::{Registration, Transport};
use crate::types::MemoryRange;

/// Whatever owns the memory of a range. Dropping it may let the memory go, so it is dropped last.
pub type KeepAlive = Arc<dyn Any + Send + Sync>;

/// A local range and what keeps it alive; `None` where the caller vouches for the memory.
#[derive(Clone)]
pub struct LocalMemory {
    /// Where the bytes lie.
    pub range: MemoryRange,
    /// What keeps them there.
    pub keep_alive: Option<KeepAlive>,
}

impl fmt::Debug for LocalMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LocalMemory")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// The registrations of one agent.
#[derive(Debug)]
pub struct RegionTable {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` once the table was closed.
    transport: Option<Arc<dyn Transport>>,
    entries: HashMap<MemoryRange, Entry>,
}

#[derive(Debug)]
struct Entry {
    holders: usize,
    _registration: Box<dyn Registration>,
}

impl RegionTable {
    /// An empty table over `transport`.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                transport: Some(transport),
                entries: HashMap::new(),
            }),
        })
    }

    /// Registers `memory`, or counts one more holder of it.
    ///
    /// Ranges of no bytes need no registration: they get a [`Region`] that holds nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Registration`] where NIXL refuses, [`ErrorKind::Closed`] after [`RegionTable::close`].
    pub fn acquire(self: &Arc<Self>, memory: &LocalMemory) -> Result<Region> {
        let range = memory.range;
        if range.len.0 > 0 {
            let mut state = self.state.lock();
            let Some(transport) = state.transport.clone() else {
                return Err(closed());
            };
            if let Some(entry) = state.entries.get_mut(&range) {
                entry.holders += 1;
            } else {
                let registration = transport.register(&range)?;
                state.entries.insert(
                    range,
                    Entry {
                        holders: 1,
                        _registration: registration,
                    },
                );
            }
        }
        Ok(Region {
            table: Arc::clone(self),
            range,
            _keep_alive: memory.keep_alive.clone(),
        })
    }

    /// The agent behind the table.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] after [`RegionTable::close`].
    pub fn transport(&self) -> Result<Arc<dyn Transport>> {
        self.state.lock().transport.clone().ok_or_else(closed)
    }

    /// Whether `range` is registered now.
    #[must_use]
    pub fn is_registered(&self, range: &MemoryRange) -> bool {
        range.len.0 == 0 || self.state.lock().entries.contains_key(range)
    }

    /// How many ranges are registered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().entries.len()
    }

    /// Whether no range is registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Deregisters everything and lets the agent go. Later holders' drops do nothing. The caller has nothing in flight.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.entries.clear();
        state.transport = None;
    }

    fn release(&self, range: &MemoryRange) {
        let mut state = self.state.lock();
        // Absent after `close`.
        if let Some(entry) = state.entries.get_mut(range) {
            entry.holders -= 1;
            if entry.holders == 0 {
                state.entries.remove(range);
            }
        }
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "register memory", "the connector is closed")
}

/// One holder's share in a registration. Dropping it gives the share back, then lets go of the owner.
pub struct Region {
    table: Arc<RegionTable>,
    range: MemoryRange,
    /// Dropped after `Drop::drop` has given the share back: memory outlives its registration.
    _keep_alive: Option<KeepAlive>,
}

impl Region {
    /// The registered range.
    #[must_use]
    pub fn range(&self) -> &MemoryRange {
        &self.range
    }

    /// Whether the registration stands; it does until the connector is closed.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.table.is_registered(&self.range)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        if self.range.len.0 > 0 {
            self.table.release(&self.range);
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Region")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
