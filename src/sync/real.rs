//! What a program runs on.

use std::future::Future;
use std::time::Duration;

pub(crate) use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize};

pub(crate) use super::lock::{Condvar, Mutex, MutexGuard};
pub(crate) use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Waits for something for so long. `None` where the time is up first.
pub(crate) async fn within<T>(duration: Duration, awaited: impl Future<Output = T>) -> Option<T> {
    tokio::time::timeout(duration, awaited).await.ok()
}
