//! What is known of one exposure, shared by its holder, the agent's ledger and the lane's thread.

use std::sync::Arc;
use std::time::Instant;

use super::users::Users;
use crate::checksum::{Checksum, SLICE};
use crate::error::ErrorKind;
use crate::operation::{Operation, Outcome, Pin};
use crate::region::Region;
use crate::sync::{Mutex, MutexGuard};
use crate::types::MemoryRange;
use crate::wire::CompressedBlob;
use crate::words::Word;

/// Where the state of an exposure begins in its word; below lies the generation.
const STATE_SHIFT: u32 = 56;
/// The bits of a word that hold the generation.
const GENERATION_MASK: u64 = (1 << STATE_SHIFT) - 1;

/// What a word says of the exposure of its generation. `docs/protocol.md` fixes the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum WordState {
    Open = 0,
    Complete = 1,
    Cancelled = 2,
    Expired = 3,
    Failed = 4,
}

impl WordState {
    fn of(outcome: &Outcome) -> Self {
        match outcome {
            Outcome::Complete => Self::Complete,
            Outcome::Cancelled => Self::Cancelled,
            Outcome::Failed(error) if error.kind() == ErrorKind::LeaseExpired => Self::Expired,
            Outcome::CancelledByPeer(_) | Outcome::Failed(_) => Self::Failed,
        }
    }

    /// What the word says, `None` where it speaks of another exposure.
    pub(crate) fn read(word: u64, generation: u64) -> Option<Self> {
        if word & GENERATION_MASK != generation {
            return None;
        }
        Some(match word >> STATE_SHIFT {
            0 => Self::Open,
            1 => Self::Complete,
            2 => Self::Cancelled,
            3 => Self::Expired,
            _ => Self::Failed,
        })
    }

    fn write(self, generation: u64) -> u64 {
        generation | (self as u64) << STATE_SHIFT
    }
}

/// One exposure.
#[derive(Debug)]
pub(crate) struct Record {
    operation: Arc<Operation>,
    generation: u64,
    inner: Mutex<Inner>,
}

/// What changes during an exposure's life.
#[derive(Debug)]
pub(super) struct Inner {
    /// Its registrations, in the order of the descriptors; none before they are made and after they are let go.
    pub(super) regions: Vec<Region>,
    /// Dropped where the wire is done with the memory.
    pub(super) pin: Option<Pin>,
    /// Says to own peers whether the exposure is open; taken when its metadata is first asked for.
    pub(super) word: Option<Word>,
    /// What a peer needs; it can be asked for again when the registrations are gone.
    pub(super) exported: Option<CompressedBlob>,
    /// When it ends for want of a peer.
    pub(super) lease_end: Option<Instant>,
    /// Until when its memory is held, once it has ended.
    pub(super) grace_end: Option<Instant>,
    /// Since when it is.
    pub(super) held_since: Option<Instant>,
    /// When those at work on it whose processes cannot be watched are asked next.
    pub(super) pulse_due: Option<Instant>,
    /// The sum of its bytes, where it was asked for.
    pub(super) checksum: Option<u32>,
    /// Who is known to be at work on it.
    pub(super) users: Users,
    pub(super) has_ended: bool,
    pub(super) is_complete: bool,
    /// Somebody who was at work has said that it is done, and nobody else is known.
    pub(super) is_confirmed: bool,
    /// One that was at work has died: what it had sent may still land, whatever others say.
    pub(super) has_buried: bool,
    /// Its holder has no use for it any more.
    is_given_up: bool,
    /// Its bytes count among those that are held.
    pub(super) is_counted: bool,
}

impl Record {
    pub(crate) fn new(operation: &Arc<Operation>, generation: u64, lease_end: Option<Instant>) -> Arc<Self> {
        Arc::new(Self {
            operation: Arc::clone(operation),
            generation: generation & GENERATION_MASK,
            inner: Mutex::new(Inner {
                regions: Vec::new(),
                pin: Some(Pin::new(operation)),
                word: None,
                exported: None,
                lease_end,
                grace_end: None,
                held_since: None,
                pulse_due: None,
                checksum: None,
                users: Users::default(),
                has_ended: false,
                is_complete: false,
                is_confirmed: false,
                has_buried: false,
                is_given_up: false,
                is_counted: false,
            }),
        })
    }

    pub(crate) fn operation(&self) -> &Arc<Operation> {
        &self.operation
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation
    }

    pub(super) fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// The value of the word while the exposure is open.
    pub(super) fn open_word(&self) -> u64 {
        WordState::Open.write(self.generation)
    }

    /// Notes the end, and says so in the word, before anybody is told. False where it has ended before.
    pub(super) fn note_end(&self, outcome: &Outcome) -> bool {
        self.note_end_if(outcome, |_| true)
    }

    /// As [`Record::note_end`] where its lease still ends at `end`: it may have been renewed since somebody looked.
    pub(super) fn note_expiry(&self, outcome: &Outcome, end: Instant) -> bool {
        self.note_end_if(outcome, |inner| inner.lease_end == Some(end))
    }

    fn note_end_if(&self, outcome: &Outcome, may_end: impl FnOnce(&Inner) -> bool) -> bool {
        let mut inner = self.inner.lock();
        if inner.has_ended || !may_end(&inner) {
            return false;
        }
        inner.has_ended = true;
        inner.is_complete = matches!(outcome, Outcome::Complete);
        if let Some(word) = &inner.word {
            word.set(WordState::of(outcome).write(self.generation));
        }
        true
    }

    /// Whether a peer may be at work on the memory that is held: it was told of it, and is not known to be done.
    pub(super) fn may_be_in_use(&self) -> bool {
        let inner = self.inner.lock();
        inner.exported.is_some() && inner.pin.is_some() && !inner.regions.is_empty()
    }

    /// Its holder has no use for it any more. Whether it has ended and no peer can be at work on the memory.
    pub(super) fn give_up(&self) -> bool {
        let mut inner = self.inner.lock();
        inner.is_given_up = true;
        inner.has_ended && inner.pin.is_none()
    }

    /// No peer is at work on the memory any more. What is to be let go: no registration of a complete exposure as long as
    /// its holder has it, since others may be reading, as upstream lets them.
    pub(super) fn settle(&self) -> Released {
        let mut inner = self.inner.lock();
        if inner.is_complete && !inner.is_given_up {
            return Released {
                regions: Vec::new(),
                _pin: inner.pin.take(),
            };
        }
        drop(inner);
        self.release()
    }

    /// Goes on with the sum over the memory. The sum, once it is there, and also where the exposure has ended.
    ///
    /// # Safety
    /// The ranges of `running` are mapped for as long as the regions are held.
    pub(super) unsafe fn sum_slice(&self, running: &mut Checksum) -> Option<u32> {
        // Under the lock, so that an end of the exposure does not let the memory go meanwhile.
        let inner = self.inner.lock();
        if inner.has_ended {
            return Some(0);
        }
        // SAFETY: as the caller vouches, since the regions are held.
        unsafe { running.advance(SLICE) }
    }

    /// Gives the memory up. Dropping what is returned deregisters, which can take as long as registering.
    pub(super) fn release(&self) -> Released {
        let mut inner = self.inner.lock();
        let mut regions = std::mem::take(&mut inner.regions);
        // From the end of NIXL's order, so that the rest need not move up each time.
        regions.sort_unstable_by_key(|region| *region.range());
        Released {
            regions,
            _pin: inner.pin.take(),
        }
    }
}

impl Inner {
    /// Whether nobody is known to be at work, or to have died at it.
    pub(super) fn is_left_alone(&self) -> bool {
        self.users.is_empty() && !self.has_buried
    }

    /// What is registered for the exposure, each range once, in NIXL's order.
    pub(super) fn ranges(&self) -> Vec<MemoryRange> {
        let ranges = self.regions.iter().map(Region::range);
        let mut ranges: Vec<MemoryRange> = ranges.filter(|range| range.len.0 > 0).copied().collect();
        ranges.sort_unstable();
        ranges.dedup();
        ranges
    }
}

/// Memory that was given up, in the order in which it is let go: the operation is quiet once its memory is.
#[derive(Debug)]
pub(super) struct Released {
    regions: Vec<Region>,
    _pin: Option<Pin>,
}

impl Released {
    /// Lets so much of it go at most. Returns how much that was; one at least, since also nothing takes its time.
    pub(super) fn let_go(&mut self, count: usize) -> usize {
        let before = self.regions.len();
        self.regions.truncate(before.saturating_sub(count));
        (before - self.regions.len()).max(1)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn a_word_tells_how_its_own_exposure_ended() {
        let expired = Error::new(ErrorKind::LeaseExpired, "test", "made up");
        for (outcome, state) in [
            (Outcome::Complete, WordState::Complete),
            (Outcome::Cancelled, WordState::Cancelled),
            (Outcome::Failed(expired), WordState::Expired),
        ] {
            let word = WordState::of(&outcome).write(7);
            assert_eq!(WordState::read(word, 7), Some(state));
            assert_eq!(WordState::read(word, 8), None);
        }
        assert_eq!(WordState::read(7, 7), Some(WordState::Open));
        assert_eq!(WordState::read(7 | 200 << STATE_SHIFT, 7), Some(WordState::Failed));
    }
}
