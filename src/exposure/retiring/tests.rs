#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::*;
use crate::exposure::samples::{Bench, GRACE, KEY, TRANSFER};
use crate::exposure::users::UserId;
use crate::operation::{Outcome, Status};
use crate::types::{AgentName, OperationKey, TransferId};
use crate::wire::ControlMessage;

const OTHER: TransferId = TransferId(7);

#[test]
fn two_transfers_of_one_agent_are_two() {
    for ends_well in [true, false] {
        let mut bench = Bench::asking();
        bench.hello("reader");
        bench.hello_as("reader", OTHER);
        if ends_well {
            bench.complete("reader");
        } else {
            bench.ledger.end(&bench.record, Outcome::Cancelled);
        }
        assert_eq!(bench.sent().len(), 2, "both are told");
        bench.quiet("reader", TRANSFER);
        bench.look();
        bench.look();
        assert!(!bench.is_quiet(), "the other one is at work");
        bench.quiet("reader", OTHER);
        bench.look();
        assert!(bench.is_quiet());
    }
}

#[test]
fn a_key_does_not_say_which_of_an_agent_s_transfers_it_comes_from() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    // Of a small one, that has said no hello.
    bench.complete("reader");
    assert!(bench.sent().is_empty(), "most likely it is its own");
    assert_eq!(bench.ledger.in_grace().0, 0, "and its memory takes nobody's place");
    bench.look();
    bench.look();
    assert!(!bench.is_quiet());
    bench.quiet("reader", TRANSFER);
    bench.look();
    assert!(bench.is_quiet());
}

#[test]
fn whoever_found_it_open_is_heard_before_the_memory_is_free() {
    for ends_well in [true, false] {
        let mut bench = Bench::asking();
        bench.ledger.begin_look();
        if ends_well {
            bench.complete("reader");
        } else {
            bench.hello("reader");
            bench.ledger.end(&bench.record, Outcome::Cancelled);
            bench.quiet("reader", TRANSFER);
        }
        // Of the same look, or the next.
        bench.ledger.tick(bench.now);
        bench.ledger.begin_look();
        bench.hello_as("late", OTHER);
        bench.ledger.tick(bench.now);
        bench.look();
        assert!(!bench.is_quiet());
        assert_eq!(bench.ledger.in_grace().0, 1);
        bench.quiet("late", OTHER);
        bench.look();
        assert!(bench.is_quiet());
    }
}

#[test]
fn the_death_of_one_keeps_the_memory_for_the_grace_whatever_another_says() {
    for ends_well in [true, false] {
        let mut bench = Bench::asking();
        bench.hello("dead");
        bench.hello_as("reader", OTHER);
        let dead = UserId::new(&AgentName::new("dead"), TRANSFER);
        bench.ledger.bury(&OperationKey::new(KEY), &dead);
        assert_eq!(
            bench.record.operation().status(),
            Status::Initialized,
            "the other goes on"
        );
        if ends_well {
            bench.complete("reader");
        } else {
            bench.ledger.end(&bench.record, Outcome::Cancelled);
        }
        bench.quiet("reader", OTHER);
        bench.look();
        bench.look();
        assert!(!bench.is_quiet(), "what the dead one had sent may still land");
        assert_eq!(bench.ledger.in_grace().0, 1);
        bench.now = Instant::now() + GRACE;
        bench.look();
        assert!(bench.is_quiet());
    }
}

#[test]
fn memory_that_nobody_will_ever_call_quiet_says_so_and_stays() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    bench.ledger.end(&bench.record, Outcome::Cancelled);
    assert!(bench.record.operation().never_quiet().is_none());
    let operation = OperationKey::new(KEY);
    let transfer = TRANSFER;
    bench.receive("reader", &ControlMessage::Never { operation, transfer });
    assert!(bench.record.operation().never_quiet().is_some());
    assert_eq!(bench.ledger.in_grace().0, 1);
    while bench.now < Instant::now() + 2 * GRACE {
        bench.beat();
    }
    assert_eq!(bench.ledger.in_grace().0, 1);
    assert!(!bench.ledger.is_used(), "closing does not wait for it");
}

#[test]
fn who_came_and_left_before_the_end_confirms_nothing() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    bench.quiet("reader", TRANSFER);
    bench.ledger.end(&bench.record, Outcome::Cancelled);
    bench.look();
    bench.look();
    assert!(!bench.is_quiet(), "others may have the metadata");
    bench.now = Instant::now() + GRACE;
    bench.look();
    assert!(bench.is_quiet());
}

#[test]
fn those_that_ended_first_give_their_memory_up_first() {
    // However often the look at them was put off, since somebody is at work on them.
    for grace in [Duration::from_millis(500), GRACE] {
        let mut bench = Bench::limited(None, grace, 4096);
        bench.hello("reader");
        let second = bench.another("second");
        bench.ledger.end(&bench.record, Outcome::Cancelled);
        bench.now = Instant::now() + Duration::from_millis(500);
        bench.look();
        assert!(!bench.is_quiet(), "one alone is held");
        bench.now = Instant::now();
        bench.ledger.end(&second, Outcome::Cancelled);
        bench.look();
        assert!(bench.is_quiet() && !second.operation().is_quiet());
    }
}

#[test]
fn extreme_limits_do_no_harm() {
    for grace in [Duration::ZERO, Duration::MAX] {
        let mut bench = Bench::with_grace(grace);
        bench.ledger.end(&bench.record, Outcome::Cancelled);
        bench.now = Instant::now();
        bench.look();
        assert_eq!(bench.ledger.in_grace().0, usize::from(grace > Duration::ZERO));
    }
}
