//! The state of one operation, as its owner, its waiters and the reactor share it.
//!
//! An operation has exactly one outcome. Whoever brings the first one wins; everything later is ignored, so an end never
//! changes. Waiters are told through a [`CompletionSink`], which the core knows nothing more about.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::{Error, ErrorKind};
use crate::sync::{AtomicU8, AtomicU64, Condvar, Mutex};
use crate::types::{AgentName, Direction, OperationKey};

/// What upstream calls `OperationStatus`, with its numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Created; nothing has moved.
    Initialized = 1,
    /// The active side has posted at least one piece.
    InProgress = 2,
    /// All bytes moved and, on the passive side, the peer said so.
    Complete = 3,
    /// Ended by a cancel.
    Cancelled = 4,
    /// Ended by a failure.
    Errored = 5,
}

/// How an operation ended.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// All bytes moved.
    Complete,
    /// Its owner gave it up. Its memory may still be touched until the operation is quiet.
    Cancelled,
    /// The peer gave it up, which says who and why.
    CancelledByPeer(Error),
    /// It failed.
    Failed(Error),
}

impl Outcome {
    /// The outcome of an operation that ended for this reason.
    pub(crate) fn of(error: Error) -> Self {
        match error.kind() {
            ErrorKind::CancelledByPeer => Self::CancelledByPeer(error),
            _ => Self::Failed(error),
        }
    }

    /// What is raised to those who wait; nothing after a cancel of one's own.
    #[must_use]
    pub fn error(&self) -> Option<&Error> {
        match self {
            Self::Complete | Self::Cancelled => None,
            Self::CancelledByPeer(error) | Self::Failed(error) => Some(error),
        }
    }

    fn status(&self) -> Status {
        match self {
            Self::Complete => Status::Complete,
            Self::Cancelled | Self::CancelledByPeer(_) => Status::Cancelled,
            Self::Failed(_) => Status::Errored,
        }
    }
}

/// Whether the wire may still touch an operation's memory.
#[derive(Clone, Debug, Default)]
enum Quiet {
    /// It may.
    #[default]
    NotYet,
    /// It may not, any more.
    Reached,
    /// Nobody will ever be able to tell; the memory stays pinned.
    Never(Error),
}

/// A point in an operation's life that can be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// Memory registered, peer loaded: nothing that a caller could have got wrong is left to find out.
    Started,
    /// The outcome stands. Implies `Started` for waiters, whether or not it was reached.
    Finished,
    /// The outcome stands, and the wire can no longer touch the memory; or it is known that nobody will ever know.
    Quiet,
}

/// Where completions go. Called on the reactor's threads, so it must not block, call back or panic.
pub trait CompletionSink: Send + Sync {
    /// The operation watched under `ticket` has reached the phase asked for.
    fn arrived(&self, ticket: u64);
}

/// A ticket no other wait of this process has.
#[must_use]
pub fn next_ticket() -> u64 {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Wakes one thread that waits for one operation.
#[derive(Default)]
struct ThreadSink {
    arrived: Mutex<bool>,
    signal: Condvar,
}

impl ThreadSink {
    fn wait(&self, timeout: Option<Duration>) -> bool {
        let mut arrived = self.arrived.lock();
        match timeout {
            None => self.signal.wait_while(&mut arrived, |arrived| !*arrived),
            Some(timeout) => {
                self.signal.wait_while_for(&mut arrived, |arrived| !*arrived, timeout);
            }
        }
        *arrived
    }
}

impl CompletionSink for ThreadSink {
    fn arrived(&self, _ticket: u64) {
        *self.arrived.lock() = true;
        self.signal.notify_one();
    }
}

struct Waiter {
    phase: Phase,
    sink: Arc<dyn CompletionSink>,
    ticket: u64,
}

struct State {
    started: bool,
    outcome: Option<Outcome>,
    quiet: Quiet,
    waiters: Vec<Waiter>,
}

impl State {
    fn has_reached(&self, phase: Phase) -> bool {
        match phase {
            Phase::Started => self.started || self.outcome.is_some(),
            Phase::Finished => self.outcome.is_some(),
            Phase::Quiet => self.outcome.is_some() && !matches!(self.quiet, Quiet::NotYet),
        }
    }

    /// Takes out those whose wait is over.
    fn arrived(&mut self) -> Vec<Waiter> {
        let waiters = std::mem::take(&mut self.waiters);
        let (ready, waiting) = waiters.into_iter().partition(|waiter| self.has_reached(waiter.phase));
        self.waiters = waiting;
        ready
    }
}

/// One operation's shared state.
pub struct Operation {
    direction: Direction,
    key: OperationKey,
    peer: Option<AgentName>,
    bytes_total: u64,
    bytes_done: AtomicU64,
    /// Mirrors `state`, for reading without the lock. Written under it.
    status: AtomicU8,
    state: Mutex<State>,
}

impl Operation {
    /// A new operation; `peer` is known on the active side only.
    #[must_use]
    pub fn new(direction: Direction, key: OperationKey, peer: Option<AgentName>, bytes_total: u64) -> Arc<Self> {
        Arc::new(Self {
            direction,
            key,
            peer,
            bytes_total,
            bytes_done: AtomicU64::new(0),
            status: AtomicU8::new(Status::Initialized as u8),
            state: Mutex::new(State {
                started: false,
                outcome: None,
                quiet: Quiet::default(),
                waiters: Vec::new(),
            }),
        })
    }

    /// Which way the bytes move, seen from the active side.
    #[must_use]
    pub fn direction(&self) -> Direction {
        self.direction
    }

    /// The notification that ends it.
    #[must_use]
    pub fn key(&self) -> &OperationKey {
        &self.key
    }

    /// The remote agent, on the active side.
    #[must_use]
    pub fn peer(&self) -> Option<&AgentName> {
        self.peer.as_ref()
    }

    /// How many bytes it moves.
    #[must_use]
    pub fn bytes_total(&self) -> u64 {
        self.bytes_total
    }

    /// How many bytes NIXL reported as moved; whole pieces, active side.
    #[must_use]
    pub fn bytes_done(&self) -> u64 {
        self.bytes_done.load(Ordering::Relaxed)
    }

    /// The status now.
    #[must_use]
    pub fn status(&self) -> Status {
        match self.status.load(Ordering::Acquire) {
            2 => Status::InProgress,
            3 => Status::Complete,
            4 => Status::Cancelled,
            5 => Status::Errored,
            _ => Status::Initialized,
        }
    }

    /// Whether the outcome stands.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.status.load(Ordering::Acquire) >= Status::Complete as u8
    }

    /// Whether it got going. One that failed or was cancelled before that never does.
    #[must_use]
    pub fn has_started(&self) -> bool {
        self.state.lock().started
    }

    /// Whether a phase was reached.
    #[must_use]
    pub fn has_reached(&self, phase: Phase) -> bool {
        self.state.lock().has_reached(phase)
    }

    /// Whether the operation has ended and the wire can no longer touch its memory.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let state = self.state.lock();
        state.outcome.is_some() && matches!(state.quiet, Quiet::Reached)
    }

    /// Why it can never be told that the wire is done with the memory, where that is so.
    #[must_use]
    pub fn never_quiet(&self) -> Option<Error> {
        match &self.state.lock().quiet {
            Quiet::Never(error) => Some(error.clone()),
            Quiet::NotYet | Quiet::Reached => None,
        }
    }

    /// The outcome, once it stands.
    #[must_use]
    pub fn outcome(&self) -> Option<Outcome> {
        self.state.lock().outcome.clone()
    }

    /// Tells `sink` under `ticket` when `phase` is reached. False, and no call later, where it already is. Tickets come
    /// from [`next_ticket`].
    pub fn watch(&self, phase: Phase, sink: &Arc<dyn CompletionSink>, ticket: u64) -> bool {
        let mut state = self.state.lock();
        if state.has_reached(phase) {
            return false;
        }
        state.waiters.push(Waiter {
            phase,
            sink: Arc::clone(sink),
            ticket,
        });
        true
    }

    /// Forgets a watch, so that waits that are given up do not pile up. False where it had arrived already.
    pub fn unwatch(&self, ticket: u64) -> bool {
        let waiters = &mut self.state.lock().waiters;
        let before = waiters.len();
        waiters.retain(|waiter| waiter.ticket != ticket);
        waiters.len() < before
    }

    /// Waits on this thread. False where `timeout` passed first; the operation goes on either way.
    pub fn wait(&self, phase: Phase, timeout: Option<Duration>) -> bool {
        let thread = Arc::new(ThreadSink::default());
        let sink: Arc<dyn CompletionSink> = Arc::clone(&thread) as _;
        let ticket = next_ticket();
        if !self.watch(phase, &sink, ticket) {
            return true;
        }
        thread.wait(timeout) || !self.unwatch(ticket)
    }

    /// Memory registered and peer loaded.
    pub(crate) fn mark_started(&self) {
        let ready = {
            let mut state = self.state.lock();
            if state.started || state.outcome.is_some() {
                return;
            }
            state.started = true;
            state.arrived()
        };
        wake(ready);
    }

    /// A piece was posted.
    pub(crate) fn mark_in_progress(&self) {
        let state = self.state.lock();
        if state.outcome.is_none() {
            self.status.store(Status::InProgress as u8, Ordering::Release);
        }
    }

    /// Bytes of a piece that ended well.
    pub(crate) fn add_bytes_done(&self, bytes: u64) {
        self.bytes_done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// All of it is to be moved anew.
    pub(crate) fn forget_bytes_done(&self) {
        self.bytes_done.store(0, Ordering::Relaxed);
    }

    /// Ends the operation, unless it has ended. True if this call ended it.
    ///
    /// For whoever moves its bytes, and for a benchmark of what follows from it.
    #[doc(hidden)]
    pub fn finish(&self, outcome: Outcome) -> bool {
        let waiters = {
            let mut state = self.state.lock();
            if state.outcome.is_some() {
                return false;
            }
            self.status.store(outcome.status() as u8, Ordering::Release);
            state.outcome = Some(outcome);
            state.arrived()
        };
        wake(waiters);
        true
    }

    /// What was held in memory for it is let go; or it is not, for a reason that lasts.
    fn settle(&self, quiet: Quiet) {
        let waiters = {
            let mut state = self.state.lock();
            if !matches!(state.quiet, Quiet::NotYet) {
                return;
            }
            state.quiet = quiet;
            state.arrived()
        };
        wake(waiters);
    }
}

/// Held by whoever keeps an operation's memory pinned. Dropped after the memory was let go, it makes the operation quiet.
#[derive(Debug)]
pub(crate) struct Pin(Arc<Operation>);

impl Pin {
    pub(crate) fn new(operation: &Arc<Operation>) -> Self {
        Self(Arc::clone(operation))
    }

    /// The wire is done with the memory, though it may still be held for a moment.
    pub(crate) fn settle(&self) {
        self.0.settle(Quiet::Reached);
    }

    /// The memory stays pinned for good.
    pub(crate) fn keep_for_ever(&self, reason: Error) {
        self.0.settle(Quiet::Never(reason));
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.0.settle(Quiet::Reached);
    }
}

/// Outside of the operation's lock, because a sink takes locks of its own.
fn wake(waiters: Vec<Waiter>) {
    for waiter in waiters {
        waiter.sink.arrived(waiter.ticket);
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Operation")
            .field("direction", &self.direction)
            .field("key", &self.key)
            .field("peer", &self.peer)
            .field("bytes_total", &self.bytes_total)
            .field("status", &self.status())
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "model"))]
mod model;
#[cfg(test)]
mod tests;
