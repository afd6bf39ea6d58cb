#![allow(clippy::unwrap_used)]

use std::fs;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};

use rustix::process::Signal;

use super::super::samples::{PATIENCE, Sleeper, eventually, in_child};
use super::*;

/// A watcher of the test's own.
fn watcher() -> &'static Watcher {
    Box::leak(Box::new(Watcher {
        origin: Origin::here(),
        state: Mutex::default(),
    }))
}

fn report<T: Send + 'static>(what: T) -> (impl FnOnce() + Send + 'static, Receiver<T>) {
    let (sender, receiver) = channel();
    (send(sender, what), receiver)
}

fn send<T: Send + 'static>(sender: Sender<T>, what: T) -> impl FnOnce() + Send + 'static {
    move || sender.send(what).unwrap()
}

/// Waits for the one report. `None` where there can be none any more.
fn the_one<T>(reports: &Receiver<T>) -> Option<T> {
    match reports.recv_timeout(PATIENCE) {
        Ok(report) => {
            let more = reports.recv_timeout(PATIENCE).err();
            assert_eq!(more, Some(RecvTimeoutError::Disconnected), "called more than once");
            Some(report)
        }
        Err(RecvTimeoutError::Disconnected) => None,
        Err(RecvTimeoutError::Timeout) => panic!("neither called nor forgotten"),
    }
}

/// How many pidfds of that process we hold.
fn pidfds(process: ProcessId) -> usize {
    let mark = format!("Pid:\t{}\n", process.pid);
    let files = fs::read_dir("/proc/self/fdinfo").unwrap().flatten();
    let texts = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    texts.filter(|text| text.contains(&mark)).count()
}

fn threads() -> usize {
    let tasks = fs::read_dir("/proc/self/task").unwrap().flatten();
    let names = tasks.filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name == "nixl-watch\n").count()
}

#[test]
fn a_death_is_noticed_once_though_nobody_reaps() {
    let child = Sleeper::start();
    let (action, reports) = report(());
    let guard = watch(child.id, action).unwrap();
    child.signal(Signal::STOP);
    assert!(eventually(|| child.is_in("T")));
    assert!(reports.try_recv().is_err(), "a stopped process is alive");
    child.signal(Signal::KILL);
    assert_eq!(the_one(&reports), Some(()));
    assert!(child.is_in("Z"));
    drop(guard);
    assert!(eventually(|| pidfds(child.id) == 0));
}

#[test]
fn the_dead_are_reported_from_the_thread() {
    let mut child = Sleeper::start();
    let other = ProcessId {
        start: child.id.start.wrapping_sub(1),
        ..child.id
    };
    child.reap();
    for dead in [child.id, other] {
        let (sender, reports) = channel();
        let action = move || sender.send(std::thread::current().name().map(str::to_owned)).unwrap();
        let guard = watch(dead, action).unwrap();
        assert_eq!(the_one(&reports).unwrap().as_deref(), Some("nixl-watch"));
        drop(guard);
    }
}

#[test]
fn what_is_out_of_sight_is_not_watched() {
    let child = Sleeper::start();
    let (action, reports) = report(());
    let host = !child.id.host;
    assert!(watch(ProcessId { host, ..child.id }, action).is_none());
    assert_eq!(the_one(&reports), None);
}

#[test]
fn a_watch_that_is_dropped_does_not_call() {
    let child = Sleeper::start();
    let (forgotten, forgotten_reports) = report(());
    let (kept, kept_reports) = report(());
    let forgotten = watch(child.id, forgotten).unwrap();
    let _kept = watch(child.id, kept).unwrap();
    drop(forgotten);
    child.signal(Signal::KILL);
    assert_eq!(the_one(&kept_reports), Some(()));
    assert_eq!(the_one(&forgotten_reports), None);
}

#[test]
fn a_watch_that_is_dropped_behind_the_death_does_not_begin_to_call() {
    let watcher = watcher();
    let child = Sleeper::start();
    let (started, starts) = channel();
    let (release, released) = channel::<()>();
    let (ended, ends) = report(());
    let running = move || {
        started.send(()).unwrap();
        released.recv_timeout(PATIENCE).unwrap();
        ended();
    };
    let (late, late_reports) = report(());
    let running = watcher.add(child.id, Box::new(running)).unwrap();
    let late = watcher.add(child.id, Box::new(late)).unwrap();
    child.signal(Signal::KILL);
    starts.recv_timeout(PATIENCE).unwrap();
    // Neither waits for the one that runs, which waits for us.
    drop(late);
    drop(running);
    release.send(()).unwrap();
    assert_eq!(the_one(&ends), Some(()));
    assert_eq!(the_one(&late_reports), None);
    watcher.end();
}

#[test]
fn watches_of_one_process_share_a_pidfd() {
    let children: Vec<Sleeper> = (0..4).map(|_| Sleeper::start()).collect();
    let (sender, reports) = channel();
    let guards: Vec<Watch> = (0..100)
        .map(|index| watch(children[index % 4].id, send(sender.clone(), index)).unwrap())
        .collect();
    for child in &children {
        assert_eq!(pidfds(child.id), 1);
        child.signal(Signal::KILL);
    }
    let mut called: Vec<usize> = (0..100).map(|_| reports.recv_timeout(PATIENCE).unwrap()).collect();
    called.sort_unstable();
    assert_eq!(called, (0..100).collect::<Vec<_>>());
    drop(guards);
    drop(sender);
    assert_eq!(the_one(&reports), None);
    assert!(eventually(|| children.iter().all(|child| pidfds(child.id) == 0)));
}

#[test]
fn a_process_that_was_watched_lately_need_not_be_looked_for() {
    let watcher = watcher();
    let child = Sleeper::start();
    let alarm = || Arc::clone(&watcher.state.lock().runner.as_ref().unwrap().alarm);
    let other = Sleeper::start();
    let _other = watcher.add(other.id, Box::new(|| {})).unwrap();
    drop(watcher.add(child.id, Box::new(|| {})).unwrap());
    let kept = Arc::downgrade(&watcher.state.lock().processes[&child.id].pidfd);
    let (action, reports) = report(());
    let guard = watcher.add(child.id, Box::new(action)).unwrap();
    assert!(
        kept.upgrade()
            .is_some_and(|kept| Arc::ptr_eq(&kept, &watcher.state.lock().processes[&child.id].pidfd))
    );
    watcher.turn(&alarm(), true);
    assert!(watcher.state.lock().processes.contains_key(&child.id), "it is watched");
    drop(guard);
    watcher.turn(&alarm(), false);
    assert!(
        watcher.state.lock().processes.contains_key(&child.id),
        "it was, just now"
    );
    watcher.turn(&alarm(), true);
    assert!(!watcher.state.lock().processes.contains_key(&child.id));
    assert_eq!(the_one(&reports), None);
    watcher.end();
}

#[test]
fn a_panic_ends_only_its_own_call() {
    let watcher = watcher();
    let child = Sleeper::start();
    let (action, reports) = report(());
    let _first = watcher.add(child.id, Box::new(|| panic!("on purpose"))).unwrap();
    let _second = watcher.add(child.id, Box::new(action)).unwrap();
    child.signal(Signal::KILL);
    assert_eq!(the_one(&reports), Some(()));
    watcher.end();
}

#[test]
fn a_call_may_drop_and_make_watches() {
    let watcher = watcher();
    let (first, second) = (Sleeper::start(), Sleeper::start());
    let (action, reports) = report(());
    let (nested, nested_reports) = channel();
    let inner = watcher.add(second.id, Box::new(action)).unwrap();
    let second_id = second.id;
    let outer = move || {
        drop(inner);
        let (action, reports) = report(());
        nested
            .send((watcher.add(second_id, Box::new(action)), reports))
            .unwrap();
    };
    let _outer = watcher.add(first.id, Box::new(outer)).unwrap();
    first.signal(Signal::KILL);
    let (guard, renewed) = the_one(&nested_reports).unwrap();
    assert!(guard.is_some());
    second.signal(Signal::KILL);
    assert_eq!(the_one(&renewed), Some(()));
    assert_eq!(the_one(&reports), None);
    watcher.end();
}

#[test]
fn the_thread_ends_when_it_has_lingered_and_comes_again() {
    let watcher = watcher();
    let child = Sleeper::start();
    let alarm = || Arc::clone(&watcher.state.lock().runner.as_ref().unwrap().alarm);
    let guard = watcher.add(child.id, Box::new(|| {})).unwrap();
    assert!(watcher.turn(&alarm(), true).is_some(), "there is something to watch");
    drop(guard);
    assert!(watcher.turn(&alarm(), false).is_some());
    assert!(watcher.turn(&alarm(), true).is_none());
    assert!(watcher.state.lock().runner.is_none());
    let (action, reports) = report(());
    let _guard = watcher.add(child.id, Box::new(action)).unwrap();
    child.signal(Signal::KILL);
    assert_eq!(the_one(&reports), Some(()));
    watcher.end();
}

#[test]
fn the_end_forgets_every_watch() {
    let watcher = watcher();
    let child = Sleeper::start();
    let (action, reports) = report(());
    let guard = watcher.add(child.id, Box::new(action)).unwrap();
    let thread = Arc::downgrade(&watcher.state.lock().runner.as_ref().unwrap().alarm);
    watcher.end();
    assert_eq!(the_one(&reports), None);
    assert!(eventually(|| thread.strong_count() == 0), "the thread has ended");
    assert!(eventually(|| pidfds(child.id) == 0));
    drop(guard);
    let (action, reports) = report(());
    let _guard = watcher.add(child.id, Box::new(action)).unwrap();
    child.signal(Signal::KILL);
    assert_eq!(the_one(&reports), Some(()), "what comes behind has a thread of its own");
    watcher.end();
}

#[test]
fn a_forked_child_has_watches_of_its_own() {
    let child = Sleeper::start();
    let (action, reports) = report(());
    let mut guard = Some(watch(child.id, action).unwrap());
    // As another thread of the parent may hold it when the child is forked off.
    let locked = WATCHER.here().state.lock();
    let went_well = in_child(|| {
        drop(guard.take());
        let doomed = Sleeper::start();
        let (action, reports) = report(());
        let _guard = watch(doomed.id, action).unwrap();
        doomed.signal(Signal::KILL);
        assert_eq!(the_one(&reports), Some(()));
        assert_eq!(threads(), 1);
        end();
    });
    drop(locked);
    assert!(went_well);
    child.signal(Signal::KILL);
    assert_eq!(the_one(&reports), Some(()), "the parent's is untouched");
}

#[test]
fn watches_that_come_and_go_leave_one_pidfd_until_the_end() {
    // In a child, since tests that run beside this one have watches, too.
    assert!(in_child(|| {
        let children = [Sleeper::start(), Sleeper::start()];
        for index in 0..2000 {
            let guard = watch(children[index % 2].id, || panic!("it lives")).unwrap();
            drop(guard);
        }
        assert!(children.iter().all(|child| pidfds(child.id) == 1));
        assert!(eventually(|| threads() == 1));
        end();
        assert!(eventually(|| threads() == 0));
        assert!(children.iter().all(|child| pidfds(child.id) == 0));
    }));
}
