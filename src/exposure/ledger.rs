//! All exposures of one agent: those that wait for a peer, by their keys and by the ends of their leases, and those whose
//! memory stays for a while because a peer may still be at work on it.
//!
//! Whoever ends an exposure does so here: its word changes first, then its holder is told, then its memory is let go or
//! put into grace. The first end stands.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::messages::Letter;
use super::record::{Record, Released};
use super::users::UserId;
use crate::error::{Error, ErrorKind, Result};
use crate::operation::Outcome;
use crate::settings::Settings;
use crate::sync::{AtomicU64, Mutex};
use crate::types::{AgentName, OperationKey};

/// So many registrations are given back at one look at the wire: a list of thousands must not make the lane deaf.
const RELEASED_PER_TICK: usize = 64;

/// How long a lease that has ended is held open at a time for a transfer that is at work, and memory in grace.
pub(super) const HELD_OPEN: Duration = Duration::from_secs(1);

/// The exposures of one agent.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(super) grace: Duration,
    pub(super) quarantine_limit: u64,
    /// How often those at work are asked whether they are there.
    pub(super) keepalive: Option<Duration>,
    pub(super) state: Mutex<State>,
    matched: AtomicU64,
    pub(super) unknown: AtomicU64,
    pub(super) malformed: AtomicU64,
    pub(super) messages: AtomicU64,
}

#[derive(Debug, Default)]
pub(super) struct State {
    open: HashMap<OperationKey, Arc<Record>>,
    /// Ordered by their ends; the generation tells those of one moment apart.
    leases: BTreeMap<(Instant, u64), Arc<Record>>,
    /// Ended, and not yet settled, by their keys.
    pub(super) ended: HashMap<OperationKey, Arc<Record>>,
    /// Those of them that are held until then.
    pub(super) grace: BTreeMap<(Instant, u64), Arc<Record>>,
    pub(super) grace_bytes: u64,
    /// Those that nobody is known to be at work on, and at which look at the wire that was so.
    pub(super) settling: Vec<(u64, Arc<Record>)>,
    pub(super) settling_since: Option<Instant>,
    /// How many looks have begun.
    pub(super) looks: u64,
    /// When those at work on them are asked next whether they are there.
    pub(super) pulses: BTreeMap<(Instant, u64), Arc<Record>>,
    /// Active sides whose processes have died, and at which look that was noticed.
    pub(super) deaths: Vec<(u64, OperationKey, UserId)>,
    /// To be sent by the lane's thread.
    outbox: Vec<Letter>,
    /// To be let go on the lane's thread: deregistering can take as long as registering.
    pub(super) released: VecDeque<Released>,
    /// Why nothing will end well any more, once the lane closes.
    pub(super) closed: Option<Error>,
    /// Nobody will look here any more.
    pub(super) is_over: bool,
    /// The same, and the agent stays for good, with all that the wire may touch.
    pub(super) is_abandoned: bool,
}

impl State {
    /// No longer waited for.
    fn close(&mut self, record: &Arc<Record>) {
        let key = record.operation().key();
        self.open.remove(key);
        if !self.is_over {
            self.ended.insert(key.clone(), Arc::clone(record));
        }
        if let Some(end) = record.inner().lease_end {
            self.leases.remove(&(end, record.generation()));
        }
    }
}

impl Ledger {
    pub(crate) fn new(settings: &Settings) -> Self {
        Self {
            grace: settings.grace,
            quarantine_limit: settings.quarantine_limit,
            keepalive: settings.keepalive_interval(),
            state: Mutex::default(),
            matched: AtomicU64::new(0),
            unknown: AtomicU64::new(0),
            malformed: AtomicU64::new(0),
            messages: AtomicU64::new(0),
        }
    }

    /// Waits for the notification that completes an exposure. Before its key is given to anyone, so none can come too
    /// early. After [`Ledger::close`], when none can come at all, it ends the exposure.
    pub(crate) fn open(&self, record: &Arc<Record>) {
        let reason = {
            let mut state = self.state.lock();
            if state.closed.is_none() {
                let key = record.operation().key().clone();
                state.open.insert(key, Arc::clone(record));
                if let Some(end) = record.inner().lease_end {
                    state.leases.insert((end, record.generation()), Arc::clone(record));
                }
            }
            state.closed.clone()
        };
        if let Some(reason) = reason {
            self.end(record, Outcome::Failed(reason));
        }
    }

    /// Ends an exposure. False where it had ended.
    pub(super) fn end(&self, record: &Arc<Record>, outcome: Outcome) -> bool {
        let is_noted = record.note_end(&outcome);
        if is_noted {
            self.conclude(record, outcome);
        }
        is_noted
    }

    /// What follows from an end that was noted.
    fn conclude(&self, record: &Arc<Record>, outcome: Outcome) {
        // In one go, so that it is known at any time to what is heard of it.
        self.state.lock().close(record);
        record.operation().finish(outcome);
        self.tell_users(record);
        self.retire(record);
    }

    /// Gives the memory of an exposure up, unless it is held for a while.
    pub(super) fn release(&self, record: &Arc<Record>) {
        let released = record.release();
        let mut state = self.state.lock();
        state.leave_alone(record);
        if !state.is_over {
            state.released.push_back(released);
        }
    }

    /// Lets an exposure that is not complete run for longer, or shorter, from now.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where it has ended.
    pub(super) fn renew(&self, record: &Arc<Record>, lease: Option<Duration>) -> Result<()> {
        self.change_lease(record, lease.and_then(|lease| Instant::now().checked_add(lease)), None)
    }

    /// Lets the lease end at `until`; nothing where it was to end at `seen` and somebody else has changed it since.
    fn change_lease(&self, record: &Arc<Record>, until: Option<Instant>, seen: Option<Instant>) -> Result<()> {
        let mut state = self.state.lock();
        let mut inner = record.inner();
        if inner.has_ended {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "renew lease",
                "the operation has ended",
            ));
        }
        if seen.is_some() && seen != inner.lease_end {
            return Ok(());
        }
        if let Some(end) = inner.lease_end {
            state.leases.remove(&(end, record.generation()));
        }
        inner.lease_end = until;
        if let Some(end) = inner.lease_end {
            state.leases.insert((end, record.generation()), Arc::clone(record));
        }
        Ok(())
    }

    /// Completes the exposure whose key this is. False where it is none's.
    pub(super) fn complete(&self, sender: &AgentName, message: &[u8]) -> bool {
        let key = OperationKey::new(message.to_vec());
        let Some(record) = self.state.lock().open.get(&key).cloned() else {
            return false;
        };
        self.matched.fetch_add(1, Ordering::Relaxed);
        // Whoever has completed it will say that it is quiet; others that are known to be at work are told, and waited for.
        record.inner().users.complete(sender);
        self.end(&record, Outcome::Complete);
        true
    }

    /// The exposure of a key, open or held in grace.
    pub(super) fn known(&self, key: &OperationKey) -> Option<Arc<Record>> {
        let state = self.state.lock();
        state.open.get(key).or_else(|| state.ended.get(key)).cloned()
    }

    /// Has a message sent at the next look at the wire.
    pub(super) fn send(&self, letter: Letter) {
        let mut state = self.state.lock();
        if !state.is_over {
            state.outbox.push(letter);
        }
    }

    /// What is to be sent.
    pub(crate) fn take_outbox(&self) -> Vec<Letter> {
        std::mem::take(&mut self.state.lock().outbox)
    }

    /// A look at the wire begins.
    pub(crate) fn begin_look(&self) {
        self.state.lock().looks += 1;
    }

    /// Does what is due. Called on the lane's thread, after the notifications of that look: what has come in time counts.
    /// True where there was memory to let go, and may be more.
    pub(crate) fn tick(&self, now: Instant) -> bool {
        self.bury_dead();
        self.beat(now);
        loop {
            let expired = {
                let state = self.state.lock();
                let first = state.leases.first_key_value();
                first
                    .filter(|((end, _), _)| *end <= now)
                    .map(|((end, _), record)| (*end, Arc::clone(record)))
            };
            let Some((end, record)) = expired else { break };
            if record.inner().users.are_at_work() {
                // Looked at again: its end will be noticed, but not that it is stopped.
                if self.change_lease(&record, Some(now + HELD_OPEN), Some(end)).is_err() {
                    break;
                }
                continue;
            }
            let error = Error::new(
                ErrorKind::LeaseExpired,
                "wait for peer",
                "no peer has completed the operation before its lease ended",
            )
            .with_context("bytes", record.operation().bytes_total())
            .with_hint("a longer `lease`, or renew(); None is no limit");
            let outcome = Outcome::Failed(error);
            if !record.note_expiry(&outcome, end) {
                // Ended or renewed in this moment; the others can wait for the next look.
                break;
            }
            self.conclude(&record, outcome);
        }
        self.let_go_due(now);
        let mut state = self.state.lock();
        if state.released.is_empty() {
            return false;
        }
        // Of as many exposures as there is time for, without the lock, which deregistering would hold for long.
        let mut room = RELEASED_PER_TICK;
        while let Some(mut released) = state.released.pop_front() {
            drop(state);
            room -= released.let_go(room).min(room);
            state = self.state.lock();
            if !released.is_empty() {
                state.released.push_front(released);
            }
            if room == 0 {
                break;
            }
        }
        true
    }

    /// When [`Ledger::tick`] has something to do next.
    pub(crate) fn next_due(&self) -> Option<Instant> {
        let state = self.state.lock();
        let firsts = [
            state.leases.first_key_value(),
            state.grace.first_key_value(),
            state.pulses.first_key_value(),
        ];
        let firsts = firsts.into_iter().flatten().map(|((due, _), _)| *due);
        let at_once = (!state.deaths.is_empty()).then(Instant::now);
        firsts.chain(state.settling_since).chain(at_once).min()
    }

    /// Ends everything that still waits, and whatever is opened later, as failed for `reason`.
    pub(crate) fn close(&self, reason: &Error) {
        let (open, ended): (Vec<_>, Vec<_>) = {
            let mut state = self.state.lock();
            state.closed = Some(reason.clone());
            let (open, ended) = (state.open.values(), state.ended.values());
            (open.cloned().collect(), ended.cloned().collect())
        };
        for record in open {
            self.end(&record, Outcome::Failed(reason.clone()));
        }
        // The lane waits for those that are not done.
        for record in ended {
            self.remind_users(&record);
        }
    }

    /// Gives everything up: the agent is about to end.
    pub(crate) fn end_all(&self) {
        let (ended, released) = {
            let mut state = self.state.lock();
            state.is_over = true;
            state.grace.clear();
            state.grace_bytes = 0;
            state.settling.clear();
            state.settling_since = None;
            state.outbox.clear();
            state.pulses.clear();
            state.deaths.clear();
            (std::mem::take(&mut state.ended), std::mem::take(&mut state.released))
        };
        for record in ended.into_values() {
            drop(record.release());
        }
        drop(released);
    }

    /// Whether a peer is known that is not done with one of the exposures, and not lost.
    pub(crate) fn is_used(&self) -> bool {
        let state = self.state.lock();
        let mut records = state.open.values().chain(state.ended.values());
        records.any(|record| record.inner().users.are_expected())
    }

    /// Whether a process of this host may be at work on one of the exposures.
    pub(crate) fn is_in_reach(&self) -> bool {
        let state = self.state.lock();
        let mut records = state.open.values().chain(state.ended.values());
        records.any(|record| record.inner().users.are_living())
    }

    /// How many exposures wait.
    pub(crate) fn waiting(&self) -> usize {
        self.state.lock().open.len()
    }

    /// How many exposures have ended and keep their memory for a while, and how many bytes they have.
    pub(crate) fn in_grace(&self) -> (usize, u64) {
        let state = self.state.lock();
        let counted = state.grace.values().filter(|record| record.inner().is_counted);
        (counted.count(), state.grace_bytes)
    }

    /// How many messages of peers of our own kind were understood.
    pub(crate) fn messages(&self) -> u64 {
        self.messages.load(Ordering::Relaxed)
    }

    /// Notifications so far: matched, unknown text, not text.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        (
            self.matched.load(Ordering::Relaxed),
            self.unknown.load(Ordering::Relaxed),
            self.malformed.load(Ordering::Relaxed),
        )
    }
}

#[cfg(test)]
mod tests;
