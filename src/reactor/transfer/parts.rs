//! A transfer whose bytes a crew moves, and the parts that the crew works on.

use std::sync::Arc;
use std::time::Instant;

use super::source::Source;
use super::validity::Validity;
use super::{CREW_PIECE, Limits, Stage, Transfer};
use crate::descriptor::TransferPlan;
use crate::error::Result;
use crate::operation::{Operation, Outcome};
use crate::reactor::crew::{Hands, Load, Verdict};
use crate::region::{KeepAlive, LocalMemory};
use crate::types::{MemoryRange, OperationKey};

/// A crew is worth it where ranges are at least so large, on either side and on average.
const LEAST_REGION: u64 = 64 << 10;

impl Transfer {
    /// Has its bytes moved by others, if there are any.
    pub(crate) fn with_hands(mut self, hands: Option<Hands>) -> Self {
        if hands.is_some() {
            self.pieces.limit(CREW_PIECE);
            (self.lists, self.has_lists) = self.pieces.lists(self.validity.as_ref());
        }
        self.hands = hands;
        self
    }

    /// Whether it moves pieces of another transfer.
    pub(crate) fn is_part(&self) -> bool {
        matches!(self.pieces, Source::Shared(_))
    }

    /// Whether all there is to do for its lane is to wait for others.
    pub(crate) fn is_delegated(&self) -> bool {
        self.crew.is_some() && self.in_flight.is_empty()
    }

    /// Whether the wire is at work on its memory, for all that is known.
    pub(super) fn is_flying(&self) -> bool {
        !self.in_flight.is_empty() || self.crew.as_ref().is_some_and(|crew| !crew.is_quiet())
    }

    /// A part ends with what it is a part of, or where others have taken all there was before it could begin.
    pub(super) fn end_with_whole(&self) {
        let Source::Shared(load) = &self.pieces else { return };
        if load.whole().is_finished() {
            self.operation.finish(Outcome::Cancelled);
        } else if self.stage == Stage::Queued && load.is_exhausted() {
            self.operation.finish(Outcome::Complete);
        }
    }

    /// What a part has moved, the whole has moved.
    pub(super) fn report(&self, bytes: u64) {
        if let Source::Shared(load) = &self.pieces {
            load.whole().add_bytes_done(bytes);
        }
    }

    /// Whether its pieces may be handed out.
    pub(super) fn is_to_be_shared(&self) -> bool {
        self.hands.is_some() && self.in_flight.is_empty()
    }

    /// Hands its pieces out to a crew, or sees that it is to do without.
    pub(super) fn share_out(&mut self) {
        let memory = self.registered();
        // Each of a crew registers and loads what it moves: of small blocks that takes longer than moving them.
        let ranges = memory.len().max(self.remote.region_count()) as u64;
        let is_worth_it = ranges.saturating_mul(LEAST_REGION) <= self.operation.bytes_total();
        let (Some(hands), Source::Own(cursor)) = (self.hands.take().filter(|_| is_worth_it), &mut self.pieces) else {
            return;
        };
        let shared = cursor.clone();
        cursor.skip_all();
        self.operation.mark_in_progress();
        let load = Load::new(Arc::clone(&self.operation), shared.clone());
        let mut lists = Source::Own(shared).left();
        // NIXL may call a list done whose connection it has broken. The next request over that connection tells, and the
        // transfer's own last question goes over another one.
        let probe = || self.has_lists.then(|| Validity::of(&self.remote)).flatten();
        lists.extend(probe().map(|validity| vec![validity.remote()]));
        let crew = hands.hire(Arc::clone(&load), || {
            let operation = Operation::new(
                self.operation.direction(),
                OperationKey::new(Vec::new()),
                Some(self.peer().clone()),
                0,
            );
            let part = Self {
                pieces: Source::Shared(Arc::clone(&load)),
                lists: lists.clone(),
                has_lists: self.has_lists,
                validity: probe(),
                ..Self::new(
                    Arc::clone(&operation),
                    Arc::clone(&self.remote),
                    TransferPlan::default(),
                    memory.clone(),
                    Limits::default(),
                )
            };
            (part, operation)
        });
        self.crew = Some(crew);
    }

    /// What is registered for it, each range once, and kept alive by its owners. A crew registers that and not the memory
    /// piece by piece: of a pool that is registered as a whole, thousands of blocks may be wanted.
    fn registered(&self) -> Vec<LocalMemory> {
        let owners: KeepAlive = Arc::new(self.memory.clone());
        // They are in order.
        let mut ranges: Vec<MemoryRange> = self.regions.iter().rev().map(|region| *region.range()).collect();
        ranges.dedup();
        ranges.retain(|range| range.len.0 > 0);
        let local = |range| LocalMemory {
            range,
            keep_alive: Some(Arc::clone(&owners)),
        };
        ranges.into_iter().map(local).collect()
    }

    /// Looks at what the crew does. Whether anything has changed.
    pub(super) fn watch_crew(&mut self, now: Instant) -> bool {
        let Some(crew) = &mut self.crew else { return false };
        crew.end_together();
        let has_moved = crew.has_moved(&self.operation);
        if has_moved {
            self.clock.progress(now);
        }
        has_moved
    }

    /// Goes on where the crew has done its work.
    ///
    /// # Errors
    /// Where it could not.
    pub(super) fn follow_crew(&mut self) -> Result<bool> {
        let Some(verdict) = self.dismiss_crew() else {
            return Ok(false);
        };
        match verdict {
            Verdict::Done => {}
            Verdict::Redo => {
                // Alone, as if there had been nobody: then it is known what a failure means.
                tracing::debug!(peer = %self.peer(), "a transfer is moved anew by its own lane");
                self.rewind()?;
                if self.validity.is_some() {
                    // The exposure may have ended meanwhile.
                    self.stage = Stage::Checking;
                }
            }
            Verdict::Lost(error) | Verdict::Unquiet(error) => return Err(error),
        }
        Ok(true)
    }

    /// Lets a crew go that is quiet, and takes its verdict in: nobody else will ever ask for it.
    pub(super) fn dismiss_crew(&mut self) -> Option<Verdict> {
        let verdict = self.crew.take_if(|crew| crew.is_quiet())?.verdict();
        self.is_unquiet |= matches!(verdict, Verdict::Unquiet(_));
        Some(verdict)
    }
}
