//! What the active side tells an owner of our own kind, and hears from it: messages that shorten waiting, and on which
//! nothing else depends.

use std::sync::Arc;

use super::{Purpose, Stage, Transfer};
use crate::error::{Error, ErrorKind, Result};
use crate::exposure::{Letter, News, Notice, reason_of};
use crate::operation::Outcome;
use crate::process::{self, Liveness, Watch};
use crate::reactor::state::Resources;
use crate::types::{ProcessId, TransferId};
use crate::wire::ControlMessage;

/// How far the conversation has come.
#[derive(Debug, Default)]
pub(super) struct Courtesy {
    /// The transfer takes long enough for its owner to be told of it.
    is_worth_it: bool,
    /// What the transfer is called there.
    id: Option<TransferId>,
    has_greeted: bool,
    has_left: bool,
    /// A message that the agent could not send, since it has lost sight of its peer.
    unsent: Vec<ControlMessage>,
    /// Notices the death of the owner's process, where that is possible.
    watch: Option<Watch>,
}

impl Courtesy {
    /// Whether the transfer takes more than a moment.
    pub(super) fn is_lasting(&self) -> bool {
        self.is_worth_it
    }

    /// What the owner knows the transfer by.
    pub(super) fn id(&mut self) -> TransferId {
        *self.id.get_or_insert_with(TransferId::random)
    }

    /// The same, where the owner has heard of it.
    pub(super) fn known_id(&self) -> Option<TransferId> {
        self.id
    }

    /// The owner has been told anew who moves its bytes.
    pub(super) fn note_greeted(&mut self) {
        self.has_greeted = true;
        self.unsent.clear();
    }

    /// The owner may not have heard who moves its bytes.
    pub(super) fn forget_greeting(&mut self) {
        self.has_greeted = false;
    }

    /// There is nobody left to be told.
    pub(super) fn forget_unsent(&mut self) {
        self.unsent.clear();
    }
}

impl Transfer {
    /// It was not over at once: a lane drives it.
    pub(crate) fn leave_to_lane(&mut self) {
        self.courtesy.is_worth_it = true;
    }

    pub(super) fn owner_process(&self) -> Option<ProcessId> {
        self.remote.trailer()?.process
    }

    /// Says hello, once, before the first byte where the transfer will take longer than a moment.
    pub(super) fn greet(&mut self, resources: &Resources) {
        if self.is_part() || self.courtesy.has_greeted || !self.courtesy.is_worth_it || self.operation.is_finished() {
            return;
        }
        if !self.introduce(resources) {
            return;
        }
        self.check_again();
        let Some(process) = self.owner_process() else { return };
        let (operation, peer) = (Arc::downgrade(&self.operation), self.remote.agent().clone());
        self.courtesy.watch = process::watch(process, move || {
            if let Some(operation) = operation.upgrade() {
                operation.finish(Outcome::Failed(lost().with_context("peer", peer)));
            }
        });
    }

    /// An open exposure is one that was found open behind the hello: its owner then knows of the transfer when it ends.
    fn check_again(&mut self) {
        let is_checking = self.in_flight.iter().filter(|flight| flight.purpose == Purpose::Check);
        let asked_before = is_checking.count();
        if let (Stage::Checking | Stage::Moving, Some(validity)) = (self.stage, &mut self.validity) {
            validity.note_hello(asked_before);
            self.stage = Stage::Checking;
        }
    }

    /// Tells the owner who moves its bytes. False where it would not understand.
    fn introduce(&mut self, resources: &Resources) -> bool {
        let Some(me) = resources
            .introduction
            .as_ref()
            .filter(|_| self.owner_process().is_some())
        else {
            return false;
        };
        self.courtesy.has_greeted = true;
        let hello = me.hello(self.operation.key().clone(), self.courtesy.id());
        self.tell(resources, hello);
        true
    }

    /// Says, once, that the transfer has ended otherwise than complete, while the wire may still be at work.
    pub(super) fn take_leave(&mut self, resources: &Resources) {
        self.courtesy.watch = None;
        if self.is_part() {
            return;
        }
        let outcome = match self.operation.outcome() {
            None | Some(Outcome::Complete) => return,
            Some(outcome) => outcome,
        };
        let kind = outcome.error().map(Error::kind);
        // What the owner said itself, or its word, or what it does not live to hear.
        if let Some(ErrorKind::CancelledByPeer | ErrorKind::LeaseExpired | ErrorKind::Stale | ErrorKind::PeerLost) =
            kind
        {
            return;
        }
        if std::mem::replace(&mut self.courtesy.has_left, true) {
            return;
        }
        if self.courtesy.has_greeted || self.introduce(resources) {
            let (reason, text) = reason_of(&outcome);
            let operation = self.operation.key().clone();
            let left = ControlMessage::Left {
                operation,
                transfer: self.courtesy.id(),
                reason,
                text,
            };
            self.tell(resources, left);
        }
    }

    /// Says that the transfer was given up before it began, or while it waited to go on.
    pub(super) fn decline(&mut self, resources: &Resources) {
        let outcome = self.operation.outcome();
        let is_given_up = match &outcome {
            // Whoever has heard of it is to hear of its end.
            _ if self.courtesy.has_greeted => true,
            Some(Outcome::Cancelled) => true,
            // Whoever could not be reached before cannot be told either.
            Some(outcome) => matches!(
                outcome.error().map(Error::kind),
                Some(ErrorKind::Timeout | ErrorKind::Closed | ErrorKind::QuarantineFull)
            ),
            None => false,
        };
        if is_given_up && !self.is_letter {
            self.take_leave(resources);
            self.close_conversation(resources);
        }
    }

    /// Says that the wire is done with it, or that nobody will ever know. Also where it was complete: the key does not tell
    /// which of the agent's transfers it comes from.
    pub(super) fn close_conversation(&mut self, resources: &Resources) {
        self.courtesy.watch = None;
        let outcome = self.operation.outcome().filter(|_| self.courtesy.has_greeted);
        let is_owed = match &outcome {
            None => false,
            Some(outcome) => outcome.error().map(Error::kind) != Some(ErrorKind::PeerLost),
        };
        if is_owed {
            let (operation, transfer) = (self.operation.key().clone(), self.courtesy.id());
            let message = if self.is_unquiet {
                ControlMessage::Never { operation, transfer }
            } else {
                ControlMessage::Quiet { operation, transfer }
            };
            self.tell(resources, message);
        }
    }

    fn tell(&mut self, resources: &Resources, message: ControlMessage) {
        let Ok(bytes) = message.encode() else { return };
        // In order: what could not be sent goes first.
        let is_reachable = self.courtesy.unsent.is_empty() && !resources.peers.is_lost(self.remote.agent());
        if !is_reachable || resources.transport.notify(self.remote.agent(), &bytes).is_err() {
            self.courtesy.unsent.push(message);
        }
    }

    /// What is still to be said once the peer is loaded anew.
    pub(crate) fn last_words(&mut self) -> Vec<Self> {
        let unsent = std::mem::take(&mut self.courtesy.unsent);
        let letters = unsent
            .iter()
            .filter_map(|message| Letter::new(Arc::clone(&self.remote), message));
        letters.map(Self::telling).collect()
    }

    /// The peer has something to say, perhaps of this transfer.
    pub(crate) fn hear(&mut self, notice: &Notice) {
        if !self.is_called(notice) {
            return;
        }
        match &notice.news {
            // Perhaps it is this one that has completed it. The answer to the last question tells.
            News::Ended(error) if error.kind() == ErrorKind::Stale && self.is_sealing() => {}
            News::Ended(error) => self.abandon(Outcome::of(self.detailed(error.clone()))),
            News::Pong(nonce) => self.note_answer(*nonce),
            News::Ping(..) => {}
        }
    }

    fn is_sealing(&self) -> bool {
        self.stage == Stage::Sealing && !self.in_flight.is_empty()
    }

    /// # Errors
    /// [`ErrorKind::PeerLost`] where the owner's process is known to be dead.
    pub(super) fn refuse_dead(&self) -> Result<()> {
        match self.owner_process().map(|process| process::liveness(&process)) {
            Some(Liveness::Dead) => Err(lost()),
            _ => Ok(()),
        }
    }

    /// The error, or what is behind it: the death of the owner's process.
    pub(super) fn explained(&self, error: Error) -> Error {
        if !matches!(error.kind(), ErrorKind::Transfer | ErrorKind::Backend) {
            return error;
        }
        match self.owner_process().map(|process| process::liveness(&process)) {
            Some(Liveness::Dead) => {
                let status = error.context().iter().find(|(key, _)| *key == "status").cloned();
                let lost = lost().with_source(error);
                status
                    .into_iter()
                    .fold(lost, |lost, (key, value)| lost.with_context(key, value))
            }
            _ => error,
        }
    }
}

fn lost() -> Error {
    let message = "the peer's process is gone";
    Error::new(ErrorKind::PeerLost, "move bytes", message).with_hint("ask for new metadata once it is back")
}
