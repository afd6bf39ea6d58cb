//! How long a transfer may take, and how long it may stand still.

use std::time::{Duration, Instant};

use crate::error::{Error, ErrorKind};

/// A transfer's limits. `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Limits {
    /// From the start of the transfer: not while it waits for its turn.
    pub(crate) timeout: Option<Duration>,
    /// Without any progress, also while it waits.
    pub(crate) stall: Option<Duration>,
}

/// Watches the limits of one transfer.
#[derive(Debug)]
pub(super) struct Clock {
    limits: Limits,
    started: Option<Instant>,
    last_progress: Instant,
}

impl Clock {
    pub(super) fn new(limits: Limits, now: Instant) -> Self {
        Self {
            limits,
            started: None,
            last_progress: now,
        }
    }

    /// The transfer's first step beyond waiting.
    pub(super) fn start(&mut self, now: Instant) {
        self.started = Some(now);
        self.last_progress = now;
    }

    /// A piece was posted, or has ended.
    pub(super) fn progress(&mut self, now: Instant) {
        self.last_progress = now;
    }

    /// How long no piece has ended.
    pub(super) fn stillness(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.last_progress)
    }

    /// As [`Clock::passed`], where those it waits for last moved at `theirs`: that counts as its own progress.
    pub(super) fn passed_while_waiting(&mut self, theirs: Option<Instant>, now: Instant) -> Option<Error> {
        self.last_progress = theirs.map_or(self.last_progress, |theirs| theirs.max(self.last_progress));
        self.passed(now)
    }

    /// The limit that has passed.
    pub(super) fn passed(&self, now: Instant) -> Option<Error> {
        let longer = |since: Instant, limit: Duration| now.saturating_duration_since(since) >= limit;
        if let (Some(started), Some(timeout)) = (self.started, self.limits.timeout) {
            if longer(started, timeout) {
                let message = "the transfer has not ended in time";
                return Some(
                    Error::new(ErrorKind::Timeout, "move bytes", message)
                        .with_context("timeout", format_args!("{timeout:?}"))
                        .with_hint("a longer `timeout`; None is no limit"),
                );
            }
        }
        let stall = self.limits.stall.filter(|stall| longer(self.last_progress, *stall))?;
        let (operation, message) = match self.started {
            Some(_) => (
                "move bytes",
                "no piece of the transfer has ended for too long: the peer may be stopped or unreachable",
            ),
            None => (
                "wait for peer",
                "the transfer could not begin: others with the same peer stand still, and have to end before",
            ),
        };
        Some(
            Error::new(ErrorKind::Timeout, operation, message)
                .with_context("stall_timeout", format_args!("{stall:?}"))
                .with_hint("a longer `stall_timeout` where the way to the peer is slow; None is no limit"),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn phase(clock: &Clock, now: Instant) -> Option<&'static str> {
        clock.passed(now).map(|error| error.operation())
    }

    #[test]
    fn the_deadline_counts_from_the_start_of_the_transfer() {
        let made = Instant::now();
        let limits = Limits {
            timeout: Some(SECOND),
            stall: None,
        };
        let mut clock = Clock::new(limits, made);
        assert_eq!(phase(&clock, made + 9 * SECOND), None);
        clock.start(made + 9 * SECOND);
        clock.progress(made + 10 * SECOND);
        assert_eq!(phase(&clock, made + 10 * SECOND - SECOND / 2), None);
        assert_eq!(phase(&clock, made + 10 * SECOND), Some("move bytes"));
    }

    #[test]
    fn standing_still_counts_also_while_it_waits() {
        let made = Instant::now();
        let limits = Limits {
            timeout: None,
            stall: Some(SECOND),
        };
        let mut clock = Clock::new(limits, made);
        assert_eq!(phase(&clock, made + SECOND), Some("wait for peer"));
        clock.start(made + SECOND);
        clock.progress(made + 2 * SECOND);
        assert_eq!(phase(&clock, made + 3 * SECOND - SECOND / 2), None);
        assert_eq!(phase(&clock, made + 3 * SECOND), Some("move bytes"));
        assert_eq!(phase(&Clock::new(Limits::default(), made), made + 9999 * SECOND), None);
    }

    #[test]
    fn it_does_not_stand_still_while_those_it_waits_for_move() {
        let made = Instant::now();
        let limits = Limits {
            timeout: None,
            stall: Some(SECOND),
        };
        let mut clock = Clock::new(limits, made);
        let theirs = Some(made + SECOND);
        assert!(
            clock
                .passed_while_waiting(theirs, made + 2 * SECOND - SECOND / 2)
                .is_none()
        );
        assert!(clock.passed_while_waiting(None, made + 2 * SECOND).is_some());
        assert!(clock.passed_while_waiting(theirs, made + 2 * SECOND).is_some());
    }
}
