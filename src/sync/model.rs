//! What a model runs on: loom's types, with the faces of the real ones.
//!
//! A wait with a timeout does not run out here: where it would have to, nobody has woken the thread, and loom reports
//! that none can go on.

mod channel;

use std::fmt;
use std::future::Future;
use std::ops::{Deref, DerefMut};
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use loom::thread::JoinHandle;

pub(crate) use loom::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize};

pub(crate) use self::channel::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// How often a run may take turns, at most.
const MAX_BRANCHES: usize = 20_000;
/// How often threads are interrupted where they could go on. Nearly every mistake shows with two or three;
/// `LOOM_MAX_PREEMPTIONS` sets another number.
const PREEMPTIONS: usize = 3;

/// Of a thread, in words: loom's own choice is too little for code that was compiled with little optimisation.
const STACK: usize = 0x8000;

/// Runs `test` under every order that differs.
pub(crate) fn check(test: impl Fn() + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.max_branches = MAX_BRANCHES;
    builder.preemption_bound = builder.preemption_bound.or(Some(PREEMPTIONS));
    let test = Arc::new(test);
    builder.check(move || {
        let test = Arc::clone(&test);
        spawn(move || test()).join().expect("the test has panicked");
    });
}

/// A thread of a test. A test may have three beside its own.
pub(crate) fn spawn<T: Send + 'static>(body: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let builder = loom::thread::Builder::new().stack_size(STACK);
    builder.spawn(body).expect("loom makes as many threads as it allows")
}

/// The value of a future that blocks its thread rather than being pending, as all do here.
pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a future is pending in a model"),
    }
}

/// As the real one, for ever.
pub(crate) fn within<T>(_duration: Duration, awaited: impl Future<Output = T>) -> Option<T> {
    Some(block_on(awaited))
}

/// As the real one: never poisoned.
#[derive(Default)]
pub(crate) struct Mutex<T: ?Sized>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }
}

impl<T: ?Sized> Mutex<T> {
    #[track_caller]
    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(self.0.lock().ok())
    }

    #[track_caller]
    pub(crate) fn try_lock(&self) -> Option<MutexGuard<'_, T>> {
        self.0.try_lock().ok().map(|guard| MutexGuard(Some(guard)))
    }
}

impl<T: ?Sized> fmt::Debug for Mutex<T> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Taking the lock would be a turn of its own.
        formatter.debug_struct("Mutex").finish_non_exhaustive()
    }
}

/// Empty only while a [`Condvar`] has it.
pub(crate) struct MutexGuard<'a, T: ?Sized>(Option<loom::sync::MutexGuard<'a, T>>);

impl<T: ?Sized> MutexGuard<'_, T> {
    pub(crate) fn unlock_fair(guard: Self) {
        drop(guard);
    }
}

impl<T: ?Sized> Deref for MutexGuard<'_, T> {
    type Target = T;

    fn deref(&self) -> &T {
        self.0.as_ref().expect("the guard is not with a condition variable")
    }
}

impl<T: ?Sized> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("the guard is not with a condition variable")
    }
}

/// As the real one.
#[derive(Debug, Default)]
pub(crate) struct Condvar(loom::sync::Condvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    #[track_caller]
    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        guard.0 = guard.0.take().and_then(|guard| self.0.wait(guard).ok());
    }

    pub(crate) fn wait_while<T>(&self, guard: &mut MutexGuard<'_, T>, mut condition: impl FnMut(&mut T) -> bool) {
        while condition(guard) {
            self.wait(guard);
        }
    }

    pub(crate) fn wait_while_for<T>(
        &self,
        guard: &mut MutexGuard<'_, T>,
        condition: impl FnMut(&mut T) -> bool,
        _timeout: Duration,
    ) {
        self.wait_while(guard, condition);
    }

    pub(crate) fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _deadline: Instant) -> WaitTimeoutResult {
        self.wait(guard);
        WaitTimeoutResult
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }

    pub(crate) fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// Of a wait that never runs out.
pub(crate) struct WaitTimeoutResult;

impl WaitTimeoutResult {
    pub(crate) fn timed_out(&self) -> bool {
        false
    }
}
