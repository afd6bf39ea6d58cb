//! What a program runs on.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

pub(crate) use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize};

pub(crate) use super::lock::{Condvar, Mutex, MutexGuard};
pub(crate) use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Waits for something on this thread, for so long. `None` where the time is up first.
///
/// Not with tokio's timer, whose milliseconds a lane that looks every two of them would feel, and whose book-keeping costs as
/// much as the look.
pub(crate) fn within<T>(duration: Duration, awaited: impl Future<Output = T>) -> Option<T> {
    let deadline = Instant::now() + duration;
    let mut awaited = pin!(awaited);
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(arrived) = awaited.as_mut().poll(&mut context) {
            return Some(arrived);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return None;
        }
        // Returns at once where it was unparked since the look.
        std::thread::park_timeout(left);
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}
