//! The passive side of an operation: memory that a peer may read or write once.

mod keepalive;
mod ledger;
mod messages;
mod pulse;
mod record;
mod retiring;
#[cfg(test)]
mod samples;
mod users;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub(crate) use self::ledger::Ledger;
pub(crate) use self::messages::{Letter, News, Notice, reason_of};
use self::record::Inner;
pub(crate) use self::record::{Record, WordState};
use crate::checksum::Checksum;
use crate::error::{Error, ErrorKind, Result};
use crate::operation::{Operation, Outcome};
use crate::process;
use crate::reactor::lane::{Lane, Opened};
use crate::region::{LocalMemory, RegionTable, Sharing};
use crate::types::MemoryRange;
use crate::wire::{CompressedBlob, Encoding, Trailer, compose};

/// Memory up to this size is registered by the caller; more would hold up its event loop.
const INLINE_REGISTRATION_BYTES: u64 = 1 << 20;
/// And up to so many ranges.
const INLINE_REGISTRATIONS: usize = 16;
/// So many ranges are registered between two looks at the wire.
const REGISTRATIONS_PER_SLICE: usize = 64;

/// An exposure as its holder has it: its registrations stand until it is ended or dropped, also after a peer has completed
/// it.
pub(crate) struct Exposure {
    record: Arc<Record>,
    lane: Arc<Lane>,
    started: Instant,
}

/// How an exposure is made.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Terms {
    pub(crate) generation: u64,
    /// How long it waits for its peer.
    pub(crate) lease: Option<Duration>,
    /// Whether peers get a checksum of its bytes as they are now.
    pub(crate) verify: bool,
}

impl Exposure {
    /// Registers the memory, here where that is quick and on the lane's thread otherwise, and expects the peer's
    /// notification. A failure to register is the operation's outcome.
    pub(crate) fn start(
        operation: &Arc<Operation>,
        lane: Arc<Lane>,
        memory: Vec<LocalMemory>,
        terms: Terms,
    ) -> Result<Self> {
        let Terms {
            generation,
            lease,
            verify,
        } = terms;
        let opened = lane.wait_open()?;
        let mut checksum = verify
            .then(|| Checksum::new(memory.iter().map(|memory| memory.range).collect()))
            .transpose()?;
        let started = Instant::now();
        let lease_end = lease.and_then(|lease| started.checked_add(lease));
        let record = Record::new(operation, generation, lease_end);
        opened.ledger.open(&record);
        let is_new = |range: &&MemoryRange| opened.regions.serving(range, Sharing::Offered).is_none();
        let ranges = memory.iter().map(|memory| &memory.range);
        let (new_ranges, new_bytes) = ranges.filter(is_new).fold((0, 0_u64), |(count, bytes), range| {
            (count + 1, bytes.saturating_add(range.len.0))
        });
        if new_ranges <= INLINE_REGISTRATIONS && new_bytes <= INLINE_REGISTRATION_BYTES && checksum.is_none() {
            let registered = acquire(&opened.regions, &record, &memory);
            note_registered(&opened.ledger, &record, registered);
            lane.touch();
        } else {
            let (regions, ledger) = (Arc::clone(&opened.regions), Arc::clone(&opened.ledger));
            let task_record = Arc::clone(&record);
            let mut left = memory.into_iter();
            let accepted = lane.run(Box::new(move || {
                let slice: Vec<LocalMemory> = left.by_ref().take(REGISTRATIONS_PER_SLICE).collect();
                let registered = acquire(&regions, &task_record, &slice);
                let failed = registered.is_err() || task_record.operation().is_finished();
                if !failed && left.len() == 0 {
                    if let Some(running) = &mut checksum {
                        // SAFETY: the record's regions keep the memory's owners alive, or the caller vouched for it; they
                        // are let go by an end of the exposure, which `sum_slice` excludes.
                        match unsafe { task_record.sum_slice(running) } {
                            Some(sum) => task_record.inner().checksum = Some(sum),
                            None => return true,
                        }
                    }
                }
                let is_over = failed || left.len() == 0;
                if is_over {
                    note_registered(&ledger, &task_record, registered);
                }
                !is_over
            }));
            if !accepted {
                opened
                    .ledger
                    .end(&record, Outcome::Failed(crate::reactor::state::closed()));
            }
        }
        Ok(Self { record, lane, started })
    }

    /// The text for `RdmaMetadata.nixl_metadata`: the connection, these regions and no others, and the trailer.
    ///
    /// Once it was asked for it can be had again, in either encoding, for as long as the exposure exists.
    ///
    /// # Errors
    /// [`ErrorKind::Backend`] where NIXL exports nothing, [`ErrorKind::Closed`].
    pub(crate) fn metadata(&self, encoding: Encoding) -> Result<String> {
        let mut inner = self.record.inner();
        let blob = match &inner.exported {
            Some(blob) => blob.clone(),
            None => {
                let blob = self.export(&mut inner)?;
                inner.exported = Some(blob.clone());
                blob
            }
        };
        let trailer = Trailer {
            shared_memory_notifications: true,
            generation: self.record.generation(),
            // As it is now: it may have been renewed.
            lease: inner.lease_end.map(|end| end.saturating_duration_since(self.started)),
            validity_word: inner.word.as_ref().map(|word| word.range().addr),
            process: process::here(),
            checksum: inner.checksum,
        };
        drop(inner);
        blob.encode(Some(&trailer), encoding)
    }

    fn export(&self, inner: &mut Inner) -> Result<CompressedBlob> {
        let opened = self.lane.wait_open()?;
        if inner.has_ended {
            // Nobody could do anything with it.
            let outcome = self.record.operation().outcome();
            let failure = outcome.as_ref().and_then(Outcome::error).cloned();
            return Err(failure.unwrap_or_else(|| {
                Error::new(ErrorKind::Backend, "export metadata", "the operation has ended")
                    .with_hint("ask for the metadata while the operation is open; then it can be had again later")
            }));
        }
        let word = opened.words.take(self.record.open_word())?;
        let page = word.page();
        inner.word = Some(word);
        let mut ranges = inner.ranges();
        ranges.push(page);
        ranges.sort_unstable();
        match ranges.as_slice() {
            [one, other] => {
                let range = if *one == page { other } else { one };
                opened.regions.exported(range, &page, || compressed(opened, &ranges))
            }
            _ => compressed(opened, &ranges),
        }
    }

    /// Changes when the exposure ends for want of a peer: `lease` from now, or never.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where it has ended.
    pub(crate) fn renew(&self, lease: Option<Duration>) -> Result<()> {
        match self.lane.opened() {
            Some(Ok(opened)) => opened.ledger.renew(&self.record, lease)?,
            _ => return Err(crate::reactor::state::closed()),
        }
        self.lane.touch();
        Ok(())
    }

    /// Ends the exposure as cancelled, if it is unfinished; otherwise gives up what stands of it. True if this call ended
    /// it.
    pub(crate) fn end(&self) -> bool {
        let Some(Ok(opened)) = self.lane.opened() else {
            return false;
        };
        let ended = opened.ledger.end(&self.record, Outcome::Cancelled);
        if self.record.give_up() {
            opened.ledger.release(&self.record);
        }
        self.lane.touch();
        ended
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

/// Registers ranges for an exposure, unless it has ended meanwhile.
fn acquire(regions: &Arc<RegionTable>, record: &Record, memory: &[LocalMemory]) -> Result<()> {
    let acquired = memory
        .iter()
        .map(|memory| regions.share(memory, Sharing::Offered))
        .collect::<Result<Vec<_>>>()?;
    let mut inner = record.inner();
    if inner.has_ended {
        // Nobody knows of them: let go here.
        drop(inner);
        drop(acquired);
    } else {
        inner.regions.extend(acquired);
    }
    Ok(())
}

/// All is registered, or will never be.
fn note_registered(ledger: &Ledger, record: &Arc<Record>, registered: Result<()>) {
    if let Err(error) = registered {
        ledger.end(record, Outcome::Failed(error));
    }
    record.operation().mark_started();
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
            .field("operation", self.record.operation())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "model"))]
mod model;
