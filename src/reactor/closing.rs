//! Lanes that end together.
//!
//! Two connectors of one process may be at the two ends of a transfer. None of them may destroy its agent while the other
//! still moves bytes from or to it, so lanes that are closed in one go wait for each other.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::sync::AtomicUsize;

/// Counts the lanes that still move bytes.
#[derive(Debug, Default)]
struct Group {
    moving: AtomicUsize,
}

/// Makes the orders to close that lanes of one group get.
#[derive(Debug)]
pub(crate) struct Closing {
    group: Arc<Group>,
    deadline: Instant,
}

/// One lane's order to close. Dropping it, as by a lane that has ended already, leaves the group.
#[derive(Debug)]
pub(crate) struct ClosingOrder {
    group: Arc<Group>,
    deadline: Instant,
    is_moving: bool,
}

impl Closing {
    /// A group whose lanes wait for each other until `deadline`.
    pub(crate) fn by(deadline: Instant) -> Self {
        Self {
            group: Arc::default(),
            deadline,
        }
    }

    /// An order for one more lane. All are made before the first is given.
    pub(crate) fn order(&self) -> ClosingOrder {
        self.group.moving.fetch_add(1, Ordering::Relaxed);
        ClosingOrder {
            group: Arc::clone(&self.group),
            deadline: self.deadline,
            is_moving: true,
        }
    }
}

impl ClosingOrder {
    /// Tells the group that this lane moves nothing any more. Any number of times.
    pub(crate) fn note_quiet(&mut self) {
        if std::mem::take(&mut self.is_moving) {
            self.group.moving.fetch_sub(1, Ordering::AcqRel);
        }
    }

    /// Whether the lane may destroy its agent.
    pub(crate) fn may_end(&self, now: Instant) -> bool {
        now >= self.deadline || self.group.moving.load(Ordering::Acquire) == 0
    }
}

impl Drop for ClosingOrder {
    fn drop(&mut self) {
        self.note_quiet();
    }
}

#[cfg(all(test, feature = "model"))]
mod model;

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn nobody_ends_before_all_are_quiet_or_gone() {
        let now = Instant::now();
        let closing = Closing::by(now + Duration::from_secs(1));
        let (mut one, mut two, gone) = (closing.order(), closing.order(), closing.order());
        one.note_quiet();
        one.note_quiet();
        drop(gone);
        assert!(!one.may_end(now), "the second still moves");
        two.note_quiet();
        assert!(one.may_end(now) && two.may_end(now));
    }

    #[test]
    fn a_deadline_ends_the_wait() {
        let now = Instant::now();
        let closing = Closing::by(now);
        let order = closing.order();
        assert!(order.may_end(now));
    }
}
