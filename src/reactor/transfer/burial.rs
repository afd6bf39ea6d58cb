//! What becomes of requests that never report their end, since their peer's process is dead and UCX does not notice.
//!
//! Over shared memory, where the peer was stopped and killed before it had answered the first connection, NIXL reports such a
//! request as under way for ever: for 45 s at least. Dropping the peer closes the connection by force; nothing of its
//! requests lands afterwards, and they can be released (docs/adr/0008-quiescence.md).

use std::time::{Duration, Instant};

use super::{Stage, Step, Transfer};

/// So long nothing moves between the peer's death and its burial. Where the wire notices the death itself, it does within
/// milliseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// So long the wire is driven after it, before the memory is let go.
const SETTLING: Duration = Duration::from_millis(500);

impl Transfer {
    /// Whether what is in flight waits in vain for a peer whose process is dead.
    pub(crate) fn is_stranded(&self, now: Instant) -> bool {
        self.stage == Stage::Draining
            && !self.in_flight.is_empty()
            && self.clock.stillness(now) >= PATIENCE
            && self.refuse_dead().is_err()
    }

    /// The agent has dropped the peer.
    pub(crate) fn bury(&mut self, now: Instant) {
        self.stage = Stage::Buried(now);
    }

    /// Waits until nothing of the connection can be under way any more.
    pub(super) fn rest(&mut self, since: Instant, now: Instant) -> Step {
        if now.saturating_duration_since(since) < SETTLING {
            return Step::Unchanged;
        }
        for mut flight in self.in_flight.drain(..) {
            flight.request.give_up();
        }
        // There is nobody to be told, and the agent's use of the peer has ended with the burial.
        self.stage = Stage::Over;
        Step::Over
    }
}
