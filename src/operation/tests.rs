#![allow(clippy::unwrap_used)]

use std::sync::Barrier;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;

/// Remembers the tickets it was told of.
#[derive(Default)]
struct Recorder(Mutex<Vec<u64>>);

impl CompletionSink for Recorder {
    fn arrived(&self, ticket: u64) {
        self.0.lock().push(ticket);
    }
}

fn recorder() -> (Arc<Recorder>, Arc<dyn CompletionSink>) {
    let recorder = Arc::new(Recorder::default());
    (Arc::clone(&recorder), recorder)
}

fn operation() -> Arc<Operation> {
    Operation::new(Direction::Read, OperationKey::random(), Some(AgentName::new("peer")), 8)
}

fn failed() -> Outcome {
    Outcome::Failed(Error::new(ErrorKind::Transfer, "test", "made up"))
}

#[test]
fn phases_are_told_in_order_and_once() {
    let operation = operation();
    let (recorder, sink) = recorder();
    let (started, finished) = (next_ticket(), next_ticket());
    assert!(operation.watch(Phase::Started, &sink, started));
    assert!(operation.watch(Phase::Finished, &sink, finished));
    operation.mark_started();
    operation.mark_started();
    assert_eq!(*recorder.0.lock(), [started]);
    assert!(operation.has_reached(Phase::Started) && !operation.has_reached(Phase::Finished));
    assert!(operation.finish(Outcome::Complete));
    assert_eq!(*recorder.0.lock(), [started, finished]);
}

#[test]
fn an_end_implies_the_start_for_waiters() {
    let operation = operation();
    let (recorder, sink) = recorder();
    let ticket = next_ticket();
    assert!(operation.watch(Phase::Started, &sink, ticket));
    assert!(operation.finish(failed()));
    assert_eq!(*recorder.0.lock(), [ticket]);
    assert!(operation.has_reached(Phase::Started));
    assert!(
        !operation.watch(Phase::Started, &sink, next_ticket()),
        "nothing to wait for"
    );
    assert!(
        !operation.watch(Phase::Finished, &sink, next_ticket()),
        "nothing to wait for"
    );
    assert_eq!(recorder.0.lock().len(), 1);
}

#[test]
fn a_watch_that_is_taken_back_is_not_told() {
    let operation = operation();
    let (recorder, sink) = recorder();
    let (kept, dropped) = (next_ticket(), next_ticket());
    assert!(operation.watch(Phase::Finished, &sink, kept));
    assert!(operation.watch(Phase::Finished, &sink, dropped));
    operation.unwatch(dropped);
    operation.unwatch(dropped);
    operation.finish(Outcome::Cancelled);
    assert_eq!(*recorder.0.lock(), [kept]);
}

#[test]
fn the_status_follows_and_never_turns_back() {
    let operation = operation();
    assert_eq!(operation.status(), Status::Initialized);
    operation.mark_started();
    assert_eq!(operation.status(), Status::Initialized, "nothing has moved yet");
    operation.mark_in_progress();
    assert_eq!(operation.status(), Status::InProgress);
    assert!(operation.finish(Outcome::Cancelled));
    operation.mark_in_progress();
    operation.mark_started();
    assert!(!operation.finish(Outcome::Complete));
    assert_eq!(operation.status(), Status::Cancelled);
    assert!(matches!(operation.outcome(), Some(Outcome::Cancelled)));
}

#[test]
fn a_wait_that_runs_out_leaves_the_operation_as_it_was() {
    let operation = operation();
    assert!(!operation.wait(Phase::Finished, Some(Duration::from_millis(1))));
    assert!(
        operation.state.lock().waiters.is_empty(),
        "waits that are given up pile up"
    );
    assert!(!operation.is_finished());
    operation.finish(Outcome::Complete);
    assert!(operation.wait(Phase::Finished, None));
}

#[test]
fn a_racing_cancel_and_completion_leave_one_outcome() {
    for _ in 0..200 {
        let operation = operation();
        let barrier = Barrier::new(4);
        let (recorder, sink) = recorder();
        assert!(operation.watch(Phase::Finished, &sink, 7));
        let wins: Vec<bool> = thread::scope(|scope| {
            let ends = [Outcome::Complete, Outcome::Cancelled, failed()].map(|outcome| {
                let (barrier, operation) = (&barrier, &operation);
                scope.spawn(move || {
                    barrier.wait();
                    operation.finish(outcome)
                })
            });
            barrier.wait();
            assert!(operation.wait(Phase::Finished, Some(Duration::from_secs(60))));
            let seen = operation.status();
            let wins = ends.map(|end| end.join().unwrap());
            assert_eq!(operation.status(), seen, "the first outcome seen is the last");
            wins.to_vec()
        });
        assert_eq!(wins.iter().filter(|won| **won).count(), 1);
        assert_eq!(*recorder.0.lock(), [7]);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happens in whatever order: the first outcome stands, and each watch is told exactly once, unless it was
    /// taken back before or found its phase reached.
    #[test]
    fn any_history_has_one_outcome(steps in prop::collection::vec(0_u8..8, 0..40)) {
        let operation = operation();
        let (recorder, sink) = recorder();
        let mut outcome = None;
        let mut expected = Vec::new();
        let mut open = Vec::new();
        for step in steps {
            let ticket = next_ticket();
            match step {
                0 => operation.mark_started(),
                1 => operation.mark_in_progress(),
                2 | 3 => {
                    let end = if step == 2 { Outcome::Complete } else { Outcome::Cancelled };
                    let status = end.status();
                    prop_assert_eq!(operation.finish(end), outcome.is_none());
                    outcome.get_or_insert(status);
                }
                4 => if operation.watch(Phase::Started, &sink, ticket) { open.push(ticket); expected.push(ticket); },
                5 => if operation.watch(Phase::Finished, &sink, ticket) { open.push(ticket); expected.push(ticket); },
                _ => if let Some(ticket) = open.pop() {
                    let was_told = recorder.0.lock().contains(&ticket);
                    operation.unwatch(ticket);
                    if !was_told { expected.retain(|kept| *kept != ticket); }
                },
            }
            if let Some(outcome) = outcome {
                prop_assert_eq!(operation.status(), outcome);
            }
        }
        operation.finish(Outcome::Complete);
        let mut told = recorder.0.lock().clone();
        told.sort_unstable();
        expected.sort_unstable();
        prop_assert_eq!(told, expected);
    }
}

/// What moves a status on.
fn events() -> Vec<fn(&Operation)> {
    let cancelled_by_peer = |operation: &Operation| {
        operation.finish(Outcome::of(Error::new(ErrorKind::CancelledByPeer, "test", "made up")));
    };
    vec![
        |operation| operation.mark_started(),
        |operation| operation.mark_in_progress(),
        |operation| operation.add_bytes_done(1),
        |operation| _ = operation.finish(Outcome::Complete),
        |operation| _ = operation.finish(Outcome::Cancelled),
        cancelled_by_peer,
        |operation| _ = operation.finish(failed()),
    ]
}

#[test]
fn a_status_changes_as_the_protocol_page_says_and_in_no_other_way() {
    let page = include_str!("../../docs/protocol.md");
    let (_, table) = page.split_once("| from | to | by |\n|---|---|---|\n").unwrap();
    let mut documented: Vec<(String, String)> = table
        .lines()
        .take_while(|line| line.starts_with('|'))
        .map(|line| {
            let mut cells = line.split('|').map(str::trim).skip(1).map(str::to_owned);
            (cells.next().unwrap(), cells.next().unwrap())
        })
        .collect();
    let name = |operation: &Operation| {
        format!("{:?}", operation.status())
            .to_uppercase()
            .replace("INPROGRESS", "IN_PROGRESS")
    };
    let mut seen = Vec::new();
    // Every history of three events.
    for first in events() {
        for second in events() {
            for third in events() {
                let operation = operation();
                for event in [first, second, third] {
                    let from = name(&operation);
                    event(&operation);
                    let to = name(&operation);
                    if from != to {
                        seen.push((from, to));
                    }
                }
            }
        }
    }
    seen.sort();
    seen.dedup();
    documented.sort();
    assert_eq!(seen, documented);
}

#[test]
fn quiet_is_told_after_the_end_and_the_last_pin() {
    for pin_goes_first in [true, false] {
        let operation = operation();
        let pin = Pin::new(&operation);
        let (recorder, sink) = recorder();
        let ticket = next_ticket();
        assert!(operation.watch(Phase::Quiet, &sink, ticket));
        if pin_goes_first {
            drop(pin);
            assert!(recorder.0.lock().is_empty() && !operation.is_quiet());
            operation.finish(Outcome::Cancelled);
        } else {
            operation.finish(Outcome::Cancelled);
            assert!(recorder.0.lock().is_empty() && !operation.is_quiet());
            drop(pin);
        }
        assert_eq!(*recorder.0.lock(), [ticket]);
        assert!(operation.is_quiet() && operation.never_quiet().is_none());
    }
}

#[test]
fn what_is_kept_for_ever_says_why() {
    let operation = operation();
    let pin = Pin::new(&operation);
    operation.finish(failed());
    pin.keep_for_ever(Error::new(ErrorKind::Transfer, "wait for quiet", "made up"));
    drop(pin);
    assert!(operation.has_reached(Phase::Quiet) && !operation.is_quiet());
    assert_eq!(operation.never_quiet().unwrap().operation(), "wait for quiet");
}
