//! How many pings of one peer are answered that are about nothing: what it may have us send, without ever reading it.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::types::AgentName;

/// `docs/protocol.md` states both.
const MOST: u32 = 256;
const WITHIN: Duration = Duration::from_secs(1);

/// What was answered lately. Only loaded peers are answered, so there are no more names than these.
#[derive(Debug, Default)]
pub(super) struct Answers {
    since: Option<Instant>,
    given: HashMap<AgentName, u32>,
}

impl Answers {
    /// Whether the peer gets one more.
    pub(super) fn admit(&mut self, peer: &AgentName, now: Instant) -> bool {
        if self.since.is_none_or(|since| now.duration_since(since) >= WITHIN) {
            self.since = Some(now);
            self.given.clear();
        }
        let given = self.given.entry(peer.clone()).or_default();
        *given += 1;
        *given <= MOST
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_answered_in_part_and_holds_nobody_else_back() {
        let mut answers = Answers::default();
        let now = Instant::now();
        let [flood, other] = ["flood", "other"].map(AgentName::new);
        let answered = (0..10 * MOST).filter(|_| answers.admit(&flood, now)).count();
        assert_eq!(answered, MOST as usize);
        assert!(answers.admit(&other, now));
        assert!(!answers.admit(&flood, now + WITHIN / 2));
        assert!(answers.admit(&flood, now + WITHIN));
        assert_eq!(answers.given.len(), 1);
    }
}
