//! Transfers that compete for a peer whose metadata changes.

use super::*;

#[test]
fn a_conflict_waits_for_the_peer_to_fall_quiet() {
    let mut bench = Bench::new(Completion::Held);
    let remote = range(REMOTE, 4096);
    let old = bench.exposed(remote);
    let first = bench.start(&old, remote);
    bench.ticks(1);
    let new = bench.exposed(remote);
    let second = bench.start(&new, remote);
    bench.ticks(20);
    assert!(!second.operation.has_reached(Phase::Started));
    assert_eq!(bench.network.count(|event| matches!(event, Event::Dropped(..))), 0);
    bench.drain();
    assert_eq!((first.status(), second.status()), (Status::Complete, Status::Complete));
    assert_eq!(bench.network.count(|event| matches!(event, Event::Dropped(..))), 1);
    bench.assert_rules_kept();
}

#[test]
fn newcomers_wait_behind_a_waiting_transfer_and_do_not_starve_it() {
    let mut bench = Bench::new(Completion::AfterPolls(3));
    let remote = range(REMOTE, 4096);
    let old = bench.exposed(remote);
    let mut newcomers = vec![bench.start(&old, remote)];
    bench.ticks(1);
    let new = bench.exposed(remote);
    let waiting = bench.start(&new, remote);
    for tick in 0..200 {
        newcomers.push(bench.start(&old, remote));
        bench.ticks(1);
        if waiting.operation.is_finished() {
            break;
        }
        assert!(tick < 100, "newcomers keep the peer busy");
    }
    let ended = newcomers
        .iter()
        .filter(|newcomer| newcomer.operation.is_finished())
        .count();
    assert_eq!(ended, 1, "only the one that was there before");
    bench.drain();
    assert!(newcomers.iter().all(|newcomer| newcomer.status() == Status::Complete));
    bench.assert_rules_kept();
}

#[test]
fn neither_do_inline_newcomers() {
    let mut bench = Bench::new(Completion::AfterPolls(3));
    let remote = range(REMOTE, 4096);
    let old = bench.exposed(remote);
    let _first = bench.start(&old, remote);
    bench.ticks(1);
    let new = bench.exposed(remote);
    let waiting = bench.start(&new, remote);
    for _ in 0..100 {
        let (_, transfer) = bench.transfer(&old, &[remote]);
        if bench.lane.takes_inline(&transfer) {
            bench.lane.run_inline(transfer, std::time::Duration::ZERO);
        } else {
            bench.lane.add(transfer);
        }
        bench.ticks(1);
    }
    assert_eq!(waiting.status(), Status::Complete);
    bench.drain();
    bench.assert_rules_kept();
}

/// The owner freed its memory and got some of the same addresses again: NIXL would look at the stale region.
#[test]
fn a_stale_region_inside_of_a_new_one_is_forgotten_first() {
    for (stale, fresh) in [
        (range(REMOTE + 4096, 4096), range(REMOTE, 3 * PIECE.bytes)),
        (range(REMOTE, 3 * PIECE.bytes), range(REMOTE + 4096, 4096)),
    ] {
        let mut bench = Bench::new(Completion::Inline);
        bench.network.set_equal_keys();
        let metadata = bench.exposed(stale);
        let first = bench.start(&metadata, stale);
        bench.drain();
        let metadata = bench.exposed(fresh);
        let second = bench.start(&metadata, fresh);
        bench.drain();
        assert_eq!((first.status(), second.status()), (Status::Complete, Status::Complete));
        bench.assert_rules_kept();
    }
}

#[test]
fn a_waiter_that_gives_up_holds_nobody_back() {
    let mut bench = Bench::new(Completion::Held);
    let remote = range(REMOTE, 4096);
    let old = bench.exposed(remote);
    let _first = bench.start(&old, remote);
    bench.ticks(1);
    let new = bench.exposed(remote);
    let waiting = bench.start(&new, remote);
    bench.ticks(2);
    let newcomer = bench.start(&old, remote);
    bench.ticks(2);
    assert!(!newcomer.operation.has_reached(Phase::Started));
    waiting.operation.finish(Outcome::Cancelled);
    bench.ticks(4);
    assert!(
        newcomer.operation.has_reached(Phase::Started),
        "the first still moves, but nobody waits for its end"
    );
    bench.drain();
    assert_eq!(newcomer.status(), Status::Complete);
    assert_eq!(bench.network.count(|event| matches!(event, Event::Dropped(..))), 0);
    bench.assert_rules_kept();
}

#[test]
fn waiting_transfers_go_in_the_order_they_came() {
    let mut bench = Bench::new(Completion::AfterPolls(2));
    let remote = range(REMOTE, 4096);
    let mut started = Vec::new();
    for _ in 0..6 {
        let metadata = bench.exposed(remote);
        started.push(bench.start(&metadata, remote));
    }
    let mut order = Vec::new();
    for _ in 0..200 {
        bench.ticks(1);
        for (index, transfer) in started.iter().enumerate() {
            if transfer.operation.is_finished() && !order.contains(&index) {
                order.push(index);
            }
        }
    }
    assert_eq!(order, [0, 1, 2, 3, 4, 5]);
    assert_eq!(bench.network.count(|event| matches!(event, Event::Dropped(..))), 5);
    bench.assert_rules_kept();
}

#[test]
fn a_peer_that_died_is_reached_again_after_its_restart() {
    let mut bench = Bench::new(Completion::Held);
    let remote = range(REMOTE, 8 * PIECE.bytes);
    let metadata = bench.exposed(remote);
    let first = bench.start(&metadata, remote);
    bench.ticks(3);
    bench.network.kill(OWNER);
    bench.drain();
    assert_eq!(first.error_kind(), Some(ErrorKind::Transfer));
    assert!(!first.is_pinned());
    bench.owner = None;
    bench.owner = Some(FakeOwner::new(&bench.network, OWNER).unwrap());
    let metadata = bench.exposed(remote);
    let second = bench.start(&metadata, remote);
    bench.drain();
    assert_eq!(second.status(), Status::Complete);
    assert_eq!(bench.network.count(|event| matches!(event, Event::Dropped(..))), 1);
    bench.assert_rules_kept();
}
