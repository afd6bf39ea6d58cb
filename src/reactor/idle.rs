//! How long a lane's thread rests between two looks at the wire.
//!
//! NIXL offers nothing to wait on, so a lane has to look. The figures trade the time until a completion is seen against
//! the processor time of looking; `docs/adr/0003-idle-policy.md` has the measurements.

use std::time::{Duration, Instant};

/// Requests that move are looked at without a pause for so long after the last progress.
const SPIN: Duration = Duration::from_micros(50);
/// After that the processor is offered to others between two looks, for so long.
const YIELD: Duration = Duration::from_millis(5);
/// A request that has not moved for longer than `YIELD` waits for its peer: look at this pace.
const STALLED_NAP: Duration = Duration::from_micros(50);
/// One that has not moved for so long waits for a peer that is slow, stopped or gone, which must not cost a core.
const STALLED: Duration = Duration::from_millis(100);
/// The pace then; commands end it at once.
const STALLED_PARK: Duration = Duration::from_millis(1);
/// While operations wait for a peer and something happened just now: half of this is added to their wake-up on average.
const BUSY_NAP: Duration = Duration::from_micros(50);
/// "Just now".
const BUSY: Duration = Duration::from_millis(20);
/// The pace after that.
const WAITING_NAP: Duration = Duration::from_micros(100);
/// Until nothing has happened for so long.
const WARM: Duration = Duration::from_secs(1);
/// Operations wait, but nothing has happened for long: 1 to 2 % of a core.
const WAITING_PARK: Duration = Duration::from_millis(2);
/// Others move the bytes, and tell when they are done: only limits of time are to be looked after.
const DELEGATED_PARK: Duration = Duration::from_millis(5);
/// Nothing is pending, but something was a moment ago: a late reader may be connecting. Commands end it at once.
const COOLING: Duration = Duration::from_millis(20);
/// The pace until then.
const COOLING_PARK: Duration = Duration::from_millis(1);
/// Nothing is pending, but memory is registered or a peer is loaded: a late reader needs this side to connect.
const ATTACHED_PARK: Duration = Duration::from_millis(10);
/// The same, once nothing has happened for `WARM`.
const FORGOTTEN_PARK: Duration = Duration::from_millis(50);
/// Nothing at all.
const DETACHED_PARK: Duration = Duration::from_millis(100);

/// What a look at the wire found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Activity {
    /// Something moved: a command, a notification, a piece.
    pub(crate) progressed: bool,
    /// Transfers that the lane still drives.
    pub(crate) transfers: usize,
    /// Those of them whose bytes other lanes move; they touch this one when they are done.
    pub(crate) delegated: usize,
    /// Operations that wait for a notification.
    pub(crate) waiting: usize,
    /// Whether memory is registered or a peer loaded.
    pub(crate) attached: bool,
    /// When a timer is due: a lease, or memory to be let go.
    pub(crate) next_due: Option<Instant>,
}

/// What to do until the next look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rest {
    /// Look again at once.
    Spin,
    /// Offer the processor, then look.
    Yield,
    /// Sleep, deaf to commands: short.
    Nap(Duration),
    /// Sleep until a command comes or the time is up.
    Park(Duration),
}

/// Decides the rest from when something last moved.
#[derive(Debug)]
pub(crate) struct IdlePolicy {
    last_progress: Instant,
}

impl IdlePolicy {
    pub(crate) fn new(now: Instant) -> Self {
        Self { last_progress: now }
    }

    /// A command came, whatever the next look finds.
    pub(crate) fn wake(&mut self, now: Instant) {
        self.last_progress = now;
    }

    pub(crate) fn next(&mut self, activity: Activity, now: Instant) -> Rest {
        match (self.pace(activity, now), activity.next_due) {
            (Rest::Park(duration), Some(due)) => Rest::Park(duration.min(due.saturating_duration_since(now))),
            (rest, _) => rest,
        }
    }

    fn pace(&mut self, activity: Activity, now: Instant) -> Rest {
        if activity.progressed {
            self.last_progress = now;
        }
        let quiet = now.duration_since(self.last_progress);
        if activity.transfers > activity.delegated {
            return match quiet {
                quiet if quiet < SPIN => Rest::Spin,
                quiet if quiet < YIELD => Rest::Yield,
                quiet if quiet < STALLED => Rest::Nap(STALLED_NAP),
                _ => Rest::Park(STALLED_PARK),
            };
        }
        if activity.waiting > 0 {
            return match quiet {
                quiet if quiet < BUSY => Rest::Nap(BUSY_NAP),
                quiet if quiet < WARM => Rest::Nap(WAITING_NAP),
                _ => Rest::Park(WAITING_PARK),
            };
        }
        if activity.delegated > 0 {
            return Rest::Park(DELEGATED_PARK);
        }
        if quiet < COOLING && activity.attached {
            return Rest::Park(COOLING_PARK);
        }
        Rest::Park(match activity.attached {
            true if quiet < WARM => ATTACHED_PARK,
            true => FORGOTTEN_PARK,
            false => DETACHED_PARK,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rest_after(quiet: Duration, activity: Activity) -> Rest {
        let start = Instant::now();
        IdlePolicy::new(start).next(activity, start + quiet)
    }

    #[test]
    fn a_moving_transfer_is_watched_closely_and_a_stalled_one_is_not() {
        let moving = Activity {
            transfers: 1,
            ..Activity::default()
        };
        assert_eq!(rest_after(Duration::ZERO, moving), Rest::Spin);
        assert_eq!(rest_after(Duration::from_millis(1), moving), Rest::Yield);
        assert_eq!(rest_after(Duration::from_millis(50), moving), Rest::Nap(STALLED_NAP));
        assert_eq!(rest_after(Duration::from_secs(1), moving), Rest::Park(STALLED_PARK));
    }

    #[test]
    fn waiting_cools_down_and_nothing_pending_never_stops_looking() {
        let waiting = Activity {
            waiting: 1,
            attached: true,
            ..Activity::default()
        };
        assert_eq!(rest_after(Duration::ZERO, waiting), Rest::Nap(BUSY_NAP));
        assert_eq!(rest_after(BUSY, waiting), Rest::Nap(WAITING_NAP));
        assert_eq!(rest_after(Duration::from_secs(2), waiting), Rest::Park(WAITING_PARK));
        let attached = Activity {
            attached: true,
            ..Activity::default()
        };
        assert_eq!(rest_after(BUSY, attached), Rest::Park(ATTACHED_PARK));
        assert_eq!(rest_after(WARM, attached), Rest::Park(FORGOTTEN_PARK));
        assert_eq!(
            rest_after(Duration::from_secs(2), Activity::default()),
            Rest::Park(DETACHED_PARK)
        );
        assert!(DETACHED_PARK <= Duration::from_millis(100));
    }

    #[test]
    fn progress_makes_it_warm_again() {
        let start = Instant::now();
        let mut policy = IdlePolicy::new(start);
        let waiting = Activity {
            waiting: 1,
            attached: true,
            ..Activity::default()
        };
        let later = start + Duration::from_secs(5);
        assert_eq!(
            policy.next(
                Activity {
                    progressed: true,
                    ..waiting
                },
                later
            ),
            Rest::Nap(BUSY_NAP)
        );
        assert_eq!(
            policy.next(waiting, later + Duration::from_millis(500)),
            Rest::Nap(WAITING_NAP)
        );
    }
}
