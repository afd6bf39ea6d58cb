//! A transport that goes wrong on purpose, around one that does not: for tests of how programs recover.
//!
//! It keeps the rules of what it decorates. A request that the wire is at work on is never reported as ended, only later
//! than it was; one that is made to fail was never posted, or has ended. A connector without faults has none of this: its
//! factory is not wrapped.

mod plan;
mod random;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use crate::sync::lock::Mutex;

pub use self::plan::{Effect, Fault, Faults, Notifications, When};
use self::plan::{Fate, Hold};
use super::{Progress, Registration, Request, Transport, TransportFactory};
use crate::error::{Error, ErrorKind, Result};
use crate::types::{AgentName, Direction, MemoryRange};
use crate::wire::AgentBlob;

impl Faults {
    /// Has these faults happen to every agent that the factory returned makes.
    #[must_use]
    pub fn wrap(&self, factory: TransportFactory) -> TransportFactory {
        let faults = self.clone();
        Arc::new(move |name, flavor| {
            Ok(Arc::new(FaultyTransport {
                inner: factory(name, flavor)?,
                faults: faults.clone(),
                words: Mutex::default(),
                delayed: Mutex::default(),
            }))
        })
    }

    /// # Errors
    /// Where the peer is lost.
    fn reach(&self, peer: &AgentName, operation: &'static str) -> Result<()> {
        let Some(is_dead) = self.lost(peer) else { return Ok(()) };
        Err(if is_dead {
            Error::new(ErrorKind::PeerLost, operation, "the peer's process is gone")
                .with_context("peer", peer)
                .with_context("injected", "lost")
        } else {
            failure(peer, operation, "lost")
        })
    }
}

/// What NIXL would say, and that it did not.
fn failure(peer: &AgentName, operation: &'static str, fault: &str) -> Error {
    Error::new(ErrorKind::Transfer, operation, "NIXL reported a failure")
        .with_context("peer", peer)
        .with_context("status", "NIXL_CAPI_ERROR_BACKEND")
        .with_context("injected", fault)
}

/// One agent.
struct FaultyTransport {
    inner: Arc<dyn Transport>,
    faults: Faults,
    /// Where peers' words are read to.
    words: Mutex<Vec<MemoryRange>>,
    delayed: Mutex<Vec<Delayed>>,
}

/// A notification that is handed over later.
struct Delayed {
    sender: AgentName,
    message: Vec<u8>,
    copies: usize,
    holds: Vec<Hold>,
}

impl FaultyTransport {
    /// Takes out the delayed notifications whose time has come, in the order they arrived.
    fn take_due(&self, now: Instant) -> Vec<Delayed> {
        let mut delayed = self.delayed.lock();
        let (due, rest) = std::mem::take(&mut *delayed)
            .into_iter()
            .partition(|each| each.holds.iter().all(|hold| hold.is_over(now)));
        *delayed = rest;
        due
    }
}

impl Transport for FaultyTransport {
    fn agent_name(&self) -> &AgentName {
        self.inner.agent_name()
    }

    fn register(&self, range: &MemoryRange) -> Result<Box<dyn Registration>> {
        self.inner.register(range)
    }

    fn note_words(&self, page: &MemoryRange) {
        self.words.lock().push(*page);
        self.inner.note_words(page);
    }

    fn connection_info(&self) -> Result<Vec<u8>> {
        self.inner.connection_info()
    }

    fn partial_metadata(&self, ranges: &[MemoryRange]) -> Result<Vec<u8>> {
        self.inner.partial_metadata(ranges)
    }

    fn full_metadata(&self) -> Result<Vec<u8>> {
        self.inner.full_metadata()
    }

    fn load_peer(&self, blob: &[u8]) -> Result<AgentName> {
        // What is malformed is the decorated one's to refuse.
        if let Ok(blob) = AgentBlob::parse(blob) {
            self.faults.reach(&blob.agent, "load peer")?;
        }
        self.inner.load_peer(blob)
    }

    fn drop_peer(&self, peer: &AgentName) -> Result<()> {
        // No matter of the wire, and what is loaded has to be known to both.
        self.inner.drop_peer(peer)
    }

    fn prepare(
        &self,
        direction: Direction,
        local: &[MemoryRange],
        remote: &[MemoryRange],
        peer: &AgentName,
        notification: Option<&[u8]>,
    ) -> Result<Box<dyn Request>> {
        self.faults.reach(peer, "create request")?;
        let words = self.words.lock();
        let is_question = local.iter().any(|range| words.iter().any(|page| page.covers(range)));
        drop(words);
        Ok(Box::new(FaultyRequest {
            inner: self.inner.prepare(direction, local, remote, peer, notification)?,
            faults: self.faults.clone(),
            peer: peer.clone(),
            is_question,
            state: State::Moving,
            holds: Vec::new(),
            fails: false,
        }))
    }

    fn notify(&self, peer: &AgentName, message: &[u8]) -> Result<()> {
        self.faults.reach(peer, "send notification")?;
        self.inner.notify(peer, message)
    }

    fn poll_notifications(&self, receive: &mut dyn FnMut(&AgentName, &[u8])) -> Result<usize> {
        let now = Instant::now();
        let mut handed_over = 0;
        for due in self.take_due(now) {
            if self.faults.lost(&due.sender).is_none() {
                (0..due.copies).for_each(|_| receive(&due.sender, &due.message));
                handed_over += due.copies;
            }
        }
        self.inner.poll_notifications(&mut |sender, message| {
            if self.faults.lost(sender).is_some() {
                return;
            }
            let arrival = self.faults.arrival(sender, message, now);
            if arrival.copies > 0 && !arrival.holds.is_empty() {
                self.delayed.lock().push(Delayed {
                    sender: sender.clone(),
                    message: message.to_vec(),
                    copies: arrival.copies,
                    holds: arrival.holds,
                });
            } else {
                (0..arrival.copies).for_each(|_| receive(sender, message));
                handed_over += arrival.copies;
            }
        })?;
        Ok(handed_over)
    }
}

impl fmt::Debug for FaultyTransport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FaultyTransport")
            .field("inner", &self.inner)
            .field("faults", &self.faults)
            .finish_non_exhaustive()
    }
}

/// How far a request has come.
#[derive(Debug)]
enum State {
    /// Not posted yet, or the wire may be at work on it.
    Moving,
    /// The wire is done with it, which is not said yet.
    Ended(Result<()>),
    /// That was said.
    Over,
}

/// One request.
#[derive(Debug)]
struct FaultyRequest {
    inner: Box<dyn Request>,
    faults: Faults,
    peer: AgentName,
    /// It reads a word of the peer, and moves no user's bytes.
    is_question: bool,
    state: State,
    holds: Vec<Hold>,
    fails: bool,
}

impl FaultyRequest {
    /// Takes in what the wire says, and says as much of it as the faults let through.
    fn hear(&mut self, progress: Result<Progress>, operation: &'static str) -> Result<Progress> {
        match progress {
            Ok(Progress::Pending) => return Ok(Progress::Pending),
            Ok(Progress::Done) => self.state = State::Ended(Ok(())),
            Err(error) => self.state = State::Ended(Err(error)),
        }
        self.report(operation)
    }

    /// Says how it has ended, unless it is held.
    fn report(&mut self, operation: &'static str) -> Result<Progress> {
        // Asked for the time only where there is something to wait for.
        if !self.holds.is_empty() {
            let now = Instant::now();
            self.holds.retain(|hold| !hold.is_over(now));
            if !self.holds.is_empty() {
                return Ok(Progress::Pending);
            }
        }
        if let State::Ended(result) = std::mem::replace(&mut self.state, State::Over) {
            result?;
            self.faults.reach(&self.peer, operation)?;
            if self.fails {
                return Err(failure(&self.peer, operation, "fail"));
            }
        }
        Ok(Progress::Done)
    }
}

impl Request for FaultyRequest {
    fn post(&mut self) -> Result<Progress> {
        const OPERATION: &str = "post transfer";
        // What fails here is not posted, and stays over.
        let state = std::mem::replace(&mut self.state, State::Over);
        self.faults.reach(&self.peer, OPERATION)?;
        if self.is_question {
            if self.faults.is_stale(&self.peer) {
                return Ok(Progress::Done);
            }
        } else {
            match self.faults.piece(&self.peer, Instant::now()) {
                Fate::Refused => return Err(failure(&self.peer, OPERATION, "fail")),
                Fate::Posted { holds, fails } => (self.holds, self.fails) = (holds, fails),
            }
        }
        self.state = state;
        let posted = self.inner.post();
        self.hear(posted, OPERATION)
    }

    fn poll(&mut self) -> Result<Progress> {
        const OPERATION: &str = "transfer";
        match self.state {
            State::Over => Ok(Progress::Done),
            State::Ended(_) => self.report(OPERATION),
            State::Moving => {
                let progress = self.inner.poll();
                self.hear(progress, OPERATION)
            }
        }
    }

    fn give_up(&mut self) {
        self.state = State::Over;
        self.inner.give_up();
    }
}
