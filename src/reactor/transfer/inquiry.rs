//! Finding out, after the transport has reported a failure, whether the owner is gone or only the connection to it.
//!
//! For an owner of our own kind whose process is out of sight. It is loaded anew, which the next transfer with it would
//! need anyhow, and pinged. Only where that fails, too, is it said to be lost.

use std::time::{Duration, Instant};

use super::{Stage, Transfer};
use crate::error::{Error, ErrorKind, Result};
use crate::operation::Outcome;
use crate::peer::Wanted;
use crate::process::{self, Liveness};
use crate::reactor::state::Resources;
use crate::wire::ControlMessage;

/// After so long the ping is repeated, then at longer and longer intervals: a connection that cannot be made is reported
/// to whoever sends behind the message that was to open it.
const FIRST_REPETITION: Duration = Duration::from_millis(50);

/// What is being found out.
#[derive(Debug)]
pub(super) struct Inquiry {
    failure: Error,
    nonce: u64,
    begun: Instant,
    /// The first ping over the new connection.
    asked: Option<Instant>,
    repeats_at: Instant,
    has_answer: bool,
    uses_peer: bool,
}

impl Inquiry {
    /// Why the transfer fails, whatever comes out.
    pub(super) fn failure(&self) -> Error {
        self.failure.clone()
    }

    /// Whether the peer is counted as used by the transfer.
    pub(super) fn uses_peer(&self) -> bool {
        self.uses_peer
    }
}

/// What is known of the owner now.
enum Finding {
    Nothing,
    Progress,
    /// It lives, or nobody can tell.
    Inconclusive,
    Lost(Error),
}

impl Transfer {
    /// Whether the outcome waits until more is known of the owner; begins to find out.
    pub(super) fn is_inquired_into(&mut self, resources: &Resources, failure: &Error) -> bool {
        if self.inquiry.is_some() {
            // Others of its requests fail likewise.
            return !self.operation.is_finished();
        }
        let is_of_the_wire = matches!(failure.kind(), ErrorKind::Transfer | ErrorKind::Backend);
        let owner = self.owner_process().map(|owner| process::liveness(&owner));
        let is_asked = is_of_the_wire
            && owner == Some(Liveness::Elsewhere)
            && resources.keepalive.is_some()
            && resources.introduction.is_some()
            && !self.is_letter
            && !self.operation.is_finished();
        if is_asked {
            let now = Instant::now();
            self.inquiry = Some(Inquiry {
                failure: failure.clone(),
                nonce: uuid::Uuid::new_v4().as_u64_pair().0,
                begun: now,
                asked: None,
                repeats_at: now,
                has_answer: false,
                uses_peer: true,
            });
            self.stage = Stage::Inquiring;
        }
        is_asked
    }

    /// The owner has answered, if it was asked that.
    pub(super) fn note_answer(&mut self, nonce: u64) {
        if let Some(inquiry) = self.inquiry.as_mut().filter(|inquiry| inquiry.nonce == nonce) {
            inquiry.has_answer = true;
        }
    }

    /// Goes on finding out. Whether anything has changed.
    pub(super) fn inquire(&mut self, resources: &mut Resources, now: Instant) -> bool {
        let error = match self.look_for_owner(resources, now) {
            Finding::Nothing => return false,
            Finding::Progress => return true,
            Finding::Inconclusive => self.inquiry.as_ref().map(Inquiry::failure),
            Finding::Lost(error) => {
                resources.peers.mark_lost(self.remote.agent());
                self.courtesy.forget_unsent();
                Some(error)
            }
        };
        if let Some(error) = error {
            let error = self.advised(self.detailed(error));
            self.operation.finish(Outcome::Failed(error));
        }
        true
    }

    fn look_for_owner(&mut self, resources: &mut Resources, now: Instant) -> Finding {
        let Some(inquiry) = &mut self.inquiry else {
            return Finding::Inconclusive;
        };
        let limit = resources.keepalive.unwrap_or_default();
        let has_passed = |since: Instant| now.saturating_duration_since(since) >= limit;
        if inquiry.has_answer {
            return Finding::Inconclusive;
        }
        let peer = self.remote.agent();
        if let Some(asked) = inquiry.asked {
            if has_passed(asked) {
                let message = "the connection to the peer broke, and over a new one it has not answered";
                let error = lost(message, &inquiry.failure);
                return Finding::Lost(error.with_context("keepalive", format_args!("{limit:?}")));
            }
            if now < inquiry.repeats_at {
                return Finding::Nothing;
            }
            inquiry.repeats_at = now + (2 * now.saturating_duration_since(asked)).max(FIRST_REPETITION);
        } else {
            if has_passed(inquiry.begun) {
                // Something is in flight still, of this transfer or others with the same peer.
                return Finding::Inconclusive;
            }
            if !self.in_flight.is_empty() {
                return Finding::Nothing;
            }
            if std::mem::take(&mut inquiry.uses_peer) {
                resources.peers.end_use(peer);
            }
            if resources.peers.refuses(peer) {
                return Finding::Inconclusive;
            }
            let wanted = Wanted {
                metadata: &self.remote,
                lists: &[],
            };
            match resources.peers.prepare(&*resources.transport, wanted) {
                Ok(true) => {}
                Ok(false) => return Finding::Nothing,
                Err(error) if error.kind() == ErrorKind::Transfer => {
                    let message = "the connection to the peer broke, and no new one can be made";
                    return Finding::Lost(lost(message, &error));
                }
                Err(_) => return Finding::Inconclusive,
            }
            resources.peers.begin_use(peer);
            inquiry.uses_peer = true;
            inquiry.asked = Some(now);
            inquiry.repeats_at = now + FIRST_REPETITION;
        }
        let (nonce, is_first) = (inquiry.nonce, inquiry.asked == Some(now));
        match self.ping(resources, nonce, is_first) {
            Ok(()) => Finding::Progress,
            Err(error) => {
                let message = "the connection to the peer broke, and so did a new one";
                Finding::Lost(lost(message, &error))
            }
        }
    }

    fn ping(&mut self, resources: &Resources, nonce: u64, is_first: bool) -> Result<()> {
        let (operation, peer) = (self.operation.key().clone(), self.remote.agent());
        if let Some(me) = resources.introduction.as_ref().filter(|_| is_first) {
            // Also where it was said before: that may have got lost with the connection.
            let hello = me.hello(operation.clone(), self.courtesy.id()).encode()?;
            resources.transport.notify(peer, &hello)?;
            self.courtesy.note_greeted();
        }
        let transfer = self.courtesy.id();
        let ping = ControlMessage::Ping {
            operation,
            transfer,
            nonce,
        };
        let ping = ping.encode()?;
        resources.transport.notify(peer, &ping)
    }
}

fn lost(message: &str, cause: &Error) -> Error {
    Error::new(ErrorKind::PeerLost, "move bytes", message)
        .with_source(cause.clone())
        .with_hint("its process has ended, or its host is down or cut off; ask for new metadata once it is back")
}
