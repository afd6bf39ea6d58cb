//! Those who wait for an operation's end, and what they wait on.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use dynamo_nixl::operation::CompletionSink;
use rustix::event::{EventfdFlags, eventfd};

/// How long a thread that is about to wait gets until it sleeps.
const FALLS_ASLEEP: Duration = Duration::from_micros(200);

/// An eventfd whose reader sleeps until it is written.
pub(crate) struct Event(OwnedFd);

impl Event {
    pub(crate) fn new() -> Self {
        Self(eventfd(0, EventfdFlags::CLOEXEC).unwrap())
    }

    pub(crate) fn write(&self) {
        rustix::io::write(&self.0, &1_u64.to_ne_bytes()).unwrap();
    }

    pub(crate) fn read(&self) {
        let mut count = [0_u8; 8];
        rustix::io::read(&self.0, &mut count).unwrap();
    }
}

/// The cheapest sink there is.
#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl CompletionSink for Counter {
    fn arrived(&self, ticket: u64) {
        self.0.fetch_add(ticket, Ordering::Relaxed);
    }
}

/// What the extension module has for an event loop (`src/python/hub.rs`), without Python: a list of tickets, and an
/// eventfd that is written where the list was empty.
pub(crate) struct Bell {
    event: Event,
    tickets: Mutex<Vec<u64>>,
}

impl Bell {
    pub(crate) fn new() -> Self {
        Self {
            event: Event::new(),
            tickets: Mutex::new(Vec::new()),
        }
    }

    /// Sleeps until the first ticket is there, and takes all.
    pub(crate) fn drain(&self) -> Vec<u64> {
        self.event.read();
        std::mem::take(&mut *self.tickets.lock().unwrap())
    }
}

impl CompletionSink for Bell {
    fn arrived(&self, ticket: u64) {
        let was_empty = {
            let mut tickets = self.tickets.lock().unwrap();
            tickets.push(ticket);
            tickets.len() == 1
        };
        if was_empty {
            self.event.write();
        }
    }
}

/// A thread that waits, over and over, and says when it was woken.
pub(crate) struct Sleeper<T> {
    /// What to wait for next. Its end is the thread's.
    next: Option<SyncSender<T>>,
    woken: Receiver<Instant>,
    thread: Option<JoinHandle<()>>,
}

impl<T: Send + 'static> Sleeper<T> {
    pub(crate) fn spawn(wait: impl Fn(T) + Send + 'static) -> Self {
        let (next, requests) = sync_channel(1);
        let (woke, woken) = sync_channel(1);
        let thread = thread::spawn(move || {
            for what in requests {
                wait(what);
                // Nobody hears it where the other side has panicked.
                let _ = woke.send(Instant::now());
            }
        });
        Self {
            next: Some(next),
            woken,
            thread: Some(thread),
        }
    }

    /// How long it takes, so many times, from before the end of what is waited for until the thread is awake. `make`
    /// makes what to wait for, and what ends it.
    pub(crate) fn wake<End: FnOnce()>(&self, times: u64, mut make: impl FnMut() -> (T, End)) -> Duration {
        let mut total = Duration::ZERO;
        for _ in 0..times {
            let (what, end) = make();
            self.next.as_ref().unwrap().send(what).unwrap();
            thread::sleep(FALLS_ASLEEP);
            let start = Instant::now();
            end();
            total += self.woken.recv().unwrap() - start;
        }
        total
    }
}

impl<T> Drop for Sleeper<T> {
    fn drop(&mut self) {
        drop(self.next.take());
        let ended = self.thread.take().unwrap().join();
        assert!(ended.is_ok() || thread::panicking(), "a waiter has panicked");
    }
}

/// A bell that a test thread and a sink share.
pub(crate) fn bell() -> (Arc<Bell>, Arc<dyn CompletionSink>) {
    let bell = Arc::new(Bell::new());
    (Arc::clone(&bell), bell)
}
