//! One transfer on the active side, from its queue to the moment the wire is done with its memory.
//!
//! A transfer is cut into pieces, each a NIXL request of its own. The last piece carries the notification that tells
//! the owner, and is posted only when every other piece has ended well. An owner of our own kind is asked beforehand and
//! at the end whether the exposure is still open; then it is that last question that carries the notification.
//! A transfer that is cancelled or fails posts no further piece, ends for its waiters at once, and stays here with its
//! memory pinned until NIXL has reported the end of every piece in flight, or the dead peer was dropped: NIXL cannot stop
//! them.

mod burial;
mod clock;
mod courtesy;
mod inquiry;
mod parts;
mod requests;
mod source;
mod validity;

use std::cmp::Reverse;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::clock::Clock;
pub(crate) use self::clock::Limits;
use self::courtesy::Courtesy;
use self::inquiry::Inquiry;
use self::source::Source;
use self::validity::Validity;
use super::crew::{Crew, Hands};
use super::state::Resources;
use crate::checksum::Checksum;
use crate::descriptor::{Piece, PieceCursor, PieceLimits, TransferPlan};
use crate::error::{Error, ErrorKind, Result};
use crate::exposure::{Letter, Notice};
use crate::hints::Facts;
use crate::operation::{Operation, Outcome, Pin};
use crate::peer::{Plan, RemoteMetadata, Wanted};
use crate::process::{self, Liveness};
use crate::region::{LocalMemory, Region, Sharing};
use crate::transport::Request;
use crate::types::{AgentName, Direction, MemoryRange, OperationKey, ProcessId, TransferId};

/// The size of a piece. Over shared memory a post copies inside of the call, so this bounds how long a lane is deaf
/// (about 1 ms); smaller pieces cost throughput.
pub(crate) const PIECE: PieceLimits = PieceLimits {
    bytes: 4 << 20,
    descriptors: 1024,
};

/// The size of a piece that a crew moves. The kernel does not interrupt a copy, so that whoever is to run on that core, the
/// event loop for one, waits for its end; a crew posts them quickly enough.
const CREW_PIECE: PieceLimits = PieceLimits {
    bytes: 1 << 20,
    ..PIECE
};

/// The biggest transfer that its caller may drive itself. Copying this much takes about as long as handing it over.
const INLINE_BYTES: u64 = 64 << 10;
/// And its most descriptors, since each may have to be registered.
const INLINE_DESCRIPTORS: usize = 16;

/// How long a message may wait for its peer to be loaded.
const TELLING: Duration = Duration::from_secs(5);

/// How many pieces of one transfer are in flight together, where the wire takes its time.
const WINDOW: usize = 4;

/// A transfer that a lane drives.
#[derive(Debug)]
pub(crate) struct Transfer {
    operation: Arc<Operation>,
    remote: Arc<RemoteMetadata>,
    pieces: Source,
    /// Pieces to be posted once more: they failed because another transfer had broken the connection.
    again: Vec<Piece>,
    repetitions: u32,
    /// A piece has several ranges, of which NIXL tells what has become of the last one only.
    has_lists: bool,
    /// What the requests will name at the peer; until it is loaded for them.
    lists: Vec<Vec<MemoryRange>>,
    stage: Stage,
    clock: Clock,
    // In the order in which they are let go: requests, then registrations, then memory; then the operation is quiet.
    in_flight: Vec<Flight>,
    validity: Option<Validity>,
    /// What was read is summed up before it is believed.
    checksum: Option<Checksum>,
    verifies: bool,
    regions: Vec<Region>,
    memory: Vec<LocalMemory>,
    /// A piece of several descriptors failed, so its memory can never be shown quiet.
    is_unquiet: bool,
    /// Who may move its bytes for it, until they do.
    hands: Option<Hands>,
    /// Who does.
    crew: Option<Crew>,
    /// What its owner, where that is of our own kind, knows of it.
    courtesy: Courtesy,
    /// Why it fails, and what is being found out about its owner before it does.
    inquiry: Option<Inquiry>,
    is_letter: bool,
    pin: Pin,
}

#[derive(Debug)]
struct Flight {
    request: Box<dyn Request>,
    purpose: Purpose,
    piece: Piece,
    /// What NIXL may have bound the request to.
    regions: Vec<Region>,
}

/// What a request is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Purpose {
    /// Asks before the first byte whether the exposure is open.
    Check,
    /// Moves bytes.
    Move,
    /// Asks after the last byte whether the exposure is still open, and tells the owner that all has moved.
    Seal,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Its peer is not loaded for it yet, its memory perhaps not registered.
    Queued,
    /// The owner is asked whether the exposure is open.
    Checking,
    /// Pieces are being posted.
    Moving,
    /// All has moved; the owner is asked, and told.
    Sealing,
    /// It has failed: those in flight are driven to their end, then the owner is asked whether it is there.
    Inquiring,
    /// No further request; those in flight are driven to their end.
    Draining,
    /// Its peer was dropped at that time, since its process is dead and what is in flight has stood still.
    Buried(Instant),
    /// The wire is done with it.
    Over,
}

/// Memory that can never be shown quiet, with what it belonged to.
#[derive(Debug)]
pub(crate) struct Unquiet {
    pub(crate) peer: AgentName,
    operation: OperationKey,
    id: Option<TransferId>,
    pub(crate) regions: Vec<Region>,
    pub(crate) bytes: u64,
    process: Option<ProcessId>,
    _memory: Vec<LocalMemory>,
    _pin: Pin,
}

impl Unquiet {
    /// Whether it is what is left of that transfer.
    pub(crate) fn is_of(&self, notice: &Notice) -> bool {
        self.id == Some(notice.transfer) && self.peer == notice.sender && self.operation == notice.operation
    }

    /// Whether the peer's process is dead: then nothing of a request moves any more that has reported its failure, however
    /// many descriptors it had (docs/adr/0008-quiescence.md).
    pub(crate) fn has_died(&self) -> bool {
        let liveness = self.process.map(|process| process::liveness(&process));
        liveness == Some(Liveness::Dead)
    }
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
        limits: Limits,
    ) -> Self {
        let pieces = Source::Own(PieceCursor::new(plan, PIECE));
        let validity = Validity::of(&remote);
        let (lists, has_lists) = pieces.lists(validity.as_ref());
        Self {
            pin: Pin::new(&operation),
            operation,
            remote,
            pieces,
            again: Vec::new(),
            repetitions: 0,
            has_lists,
            lists,
            stage: Stage::Queued,
            clock: Clock::new(limits, Instant::now()),
            in_flight: Vec::new(),
            validity,
            checksum: None,
            verifies: false,
            regions: Vec::new(),
            memory,
            is_unquiet: false,
            hands: None,
            crew: None,
            courtesy: Courtesy::default(),
            inquiry: None,
            is_letter: false,
        }
    }

    /// Has what was read checked against the owner's checksum.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where that cannot be done.
    pub(crate) fn verified(mut self) -> Result<Self> {
        let refuse = |message: &str| Error::new(ErrorKind::InvalidArgument, "verify", message);
        if self.operation.direction() == Direction::Write {
            return Err(refuse("only what is read can be verified"));
        }
        if self.remote.trailer().is_none_or(|trailer| trailer.checksum.is_none()) {
            let message = "the peer has sent no checksum";
            return Err(
                refuse(message).with_hint("it has to expose its memory with `verify=True`, as peers of our kind can")
            );
        }
        if self.validity.is_none() {
            // The notification would go out with the last bytes, before anybody has looked at them.
            return Err(refuse("the peer's metadata has a checksum and no validity word"));
        }
        self.checksum = Some(self.new_checksum()?);
        self.verifies = true;
        Ok(self)
    }

    fn new_checksum(&self) -> Result<Checksum> {
        Checksum::new(self.memory.iter().map(|memory| memory.range).collect())
    }

    /// One that only loads its peer: it moves nothing and tells nobody.
    pub(crate) fn connecting(operation: Arc<Operation>, remote: Arc<RemoteMetadata>, limits: Limits) -> Self {
        debug_assert!(operation.bytes_total() == 0 && operation.key().is_empty());
        Self {
            validity: None,
            ..Self::new(operation, remote, TransferPlan::default(), Vec::new(), limits)
        }
    }

    /// One that only carries a message to a peer of our own kind.
    pub(crate) fn telling(letter: Letter) -> Self {
        let Letter { to, operation } = letter;
        let limits = Limits {
            timeout: None,
            stall: Some(TELLING),
        };
        Self {
            validity: None,
            is_letter: true,
            ..Self::new(operation, to, TransferPlan::default(), Vec::new(), limits)
        }
    }

    /// Whether it only carries a message.
    pub(crate) fn is_letter(&self) -> bool {
        self.is_letter
    }

    /// Whether starting it costs no load, no long registration and no wait, and moving it takes one small piece.
    pub(crate) fn is_inline(&self, resources: &Resources) -> bool {
        !self.is_part()
            && self.operation.bytes_total() <= INLINE_BYTES
            && self.memory.len() <= INLINE_DESCRIPTORS
            && matches!(resources.peers.plan(self.wanted()), Plan::Ready | Plan::Extend)
    }

    fn wanted(&self) -> Wanted<'_> {
        Wanted {
            metadata: &self.remote,
            lists: &self.lists,
        }
    }

    /// Whether what the owner says is about it.
    pub(crate) fn is_called(&self, notice: &Notice) -> bool {
        !self.is_letter
            && self.courtesy.known_id() == Some(notice.transfer)
            && *self.peer() == notice.sender
            && *self.operation.key() == notice.operation
    }

    pub(crate) fn peer(&self) -> &AgentName {
        self.remote.agent()
    }

    /// How many bytes it keeps pinned though its operation has ended.
    pub(crate) fn quarantined_bytes(&self) -> u64 {
        if !self.is_flying() || !self.operation.is_finished() {
            return 0;
        }
        self.operation.bytes_total()
    }

    /// Ends it for its waiters, unless it has ended; pieces in flight are still driven to their end.
    pub(crate) fn abandon(&mut self, outcome: Outcome) {
        self.operation.finish(outcome);
        if matches!(self.stage, Stage::Queued) {
            self.stage = Stage::Over;
        }
    }

    /// Nobody will drive it any more, and its memory stays pinned.
    pub(crate) fn keep_for_ever(&self) {
        let message = "the connector was closed while the wire was at work on the memory, which stays pinned";
        let error = Error::new(ErrorKind::Transfer, "wait for quiet", message);
        self.pin.keep_for_ever(self.detailed(error));
    }

    /// What stays pinned of it because a piece can never be shown quiet.
    pub(crate) fn into_unquiet(mut self) -> Option<Unquiet> {
        if !self.is_unquiet {
            return None;
        }
        self.pin.keep_for_ever(
            Error::new(
                ErrorKind::Transfer,
                "wait for quiet",
                "a request of several descriptors failed, and nothing tells whether parts of it are still moving; its \
                 memory stays pinned",
            )
            .with_context("peer", self.remote.agent())
            .with_context("bytes", self.operation.bytes_total()),
        );
        Some(Unquiet {
            peer: self.remote.agent().clone(),
            operation: self.operation.key().clone(),
            id: self.courtesy.known_id(),
            regions: std::mem::take(&mut self.regions),
            bytes: self.operation.bytes_total(),
            process: self.owner_process(),
            _memory: std::mem::take(&mut self.memory),
            _pin: self.pin,
        })
    }

    /// Moves it on as far as that goes without waiting: at most one piece is posted.
    pub(crate) fn step(&mut self, resources: &mut Resources, now: Instant) -> Step {
        self.end_with_whole();
        if self.stage == Stage::Queued && !self.operation.is_finished() {
            match self.start(resources, now) {
                Ok(true) => {}
                Ok(false) => match self
                    .clock
                    .passed_while_waiting(resources.peers.last_progress(self.peer()), now)
                {
                    None => return Step::Unchanged,
                    Some(error) => self.abandon(Outcome::Failed(self.detailed(error))),
                },
                Err(error) => self.give_up_start(error),
            }
        }
        if matches!(self.stage, Stage::Queued | Stage::Over) {
            self.decline(resources);
            return Step::Over;
        }
        if let Stage::Buried(since) = self.stage {
            return self.rest(since, now);
        }
        self.greet(resources);
        let mut progressed = self.poll(resources, now) | self.watch_crew(now);
        if !matches!(self.stage, Stage::Draining) {
            if !self.operation.is_finished() {
                // After the look: what has ended in time counts.
                if let Some(error) = self.clock.passed(now) {
                    // What has failed has failed for that reason, whatever is still to be found out.
                    let error = match &self.inquiry {
                        None => self.detailed(error),
                        Some(inquiry) => self.advised(self.detailed(inquiry.failure())),
                    };
                    self.operation.finish(Outcome::Failed(error));
                }
            }
            // Cancelled meanwhile, or late: nothing further is posted.
            if self.operation.is_finished() {
                self.stage = Stage::Draining;
                self.take_leave(resources);
            } else if self.stage == Stage::Inquiring {
                progressed |= self.inquire(resources, now);
            } else if !self.waits_for_reload(resources) {
                match self.post_next(resources) {
                    // Where the wire moves the bytes within the post, nothing is left for the next look to find.
                    Ok(posted) if posted => {
                        self.clock.progress(now);
                        progressed = true;
                    }
                    Ok(_) => {}
                    Err(error) => self.fail(resources, error),
                }
            }
        }
        if self.stage == Stage::Queued {
            return Step::Progressed;
        }
        if !self.is_flying() && self.operation.is_finished() {
            self.dismiss_crew();
            // It may have been ended while its last piece was posted.
            self.take_leave(resources);
            self.close_conversation(resources);
            if self.inquiry.as_ref().is_none_or(Inquiry::uses_peer) {
                resources.peers.end_use(self.remote.agent());
            }
            self.stage = Stage::Over;
            return Step::Over;
        }
        if !progressed {
            return Step::Unchanged;
        }
        if self.courtesy.is_lasting() {
            resources.peers.note_progress(self.remote.agent(), now);
        }
        Step::Progressed
    }

    /// It cannot be started. A part has taken nothing then, and leaves its share to the others.
    fn give_up_start(&mut self, error: Error) {
        let error = self.explained(error);
        if self.is_part() && error.kind() != ErrorKind::PeerLost {
            tracing::debug!(%error, peer = %self.peer(), "a lane cannot help with a transfer");
            self.abandon(Outcome::Complete);
        } else {
            self.abandon(Outcome::Failed(self.detailed(error)));
        }
    }

    /// False where it has to wait for its peer.
    fn start(&mut self, resources: &mut Resources, now: Instant) -> Result<bool> {
        if matches!(resources.peers.plan(self.wanted()), Plan::Connect | Plan::Reload) {
            // Connecting to what is not there takes long, and can cost the agent the peer's name.
            self.refuse_dead()?;
        }
        if !resources.peers.prepare(&*resources.transport, self.wanted())? {
            return Ok(false);
        }
        self.lists = Vec::new();
        if self.regions.is_empty() {
            for memory in &self.memory {
                self.regions.push(resources.regions.share(memory, Sharing::Any)?);
            }
            // They are let go in this order, from the end of NIXL's, so that the rest need not move up each time.
            self.regions.sort_unstable_by_key(|region| Reverse(*region.range()));
        }
        resources.peers.begin_use(self.remote.agent());
        // Asked beforehand also where bytes are only read: what has ended may be unmapped by now, and over TCP such a read
        // kills the owner.
        self.stage = if self.validity.is_some() && self.operation.bytes_total() > 0 {
            Stage::Checking
        } else {
            Stage::Moving
        };
        if self.repetitions == 0 {
            self.clock.start(now);
        }
        self.operation.mark_started();
        Ok(true)
    }

    /// A piece of several descriptors failed: the wire may go on with some of them, and nobody will ever know.
    fn pin_for_ever(&mut self, bound: Vec<Region>) {
        self.is_unquiet = true;
        for region in bound {
            if !self.regions.iter().any(|held| held.range() == region.range()) {
                self.regions.push(region);
            }
        }
    }

    fn fail(&mut self, resources: &mut Resources, error: Error) {
        resources.peers.mark_lost(self.remote.agent());
        let error = self.explained(error);
        if self.is_part() {
            // Whose it is will say what this means, and what to do about it.
            self.operation.finish(Outcome::Failed(error));
            self.stage = Stage::Draining;
            return;
        }
        if self.is_inquired_into(resources, &error) {
            return;
        }
        let error = self.advised(self.detailed(error));
        self.operation.finish(Outcome::Failed(error));
        self.stage = Stage::Draining;
        self.take_leave(resources);
    }

    /// The error, and what to do about it. One that is not the wire's has its own advice.
    fn advised(&self, error: Error) -> Error {
        if !matches!(error.kind(), ErrorKind::Transfer | ErrorKind::Backend) && error.hint().is_some() {
            return error;
        }
        let advice = "the peer may be gone, or what it exposed; the next operation with it connects anew".to_owned();
        let apart = self.is_apart().then(|| Facts::here().on_other_host()).flatten();
        let causes = [Some(advice), apart, error.hint().map(str::to_owned)];
        let hint = causes.into_iter().flatten().collect::<Vec<_>>().join("; ");
        error.with_hint(hint)
    }

    /// Whether the owner is in another pid namespace than we, or on another machine.
    fn is_apart(&self) -> bool {
        let (owner, here) = (self.owner_process(), process::here());
        owner.zip(here).is_some_and(|(owner, here)| owner.host != here.host)
    }

    /// The error, and how far the transfer had come.
    fn detailed(&self, error: Error) -> Error {
        let is_named = error.context().iter().any(|(key, _)| *key == "peer");
        let error = error.with_context("operation", self.operation.direction());
        let error = if is_named {
            error
        } else {
            error.with_context("peer", self.remote.agent())
        };
        error
            .with_context("bytes_done", self.operation.bytes_done())
            .with_context("bytes_total", self.operation.bytes_total())
    }
}
