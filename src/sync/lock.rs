//! The standard library's locks, without poisoning, and with a way to let others go first.
//!
//! Not parking_lot's: it keeps who waits for any lock in one table, by addresses in the threads' stacks; a child inherits
//! the table, but neither the threads nor, before long, what lies at these addresses: its own waiting ran into that (5 of
//! 300 children of a busy process crashed). The standard library's are a word each that the kernel knows how to wait for.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{self, PoisonError, TryLockError};
use std::thread;
use std::time::{Duration, Instant};

/// How long somebody who lets others go first waits for one to come: much longer than it takes to wake up.
const COURTESY: Duration = Duration::from_millis(2);

/// A mutex without poisoning.
#[derive(Default)]
pub(crate) struct Mutex<T> {
    inner: sync::Mutex<T>,
    /// How many wait, more or less.
    waiting: AtomicU32,
    /// How many have got it after they had waited.
    served: AtomicU32,
}

impl<T> Mutex<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self {
            inner: sync::Mutex::new(value),
            waiting: AtomicU32::new(0),
            served: AtomicU32::new(0),
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        if let Some(guard) = self.try_lock() {
            return guard;
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        self.served.fetch_add(1, Ordering::Relaxed);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        MutexGuard {
            lock: self,
            inner: Some(inner),
        }
    }

    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        let inner = match self.inner.try_lock() {
            Ok(inner) => inner,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return None,
        };
        Some(MutexGuard {
            lock: self,
            inner: Some(inner),
        })
    }

    pub(crate) fn get_mut(&mut self) -> &mut T {
        self.inner.get_mut().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: fmt::Debug> fmt::Debug for Mutex<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let guard = self.try_lock();
        let mut shown = formatter.debug_tuple("Mutex");
        match &guard {
            Some(value) => shown.field(&**value).finish(),
            None => shown.finish_non_exhaustive(),
        }
    }
}

/// A hold on a [`Mutex`]. Empty only while a [`Condvar`] or [`MutexGuard::unlocked`] has it.
pub(crate) struct MutexGuard<'lock, T> {
    lock: &'lock Mutex<T>,
    inner: Option<sync::MutexGuard<'lock, T>>,
}

impl<T> MutexGuard<'_, T> {
    /// Gives the lock up, and lets somebody go first who waits for it. Whoever comes back at once would otherwise be faster,
    /// each time, than who has to wake up for it.
    pub(crate) fn unlock_fair(guard: Self) {
        let lock = guard.lock;
        let served = lock.served.load(Ordering::Relaxed);
        drop(guard);
        if lock.waiting.load(Ordering::Relaxed) == 0 {
            return;
        }
        let start = Instant::now();
        while lock.served.load(Ordering::Relaxed) == served
            && lock.waiting.load(Ordering::Relaxed) > 0
            && start.elapsed() < COURTESY
        {
            thread::yield_now();
        }
    }

    /// Runs something without the lock.
    pub(crate) fn unlocked<R>(guard: &mut Self, body: impl FnOnce() -> R) -> R {
        drop(guard.inner.take());
        let result = body();
        guard.inner = guard.lock.lock().inner;
        result
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.inner.as_ref().expect("the guard is with its owner")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.inner.as_mut().expect("the guard is with its owner")
    }
}

/// A condition that is waited for under a [`Mutex`], and changed under it.
#[derive(Debug, Default)]
pub(crate) struct Condvar(sync::Condvar);

/// How a wait has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waited {
    timed_out: bool,
}

impl Waited {
    /// Whether the time was up.
    pub(crate) fn timed_out(self) -> bool {
        self.timed_out
    }
}

impl Condvar {
    pub(crate) const fn new() -> Self {
        Self(sync::Condvar::new())
    }

    /// Waits for news, or for nothing.
    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let inner = guard.inner.take();
        guard.inner = inner.map(|inner| self.0.wait(inner).unwrap_or_else(PoisonError::into_inner));
    }

    /// As [`Condvar::wait`], up to a point in time.
    pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, deadline: Instant) -> Waited {
        let left = deadline.saturating_duration_since(Instant::now());
        if !left.is_zero() {
            let waited = guard.inner.take().map(|inner| self.0.wait_timeout(inner, left));
            guard.inner = waited.map(|waited| waited.unwrap_or_else(PoisonError::into_inner).0);
        }
        Waited {
            timed_out: Instant::now() >= deadline,
        }
    }

    /// Waits as long as `condition` is true.
    pub(crate) fn wait_while<T>(&self, guard: &mut MutexGuard<'_, T>, mut condition: impl FnMut(&mut T) -> bool) {
        while condition(guard) {
            self.wait(guard);
        }
    }

    /// As [`Condvar::wait_while`], for so long at most.
    pub(crate) fn wait_while_for<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        mut condition: impl FnMut(&mut T) -> bool,
        timeout: Duration,
    ) {
        let Some(deadline) = Instant::now().checked_add(timeout) else {
            return self.wait_while(guard, condition);
        };
        while condition(guard) && !self.wait_until(guard, deadline).timed_out() {}
    }

    /// Wakes one who waits.
    #[cfg_attr(all(test, feature = "model"), expect(dead_code, reason = "loom's is used instead"))]
    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    /// Wakes all who wait.
    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

#[cfg(test)]
mod tests;
