//! Matches the notifications that arrive at an agent with the operations that wait for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::error::Error;
use crate::operation::{Operation, Outcome};
use crate::types::OperationKey;

/// The one reader of an agent's notifications. Whole-key equality, in O(1); what matches nothing is dropped and counted,
/// so that nothing a peer sends can pile up or break another operation.
#[derive(Debug, Default)]
pub(crate) struct Dispatcher {
    waiting: Mutex<Waiting>,
    matched: AtomicU64,
    unknown: AtomicU64,
    malformed: AtomicU64,
}

#[derive(Debug, Default)]
struct Waiting {
    operations: HashMap<OperationKey, Arc<Operation>>,
    /// Why nothing will be dispatched any more, once the lane closes.
    closed: Option<Error>,
}

impl Dispatcher {
    /// Expects the notification that ends `operation`. Before its key is given to anyone, so none can come too early.
    /// After [`Dispatcher::close`], when none can come at all, it ends the operation.
    pub(crate) fn expect(&self, operation: &Arc<Operation>) {
        let reason = {
            let mut waiting = self.waiting.lock();
            if waiting.closed.is_none() {
                waiting
                    .operations
                    .insert(operation.key().clone(), Arc::clone(operation));
            }
            waiting.closed.clone()
        };
        if let Some(reason) = reason {
            operation.finish(Outcome::Failed(reason));
        }
    }

    /// Expects it no longer.
    pub(crate) fn forget(&self, key: &OperationKey) {
        self.waiting.lock().operations.remove(key);
    }

    /// Takes one notification in.
    pub(crate) fn dispatch(&self, message: &[u8]) {
        // Removed at the first match: a key is good for one completion.
        let operation = self
            .waiting
            .lock()
            .operations
            .remove(&OperationKey::new(message.to_vec()));
        if let Some(operation) = operation {
            self.matched.fetch_add(1, Ordering::Relaxed);
            operation.finish(Outcome::Complete);
        } else if std::str::from_utf8(message).is_ok() {
            self.unknown.fetch_add(1, Ordering::Relaxed);
        } else {
            self.malformed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends everything that still waits, and whatever is expected later, as failed for `reason`.
    pub(crate) fn close(&self, reason: &Error) {
        let operations = {
            let mut waiting = self.waiting.lock();
            waiting.closed = Some(reason.clone());
            std::mem::take(&mut waiting.operations)
        };
        for operation in operations.into_values() {
            operation.finish(Outcome::Failed(reason.clone()));
        }
    }

    /// How many operations wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.lock().operations.len()
    }

    /// Notifications so far: matched, unknown text, not text.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        (
            self.matched.load(Ordering::Relaxed),
            self.unknown.load(Ordering::Relaxed),
            self.malformed.load(Ordering::Relaxed),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::operation::Status;
    use crate::types::Direction;

    fn operation(key: &[u8]) -> Arc<Operation> {
        Operation::new(Direction::Read, OperationKey::new(key.to_vec()), None, 1)
    }

    #[test]
    fn a_key_ends_its_operation_once_and_no_other() {
        let dispatcher = Dispatcher::default();
        let (one, other) = (operation(b"key"), operation(b"key-2"));
        dispatcher.expect(&one);
        dispatcher.expect(&other);
        dispatcher.dispatch(b"key");
        dispatcher.dispatch(b"key");
        assert_eq!((one.status(), other.status()), (Status::Complete, Status::Initialized));
        assert_eq!((dispatcher.waiting(), dispatcher.counts()), (1, (1, 1, 0)));
    }

    #[test]
    fn what_matches_nothing_is_dropped_and_counted() {
        let dispatcher = Dispatcher::default();
        let early = operation(b"early");
        for message in [&b"early"[..], b"", b"early ", b"\xff\xfe"] {
            dispatcher.dispatch(message);
        }
        assert_eq!(dispatcher.counts(), (0, 3, 1));
        dispatcher.expect(&early);
        assert!(
            !early.is_finished(),
            "a notification from before it was expected is nobody's"
        );
    }

    #[test]
    fn keys_are_bytes_and_need_not_be_text() {
        let dispatcher = Dispatcher::default();
        let binary = operation(&[0xff, 0, 1]);
        dispatcher.expect(&binary);
        dispatcher.dispatch(&[0xff, 0, 1]);
        assert_eq!((binary.status(), dispatcher.counts()), (Status::Complete, (1, 0, 0)));
    }

    #[test]
    fn what_is_forgotten_or_ended_is_not_ended_again() {
        let dispatcher = Dispatcher::default();
        let (forgotten, cancelled) = (operation(b"forgotten"), operation(b"cancelled"));
        dispatcher.expect(&forgotten);
        dispatcher.expect(&cancelled);
        dispatcher.forget(forgotten.key());
        cancelled.finish(Outcome::Cancelled);
        dispatcher.dispatch(b"forgotten");
        dispatcher.dispatch(b"cancelled");
        assert_eq!(
            (forgotten.status(), cancelled.status()),
            (Status::Initialized, Status::Cancelled)
        );
    }

    #[test]
    fn closing_ends_what_waits_and_what_comes_later() {
        let dispatcher = Dispatcher::default();
        let (waiting, late) = (operation(b"waiting"), operation(b"late"));
        dispatcher.expect(&waiting);
        dispatcher.close(&Error::new(ErrorKind::Closed, "test", "closed"));
        dispatcher.expect(&late);
        for operation in [waiting, late] {
            assert!(matches!(operation.outcome(), Some(Outcome::Failed(error)) if error.kind() == ErrorKind::Closed));
        }
        assert_eq!(dispatcher.waiting(), 0);
    }
}
