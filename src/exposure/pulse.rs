//! Whether an active side is still there, as far as its answers tell.

use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::operation::{Operation, Outcome};
use crate::transport::LOAD_PEER;

/// So many pings in a row without an answer say that the peer is lost. `docs/protocol.md` states the number.
pub(super) const MOST_UNANSWERED: u32 = 3;

/// One active side's answers.
#[derive(Debug)]
pub(super) struct Pulse {
    /// The same in all pings, so that a late answer is an answer, and none that was not asked for.
    nonce: u64,
    /// Pings since the last sign of life.
    unanswered: u32,
    is_lost: bool,
    /// The last ping's way to the peer.
    ping: Option<Arc<Operation>>,
}

/// What is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Beat {
    /// A ping with this nonce.
    Ask(u64),
    /// Nothing.
    Rest,
    /// The peer has just turned out to be lost.
    Lost,
    /// It cannot be asked, now or later: nothing can be said of it.
    Mute,
}

impl Pulse {
    pub(super) fn new() -> Self {
        Self {
            nonce: uuid::Uuid::new_v4().as_u64_pair().0,
            unanswered: 0,
            is_lost: false,
            ping: None,
        }
    }

    /// Another interval has passed.
    pub(super) fn beat(&mut self) -> Beat {
        if self.is_lost {
            return Beat::Rest;
        }
        match self.ping.as_ref().map(|ping| ping.outcome()) {
            Some(Some(Outcome::Failed(error))) if says_nothing(&error) => return Beat::Mute,
            // Still on its way: the connection is being made.
            Some(None) if self.unanswered < MOST_UNANSWERED => {
                self.unanswered += 1;
                return Beat::Rest;
            }
            _ => {}
        }
        if self.unanswered >= MOST_UNANSWERED {
            self.is_lost = true;
            return Beat::Lost;
        }
        self.unanswered += 1;
        Beat::Ask(self.nonce)
    }

    /// An interval that does not count.
    pub(super) fn rest(&mut self) {
        self.unanswered = 0;
    }

    pub(super) fn note_sent(&mut self, ping: &Arc<Operation>) {
        self.ping = Some(Arc::clone(ping));
    }

    /// An answer has come. Whoever repeats the nonce has been asked.
    pub(super) fn hear(&mut self, nonce: u64) {
        if nonce == self.nonce {
            self.unanswered = 0;
            self.is_lost = false;
        }
    }

    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// Whether it is known to be there: since it said hello or answered no ping has waited for an interval.
    pub(super) fn is_answering(&self) -> bool {
        !self.is_lost && self.unanswered <= 1
    }
}

/// Whether a ping that could not be sent leaves open what became of its peer: this agent cannot load it, which has other
/// reasons, too.
fn says_nothing(error: &Error) -> bool {
    error.operation() == LOAD_PEER && error.kind() != ErrorKind::PeerLost
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Direction, OperationKey};

    fn sent(outcome: Option<Outcome>) -> Arc<Operation> {
        let ping = Operation::new(Direction::Read, OperationKey::new("ping"), None, 0);
        if let Some(outcome) = outcome {
            ping.finish(outcome);
        }
        ping
    }

    fn failed(kind: ErrorKind, operation: &'static str) -> Outcome {
        Outcome::Failed(Error::new(kind, operation, "made up"))
    }

    #[test]
    fn three_pings_without_an_answer_are_a_loss_and_a_late_answer_undoes_it() {
        let mut pulse = Pulse::new();
        let ask = Beat::Ask(pulse.nonce);
        let beats = [(); 6].map(|()| pulse.beat());
        assert_eq!(beats, [ask, ask, ask, Beat::Lost, Beat::Rest, Beat::Rest]);
        assert!(pulse.is_lost() && !pulse.is_answering());
        pulse.hear(pulse.nonce);
        assert!(!pulse.is_lost() && pulse.is_answering());
        assert_eq!(pulse.beat(), ask);
    }

    #[test]
    fn answers_count_that_were_asked_for() {
        let mut pulse = Pulse::new();
        for _ in 0..20 {
            assert!(matches!(pulse.beat(), Beat::Ask(_)));
            pulse.hear(pulse.nonce);
        }
        assert!(pulse.is_answering());
        pulse.beat();
        assert!(pulse.is_answering(), "the answer may be on its way");
        pulse.beat();
        assert!(!pulse.is_answering() && !pulse.is_lost());
        pulse.hear(pulse.nonce ^ 1);
        pulse.beat();
        assert_eq!(pulse.beat(), Beat::Lost);
    }

    #[test]
    fn pings_do_not_pile_up_and_those_that_never_leave_count() {
        let mut pulse = Pulse::new();
        pulse.beat();
        pulse.note_sent(&sent(None));
        assert_eq!([(); 3].map(|()| pulse.beat()), [Beat::Rest, Beat::Rest, Beat::Lost]);
        let mut pulse = Pulse::new();
        let mut beats = Vec::new();
        for _ in 0..4 {
            beats.push(pulse.beat());
            pulse.note_sent(&sent(Some(failed(ErrorKind::Transfer, "send notification"))));
        }
        assert_eq!(beats.last(), Some(&Beat::Lost));
    }

    #[test]
    fn nothing_is_said_of_a_peer_that_cannot_be_loaded() {
        let mut pulse = Pulse::new();
        pulse.beat();
        pulse.note_sent(&sent(Some(failed(ErrorKind::Transfer, LOAD_PEER))));
        assert_eq!(pulse.beat(), Beat::Mute);
        assert!(!pulse.is_lost());
        let mut pulse = Pulse::new();
        pulse.beat();
        pulse.note_sent(&sent(Some(failed(ErrorKind::PeerLost, LOAD_PEER))));
        assert!(
            matches!(pulse.beat(), Beat::Ask(_)),
            "its process is looked at elsewhere"
        );
    }
}
