//! Noticing that a process has died.
//!
//! One thread sleeps in poll(2) on a pidfd of every process that is watched, and on an eventfd by which it is told of
//! changes. It is made with the first watch, costs nothing while nothing happens, and ends when it has had nothing to
//! watch for a while. So long it also keeps the pidfds of processes that nobody watches any more: looking for a process
//! takes as long as moving a megabyte, and a peer has one transfer after the other.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::os::fd::OwnedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use crate::sync::lock::{Mutex, MutexGuard};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::identity::{Liveness, liveness};
use super::{Origin, PerProcess};
use crate::thread;
use crate::types::ProcessId;

/// How long the thread and its pidfds stay when nothing happens, so that watches that come and go do not each make some.
const LINGER: Timespec = Timespec { tv_sec: 10, tv_nsec: 0 };
/// How long it rests when the system refuses to let it sleep on its files.
const REFUSED_REST: Duration = Duration::from_secs(1);

type Action = Box<dyn FnOnce() + Send>;

/// Calls `on_death` once when `process` has died, unless the guard is dropped before.
///
/// It is called on a thread of its own kind, `nixl-watch`, also where the process is dead already; it must neither block
/// nor enter Python, since all other watches wait for it. [`crate::connector::shutdown`] forgets every watch.
///
/// `None` where nothing can be said about the process ([`Liveness::Elsewhere`]), or where the system refuses a pidfd or
/// what the thread needs; then `on_death` is dropped without being called.
pub fn watch(process: ProcessId, on_death: impl FnOnce() + Send + 'static) -> Option<Watch> {
    WATCHER.here().add(process, Box::new(on_death))
}

/// Forgets every watch and ends the thread, which is joined with those of the lanes.
pub(crate) fn end() {
    if let Some(watcher) = WATCHER.existing() {
        watcher.end();
    }
}

/// A watch over a process. Dropping it forgets the watch: what was to be called does not begin any more, though it may
/// be running. In a forked child it is inert.
#[must_use = "a watch that is dropped never calls"]
pub struct Watch {
    watcher: &'static Watcher,
    id: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if self.watcher.origin.is_here() {
            self.watcher.forget(self.id);
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Watch")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// The watches of one process of ours.
struct Watcher {
    origin: Origin,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    runner: Option<Runner>,
    next_id: u64,
    /// What is to be called, with the process by whose death. Whoever takes it out of here has decided.
    calls: BTreeMap<u64, (ProcessId, Action)>,
    /// Processes that live, as far as is known; those without a call were watched lately.
    processes: HashMap<ProcessId, Watched>,
    /// Calls whose process has died.
    due: VecDeque<u64>,
}

struct Watched {
    /// Shared with the thread, which may be asleep on it.
    pidfd: Arc<OwnedFd>,
    calls: BTreeSet<u64>,
}

/// The thread. One that finds another alarm here than its own, or none, ends.
struct Runner {
    alarm: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

/// What the thread does next.
enum Turn {
    Call(Action),
    Sleep(Vec<(ProcessId, Arc<OwnedFd>)>),
}

/// What is found of a process that is about to be watched.
enum Found {
    Dead,
    Alive(OwnedFd),
}

/// The watches of this process.
static WATCHER: PerProcess<Watcher> = PerProcess::new();

impl Default for Watcher {
    fn default() -> Self {
        Self {
            origin: Origin::here(),
            state: Mutex::default(),
        }
    }
}

impl Watcher {
    fn add(&'static self, process: ProcessId, action: Action) -> Option<Watch> {
        let mut state = self.state.lock();
        let mut found = None;
        if !state.processes.contains_key(&process) {
            // Without the lock, which the thread and every guard need: this reads files.
            found = Some(MutexGuard::unlocked(&mut state, || find(&process))?);
        }
        self.ensure_runner(&mut state)?;
        let id = state.next_id;
        state.next_id += 1;
        state.calls.insert(id, (process, action));
        match (state.processes.get_mut(&process), found) {
            // Also where another watch has come in between, with a pidfd of the same process.
            (Some(watched), _) => {
                watched.calls.insert(id);
            }
            (None, Some(Found::Alive(pidfd))) => {
                let watched = Watched {
                    pidfd: Arc::new(pidfd),
                    calls: BTreeSet::from([id]),
                };
                state.processes.insert(process, watched);
                state.alarm();
            }
            (None, _) => {
                state.due.push_back(id);
                state.alarm();
            }
        }
        Some(Watch { watcher: self, id })
    }

    fn ensure_runner(&'static self, state: &mut State) -> Option<()> {
        if state.runner.is_some() {
            return Some(());
        }
        let alarm = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .inspect_err(|error| tracing::warn!(%error, "no eventfd: deaths of peers go unnoticed"))
            .ok()?;
        let alarm = Arc::new(alarm);
        let own = Arc::clone(&alarm);
        let thread = thread::spawn("nixl-watch", move || self.run(&own))
            .inspect_err(|error| tracing::warn!(%error, "no thread: deaths of peers go unnoticed"))
            .ok()?;
        state.runner = Some(Runner { alarm, thread });
        Some(())
    }

    fn forget(&self, id: u64) {
        let mut state = self.state.lock();
        let Some((process, action)) = state.calls.remove(&id) else {
            return;
        };
        if let Some(watched) = state.processes.get_mut(&process) {
            watched.calls.remove(&id);
        }
        drop(state);
        // Without the lock: what it owns may be watches.
        drop(action);
    }

    fn end(&self) {
        let mut state = self.state.lock();
        let calls = std::mem::take(&mut state.calls);
        state.processes.clear();
        state.due.clear();
        state.alarm();
        if let Some(runner) = state.runner.take() {
            thread::adopt(runner.thread);
        }
        drop(state);
        drop(calls);
    }

    /// The thread's body.
    fn run(&self, alarm: &Arc<OwnedFd>) {
        let mut has_lingered = false;
        while let Some(turn) = self.turn(alarm, has_lingered) {
            has_lingered = match turn {
                Turn::Call(action) => {
                    // A panic was reported where it happened, and is nobody else's business.
                    let _ = catch_unwind(AssertUnwindSafe(action));
                    false
                }
                Turn::Sleep(watched) => self.sleep(alarm, &watched),
            };
        }
    }

    /// `None` where the thread is to end: decided under the lock, under which a watch finds or makes a thread.
    fn turn(&self, alarm: &Arc<OwnedFd>, has_lingered: bool) -> Option<Turn> {
        let mut state = self.state.lock();
        state
            .runner
            .as_ref()
            .filter(|runner| Arc::ptr_eq(&runner.alarm, alarm))?;
        while let Some(id) = state.due.pop_front() {
            if let Some((_, action)) = state.calls.remove(&id) {
                return Some(Turn::Call(action));
            }
        }
        if has_lingered {
            state.processes.retain(|_, watched| !watched.calls.is_empty());
            if state.processes.is_empty() {
                if let Some(runner) = state.runner.take() {
                    thread::adopt(runner.thread);
                }
                return None;
            }
        }
        let watched = state.processes.iter();
        let watched = watched.map(|(process, watched)| (*process, Arc::clone(&watched.pidfd)));
        Some(Turn::Sleep(watched.collect()))
    }

    /// Sleeps until a process has died or something has changed. True where nothing has for a while.
    fn sleep(&self, alarm: &OwnedFd, watched: &[(ProcessId, Arc<OwnedFd>)]) -> bool {
        let mut files = vec![PollFd::new(alarm, PollFlags::IN)];
        files.extend(watched.iter().map(|(_, pidfd)| PollFd::new(&**pidfd, PollFlags::IN)));
        match poll(&mut files, Some(&LINGER)) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(Errno::INTR) => return false,
            Err(error) => {
                tracing::error!(%error, "processes cannot be watched; trying again");
                std::thread::sleep(REFUSED_REST);
                return false;
            }
        }
        // Empty, where it was one of the others.
        let _ = rustix::io::read(alarm, &mut [0_u8; 8]);
        let mut state = self.state.lock();
        for ((process, pidfd), file) in watched.iter().zip(&files[1..]) {
            if !file.revents().is_empty() {
                state.note_death(process, pidfd);
            }
        }
        false
    }
}

impl State {
    fn note_death(&mut self, process: &ProcessId, pidfd: &Arc<OwnedFd>) {
        // Gone, or there anew, where it was forgotten since.
        let is_same = |watched: &Watched| Arc::ptr_eq(&watched.pidfd, pidfd);
        if self.processes.get(process).is_some_and(is_same) {
            if let Some(watched) = self.processes.remove(process) {
                self.due.extend(watched.calls);
            }
        }
    }

    fn alarm(&self) {
        if let Some(runner) = &self.runner {
            // Refused only where so many alarms are unread that one more changes nothing.
            let _ = rustix::io::write(&runner.alarm, &1_u64.to_ne_bytes());
        }
    }
}

/// Looks for a process and takes a pidfd of it. `None` where it cannot be watched.
fn find(process: &ProcessId) -> Option<Found> {
    match liveness(process) {
        Liveness::Elsewhere => return None,
        Liveness::Dead => return Some(Found::Dead),
        Liveness::Alive => {}
    }
    let pid = Pid::from_raw(i32::try_from(process.pid).ok()?)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty());
    // Asked again behind it, since the pid may have got to another process in between: this one is dead then, and the
    // pidfd is not its own.
    match (liveness(process), pidfd) {
        (Liveness::Dead, _) => Some(Found::Dead),
        (Liveness::Alive, Ok(pidfd)) => Some(Found::Alive(pidfd)),
        (Liveness::Alive, Err(error)) => {
            tracing::warn!(pid = process.pid, %error, "no pidfd: the death of this peer goes unnoticed");
            None
        }
        (Liveness::Elsewhere, _) => None,
    }
}

#[cfg(test)]
mod tests;
