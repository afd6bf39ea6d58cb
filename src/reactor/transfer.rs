//! One transfer on the active side, from its queue to the moment the wire is done with its memory.
//!
//! A transfer is cut into pieces, each a NIXL request of its own. The last piece carries the notification that tells
//! the owner, and is posted only when every other piece has ended well. A transfer that is cancelled or fails posts no
//! further piece, ends for its waiters at once, and stays here with its memory pinned until NIXL has reported the end of
//! every piece in flight: NIXL cannot stop them.

use std::sync::Arc;
use std::time::Instant;

use super::state::Resources;
use crate::descriptor::{PieceCursor, PieceLimits, TransferPlan};
use crate::error::{Error, Result};
use crate::operation::{Operation, Outcome};
use crate::peer::{Plan, RemoteMetadata, Wanted};
use crate::region::{LocalMemory, Region, Sharing};
use crate::transport::{Progress, Request};
use crate::types::MemoryRange;

/// The size of a piece. Over shared memory a post copies inside of the call, so this bounds how long a lane is deaf
/// (about 1 ms); smaller pieces cost throughput.
pub(crate) const PIECE: PieceLimits = PieceLimits {
    bytes: 4 << 20,
    descriptors: 1024,
};

/// The biggest transfer that its caller may drive itself. Copying this much takes about as long as handing it over.
const INLINE_BYTES: u64 = 64 << 10;
/// And its most descriptors, since each may have to be registered.
const INLINE_DESCRIPTORS: usize = 16;

/// How many pieces of one transfer are in flight together, where the wire takes its time.
const WINDOW: usize = 4;

/// A transfer that a lane drives.
#[derive(Debug)]
pub(crate) struct Transfer {
    operation: Arc<Operation>,
    remote: Arc<RemoteMetadata>,
    cursor: PieceCursor,
    /// What the requests will name at the peer; until it is loaded for them.
    lists: Vec<Vec<MemoryRange>>,
    // In the order in which they are let go: requests, then registrations, then memory.
    in_flight: Vec<Flight>,
    regions: Vec<Region>,
    memory: Vec<LocalMemory>,
    stage: Stage,
    /// A piece of several descriptors failed, so its memory can never be shown quiet.
    is_unquiet: bool,
}

#[derive(Debug)]
struct Flight {
    request: Box<dyn Request>,
    bytes: u64,
    descriptors: usize,
    /// What NIXL may have bound the request to.
    regions: Vec<Region>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its peer is not loaded for it yet, its memory perhaps not registered.
    Queued,
    /// Pieces are being posted.
    Moving,
    /// No further piece; those in flight are driven to their end.
    Draining,
    /// The wire is done with it.
    Over,
}

/// What one step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Something moved.
    Progressed,
    /// Nothing to do but look again.
    Unchanged,
    /// The wire is done with the memory: drop the transfer.
    Over,
}

impl Transfer {
    pub(crate) fn new(
        operation: Arc<Operation>,
        remote: Arc<RemoteMetadata>,
        plan: TransferPlan,
        memory: Vec<LocalMemory>,
    ) -> Self {
        let cursor = PieceCursor::new(plan, PIECE);
        let mut ahead = cursor.clone();
        let lists = std::iter::from_fn(|| ahead.next_piece())
            .map(|piece| piece.remote)
            .collect();
        Self {
            operation,
            remote,
            cursor,
            lists,
            in_flight: Vec::new(),
            regions: Vec::new(),
            memory,
            stage: Stage::Queued,
            is_unquiet: false,
        }
    }

    /// One that only loads its peer: it moves nothing and tells nobody.
    pub(crate) fn connecting(operation: Arc<Operation>, remote: Arc<RemoteMetadata>) -> Self {
        debug_assert!(operation.bytes_total() == 0 && operation.key().is_empty());
        Self::new(operation, remote, TransferPlan::default(), Vec::new())
    }

    /// Whether starting it costs no load, no long registration and no wait, and moving it takes one small piece.
    pub(crate) fn is_inline(&self, resources: &Resources) -> bool {
        self.operation.bytes_total() <= INLINE_BYTES
            && self.memory.len() <= INLINE_DESCRIPTORS
            && matches!(resources.peers.plan(self.wanted()), Plan::Ready | Plan::Extend)
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            metadata: &self.remote,
            lists: &self.lists,
        }
    }

    /// Ends it for its waiters, unless it has ended; pieces in flight are still driven to their end.
    pub(crate) fn abandon(&mut self, outcome: Outcome) {
        self.operation.finish(outcome);
        if matches!(self.stage, Stage::Queued) {
            self.stage = Stage::Over;
        }
    }

    /// Memory that stays pinned because a piece over it can never be shown quiet.
    pub(crate) fn take_unquiet(&mut self) -> Vec<Region> {
        if self.is_unquiet {
            std::mem::take(&mut self.regions)
        } else {
            Vec::new()
        }
    }

    /// Moves it on as far as that goes without waiting: at most one piece is posted.
    pub(crate) fn step(&mut self, resources: &mut Resources) -> Step {
        if self.stage == Stage::Queued && !self.operation.is_finished() {
            match self.start(resources) {
                Ok(true) => {}
                Ok(false) => return Step::Unchanged,
                Err(error) => self.abandon(Outcome::Failed(error)),
            }
        }
        match self.stage {
            Stage::Queued | Stage::Over => return Step::Over,
            Stage::Moving | Stage::Draining => {}
        }
        let mut progressed = self.poll(resources);
        if self.stage == Stage::Moving {
            // Cancelled meanwhile: no further piece.
            if self.operation.is_finished() {
                self.stage = Stage::Draining;
            } else {
                match self.post_next(resources) {
                    Ok(posted) => progressed |= posted,
                    Err(error) => self.fail(resources, error),
                }
            }
        }
        if self.in_flight.is_empty() && self.is_at_its_end() {
            resources.peers.end_use(self.remote.agent());
            self.stage = Stage::Over;
            return Step::Over;
        }
        if progressed { Step::Progressed } else { Step::Unchanged }
    }

    /// False where it has to wait for its peer.
    fn start(&mut self, resources: &mut Resources) -> Result<bool> {
        if !resources.peers.prepare(&*resources.transport, self.wanted())? {
            return Ok(false);
        }
        self.lists = Vec::new();
        for memory in &self.memory {
            self.regions.push(resources.regions.share(memory, Sharing::Any)?);
        }
        resources.peers.begin_use(self.remote.agent());
        self.stage = Stage::Moving;
        self.operation.mark_started();
        Ok(true)
    }

    /// Looks at every piece in flight.
    fn poll(&mut self, resources: &mut Resources) -> bool {
        let mut progressed = false;
        let mut index = 0;
        while index < self.in_flight.len() {
            match self.in_flight[index].request.poll() {
                Ok(Progress::Pending) => index += 1,
                Ok(Progress::Done) => {
                    let flight = self.in_flight.swap_remove(index);
                    self.operation.add_bytes_done(flight.bytes);
                    progressed = true;
                }
                Err(error) => {
                    let flight = self.in_flight.swap_remove(index);
                    if flight.descriptors > 1 {
                        self.pin(flight.regions);
                    }
                    self.fail(resources, error);
                    progressed = true;
                }
            }
        }
        progressed
    }

    /// Posts the next piece, if it may go now, or completes the operation.
    fn post_next(&mut self, resources: &mut Resources) -> Result<bool> {
        if self.cursor.is_exhausted() {
            if !self.in_flight.is_empty() {
                return Ok(false);
            }
            if self.operation.bytes_total() == 0 {
                if !self.operation.key().is_empty() {
                    // No byte moves, so no request could carry the notification.
                    resources
                        .transport
                        .notify(self.remote.agent(), self.operation.key().as_bytes())?;
                }
                resources.last_unheard = Some(Instant::now());
            }
            self.operation.finish(Outcome::Complete);
            return Ok(true);
        }
        let is_last = self.cursor.is_at_last_piece();
        if self.in_flight.len() >= WINDOW || (is_last && !self.in_flight.is_empty()) {
            return Ok(false);
        }
        let Some(piece) = self.cursor.next_piece() else {
            return Ok(false);
        };
        let notification = is_last.then(|| self.operation.key().as_bytes());
        let (direction, peer) = (self.operation.direction(), self.remote.agent());
        let (mut request, regions) = resources.regions.bind(&piece.local, |transport| {
            transport.prepare(direction, &piece.local, &piece.remote, peer, notification)
        })?;
        self.operation.mark_in_progress();
        match request.post() {
            Ok(Progress::Done) => self.operation.add_bytes_done(piece.bytes),
            Ok(Progress::Pending) => {
                self.in_flight.push(Flight {
                    request,
                    bytes: piece.bytes,
                    descriptors: piece.local.len(),
                    regions,
                });
            }
            Err(error) => {
                if piece.local.len() > 1 {
                    self.pin(regions);
                }
                return Err(error);
            }
        }
        if is_last && self.in_flight.is_empty() {
            self.operation.finish(Outcome::Complete);
        }
        Ok(true)
    }

    /// A piece of several descriptors failed: the wire may go on with some of them, and nobody will ever know.
    fn pin(&mut self, bound: Vec<Region>) {
        self.is_unquiet = true;
        for region in bound {
            if !self.regions.iter().any(|held| held.range() == region.range()) {
                self.regions.push(region);
            }
        }
    }

    fn fail(&mut self, resources: &mut Resources, error: Error) {
        resources.peers.mark_lost(self.remote.agent());
        self.operation.finish(Outcome::Failed(
            error
                .with_context("operation", self.operation.direction())
                .with_context("bytes_done", self.operation.bytes_done())
                .with_context("bytes_total", self.operation.bytes_total())
                .with_hint("the peer may be gone, or what it exposed; the next operation with it connects anew"),
        ));
        self.stage = Stage::Draining;
    }

    fn is_at_its_end(&self) -> bool {
        match self.stage {
            Stage::Draining | Stage::Over => true,
            Stage::Moving => self.operation.is_finished(),
            Stage::Queued => false,
        }
    }
}
