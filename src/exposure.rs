//! The passive side of an operation: memory that a peer may read or write once.

use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::Result;
use crate::operation::{Operation, Outcome};
use crate::reactor::lane::{Lane, Opened};
use crate::region::{LocalMemory, Region, RegionTable, Sharing};
use crate::types::MemoryRange;
use crate::wire::{CompressedBlob, Encoding, Trailer, compose};

/// Memory up to this size is registered by the caller; more would hold up its event loop.
const INLINE_REGISTRATION_BYTES: u64 = 1 << 20;
/// And up to so many ranges.
const INLINE_REGISTRATIONS: usize = 16;

/// An exposure: its registrations stand until it is ended or dropped, also after a peer has completed it.
pub(crate) struct Exposure {
    operation: Arc<Operation>,
    lane: Arc<Lane>,
    held: Arc<Mutex<Held>>,
    generation: u64,
    /// What the peer needs, once it was asked for: it can be asked for again when the registrations are gone.
    exported: Mutex<Option<CompressedBlob>>,
}

/// The registrations, unless the exposure ended before they were made.
#[derive(Debug, Default)]
struct Held {
    regions: Vec<Region>,
    has_ended: bool,
}

impl Held {
    /// What is registered for the exposure, each range once, in NIXL's order.
    fn ranges(&self) -> Vec<MemoryRange> {
        let ranges = self.regions.iter().map(Region::range);
        let mut ranges: Vec<MemoryRange> = ranges.filter(|range| range.len.0 > 0).copied().collect();
        ranges.sort_unstable();
        ranges.dedup();
        ranges
    }
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
        let held = Arc::new(Mutex::new(Held::default()));
        opened.dispatcher.expect(&operation);
        let is_new = |range: &&MemoryRange| opened.regions.serving(range, Sharing::Offered).is_none();
        let ranges = memory.iter().map(|memory| &memory.range);
        let (new_ranges, new_bytes) = ranges.filter(is_new).fold((0, 0_u64), |(count, bytes), range| {
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
            held,
            generation,
            exported: Mutex::new(None),
        })
    }

    pub(crate) fn operation(&self) -> &Arc<Operation> {
        &self.operation
    }

    /// The text for `RdmaMetadata.nixl_metadata`: the connection, these regions and no others, and the trailer.
    ///
    /// Once it was asked for it can be had again, in either encoding, for as long as the exposure exists.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Backend`] where NIXL exports nothing, [`crate::error::ErrorKind::Closed`].
    pub(crate) fn metadata(&self, encoding: Encoding) -> Result<String> {
        let trailer = Trailer {
            shared_memory_notifications: true,
            generation: self.generation,
            lease: None,
        };
        let mut exported = self.exported.lock();
        let blob = match &*exported {
            Some(blob) => blob.clone(),
            None => exported.insert(self.export()?).clone(),
        };
        drop(exported);
        blob.encode(Some(&trailer), encoding)
    }

    fn export(&self) -> Result<CompressedBlob> {
        let opened = self.lane.wait_open()?;
        let ranges = self.held.lock().ranges();
        match ranges.as_slice() {
            [] => CompressedBlob::new(&opened.connection_info),
            [range] => opened.regions.exported(range, || compressed(opened, &ranges)),
            _ => compressed(opened, &ranges),
        }
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

/// What a peer needs in order to reach these registrations.
fn compressed(opened: &Opened, ranges: &[MemoryRange]) -> Result<CompressedBlob> {
    let transport = opened.regions.transport()?;
    // The C API cannot put connection information into partial metadata, so the two are composed here. Should the
    // composition not check out (an unknown layout of a later NIXL), the full metadata serves, at the price of its
    // size and of showing every region.
    let partial = transport.partial_metadata(ranges)?;
    let blob = compose(&opened.connection_info, &partial).or_else(|error| {
        tracing::warn!(%error, "metadata could not be composed; the full metadata is sent");
        transport.full_metadata()
    })?;
    CompressedBlob::new(&blob)
}

fn register(opened: &Opened, operation: &Operation, held: &Mutex<Held>, memory: &[LocalMemory]) {
    if let Err(error) = acquire(&opened.regions, held, memory) {
        opened.dispatcher.forget(operation.key());
        operation.finish(Outcome::Failed(error));
    }
    operation.mark_started();
}

fn acquire(regions: &Arc<RegionTable>, held: &Mutex<Held>, memory: &[LocalMemory]) -> Result<()> {
    let acquired = memory
        .iter()
        .map(|memory| regions.share(memory, Sharing::Offered))
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
            .finish_non_exhaustive()
    }
}
