//! A fork waits until nobody is inside of NIXL.
//!
//! UCX has hooks in the process's C library, which a child runs through whenever it gets or gives back memory. What they
//! look at is in the state of the moment of the fork: while an agent is made that is, for a while, a list that leads through
//! the stack of the thread that makes it, and a child whose own threads have that stack by then crashes (2 of 2,000 children of a
//! process that made agents all the time). So whoever forks takes every turn first, and gives it up on both sides.

use std::any::Any;
use std::cell::RefCell;
use std::sync::{Arc, Once, Weak};
use std::time::{Duration, Instant};

use crate::process::PerProcess;
use crate::sync::lock::{Mutex, MutexGuard};

/// How long a fork waits at most. An agent is made in up to half a second; a call that is stuck has no end.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often it looks.
const LOOK: Duration = Duration::from_micros(50);
/// How long it lets a thread alone whose turn it has waited for. That one tells others, and may be on its way into Python,
/// where a lock that it takes for a moment is one that CPython 3.11 does not free in a child (2 of some 1,000 hung for it).
const SETTLING: Duration = Duration::from_millis(10);

/// A turn to call NIXL.
pub(super) trait Turn: Send + Sync {
    /// Takes it, if nobody has it, for as long as what is returned exists.
    fn try_take(self: Arc<Self>) -> Option<Taken>;
}

/// A turn that was taken.
type Taken = Box<dyn Any>;

/// Its fields go in their order.
struct Hold<T: 'static> {
    _guard: MutexGuard<'static, T>,
    _turn: Arc<Mutex<T>>,
}

impl<T: Send + 'static> Turn for Mutex<T> {
    fn try_take(self: Arc<Self>) -> Option<Taken> {
        // SAFETY: the mutex stays where it is as long as the `Arc`, which goes behind the guard.
        let turn: &'static Self = unsafe { &*Arc::as_ptr(&self) };
        let guard = turn.try_lock()?;
        Some(Box::new(Hold {
            _guard: guard,
            _turn: self,
        }))
    }
}

/// A turn that many take, such as that to make an agent.
pub(super) type Common = PerProcess<Mutex<()>>;

static TURNS: PerProcess<Mutex<Vec<Weak<dyn Turn>>>> = PerProcess::new();

/// Those that are waited for beside them, in the order in which they are taken elsewhere.
static COMMON: [&Common; 2] = [&MAKING, &LOADING];
/// Agents are made and destroyed one at a time. In processes that had forked, the heap was twice found corrupt at the exit, once
/// while lanes destroyed their agents at the same time. That this was the cause is likely, not proven.
pub(super) static MAKING: Common = PerProcess::new();
/// Held while something is loaded.
pub(super) static LOADING: Common = PerProcess::new();

thread_local! {
    /// What this thread has taken in order to fork.
    static TAKEN: RefCell<Vec<Taken>> = const { RefCell::new(Vec::new()) };
}

/// Has forks of this process, and of its children, wait from now on.
pub(super) fn watch_forks() {
    static WATCHED: Once = Once::new();
    WATCHED.call_once(|| {
        // SAFETY: the functions stay as long as this library, with which the C library forgets them.
        if unsafe { libc::pthread_atfork(Some(before), Some(after), Some(after)) } != 0 {
            tracing::warn!("forks cannot be waited for: a child may crash that is forked off while an agent is made");
        }
    });
}

/// Adds the turn at one agent, for as long as it exists.
pub(super) fn add<T: Turn + 'static>(turn: &Arc<T>) {
    let turn = Arc::downgrade(turn);
    let mut turns = TURNS.here().lock();
    turns.retain(|turn| turn.strong_count() > 0);
    turns.push(turn);
}

unsafe extern "C" fn before() {
    let deadline = Instant::now() + PATIENCE;
    let mut has_waited = false;
    let mut taken: Vec<Taken> = Vec::new();
    for turn in COMMON.iter().filter_map(|common| common.existing()) {
        let guard = wait_for(deadline, &mut has_waited, || turn.try_lock());
        taken.extend(guard.map(|guard| Box::new(guard) as Taken));
    }
    // While agents are neither made nor destroyed; the list is not held, since letting go of a turn may come back here.
    let turns: Vec<Arc<dyn Turn>> = TURNS.existing().map_or_else(Vec::new, |turns| {
        turns.lock().iter().filter_map(Weak::upgrade).collect()
    });
    for turn in turns {
        taken.extend(wait_for(deadline, &mut has_waited, || Arc::clone(&turn).try_take()));
    }
    TAKEN.set(taken);
    if has_waited {
        std::thread::sleep(SETTLING);
    }
}

fn wait_for<T>(deadline: Instant, has_waited: &mut bool, try_take: impl Fn() -> Option<T>) -> Option<T> {
    loop {
        if let Some(taken) = try_take() {
            return Some(taken);
        }
        *has_waited = true;
        if Instant::now() > deadline {
            tracing::warn!("a fork did not wait any longer for a call into NIXL");
            return None;
        }
        std::thread::sleep(LOOK);
    }
}

/// In the parent, and in the child, where they are free from then on. By the thread that has taken them.
unsafe extern "C" fn after() {
    // The agents' before those that others wait for.
    TAKEN.take().into_iter().rev().for_each(drop);
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;
    use crate::process::samples::in_child;

    #[test]
    fn a_fork_waits_for_every_turn_and_gives_them_up() {
        watch_forks();
        let turn = Arc::new(Mutex::new(0));
        add(&turn);
        let (sender, held) = mpsc::channel();
        let holder = std::thread::spawn({
            let turn = Arc::clone(&turn);
            move || {
                let mut value = turn.lock();
                sender.send(()).unwrap();
                std::thread::sleep(Duration::from_millis(20));
                *value = 1;
            }
        });
        held.recv().unwrap();
        assert!(in_child(|| {
            assert_eq!(
                turn.try_lock().map(|value| *value),
                Some(1),
                "it was forked off in between"
            );
            assert!(MAKING.here().try_lock().is_some());
        }));
        holder.join().unwrap();
        assert!(turn.try_lock().is_some());
        drop(turn);
        assert!(in_child(|| ()));
    }
}
