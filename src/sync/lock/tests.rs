use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::thread;

use super::*;
use crate::process::samples::in_child;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn one_at_a_time_whichever_way_it_is_given_up() {
    let counter = Arc::new(Mutex::new(0_u64));
    let threads: Vec<_> = (0..6)
        .map(|number| {
            let counter = Arc::clone(&counter);
            thread::spawn(move || {
                for turn in 0..20_000 {
                    let mut guard = if turn % 7 == 0 {
                        loop {
                            if let Some(guard) = counter.try_lock() {
                                break guard;
                            }
                            thread::yield_now();
                        }
                    } else {
                        counter.lock()
                    };
                    let seen = *guard;
                    if turn % 100 == 0 {
                        thread::yield_now();
                    }
                    *guard = seen + 1;
                    if (turn + number) % 3 == 0 {
                        MutexGuard::unlock_fair(guard);
                    }
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
    assert_eq!(*counter.lock(), 120_000);
}

#[test]
fn who_sleeps_for_it_goes_first() {
    let lock = Arc::new(Mutex::new(0));
    let is_over = Arc::new(AtomicBool::new(false));
    let greedy = thread::spawn({
        let (lock, is_over) = (Arc::clone(&lock), Arc::clone(&is_over));
        move || {
            let start = Instant::now();
            while !is_over.load(Ordering::Relaxed) && start.elapsed() < PATIENCE {
                let guard = lock.lock();
                // Long enough that the other one sleeps.
                thread::sleep(Duration::from_micros(300));
                MutexGuard::unlock_fair(guard);
            }
        }
    });
    for _ in 0..200 {
        *lock.lock() += 1;
    }
    is_over.store(true, Ordering::Relaxed);
    greedy.join().unwrap();
    assert_eq!(*lock.lock(), 200);
}

#[test]
fn news_reach_all_who_wait() {
    let shared = Arc::new((Mutex::new(0), Condvar::new()));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                let (count, changed) = &*shared;
                for goal in 1..200 {
                    let mut guard = count.lock();
                    changed.wait_while(&mut guard, |count| *count < goal);
                }
            })
        })
        .collect();
    for _ in 1..200 {
        *shared.0.lock() += 1;
        shared.1.notify_all();
    }
    for thread in threads {
        thread.join().unwrap();
    }
}

#[test]
fn a_wait_ends_in_time() {
    let (nothing, never) = (Mutex::new(()), Condvar::new());
    let mut guard = nothing.lock();
    let start = Instant::now();
    while !never
        .wait_until(&mut guard, start + Duration::from_millis(20))
        .timed_out()
    {}
    never.wait_while_for(&mut guard, |()| true, Duration::from_millis(20));
    assert!(start.elapsed() >= Duration::from_millis(40));
    assert!(never.wait_until(&mut guard, start).timed_out());
}

/// Threads of the parent wait for locks while it is forked off, and the child has threads that wait for others.
#[test]
fn a_child_waits_for_its_own_locks() {
    let held = Arc::new(Mutex::new(()));
    let guard = held.lock();
    let waiting: Vec<_> = (0..16)
        .map(|_| {
            let held = Arc::clone(&held);
            thread::spawn(move || drop(held.lock()))
        })
        .collect();
    for _ in 0..5 {
        assert!(in_child(one_at_a_time_whichever_way_it_is_given_up));
    }
    drop(guard);
    for thread in waiting {
        thread.join().unwrap();
    }
}
