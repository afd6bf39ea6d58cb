//! An operation's end under every order of those who bring it and those who wait for it.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::sync::{check, spawn};

const BYTES: u64 = 8;

/// Remembers the tickets it was told of.
#[derive(Default)]
struct Recorder(Mutex<Vec<u64>>);

impl Recorder {
    fn told(&self) -> Vec<u64> {
        let mut told = self.0.lock().clone();
        told.sort_unstable();
        told
    }
}

impl CompletionSink for Recorder {
    fn arrived(&self, ticket: u64) {
        self.0.lock().push(ticket);
    }
}

fn operation() -> Arc<Operation> {
    Operation::new(Direction::Read, OperationKey::new(b"key".to_vec()), None, BYTES)
}

fn late() -> Outcome {
    Outcome::Failed(Error::new(ErrorKind::Timeout, "test", "made up"))
}

#[test]
fn a_cancel_a_completion_and_a_timer_leave_one_outcome() {
    check(|| {
        let operation = operation();
        let recorder = Arc::new(Recorder::default());
        let sink: Arc<dyn CompletionSink> = Arc::clone(&recorder) as _;
        assert!(operation.watch(Phase::Started, &sink, 1));
        assert!(operation.watch(Phase::Finished, &sink, 2));
        let reactor = spawn({
            let operation = Arc::clone(&operation);
            move || {
                operation.mark_started();
                operation.mark_in_progress();
                operation.finish(Outcome::Complete)
            }
        });
        let timer = spawn({
            let operation = Arc::clone(&operation);
            move || operation.finish(late())
        });
        let cancelled = operation.finish(Outcome::Cancelled);
        let seen = operation.status();
        let (completed, timed_out) = (reactor.join().unwrap(), timer.join().unwrap());
        assert_eq!(operation.status(), seen, "an end never changes");
        let expected = match (completed, cancelled, timed_out) {
            (true, false, false) => Status::Complete,
            (false, true, false) => Status::Cancelled,
            (false, false, true) => Status::Errored,
            winners => panic!("one of them has ended it: {winners:?}"),
        };
        assert_eq!(seen, expected);
        assert_eq!(operation.outcome().unwrap().status(), expected);
        assert_eq!(recorder.told(), [1, 2], "each is told once");
    });
}

#[test]
fn whoever_sees_it_complete_sees_all_its_bytes() {
    check(|| {
        let operation = operation();
        let reactor = spawn({
            let operation = Arc::clone(&operation);
            move || {
                operation.mark_in_progress();
                operation.add_bytes_done(BYTES);
                operation.finish(Outcome::Complete);
            }
        });
        // Without the lock, as Python's properties look.
        if operation.status() == Status::Complete {
            assert_eq!(operation.bytes_done(), BYTES);
        }
        if operation.is_finished() {
            assert_eq!(operation.bytes_done(), BYTES);
            assert!(matches!(operation.outcome(), Some(Outcome::Complete)));
        }
        reactor.join().unwrap();
    });
}

#[test]
fn a_thread_that_waits_for_the_end_is_woken() {
    check(|| {
        let operation = operation();
        let waiter = spawn({
            let operation = Arc::clone(&operation);
            move || {
                assert!(operation.wait(Phase::Finished, None));
                assert!(operation.is_finished());
            }
        });
        operation.mark_started();
        operation.finish(Outcome::Complete);
        waiter.join().unwrap();
        assert!(operation.state.lock().waiters.is_empty());
    });
}

#[test]
fn quiet_is_told_once_whether_the_end_or_the_last_pin_comes_first() {
    check(|| {
        let operation = operation();
        let pin = Pin::new(&operation);
        let recorder = Arc::new(Recorder::default());
        let sink: Arc<dyn CompletionSink> = Arc::clone(&recorder) as _;
        assert!(operation.watch(Phase::Quiet, &sink, 1));
        let reactor = spawn(move || drop(pin));
        let waiter = spawn({
            let operation = Arc::clone(&operation);
            move || {
                assert!(operation.wait(Phase::Quiet, None));
                assert!(operation.is_quiet());
            }
        });
        operation.finish(Outcome::Cancelled);
        reactor.join().unwrap();
        waiter.join().unwrap();
        assert_eq!(recorder.told(), [1]);
    });
}

#[test]
fn a_watch_that_is_set_or_taken_back_at_the_end_is_told_once_at_most() {
    check(|| {
        let operation = operation();
        let recorder = Arc::new(Recorder::default());
        let sink: Arc<dyn CompletionSink> = Arc::clone(&recorder) as _;
        assert!(operation.watch(Phase::Finished, &sink, 1));
        let reactor = spawn({
            let operation = Arc::clone(&operation);
            move || operation.finish(Outcome::Complete)
        });
        operation.unwatch(1);
        let is_watched = operation.watch(Phase::Finished, &sink, 2);
        reactor.join().unwrap();
        let told = recorder.told();
        assert_eq!(told.contains(&2), is_watched, "told where it was set, and only then");
        assert!(matches!(told.as_slice(), [] | [1] | [2] | [1, 2]), "{told:?}");
        assert!(operation.state.lock().waiters.is_empty());
    });
}
