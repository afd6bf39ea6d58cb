//! What an owner hears from active sides of our own kind, and what it tells them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use bytes::Bytes;

use super::ledger::Ledger;
use super::record::Record;
use super::users::UserId;
use crate::error::{Error, ErrorKind};
use crate::operation::{Operation, Outcome};
use crate::peer::RemoteMetadata;
use crate::process;
use crate::types::{AgentName, Direction, OperationKey, ProcessId, TransferId};
use crate::wire::{ControlMessage, EndReason, Incoming};

/// A message to a peer, which may have to be loaded for it.
#[derive(Debug)]
pub(crate) struct Letter {
    pub(crate) to: Arc<RemoteMetadata>,
    /// Ends when the message has been sent, or could not be; its key is the message.
    pub(crate) operation: Arc<Operation>,
}

impl Letter {
    /// `None` where the message exceeds what may be sent.
    pub(crate) fn new(to: Arc<RemoteMetadata>, message: &ControlMessage) -> Option<Self> {
        let message = OperationKey::new(message.encode().ok()?);
        let operation = Operation::new(Direction::Read, message, Some(to.agent().clone()), 0);
        Some(Self { to, operation })
    }
}

/// What a peer has to say of an operation that is no exposure of ours, but may be a transfer.
#[derive(Debug)]
pub(crate) struct Notice {
    pub(crate) sender: AgentName,
    pub(crate) operation: OperationKey,
    pub(crate) transfer: TransferId,
    pub(crate) news: News,
}

#[derive(Debug)]
pub(crate) enum News {
    /// The peer's exposure has ended.
    Ended(Error),
    /// Is the transfer under way?
    Ping(u64),
    /// The peer is there.
    Pong(u64),
}

impl Ledger {
    /// Takes one notification in: the key of an exposure, or what a peer of our own kind has to say. Returns what is not
    /// about an exposure of ours.
    pub(crate) fn receive(self: &Arc<Self>, sender: &AgentName, message: &[u8]) -> Option<Notice> {
        if self.complete(sender, message) {
            return None;
        }
        match ControlMessage::decode(message) {
            Ok(Incoming::Message { message, .. }) => {
                self.messages.fetch_add(1, Ordering::Relaxed);
                return self.hear(sender, message);
            }
            Ok(Incoming::Other | Incoming::Unknown) if std::str::from_utf8(message).is_ok() => {
                self.unknown.fetch_add(1, Ordering::Relaxed);
            }
            Ok(Incoming::Other | Incoming::Unknown) | Err(_) => {
                self.malformed.fetch_add(1, Ordering::Relaxed);
            }
        }
        None
    }

    fn hear(self: &Arc<Self>, sender: &AgentName, message: ControlMessage) -> Option<Notice> {
        match message {
            ControlMessage::Hello {
                operation,
                transfer,
                connection,
                process,
            } => self.hear_hello(&UserId::new(sender, transfer), &operation, &connection, process),
            ControlMessage::Left {
                operation,
                transfer,
                reason,
                text,
            } => {
                if let Some(record) = self.known(&operation) {
                    let error = gone(sender, reason, &text, &record);
                    let known = record.inner().users.leave(&UserId::new(sender, transfer));
                    if known && !record.inner().users.are_under_way() {
                        self.end(&record, Outcome::of(error));
                    }
                }
            }
            ControlMessage::Quiet { operation, transfer } => {
                if let Some(record) = self.known(&operation) {
                    let user = record.inner().users.remove(&UserId::new(sender, transfer));
                    if user.is_some() {
                        self.note_quiet(&record);
                    }
                }
            }
            ControlMessage::Never { operation, transfer } => {
                if let Some(record) = self.known(&operation) {
                    record.inner().users.note_never_quiet(&UserId::new(sender, transfer));
                    self.tell_if_never_quiet(&record);
                }
            }
            ControlMessage::Ended {
                operation,
                transfer,
                reason,
                text,
            } => {
                return Some(Notice {
                    sender: sender.clone(),
                    operation,
                    transfer,
                    news: News::Ended(ended(sender, reason, &text)),
                });
            }
            ControlMessage::Ping {
                operation,
                transfer,
                nonce,
            } => return self.hear_ping(&UserId::new(sender, transfer), operation, nonce),
            ControlMessage::Pong {
                operation,
                transfer,
                nonce,
            } => return self.hear_pong(&UserId::new(sender, transfer), operation, nonce),
        }
        None
    }

    fn hear_hello(self: &Arc<Self>, id: &UserId, key: &OperationKey, connection: &Bytes, process: ProcessId) {
        let agent = match RemoteMetadata::from_blob(connection) {
            Ok(metadata) if *metadata.agent() == id.agent => Arc::new(metadata),
            _ => {
                self.malformed.fetch_add(1, Ordering::Relaxed);
                return;
            }
        };
        let Some(record) = self.known(key) else { return };
        let is_open = {
            let mut inner = record.inner();
            if !inner.users.add(Arc::clone(&agent), id.transfer, process) {
                return;
            }
            !inner.has_ended
        };
        if !is_open {
            self.write(agent, id.transfer, &record);
        }
        let (ledger, dead_key, dead) = (Arc::downgrade(self), key.clone(), id.clone());
        let watch = process::watch(process, move || {
            if let Some(ledger) = ledger.upgrade() {
                ledger.note_death(&dead_key, &dead);
            }
        });
        record.inner().users.watch(id, watch, self.keepalive.is_some());
        self.attend(&record, Instant::now());
    }

    /// The process of an active side is dead. What it had said before waits to be heard, perhaps that all bytes have moved:
    /// so it is buried behind one more look at the wire.
    fn note_death(&self, key: &OperationKey, id: &UserId) {
        let mut state = self.state.lock();
        if !(state.is_over || state.is_abandoned) {
            let look = state.looks;
            state.deaths.push((look, key.clone(), id.clone()));
        }
    }

    /// Buries those whose death was known before this look at the wire.
    pub(super) fn bury_dead(&self) {
        let due: Vec<_> = {
            let mut state = self.state.lock();
            let (look, deaths) = (state.looks, std::mem::take(&mut state.deaths));
            let (due, early) = deaths.into_iter().partition(|(known, ..)| *known < look);
            state.deaths = early;
            due
        };
        for (_, key, id) in due {
            self.bury(&key, &id);
        }
    }

    /// The process of an active side is dead, and all is heard that it had said.
    pub(super) fn bury(&self, key: &OperationKey, id: &UserId) {
        let Some(record) = self.known(key) else { return };
        let user = {
            let mut inner = record.inner();
            let user = inner.users.remove(id);
            inner.has_buried |= user.is_some();
            user
        };
        if user.is_none() {
            return;
        }
        // What it had sent before it died may still arrive.
        self.restart_grace(&record);
        if record.inner().users.are_under_way() {
            return;
        }
        let message = "the process of the peer that was at work on the operation is gone";
        let error = Error::new(ErrorKind::PeerLost, "wait for peer", message)
            .with_context("peer", &id.agent)
            .with_context("bytes", record.operation().bytes_total());
        self.end(&record, Outcome::Failed(error));
        // Without a lock that the watch's own thread may want.
        drop(user);
    }

    /// Tells those that are at work on an exposure that it has ended.
    pub(super) fn tell_users(&self, record: &Record) {
        let told: Vec<_> = record.inner().users.to_be_told().collect();
        for (agent, transfer) in told {
            self.write(agent, transfer, record);
        }
    }

    /// Tells everyone that is not done once more that an exposure has ended: whoever is done says so again.
    pub(super) fn remind_users(&self, record: &Record) {
        let reminded: Vec<_> = record.inner().users.to_be_reminded().collect();
        for (agent, transfer) in reminded {
            self.write(agent, transfer, record);
        }
    }

    fn write(&self, to: Arc<RemoteMetadata>, transfer: TransferId, record: &Record) {
        let Some(outcome) = record.operation().outcome() else {
            return;
        };
        let (reason, text) = reason_of(&outcome);
        let message = ControlMessage::Ended {
            operation: record.operation().key().clone(),
            transfer,
            reason,
            text,
        };
        if let Some(letter) = Letter::new(to, &message) {
            self.send(letter);
        }
    }
}

/// What a peer is told of an outcome.
pub(crate) fn reason_of(outcome: &Outcome) -> (EndReason, String) {
    let reason = match outcome.error().map(Error::kind) {
        None if matches!(outcome, Outcome::Complete) => EndReason::Completed,
        None | Some(ErrorKind::CancelledByPeer) => EndReason::Cancelled,
        Some(ErrorKind::Timeout) => EndReason::TimedOut,
        Some(ErrorKind::Closed) => EndReason::Closed,
        Some(ErrorKind::LeaseExpired) => EndReason::LeaseExpired,
        Some(_) => EndReason::Failed,
    };
    let text = outcome.error().map(ToString::to_string);
    (reason, text.unwrap_or_default())
}

/// A peer's words, fit for a line of a log.
fn printable(text: &str) -> String {
    text.chars()
        .map(|each| if each.is_control() { ' ' } else { each })
        .collect()
}

/// Why an exposure ends whose only known active side has left.
fn gone(peer: &AgentName, reason: EndReason, text: &str, record: &Record) -> Error {
    let (kind, message) = match reason {
        EndReason::Cancelled => (ErrorKind::CancelledByPeer, "the peer has cancelled its transfer"),
        EndReason::TimedOut => (ErrorKind::Transfer, "the peer's transfer has not ended in time"),
        EndReason::Closed => (ErrorKind::Transfer, "the peer has closed its connector"),
        EndReason::Failed | EndReason::LeaseExpired | EndReason::Completed => {
            (ErrorKind::Transfer, "the peer's transfer has failed")
        }
    };
    told(Error::new(kind, "wait for peer", message), peer, text).with_context("bytes", record.operation().bytes_total())
}

/// Why a transfer ends whose exposure has ended at the peer.
fn ended(peer: &AgentName, reason: EndReason, text: &str) -> Error {
    let (kind, message) = match reason {
        EndReason::Cancelled => (ErrorKind::CancelledByPeer, "the peer has cancelled the operation"),
        EndReason::LeaseExpired => (ErrorKind::LeaseExpired, "the operation's lease has ended at the peer"),
        EndReason::Closed => (ErrorKind::Transfer, "the peer has closed its connector"),
        EndReason::Completed => (ErrorKind::Stale, "another transfer has completed the operation"),
        EndReason::Failed | EndReason::TimedOut => (ErrorKind::Transfer, "the operation has failed at the peer"),
    };
    told(Error::new(kind, "move bytes", message), peer, text)
}

fn told(error: Error, peer: &AgentName, text: &str) -> Error {
    let error = error.with_context("peer", peer);
    if text.is_empty() {
        error
    } else {
        error.with_context("told", format_args!("\"{}\"", printable(text)))
    }
}
