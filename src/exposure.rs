//! The passive side of an operation: memory that a peer may read or write once.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::Result;
use crate::operation::{Operation, Outcome};
use crate::reactor::lane::{Lane, Opened};
use crate::region::{LocalMemory, Region};
use crate::types::MemoryRange;
use crate::wire::{Encoding, Trailer, compose, encode};

/// Memory up to this size is registered by the caller; more would hold up its event loop.
const INLINE_REGISTRATION_BYTES: u64 = 1 << 20;
/// And up to so many ranges.
const INLINE_REGISTRATIONS: usize = 16;

/// An exposure: its registrations stand until it is ended or dropped, also after a peer has completed it.
pub(crate) struct Exposure {
    operation: Arc<Operation>,
    lane: Arc<Lane>,
    ranges: Vec<MemoryRange>,
    held: Arc<Mutex<Held>>,
    generation: u64,
}

/// The registrations, unless the exposure ended before they were made.
#[derive(Debug, Default)]
struct Held {
    regions: Vec<Region>,
    has_ended: bool,
}

impl Exposure {
    /// Registers the memory, here where that is quick and on the lane's thread otherwise, and expects the peer's
    /// notification. A failure to register is the operation's outcome.
    pub(crate) fn start(
        operation: Arc<Operation>,
        lane: Arc<Lane>,
        memory: Vec<LocalMemory>,
        generation: u64,
    ) -> Result<Self> {
        let opened = lane.wait_open()?;
        let ranges: Vec<MemoryRange> = memory.iter().map(|memory| memory.range).collect();
        let held = Arc::new(Mutex::new(Held::default()));
        opened.dispatcher.expect(&operation);
        let (new_ranges, new_bytes) = ranges
            .iter()
            .filter(|range| !opened.regions.is_registered(range))
            .fold((0, 0_u64), |(count, bytes), range| {
                (count + 1, bytes.saturating_add(range.len.0))
            });
        if new_ranges <= INLINE_REGISTRATIONS && new_bytes <= INLINE_REGISTRATION_BYTES {
            register(opened, &operation, &held, &memory);
            lane.touch();
        } else {
            let (regions, dispatcher) = (Arc::clone(&opened.regions), Arc::clone(&opened.dispatcher));
            let (task_operation, task_held) = (Arc::clone(&operation), Arc::clone(&held));
            let accepted = lane.run(Box::new(move || {
                if let Err(error) = acquire(&regions, &task_held, &memory) {
                    dispatcher.forget(task_operation.key());
                    task_operation.finish(Outcome::Failed(error));
                }
                task_operation.mark_started();
            }));
            if !accepted {
                operation.finish(Outcome::Failed(crate::reactor::state::closed()));
            }
        }
        Ok(Self {
            operation,
            lane,
            ranges,
            held,
            generation,
        })
    }

    pub(crate) fn operation(&self) -> &Arc<Operation> {
        &self.operation
    }

    /// The text for `RdmaMetadata.nixl_metadata`: the connection, these regions and no others, and the trailer.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Backend`] where NIXL exports nothing, [`crate::error::ErrorKind::Closed`].
    pub(crate) fn metadata(&self, encoding: Encoding) -> Result<String> {
        let opened = self.lane.wait_open()?;
        let blob = self.blob(opened)?;
        let trailer = Trailer {
            shared_memory_notifications: true,
            generation: self.generation,
            lease: None,
        };
        encode(&blob, Some(&trailer), encoding)
    }

    fn blob(&self, opened: &Opened) -> Result<Vec<u8>> {
        let mut ranges: Vec<MemoryRange> = self.ranges.iter().copied().filter(|range| range.len.0 > 0).collect();
        ranges.sort_unstable();
        ranges.dedup();
        if ranges.is_empty() {
            return Ok(opened.connection_info.clone());
        }
        let transport = opened.regions.transport()?;
        // The C API cannot put connection information into partial metadata, so the two are composed here. Should the
        // composition not check out (an unknown layout of a later NIXL), the full metadata serves, at the price of its
        // size and of showing every region.
        let partial = transport.partial_metadata(&ranges)?;
        compose(&opened.connection_info, &partial).or_else(|error| {
            tracing::warn!(%error, "metadata could not be composed; the full metadata is sent");
            transport.full_metadata()
        })
    }

    /// Ends the exposure: an unfinished operation is cancelled, the registrations are given back. Idempotent.
    pub(crate) fn end(&self) {
        if let Some(Ok(opened)) = self.lane.opened() {
            opened.dispatcher.forget(self.operation.key());
        }
        self.operation.finish(Outcome::Cancelled);
        let regions = {
            let mut held = self.held.lock();
            held.has_ended = true;
            std::mem::take(&mut held.regions)
        };
        if !regions.is_empty() {
            // Deregistering can take as long as registering: off the caller's thread. Where the lane has ended, the work
            // is dropped here, and the registrations with it.
            self.lane.run(Box::new(move || drop(regions)));
        }
    }
}

fn register(opened: &Opened, operation: &Operation, held: &Mutex<Held>, memory: &[LocalMemory]) {
    if let Err(error) = acquire(&opened.regions, held, memory) {
        opened.dispatcher.forget(operation.key());
        operation.finish(Outcome::Failed(error));
    }
    operation.mark_started();
}

fn acquire(regions: &Arc<crate::region::RegionTable>, held: &Mutex<Held>, memory: &[LocalMemory]) -> Result<()> {
    let acquired = memory
        .iter()
        .map(|memory| regions.acquire(memory))
        .collect::<Result<Vec<_>>>()?;
    let mut held = held.lock();
    if !held.has_ended {
        held.regions = acquired;
    }
    Ok(())
}

impl Drop for Exposure {
    fn drop(&mut self) {
        self.end();
    }
}

impl fmt::Debug for Exposure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Exposure")
            .field("operation", &self.operation)
            .field("ranges", &self.ranges)
            .finish_non_exhaustive()
    }
}
