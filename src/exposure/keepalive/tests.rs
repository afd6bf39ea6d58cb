#![allow(clippy::unwrap_used)]

use super::*;
use crate::exposure::samples::{Bench, GRACE, KEEPALIVE, KEY, TRANSFER};
use crate::operation::Status;
use crate::wire::EndReason;

#[test]
fn nobody_is_asked_before_a_hello_or_after_all_is_quiet() {
    let mut bench = Bench::asking();
    assert!(bench.beat().is_empty());
    assert_eq!(bench.ledger.next_due(), None);
    bench.hello("reader");
    assert!(bench.ledger.next_due().is_some());
    assert_eq!(bench.beat().len(), 1);
    bench.quiet("reader", TRANSFER);
    assert!(bench.beat().is_empty());
    assert_eq!(bench.ledger.next_due(), None);
}

#[test]
fn nor_without_a_keepalive() {
    let mut bench = Bench::new(None, None);
    bench.hello("reader");
    assert!((0..9).all(|_| bench.beat().is_empty()));
    assert_eq!(bench.kind(), None);
}

#[test]
fn silence_ends_the_exposure_and_not_the_hold_on_its_memory() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    for _ in 0..MOST_UNANSWERED {
        assert_eq!(bench.beat().len(), 1);
        assert_eq!(bench.kind(), None);
    }
    assert!(bench.beat().is_empty());
    assert_eq!(bench.kind(), Some(ErrorKind::PeerLost));
    assert!(!bench.record.operation().is_quiet());
    assert_eq!(bench.ledger.in_grace().0, 1);
    // It was only stopped, and is done now.
    bench.quiet("reader", TRANSFER);
    bench.look();
    assert!(bench.is_quiet());
}

#[test]
fn memory_of_one_that_stays_silent_stays() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    bench.ledger.end(&bench.record, Outcome::Cancelled);
    while bench.now < Instant::now() + 2 * GRACE {
        bench.beat();
        assert!(
            !bench.record.operation().is_quiet(),
            "it may be frozen or cut off, and go on one day"
        );
    }
    assert_eq!(bench.ledger.in_grace(), (1, 4096), "which counts against the limit");
    bench.quiet("reader", TRANSFER);
    bench.look();
    assert!(bench.is_quiet());
    assert_eq!(bench.record.operation().status(), Status::Cancelled);
}

#[test]
fn one_that_has_completed_and_was_lost_holds_nothing() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    bench.complete("reader");
    let end = Instant::now() + 2 * GRACE;
    while bench.now < end && !bench.is_quiet() {
        bench.beat();
    }
    assert!(bench.is_quiet(), "only its last word was missing");
    assert!(bench.now > Instant::now() + GRACE / 2);
}

#[test]
fn a_lost_one_that_turns_out_to_be_dead_holds_its_memory_for_the_grace() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    while bench.kind().is_none() {
        bench.beat();
    }
    let id = UserId::new(&AgentName::new("reader"), TRANSFER);
    bench.ledger.bury(bench.record.operation().key(), &id);
    bench.now = Instant::now() + GRACE / 2;
    bench.look();
    assert!(!bench.is_quiet());
    bench.now = Instant::now() + GRACE;
    bench.look();
    assert!(bench.is_quiet());
}

#[test]
fn memory_of_lost_ones_gives_way_to_that_of_others() {
    for keepalive in [Some(KEEPALIVE), None] {
        let mut bench = Bench::limited(keepalive, GRACE, 4096);
        bench.hello("reader");
        bench.ledger.end(&bench.record, Outcome::Cancelled);
        let end = Instant::now() + 2 * GRACE;
        while bench.now < end {
            bench.beat();
        }
        assert!(!bench.is_quiet());
        let other = bench.another("other");
        bench.ledger.end(&other, Outcome::Cancelled);
        bench.now = Instant::now();
        bench.look();
        assert!(bench.is_quiet() && !other.operation().is_quiet());
    }
}

#[test]
fn one_that_says_hello_to_what_is_complete_counts() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    bench.complete("reader");
    assert_eq!(bench.ledger.in_grace(), (0, 0));
    bench.hello("another");
    bench.now = Instant::now() + GRACE;
    bench.look();
    assert_eq!(bench.ledger.in_grace(), (1, 4096));
}

#[test]
fn the_lost_one_is_told_as_well() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    let mut told = Vec::new();
    while bench.kind().is_none() {
        bench.now += KEEPALIVE;
        bench.ledger.tick(bench.now);
        told = bench.sent();
    }
    assert!(matches!(
        told.as_slice(),
        [(
            _,
            ControlMessage::Ended {
                reason: EndReason::Failed,
                ..
            }
        )]
    ));
}

#[test]
fn only_answers_to_the_question_count() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    for _ in 0..20 {
        let asked = bench.beat();
        bench.pong("reader", asked[0].1);
    }
    for _ in 0..=MOST_UNANSWERED {
        assert_eq!(bench.kind(), None);
        let asked = bench.beat();
        if let [(_, nonce)] = asked.as_slice() {
            bench.pong("stranger", *nonce);
            bench.pong("reader", nonce ^ 1);
        }
    }
    assert_eq!(bench.kind(), Some(ErrorKind::PeerLost));
}

#[test]
fn another_transfer_that_answers_keeps_the_exposure() {
    let mut bench = Bench::asking();
    bench.hello("silent");
    bench.hello("other");
    for _ in 0..20 {
        for (name, nonce) in bench.beat() {
            if name == "other" {
                bench.pong(&name, nonce);
            }
        }
    }
    assert_eq!(bench.kind(), None);
    let asked = bench.beat();
    assert!(asked.iter().all(|(name, _)| name == "other"), "{asked:?}");
    let left = ControlMessage::Left {
        operation: OperationKey::new(KEY),
        transfer: TRANSFER,
        reason: EndReason::Cancelled,
        text: String::new(),
    };
    bench.receive("other", &left);
    assert_eq!(bench.kind(), Some(ErrorKind::CancelledByPeer));
}

#[test]
fn whoever_answers_outlasts_the_lease_and_whoever_does_not_does_not() {
    for answers in [true, false] {
        let mut bench = Bench::new(Some(KEEPALIVE * 2 + KEEPALIVE / 2), Some(KEEPALIVE));
        bench.hello("reader");
        let beat = |bench: &mut Bench, count: usize| {
            for _ in 0..count {
                for (name, nonce) in bench.beat() {
                    if answers {
                        bench.pong(&name, nonce);
                    }
                }
            }
        };
        beat(&mut bench, 2);
        assert_eq!(bench.kind(), None);
        bench.ledger.tick(bench.now + KEEPALIVE * 2 / 3);
        if !answers {
            assert_eq!(bench.kind(), Some(ErrorKind::LeaseExpired));
            continue;
        }
        assert_eq!(bench.kind(), None);
        bench.ledger.end(&bench.record, Outcome::Cancelled);
        beat(&mut bench, 30);
        assert!(!bench.record.operation().is_quiet(), "long after the grace");
        bench.quiet("reader", TRANSFER);
        bench.look();
        assert!(bench.is_quiet());
    }
}

#[test]
fn a_flood_of_pings_has_one_answer_at_a_time() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    let flood = |sender: &str| {
        for nonce in 0..1000 {
            let operation = OperationKey::new(KEY);
            bench.receive(
                sender,
                &ControlMessage::Ping {
                    operation,
                    transfer: TRANSFER,
                    nonce,
                },
            );
        }
        bench.sent()
    };
    assert!(flood("stranger").is_empty());
    for _ in 0..2 {
        let answers = flood("reader");
        assert!(matches!(answers.as_slice(), [(to, ControlMessage::Pong { nonce: 0, .. })] if to == "reader"));
    }
}

#[test]
fn what_closes_asks_nobody() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    bench.ledger.close(&Error::new(ErrorKind::Closed, "test", "closed"));
    assert!(bench.beat().is_empty());
    assert_eq!(bench.record.operation().status(), Status::Errored);
    bench.hello("late");
    assert!(bench.beat().is_empty());
    assert!(bench.ledger.next_due().is_none_or(|due| due > bench.now));
}
