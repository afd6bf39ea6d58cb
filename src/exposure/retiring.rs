//! What becomes of the memory of an exposure that has ended.
//!
//! Where nobody is known to be at work on it, and either it is complete or the last one has said that it is done, it
//! settles: behind one more look at the wire, since the hello of whoever found the exposure open was sent before that one's
//! question, and has come by then. Otherwise it is held for a time, in which a peer that nobody knows of may go on.

use std::sync::Arc;
use std::time::Instant;

use super::ledger::{HELD_OPEN, Ledger, State};
use super::record::Record;
use crate::error::{Error, ErrorKind};
use crate::operation::Pin;
use crate::settings::LONGEST;

impl State {
    /// The oldest in grace gives its memory up.
    fn release_first(&mut self) {
        if let Some((_, record)) = self.grace.pop_first() {
            self.let_go(&record);
        }
    }

    /// The oldest give their memory up, as long as there is more than `limit`. One alone is held, however big it is, since it
    /// has just been given up; unless nothing at all is to be held.
    fn keep_within(&mut self, limit: u64) {
        while self.grace_bytes > limit {
            // By when they have ended: one that is at work holds its memory from look to look.
            let counted = || self.grace.iter().filter(|(_, record)| record.inner().is_counted);
            let oldest = counted()
                .min_by_key(|(_, record)| record.inner().held_since)
                .map(|(key, _)| *key);
            if limit > 0 && counted().nth(1).is_none() {
                return;
            }
            let Some(record) = oldest.and_then(|key| self.grace.remove(&key)) else {
                return;
            };
            self.let_go(&record);
        }
    }

    /// The one in grace whose time has come stays: somebody may be at work on it who has not said that it is done.
    fn hold_longer(&mut self) {
        if let Some(((due, generation), record)) = self.grace.pop_first() {
            let due = due + HELD_OPEN;
            record.inner().grace_end = Some(due);
            // Perhaps it was not while it waited for nothing but a last word, and somebody else has said hello since.
            self.count(&record);
            self.grace.insert((due, generation), record);
        }
    }

    /// Counts its bytes among those that are held, unless they are. Those that wait for nothing but a last word do not take
    /// the place of others.
    fn count(&mut self, record: &Record) {
        let mut inner = record.inner();
        let is_taken = !inner.is_complete || inner.has_buried || !inner.users.have_completed();
        if is_taken && !std::mem::replace(&mut inner.is_counted, true) {
            self.grace_bytes += record.operation().bytes_total();
        }
    }

    /// Takes it out of grace. False where it is not there.
    fn take_from_grace(&mut self, record: &Record) -> bool {
        let due = record.inner().grace_end.take();
        if due.is_none_or(|due| self.grace.remove(&(due, record.generation())).is_none()) {
            return false;
        }
        self.uncount(record);
        true
    }

    fn uncount(&mut self, record: &Record) {
        if std::mem::take(&mut record.inner().is_counted) {
            self.grace_bytes -= record.operation().bytes_total();
        }
    }

    /// Nobody who is at work on it is asked any more.
    pub(super) fn leave_alone(&mut self, record: &Record) {
        if let Some(due) = record.inner().pulse_due.take() {
            self.pulses.remove(&(due, record.generation()));
        }
    }

    /// Nobody is known to be at work on it.
    fn settle_soon(&mut self, record: &Arc<Record>) {
        self.settling.push((self.looks, Arc::clone(record)));
        self.settling_since.get_or_insert_with(Instant::now);
    }

    /// What has left grace, or has settled, gives its memory up.
    fn let_go(&mut self, record: &Record) {
        self.uncount(record);
        self.ended.remove(record.operation().key());
        self.leave_alone(record);
        self.released.push_back(record.settle());
    }
}

impl Ledger {
    /// Decides about the memory of an exposure that has ended.
    pub(super) fn retire(&self, record: &Arc<Record>) {
        let mut state = self.state.lock();
        let settles = {
            let inner = record.inner();
            inner.is_left_alone() && (inner.is_complete || inner.is_confirmed)
        };
        if state.is_abandoned {
            drop(state);
            if record.may_be_in_use() {
                Self::keep_for_ever(record);
            } else {
                drop(record.release());
            }
        } else if settles && !state.is_over {
            state.settle_soon(record);
        } else if record.may_be_in_use() && !state.is_over {
            self.hold(&mut state, record);
            drop(state);
            self.tell_if_never_quiet(record);
        } else {
            state.ended.remove(record.operation().key());
            drop(state);
            self.release(record);
        }
    }

    /// Keeps the memory of an exposure that has ended for a while.
    fn hold(&self, state: &mut State, record: &Arc<Record>) {
        let due = Instant::now() + self.grace.min(LONGEST);
        {
            let mut inner = record.inner();
            inner.grace_end = Some(due);
            inner.held_since.get_or_insert_with(Instant::now);
        }
        state.count(record);
        state.grace.insert((due, record.generation()), Arc::clone(record));
        state.keep_within(self.quarantine_limit);
    }

    /// Holds memory that is held for the whole grace from now.
    pub(super) fn restart_grace(&self, record: &Arc<Record>) {
        let mut state = self.state.lock();
        let Some(due) = record.inner().grace_end else { return };
        if let Some(record) = state.grace.remove(&(due, record.generation())) {
            let due = Instant::now() + self.grace.min(LONGEST);
            record.inner().grace_end = Some(due);
            state.grace.insert((due, record.generation()), record);
        }
    }

    /// One that was at work has said that it is done. Where it was the last one, the memory need not be held any longer.
    pub(super) fn note_quiet(&self, record: &Arc<Record>) {
        let mut state = self.state.lock();
        let is_last = {
            let mut inner = record.inner();
            // Who came and left before the end says nothing of whoever comes after.
            inner.is_confirmed |= inner.has_ended && inner.is_left_alone();
            inner.is_left_alone()
        };
        if is_last && state.take_from_grace(record) {
            state.settle_soon(record);
        }
        drop(state);
        self.tell_if_never_quiet(record);
    }

    /// Tells the holder where all that are still at work do not know themselves whether the wire is done with the memory.
    pub(super) fn tell_if_never_quiet(&self, record: &Arc<Record>) {
        let inner = record.inner();
        if !inner.has_ended || !inner.users.are_never_quiet() {
            return;
        }
        drop(inner);
        let message = "a request of several descriptors failed at the peer, and nothing tells whether parts of it are still \
                       moving; the memory stays pinned as long as the peer's process lives";
        let error = Error::new(ErrorKind::Transfer, "wait for quiet", message)
            .with_context("bytes", record.operation().bytes_total());
        Pin::new(record.operation()).keep_for_ever(error);
    }

    /// Nobody will look at the wire any more, and the agent stays: so does what has not settled.
    pub(crate) fn abandon(&self) {
        let (records, released) = {
            let mut state = self.state.lock();
            state.is_abandoned = true;
            let records: Vec<Arc<Record>> = state.ended.values().cloned().collect();
            (records, std::mem::take(&mut state.released))
        };
        records.iter().for_each(Self::keep_for_ever);
        drop(released);
    }

    fn keep_for_ever(record: &Arc<Record>) {
        let message = "the connector was closed while the wire may have been at work on the memory, which stays pinned";
        let error = Error::new(ErrorKind::Transfer, "wait for quiet", message)
            .with_context("bytes", record.operation().bytes_total());
        Pin::new(record.operation()).keep_for_ever(error);
    }

    /// Lets go what has settled, and what was held for long enough.
    pub(super) fn let_go_due(&self, now: Instant) {
        let mut state = self.state.lock();
        if state.settling_since.is_some() {
            let looks = state.looks;
            let settling = std::mem::take(&mut state.settling);
            let (settled, early): (Vec<_>, Vec<_>) = settling.into_iter().partition(|(look, _)| *look < looks);
            if early.is_empty() {
                state.settling_since = None;
            }
            state.settling = early;
            for (_, record) in settled {
                if record.inner().is_left_alone() {
                    state.let_go(&record);
                } else {
                    // One was at work already, and its hello has just come, and perhaps the news of its death.
                    self.hold(&mut state, &record);
                }
            }
        }
        while let Some(((due, _), record)) = state.grace.first_key_value() {
            if *due > now {
                break;
            }
            if record.inner().users.may_be_alive() {
                state.hold_longer();
                state.keep_within(self.quarantine_limit);
            } else {
                state.release_first();
            }
        }
    }
}

#[cfg(test)]
mod tests;
