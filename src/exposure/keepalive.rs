//! Asking active sides whether they are there, and answering those that ask.
//!
//! Also those whose processes are watched: that a process lives says nothing of its agent, and one whose last message was
//! lost repeats it when it is asked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::ledger::Ledger;
use super::messages::{Letter, News, Notice};
use super::pulse::MOST_UNANSWERED;
use super::record::Record;
use super::users::UserId;
use crate::error::{Error, ErrorKind};
use crate::operation::Outcome;
use crate::types::{AgentName, OperationKey};
use crate::wire::ControlMessage;

impl Ledger {
    /// Sees to it that those at work on an exposure are asked, an interval from `now`.
    pub(super) fn attend(&self, record: &Arc<Record>, now: Instant) {
        let due = |keepalive: Duration| now.checked_add(keepalive);
        let Some(due) = self.keepalive.and_then(due) else {
            return;
        };
        let mut state = self.state.lock();
        let mut inner = record.inner();
        if state.closed.is_none() && inner.pulse_due.is_none() && inner.users.have_pulse() {
            inner.pulse_due = Some(due);
            drop(inner);
            state.pulses.insert((due, record.generation()), Arc::clone(record));
        }
    }

    /// Asks whom it is time to ask.
    pub(super) fn beat(&self, now: Instant) {
        while let Some(record) = self.take_due(now) {
            let beats = record.inner().users.beat();
            let operation = record.operation().key();
            for (to, transfer, nonce) in beats.questions {
                let id = UserId::new(to.agent(), transfer);
                let ping = ControlMessage::Ping {
                    operation: operation.clone(),
                    transfer,
                    nonce,
                };
                let Some(letter) = Letter::new(to, &ping) else {
                    continue;
                };
                record.inner().users.note_asked(&id, &letter.operation);
                self.send(letter);
            }
            for id in &beats.dead {
                self.bury(operation, id);
            }
            for (id, lives) in &beats.lost {
                self.lose(&record, &id.agent, *lives);
            }
            if self.known(operation).is_some() {
                self.attend(&record, now);
            }
        }
    }

    fn take_due(&self, now: Instant) -> Option<Arc<Record>> {
        let mut state = self.state.lock();
        if state.closed.is_some() {
            // Those that are told of the end are not asked on top of it.
            state.pulses.clear();
        }
        let first = state.pulses.first_entry().filter(|first| first.key().0 <= now)?;
        let record = first.remove();
        record.inner().pulse_due = None;
        Some(record)
    }

    /// Nothing has been heard of an active side for too long. It may be stopped, or cut off, and go on one day: nothing is
    /// let go for it. Where its process `lives` and runs, its agent is gone, or never was.
    fn lose(&self, record: &Arc<Record>, agent: &AgentName, lives: bool) {
        self.restart_grace(record);
        if record.inner().users.are_under_way() {
            return;
        }
        let message = "the peer that was at work on the operation has not answered for too long";
        let kind = if lives {
            ErrorKind::Transfer
        } else {
            ErrorKind::PeerLost
        };
        let mut error = Error::new(kind, "wait for peer", message)
            .with_context("peer", agent)
            .with_context("unanswered", MOST_UNANSWERED);
        if let Some(keepalive) = self.keepalive {
            error = error.with_context("keepalive", format_args!("{keepalive:?}"));
        }
        let error = error.with_context("bytes", record.operation().bytes_total()).with_hint(
            "its host may be down or cut off, or its process stopped; a longer `keepalive` bears longer outages",
        );
        self.end(record, Outcome::Failed(error));
    }

    /// A peer asks whether we are there. Answered here where it is known to be at work on an exposure of ours.
    pub(super) fn hear_ping(&self, id: &UserId, operation: OperationKey, nonce: u64) -> Option<Notice> {
        let transfer = id.transfer;
        let Some(record) = self.known(&operation) else {
            return Some(Notice {
                sender: id.agent.clone(),
                operation,
                transfer,
                news: News::Ping(nonce),
            });
        };
        let to = record.inner().users.to_be_answered(id)?;
        let pong = ControlMessage::Pong {
            operation,
            transfer,
            nonce,
        };
        let letter = Letter::new(to, &pong)?;
        record.inner().users.note_answered(id, &letter.operation);
        self.send(letter);
        None
    }

    /// A peer has answered: an active side that we have asked, or an owner that a transfer has.
    pub(super) fn hear_pong(&self, id: &UserId, operation: OperationKey, nonce: u64) -> Option<Notice> {
        let Some(record) = self.known(&operation) else {
            return Some(Notice {
                sender: id.agent.clone(),
                operation,
                transfer: id.transfer,
                news: News::Pong(nonce),
            });
        };
        record.inner().users.hear(id, nonce);
        None
    }
}

#[cfg(test)]
mod tests;
