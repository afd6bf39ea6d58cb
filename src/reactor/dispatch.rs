//! Matches the notifications that arrive at an agent with the operations that wait for them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::operation::{Operation, Outcome};
use crate::types::OperationKey;

/// The one reader of an agent's notifications. Whole-key equality, in O(1); what matches nothing is dropped and counted,
/// so that nothing a peer sends can pile up or break another operation.
#[derive(Debug, Default)]
pub(crate) struct Dispatcher {
    waiting: Mutex<HashMap<OperationKey, Arc<Operation>>>,
    matched: AtomicU64,
    unknown: AtomicU64,
    malformed: AtomicU64,
}

impl Dispatcher {
    /// Expects the notification that ends `operation`. Before its key is given to anyone, so none can come too early.
    pub(crate) fn expect(&self, operation: &Arc<Operation>) {
        self.waiting
            .lock()
            .insert(operation.key().clone(), Arc::clone(operation));
    }

    /// Expects it no longer.
    pub(crate) fn forget(&self, key: &OperationKey) {
        self.waiting.lock().remove(key);
    }

    /// Takes one notification in.
    pub(crate) fn dispatch(&self, message: &[u8]) {
        // Removed at the first match: a key is good for one completion.
        let operation = self.waiting.lock().remove(&OperationKey::new(message.to_vec()));
        if let Some(operation) = operation {
            self.matched.fetch_add(1, Ordering::Relaxed);
            operation.finish(Outcome::Complete);
        } else if std::str::from_utf8(message).is_ok() {
            self.unknown.fetch_add(1, Ordering::Relaxed);
        } else {
            self.malformed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Ends everything that still waits, with outcomes that `outcome` makes.
    pub(crate) fn finish_all(&self, outcome: &dyn Fn() -> Outcome) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for operation in waiting.into_values() {
            operation.finish(outcome());
        }
    }

    /// How many operations wait.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.lock().len()
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
