//! How a transfer's life goes and ends.

use std::time::{Duration, Instant};

use super::*;

#[test]
fn a_small_transfer_notifies_and_lets_its_memory_go() {
    let mut bench = Bench::new(Completion::Inline);
    let remote = range(REMOTE, 4096);
    let metadata = bench.exposed(remote);
    let started = bench.start(&metadata, remote);
    assert_eq!(started.status(), Status::Initialized);
    bench.ticks(1);
    assert_eq!(started.status(), Status::Complete);
    assert_eq!(started.operation.bytes_done(), 4096);
    bench.drain();
    assert!(!started.is_pinned());
    assert_eq!(
        bench.owner().notifications().unwrap(),
        [started.operation.key().as_bytes()]
    );
    assert!(bench.network.registered(READER).is_empty());
    bench.assert_rules_kept();
}

#[test]
fn phases_follow_the_wire() {
    let mut bench = Bench::new(Completion::Held);
    let started = bench.start_pieces(2);
    assert!(!started.operation.has_reached(Phase::Started));
    bench.ticks(1);
    assert!(started.operation.has_reached(Phase::Started));
    assert_eq!(started.status(), Status::InProgress);
    assert_eq!(started.operation.bytes_done(), 0);
    bench.network.release(1);
    bench.ticks(2);
    assert_eq!(started.operation.bytes_done(), PIECE.bytes);
    assert_eq!(started.status(), Status::InProgress);
    bench.drain();
    assert_eq!(started.status(), Status::Complete);
    assert_eq!(started.operation.bytes_done(), 2 * PIECE.bytes);
}

#[test]
fn the_last_piece_notifies_and_waits_for_all_others() {
    let mut bench = Bench::new(Completion::Held);
    let started = bench.start_pieces(9);
    for piece in 0..8 {
        bench.ticks(20);
        let posted = bench.posted();
        assert!(posted.len() <= 8, "the last piece went before the others had ended");
        assert!(posted.iter().all(|notifies| !notifies));
        assert_eq!(bench.network.release(1), 1, "piece {piece}");
    }
    assert!(bench.owner().notifications().unwrap().is_empty());
    bench.ticks(2);
    assert_eq!(bench.posted(), [[false; 8].as_slice(), &[true]].concat());
    bench.ticks(20);
    assert_eq!(
        started.status(),
        Status::InProgress,
        "the last piece's end is the operation's"
    );
    bench.network.release(1);
    bench.ticks(1);
    assert_eq!(started.status(), Status::Complete);
    assert_eq!(bench.owner().notifications().unwrap().len(), 1);
    bench.assert_rules_kept();
}

#[test]
fn no_bytes_still_notify() {
    let mut bench = Bench::new(Completion::Held);
    let remote = range(REMOTE, 0);
    let metadata = bench.exposed(remote);
    let started = bench.start(&metadata, remote);
    bench.ticks(2);
    assert_eq!(started.status(), Status::Complete);
    assert_eq!(bench.posted(), [false; 0]);
    assert_eq!(
        bench.owner().notifications().unwrap(),
        [started.operation.key().as_bytes()]
    );
    bench.network.fail(READER, Call::Notify, 1);
    let failing = bench.start(&metadata, remote);
    bench.drain();
    assert_eq!(failing.error_kind(), Some(ErrorKind::Transfer));
    assert!(bench.owner().notifications().unwrap().is_empty());
}

#[test]
fn a_cancel_before_the_start_touches_nothing() {
    let mut bench = Bench::new(Completion::Inline);
    let remote = range(REMOTE, 4096);
    let metadata = bench.exposed(remote);
    let started = bench.start(&metadata, remote);
    assert!(started.operation.finish(Outcome::Cancelled));
    let before = bench.network.events();
    bench.drain();
    assert_eq!(bench.network.events(), before);
    assert_eq!(started.status(), Status::Cancelled);
    assert!(!started.is_pinned());
}

#[test]
fn a_cancelled_transfer_posts_no_more_and_keeps_its_memory_while_pieces_move() {
    let mut bench = Bench::new(Completion::Held);
    let started = bench.start_pieces(9);
    bench.ticks(2);
    assert_eq!(bench.posted().len(), 2);
    assert!(started.operation.finish(Outcome::Cancelled));
    bench.ticks(50);
    assert_eq!(bench.posted().len(), 2);
    assert!(started.is_pinned());
    assert_eq!(bench.network.registered(READER).len(), 1);
    bench.network.release(1);
    bench.ticks(50);
    assert!(started.is_pinned(), "one piece still moves");
    bench.drain();
    assert!(!started.is_pinned());
    assert!(bench.network.registered(READER).is_empty());
    assert_eq!((bench.posted().len(), started.status()), (2, Status::Cancelled));
    assert!(bench.owner().notifications().unwrap().is_empty());
    bench.assert_rules_kept();
}

#[test]
fn a_failure_of_any_piece_ends_the_operation_and_drains_the_rest() {
    for call in [Call::Prepare, Call::Post, Call::Poll] {
        for nth in 1..=6 {
            let mut bench = Bench::new(Completion::AfterPolls(3));
            bench.network.fail(READER, call, nth);
            let started = bench.start_pieces(6);
            bench.drain();
            assert_eq!(started.error_kind(), Some(ErrorKind::Transfer), "{call:?} {nth}");
            assert!(!started.is_pinned(), "{call:?} {nth}");
            assert!(bench.owner().notifications().unwrap().is_empty(), "{call:?} {nth}");
            if let (Call::Post | Call::Prepare, Some(posts)) = (call, nth.checked_sub(1)) {
                let good = bench.network.count(|event| matches!(event, Event::Done(..)));
                assert_eq!(
                    good, posts,
                    "{call:?} {nth}: what was posted before is driven to its end"
                );
            }
            let next = bench.start_pieces(1);
            bench.drain();
            assert_eq!(next.status(), Status::Complete, "{call:?} {nth}");
            bench.assert_rules_kept();
        }
    }
}

#[test]
fn after_a_failure_no_piece_is_posted() {
    let mut bench = Bench::new(Completion::Held);
    bench.network.fail(READER, Call::Post, 3);
    let started = bench.start_pieces(9);
    bench.ticks(50);
    assert_eq!(bench.posted().len(), 3);
    assert_eq!(started.status(), Status::Errored);
    assert!(started.is_pinned(), "two pieces still move");
    bench.drain();
    assert_eq!(bench.posted().len(), 3);
    bench.assert_rules_kept();
}

#[test]
fn memory_under_a_failed_piece_of_many_descriptors_stays_pinned() {
    for call in [Call::Post, Call::Poll] {
        let mut bench = Bench::new(Completion::AfterPolls(2));
        let remote = range(REMOTE, 4096);
        let metadata = bench.exposed(remote);
        bench.network.fail(READER, call, 1);
        let halves = [range(REMOTE, 2048), range(REMOTE + 2048, 2048)];
        let (started, transfer) = bench.transfer(&metadata, &halves);
        bench.lane.add(transfer);
        bench.drain();
        assert_eq!(started.error_kind(), Some(ErrorKind::Transfer));
        assert!(started.is_pinned(), "another descriptor of the piece may still move");
        assert_eq!((bench.lane.unquiet(), bench.lane.is_quiet()), (2, false));
        bench.assert_rules_kept();
        std::mem::forget(bench);
    }
}

/// NIXL does not find what lies behind a region inside of another one, but it finds the whole.
#[test]
fn memory_with_another_registration_inside_moves_in_one_request() {
    let mut bench = Bench::new(Completion::AfterPolls(1));
    let remote = range(REMOTE, 9 * PIECE.bytes);
    let metadata = bench.exposed(remote);
    let inner = LocalMemory {
        range: range(LOCAL + 4096, 4096),
        keep_alive: None,
    };
    // Before the start, or in the middle.
    for ticks in [0, 1, 3] {
        bench.next_local = LOCAL;
        let started = bench.start(&metadata, remote);
        bench.ticks(ticks);
        let region = bench.regions.acquire(&inner).unwrap();
        bench.drain();
        assert_eq!(started.status(), Status::Complete, "{:?}", started.operation.outcome());
        assert_eq!(started.operation.bytes_done(), remote.len.0);
        drop(region);
    }
    assert_eq!(bench.owner().notifications().unwrap().len(), 3);
    bench.assert_rules_kept();
}

#[test]
fn an_exposed_list_may_hold_a_region_and_a_part_of_it() {
    let mut bench = Bench::new(Completion::Inline);
    let (whole, part) = (range(REMOTE, 3 * PIECE.bytes), range(REMOTE + 4096, 4096));
    for range in [whole, part] {
        bench.owner().register(range).unwrap();
    }
    let text = bench.owner().metadata(&[whole, part], false).unwrap();
    let metadata = Arc::new(RemoteMetadata::decode(&text).unwrap());
    let (started, transfer) = bench.transfer(&metadata, &[part, whole, part]);
    bench.lane.add(transfer);
    bench.drain();
    assert_eq!(started.status(), Status::Complete, "{:?}", started.operation.outcome());
    assert_eq!(started.operation.bytes_done(), whole.len.0 + 2 * part.len.0);
    bench.assert_rules_kept();
}

#[test]
fn a_refused_registration_is_the_outcome_and_leaves_nothing_behind() {
    let mut bench = Bench::new(Completion::Inline);
    let remote = range(REMOTE, 4096);
    let metadata = bench.exposed(remote);
    bench.network.fail(READER, Call::Register, 2);
    let halves = [range(REMOTE, 2048), range(REMOTE + 2048, 2048)];
    let (started, transfer) = bench.transfer(&metadata, &halves);
    bench.lane.add(transfer);
    bench.drain();
    assert_eq!(started.error_kind(), Some(ErrorKind::Registration));
    assert!(!started.is_pinned() && bench.network.registered(READER).is_empty());
    // The peer is not left in use: what conflicts can be loaded.
    let renewed = bench.exposed(remote);
    let next = bench.start(&renewed, remote);
    bench.drain();
    assert_eq!(next.status(), Status::Complete);
    bench.assert_rules_kept();
}

#[test]
fn a_refused_load_is_the_outcome() {
    let mut bench = Bench::new(Completion::Inline);
    bench.network.fail(READER, Call::Load, 1);
    let started = bench.start_pieces(1);
    bench.drain();
    assert_eq!(started.error_kind(), Some(ErrorKind::Metadata));
    assert!(!started.is_pinned());
}

#[test]
fn a_small_transfer_of_a_known_peer_ends_inline() {
    let mut bench = Bench::new(Completion::Inline);
    let remote = range(REMOTE, 4096);
    let metadata = bench.exposed(remote);
    let (_, transfer) = bench.transfer(&metadata, &[remote]);
    assert!(!bench.lane.takes_inline(&transfer), "a load takes long");
    let _ = bench.start(&metadata, remote);
    bench.drain();
    let (started, transfer) = bench.transfer(&metadata, &[remote]);
    assert!(bench.lane.takes_inline(&transfer));
    assert!(bench.lane.run_inline(transfer, std::time::Duration::MAX));
    assert_eq!(started.status(), Status::Complete);
    assert!(!started.is_pinned());
    let (big, big_transfer) = {
        let remote = range(REMOTE + (1 << 30), 1 << 20);
        let metadata = bench.exposed(remote);
        bench.transfer(&metadata, &[remote])
    };
    assert!(!bench.lane.takes_inline(&big_transfer));
    assert_eq!(big.status(), Status::Initialized);
}

#[test]
fn an_inline_transfer_that_runs_out_of_time_is_left_to_the_lane() {
    let mut bench = Bench::new(Completion::Inline);
    let remote = range(REMOTE, 4096);
    let metadata = bench.exposed(remote);
    let _ = bench.start(&metadata, remote);
    bench.drain();
    bench.network.set_completion(Completion::Held);
    let (started, transfer) = bench.transfer(&metadata, &[remote]);
    assert!(!bench.lane.run_inline(transfer, std::time::Duration::ZERO));
    assert_eq!((bench.lane.transfers(), started.status()), (1, Status::InProgress));
    bench.drain();
    assert_eq!(started.status(), Status::Complete);
    bench.assert_rules_kept();
}

#[test]
fn closing_fails_the_queue_and_drives_what_moves() {
    let mut bench = Bench::new(Completion::Held);
    let moving = bench.start_pieces(2);
    bench.ticks(1);
    let remote = range(REMOTE + (1 << 30), 64);
    let metadata = bench.exposed(remote);
    let queued = bench.start(&metadata, remote);
    let waiting = Operation::new(Direction::Write, OperationKey::random(), None, 1);
    bench.ledger.open(&Record::new(&waiting, 1, None));
    bench.lane.begin_close();
    let late = bench.start(&metadata, remote);
    for started in [&moving, &queued, &late] {
        assert_eq!(started.error_kind(), Some(ErrorKind::Closed));
    }
    assert!(matches!(waiting.outcome(), Some(Outcome::Failed(error)) if error.kind() == ErrorKind::Closed));
    bench.ticks(20);
    assert_eq!(bench.posted().len(), 1);
    assert!(moving.is_pinned() && !bench.lane.is_quiet());
    bench.drain();
    assert!(!moving.is_pinned() && !queued.is_pinned() && !late.is_pinned());
    assert!(bench.lane.is_quiet() && bench.regions.is_empty());
    bench.assert_rules_kept();
}

#[test]
fn an_exposure_that_comes_after_the_close_ends_at_once() {
    let mut bench = Bench::new(Completion::Inline);
    bench.lane.begin_close();
    let late = Operation::new(Direction::Write, OperationKey::random(), None, 1);
    bench.ledger.open(&Record::new(&late, 1, None));
    assert!(
        matches!(late.outcome(), Some(Outcome::Failed(error)) if error.kind() == ErrorKind::Closed),
        "nobody would ever end it"
    );
    assert_eq!(bench.ledger.waiting(), 0);
}

const STALL: Duration = Duration::from_secs(2);

/// Starts a transfer that may not stand still, and looks at it once a second.
fn look_each_second(completion: Completion) -> Started {
    let mut bench = Bench::new(completion);
    bench.limits.stall = Some(STALL);
    let started = bench.start_pieces(9);
    let start = Instant::now();
    for second in 0..12 {
        bench.lane.tick_at(|| start + Duration::from_secs(second));
    }
    bench.drain();
    started
}

#[test]
fn a_transfer_that_moves_within_its_posts_does_not_stand_still() {
    assert_eq!(look_each_second(Completion::Inline).status(), Status::Complete);
    assert_eq!(
        look_each_second(Completion::Held).error_kind(),
        Some(ErrorKind::Timeout)
    );
}

#[test]
fn what_has_ended_by_the_deadline_counts_before_it() {
    for (released, expected) in [(1, Status::Complete), (0, Status::Errored)] {
        let mut bench = Bench::new(Completion::Held);
        bench.limits.timeout = Some(STALL);
        let started = bench.start_pieces(1);
        let start = Instant::now();
        bench.lane.tick_at(|| start);
        assert_eq!(bench.network.release(released), released);
        bench.lane.tick_at(|| start + STALL);
        assert_eq!(started.status(), expected);
        bench.drain();
    }
}
