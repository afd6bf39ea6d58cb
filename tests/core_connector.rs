//! Connectors on the fake wire, from outside: lanes, threads and endings, with real copies between two connectors.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use dynamo_nixl::connector::{BeginOptions, Connector};
use dynamo_nixl::error::ErrorKind;
use dynamo_nixl::handle::OperationHandle;
use dynamo_nixl::operation::{CompletionSink, Phase, Status, next_ticket};
use dynamo_nixl::settings::Settings;
use dynamo_nixl::transport::AgentFlavor;
use dynamo_nixl::transport::fake::{Call, Completion, Event, FakeNetwork, FakeOwner};
use dynamo_nixl::types::{Direction, MemoryRange, OperationKey};
use dynamo_nixl::wire::{self, Encoding};
use support::memory::{Buffer, address_only};
use support::{LIMIT, error_kind, eventually};

/// Two connectors on one network that copies bytes.
fn pair() -> (FakeNetwork, Connector, Connector) {
    let network = FakeNetwork::new();
    // SAFETY: these tests register nothing but `Buffer`s, which a registration keeps alive, and the connectors the pages
    // of their words, likewise.
    unsafe { network.copy_bytes() };
    let connector = |name| Connector::with_factory(name, Settings::default(), network.factory());
    let (reader, owner) = (connector("reader"), connector("owner"));
    (network, reader, owner)
}

fn begin(
    reader: &Connector,
    direction: Direction,
    owner: &OperationHandle,
    remote: &Buffer,
    local: &Buffer,
) -> OperationHandle {
    // A big registration is made on the lane's thread.
    assert!(owner.operation().wait(Phase::Started, Some(LIMIT)));
    let metadata = owner.metadata(Encoding::Base64).unwrap();
    let key = owner.operation().key().clone();
    reader
        .begin(
            direction,
            &metadata,
            key,
            &[remote.range()],
            vec![local.memory()],
            BeginOptions::default(),
        )
        .unwrap()
}

fn finished(handle: &OperationHandle) -> Status {
    assert!(
        handle.operation().wait(Phase::Finished, Some(LIMIT)),
        "{handle:?} does not end"
    );
    handle.operation().status()
}

#[test]
fn bytes_move_both_ways_and_both_sides_learn_it() {
    let (network, reader, owner) = pair();
    for direction in [Direction::Read, Direction::Write] {
        for len in [1, 4096, (64 << 10) + 1, 9 << 20] {
            let (remote, local) = (Buffer::patterned(len, 1), Buffer::patterned(len, 2));
            let exposed = owner.expose(direction, vec![remote.memory()], None, false).unwrap();
            let moving = begin(&reader, direction, &exposed, &remote, &local);
            assert_eq!(
                (finished(&moving), finished(&exposed)),
                (Status::Complete, Status::Complete)
            );
            assert_eq!(remote.bytes(), local.bytes());
            assert_eq!(moving.operation().bytes_done(), len as u64);
            let expected = if direction == Direction::Read { 1 } else { 2 };
            assert!(local.is_patterned(expected));
        }
    }
    assert!(owner.close(LIMIT) && reader.close(LIMIT));
    assert_eq!(network.violations(), [""; 0]);
}

#[test]
fn an_own_owner_gets_the_control_agent_and_a_foreign_one_the_plain_agent() {
    let network = FakeNetwork::new();
    let connector = Connector::with_factory("reader", Settings::default(), network.factory());
    let mut owner = FakeOwner::new(&network, "owner").unwrap();
    let remote = address_only(0x7000_0000_0000, 4096);
    owner.register(remote).unwrap();
    let begin = |is_foreign| {
        let metadata = owner.metadata(&[remote], is_foreign).unwrap();
        let local = address_only(0x1000_0000_0000, 4096);
        let local = dynamo_nixl::region::LocalMemory {
            range: local,
            keep_alive: None,
        };
        connector
            .begin(
                Direction::Read,
                &metadata,
                OperationKey::random(),
                &[remote],
                vec![local],
                BeginOptions::default(),
            )
            .unwrap()
    };
    let flavors = || -> Vec<(String, AgentFlavor)> {
        let agents = network.agents().into_iter();
        agents
            .map(|(name, flavor)| (name.to_string(), flavor))
            .filter(|(name, _)| name != "owner")
            .collect()
    };
    assert_eq!(finished(&begin(true)), Status::Complete);
    assert_eq!(flavors(), [("reader-plain".to_owned(), AgentFlavor::Plain)]);
    assert_eq!(finished(&begin(false)), Status::Complete);
    assert_eq!(flavors()[0], ("reader".to_owned(), AgentFlavor::SharedMemoryErrors));
    assert_eq!(owner.notifications().unwrap().len(), 2);
    assert_eq!(connector.stats().peers, 2);
    assert!(connector.close(LIMIT));
    assert!(flavors().is_empty());
    assert_eq!(network.violations(), [""; 0]);
}

/// NIXL cannot load a peer again whose load it once refused; another agent can.
#[test]
fn a_peer_that_an_agent_cannot_load_any_more_is_reached_through_a_spare() {
    let (network, reader, owner) = pair();
    let read = |seed| {
        let (remote, local) = (Buffer::patterned(4096, seed), Buffer::patterned(4096, 0));
        let exposed = owner
            .expose(Direction::Read, vec![remote.memory()], None, false)
            .unwrap();
        let moving = begin(&reader, Direction::Read, &exposed, &remote, &local);
        let status = finished(&moving);
        assert_eq!(local.is_patterned(seed), status == Status::Complete);
        // Both stay: a freed address might be used again, and its region then be known.
        (status, remote, exposed)
    };
    network.fail("reader", Call::Load, 1);
    let kept = [read(1), read(2)];
    network.fail("reader-spare-0", Call::Load, 1);
    let kept_too = [read(3), read(4), read(5)];
    let statuses: Vec<Status> = kept.iter().chain(&kept_too).map(|(status, ..)| *status).collect();
    use Status::{Complete, Errored};
    assert_eq!(statuses, [Errored, Complete, Errored, Complete, Complete]);
    let moves = |event: &Event| matches!(event, Event::Posted { bytes: 4096, .. });
    assert_eq!(network.count(moves), 3);
    assert!(owner.close(LIMIT) && reader.close(LIMIT));
}

/// Metadata that nobody can load must not make a connector lose sight of what is under way.
#[test]
fn a_spare_that_is_replaced_is_driven_counted_and_closed() {
    let (network, reader, owner) = pair();
    let other = Connector::with_factory("other", Settings::default(), network.factory());
    let (remote, local) = (Buffer::patterned(12 << 20, 1), Buffer::patterned(12 << 20, 0));
    let exposed = owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    network.fail("reader", Call::Load, 1);
    assert_eq!(
        finished(&begin(&reader, Direction::Read, &exposed, &remote, &local)),
        Status::Errored
    );
    network.set_completion(Completion::Held);
    let moving = begin(&reader, Direction::Read, &exposed, &remote, &local);
    eventually("a piece is posted", || network.in_flight() > 0);

    let (small, target) = (Buffer::patterned(4096, 1), Buffer::patterned(4096, 0));
    let offered = other
        .expose(Direction::Read, vec![small.memory()], None, false)
        .unwrap();
    for agent in ["reader", "reader-spare-0"] {
        network.fail(agent, Call::Load, 1);
        assert_eq!(
            finished(&begin(&reader, Direction::Read, &offered, &small, &target)),
            Status::Errored
        );
    }
    let through_the_next = begin(&reader, Direction::Read, &offered, &small, &target);
    eventually("the next spare moves it", || reader.stats().transfers == 2);
    assert_eq!(moving.operation().status(), Status::InProgress);
    network.release_all();
    assert_eq!(
        (finished(&moving), finished(&through_the_next)),
        (Status::Complete, Status::Complete)
    );
    assert!(local.is_patterned(1));
    drop((moving, through_the_next, exposed, offered));
    assert!(owner.close(LIMIT) && other.close(LIMIT) && reader.close(LIMIT));
    assert!(network.agents().is_empty(), "every agent is closed");
    assert_eq!(network.violations(), [""; 0]);
}

#[test]
fn dropping_the_handle_cancels_and_keeps_the_memory_while_pieces_move() {
    let (network, reader, owner) = pair();
    network.set_completion(Completion::Held);
    let len = 12 << 20;
    let (remote, local) = (Buffer::patterned(len, 1), Buffer::patterned(len, 2));
    let exposed = owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    let moving = begin(&reader, Direction::Read, &exposed, &remote, &local);
    eventually("a piece is posted", || network.in_flight() > 0);
    let operation = Arc::clone(moving.operation());
    drop(moving);
    assert_eq!(operation.status(), Status::Cancelled);
    let weak = local.downgrade();
    drop(local);
    let posted = network.count(|event| matches!(event, Event::Posted { .. }));
    assert_eq!(reader.stats().transfers, 1);
    assert!(weak.strong_count() > 0, "the wire may still write there");
    network.release_all();
    eventually("the wire is done", || {
        reader.stats().transfers == 0 && weak.strong_count() == 0
    });
    // A piece may have been on its way to its post when the cancel came.
    assert!(network.count(|event| matches!(event, Event::Posted { .. })) <= posted + 1);
    assert_eq!(finished(&exposed), Status::Cancelled, "told, and not complete");
    assert!(!exposed.cancel());
    assert!(owner.close(LIMIT) && reader.close(LIMIT));
    assert_eq!(network.violations(), [""; 0]);
}

#[test]
fn closing_in_time_is_quiet_and_past_the_deadline_pins() {
    let (network, reader, owner) = pair();
    network.set_completion(Completion::Held);
    let (remote, local) = (Buffer::patterned(4096, 1), Buffer::patterned(4096, 2));
    let exposed = owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    let moving = begin(&reader, Direction::Read, &exposed, &remote, &local);
    eventually("a piece is posted", || network.in_flight() > 0);
    let weak = local.downgrade();
    drop(local);
    assert!(!reader.close(Duration::from_millis(20)), "a piece still moves");
    assert_eq!(error_kind(&moving), Some(ErrorKind::Closed));
    drop(moving);
    assert!(
        weak.strong_count() > 0,
        "what moves stays pinned for the life of the process"
    );
    // With the page of words that the owner's is read into.
    assert_eq!(network.registered("reader").len(), 2);
    assert!(!reader.close(LIMIT), "a second close cannot make it quiet");
    // It waits for the reader to say that it is done, which it never will, and whose process lives.
    assert!(!owner.close(Duration::from_millis(20)));
    assert_eq!(error_kind(&exposed), Some(ErrorKind::Transfer), "told by the reader");
    assert!(exposed.operation().never_quiet().is_some());
    assert_eq!(network.violations(), [""; 0]);
}

#[test]
fn a_closed_connector_takes_nothing_and_lets_go_of_everything() {
    let (network, reader, owner) = pair();
    let (remote, local) = (Buffer::patterned(4096, 1), Buffer::patterned(4096, 2));
    let exposed = owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    let metadata = exposed.metadata(Encoding::Hex).unwrap();
    let region = reader.register(&local.memory()).unwrap();
    assert!(reader.is_open() && reader.close(LIMIT) && reader.close(LIMIT));
    assert!(!reader.is_open() && !region.is_registered());
    let key = OperationKey::random();
    let refused = reader.begin(
        Direction::Read,
        &metadata,
        key,
        &[remote.range()],
        vec![local.memory()],
        BeginOptions::default(),
    );
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(reader.open().unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(reader.register(&local.memory()).unwrap_err().kind(), ErrorKind::Closed);
    let refused = reader.expose(Direction::Read, vec![local.memory()], None, false);
    assert_eq!(refused.unwrap_err().kind(), ErrorKind::Closed);
    drop((region, exposed, owner));
    eventually("the orphaned lane ends", || network.agents().is_empty());
    assert_eq!(network.violations(), [""; 0]);
}

#[test]
fn operations_outlive_their_connector() {
    let (network, reader, owner) = pair();
    let (remote, local) = (Buffer::patterned(4096, 1), Buffer::patterned(4096, 2));
    let exposed = owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    drop(owner);
    let moving = begin(&reader, Direction::Read, &exposed, &remote, &local);
    drop(reader);
    assert_eq!(
        (finished(&moving), finished(&exposed)),
        (Status::Complete, Status::Complete)
    );
    drop((moving, exposed));
    eventually("the lanes end", || network.agents().is_empty());
    assert_eq!(network.violations(), [""; 0]);
}

#[test]
fn an_agent_that_cannot_be_made_fails_everything_with_the_reason_and_is_tried_again() {
    let (network, reader, owner) = pair();
    let (remote, local) = (Buffer::patterned(4096, 1), Buffer::patterned(4096, 2));
    let exposed = owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    for call in [Call::Create, Call::ConnectionInfo] {
        network.fail("reader", call, 1);
        let moving = begin(&reader, Direction::Read, &exposed, &remote, &local);
        assert_eq!(finished(&moving), Status::Errored);
        assert_eq!(error_kind(&moving), Some(ErrorKind::Backend));
        assert!(!reader.is_open());
    }
    network.fail("reader", Call::Create, 1);
    let opened = reader.open();
    assert_eq!(opened.unwrap_err().kind(), ErrorKind::Backend);
    let moving = begin(&reader, Direction::Read, &exposed, &remote, &local);
    assert_eq!(
        (finished(&moving), finished(&exposed)),
        (Status::Complete, Status::Complete)
    );
    assert!(reader.close(LIMIT) && owner.close(LIMIT));
    assert_eq!(network.violations(), [""; 0]);
}

#[test]
fn a_refused_registration_is_the_outcome_of_an_exposure() {
    let (network, _, owner) = pair();
    owner.open().unwrap();
    // Small and big are registered on different threads.
    for len in [4096, 4 << 20] {
        let memory = Buffer::patterned(len, 1);
        network.fail("owner", Call::Register, 1);
        let exposed = owner
            .expose(Direction::Read, vec![memory.memory()], None, false)
            .unwrap();
        assert_eq!(finished(&exposed), Status::Errored);
        assert_eq!(error_kind(&exposed), Some(ErrorKind::Registration));
        assert_eq!(owner.stats().exposures, 0);
    }
    assert!(owner.close(LIMIT));
    assert_eq!(network.violations(), [""; 0]);
}

#[test]
fn an_exposure_keeps_its_registration_until_it_is_ended() {
    let (network, reader, owner) = pair();
    let (remote, local) = (Buffer::patterned(4 << 20, 1), Buffer::patterned(4 << 20, 2));
    let exposed = owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    assert!(exposed.operation().wait(Phase::Started, Some(LIMIT)));
    assert_eq!((owner.stats().exposures, owner.stats().regions), (1, 1));
    assert_eq!(
        finished(&begin(&reader, Direction::Read, &exposed, &remote, &local)),
        Status::Complete
    );
    assert_eq!(finished(&exposed), Status::Complete);
    assert_eq!((owner.stats().exposures, owner.stats().regions), (0, 1));
    drop(exposed);
    eventually("the registration is given back", || owner.stats().regions == 0);
    assert!(owner.close(LIMIT) && reader.close(LIMIT));
    assert!(network.registered("owner").is_empty());
    assert_eq!(network.violations(), [""; 0]);
}

#[test]
fn a_key_used_twice_completes_its_exposure_once() {
    let (network, reader, owner) = pair();
    let (remote, local) = (Buffer::patterned(4096, 1), Buffer::patterned(4096, 2));
    let exposed = owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    let [first, second] = [1, 2].map(|_| {
        let moving = begin(&reader, Direction::Read, &exposed, &remote, &local);
        let ended = (finished(&moving), error_kind(&moving));
        assert_eq!(finished(&exposed), Status::Complete);
        ended
    });
    assert_eq!(first, (Status::Complete, None));
    assert_eq!(second, (Status::Errored, Some(ErrorKind::Stale)));
    assert!(network.deliver("owner", b"\xff\xfe\xfd"));
    assert!(network.deliver("owner", b"nobody's"));
    eventually("all three arrived", || {
        let stats = owner.stats();
        (
            stats.notifications_matched,
            stats.notifications_unknown,
            stats.notifications_malformed,
        ) == (1, 1, 1)
    });
    assert_eq!(exposed.operation().status(), Status::Complete);
}

#[test]
fn what_a_caller_got_wrong_is_refused_before_anything_moves() {
    let (network, reader, owner) = pair();
    let (remote, local) = (Buffer::patterned(4096, 1), Buffer::patterned(4096, 2));
    let exposed = owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    let metadata = exposed.metadata(Encoding::Base64).unwrap();
    let inside = remote.range();
    let outside = MemoryRange {
        addr: dynamo_nixl::types::Addr(inside.addr.0 + 1),
        ..inside
    };
    let begin = |connector: &Connector, metadata: &str, key: &[u8], remote: &[MemoryRange]| {
        let key = OperationKey::new(key.to_vec());
        connector
            .begin(
                Direction::Read,
                metadata,
                key,
                remote,
                vec![local.memory()],
                BeginOptions::default(),
            )
            .unwrap_err()
            .kind()
    };
    assert_eq!(begin(&reader, "nonsense", b"key", &[inside]), ErrorKind::Metadata);
    assert_eq!(begin(&reader, &metadata, b"", &[inside]), ErrorKind::InvalidArgument);
    assert_eq!(begin(&reader, &metadata, b"key", &[]), ErrorKind::InvalidArgument);
    assert_eq!(
        begin(&reader, &metadata, b"key", &[inside, inside]),
        ErrorKind::InvalidArgument
    );
    assert_eq!(begin(&reader, &metadata, b"key", &[outside]), ErrorKind::Metadata);
    assert_eq!(
        begin(&owner, &metadata, b"key", &[inside]),
        ErrorKind::Metadata,
        "its own"
    );
    assert_eq!(
        owner.expose(Direction::Read, vec![], None, false).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
    assert_eq!(
        network.count(|event| matches!(event, Event::Posted { .. } | Event::Loaded(..))),
        0
    );
}

#[test]
fn exposing_while_closing_leaves_nobody_waiting() {
    for round in 0..40 {
        let network = FakeNetwork::new();
        let owner = Connector::with_factory("owner", Settings::default(), network.factory());
        owner.open().unwrap();
        let exposing = {
            let owner = owner.clone();
            std::thread::spawn(move || {
                let mut handles = Vec::new();
                loop {
                    std::thread::yield_now();
                    let len = if handles.len() % 2 == 0 { 0 } else { 64 };
                    let memory = Buffer::patterned(len, 1);
                    match owner.expose(Direction::Read, vec![memory.memory()], None, false) {
                        Ok(handle) => handles.push(handle),
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Closed);
                            return handles;
                        }
                    }
                }
            })
        };
        for _ in 0..round {
            std::thread::yield_now();
        }
        assert!(owner.close(LIMIT));
        for handle in exposing.join().unwrap() {
            assert_eq!(finished(&handle), Status::Errored);
        }
        assert_eq!(network.violations(), [""; 0]);
    }
}

#[test]
fn many_threads_may_use_one_connector() {
    let (network, reader, owner) = pair();
    network.set_completion(Completion::AfterPolls(2));
    std::thread::scope(|scope| {
        for thread in 0..4_u8 {
            let (reader, owner) = (&reader, &owner);
            scope.spawn(move || {
                for round in 0..50 {
                    let len = [1, 4096, 70_000, 5 << 20][(round + usize::from(thread)) % 4];
                    let (remote, local) = (Buffer::patterned(len, thread), Buffer::patterned(len, 99));
                    let exposed = owner
                        .expose(Direction::Read, vec![remote.memory()], None, false)
                        .unwrap();
                    let moving = begin(reader, Direction::Read, &exposed, &remote, &local);
                    if round % 5 == 4 {
                        moving.cancel();
                        assert!(matches!(finished(&moving), Status::Cancelled | Status::Complete));
                    } else {
                        assert_eq!(
                            (finished(&moving), finished(&exposed)),
                            (Status::Complete, Status::Complete)
                        );
                        assert!(local.is_patterned(thread));
                    }
                }
            });
        }
    });
    eventually("everything is quiet", || reader.stats().transfers == 0);
    assert!(reader.close(LIMIT) && owner.close(LIMIT));
    assert_eq!(network.violations(), [""; 0]);
}

#[test]
fn a_panicking_factory_fails_what_waits_for_it() {
    let connector = Connector::with_factory("reader", Settings::default(), Arc::new(|_, _| panic!("on purpose")));
    assert_eq!(connector.open().unwrap_err().kind(), ErrorKind::Backend);
    assert!(connector.close(LIMIT));
}

#[test]
fn a_panic_on_a_lane_ends_every_operation_of_it() {
    struct Panicking;
    impl CompletionSink for Panicking {
        fn arrived(&self, _ticket: u64) {
            panic!("on purpose");
        }
    }
    let (network, reader, owner) = pair();
    network.set_completion(Completion::Held);
    let remote = Buffer::patterned(1 << 20, 1);
    let exposed = owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    let [first, second] = [2, 3].map(|seed| {
        let local = Buffer::patterned(1 << 20, seed);
        begin(&reader, Direction::Read, &exposed, &remote, &local)
    });
    eventually("both move", || network.in_flight() == 2);
    let sink: Arc<dyn CompletionSink> = Arc::new(Panicking);
    assert!(first.operation().watch(Phase::Finished, &sink, next_ticket()));
    network.release(1);
    // Of the first, what follows its bytes; of the second, its bytes.
    let posted = || network.count(|event| matches!(event, Event::Posted { .. }));
    eventually("the first asks and tells", || posted() == 3);
    network.release_all();
    assert_eq!(finished(&second), Status::Errored);
    assert_eq!(first.operation().status(), Status::Complete);
    let again = owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    network.set_completion(Completion::Held);
    let local = Buffer::patterned(1 << 20, 4);
    let late = begin(&reader, Direction::Read, &again, &remote, &local);
    // The lane is gone for good, and a new one takes its place.
    eventually("a new lane moves it", || network.in_flight() > 0);
    network.release_all();
    assert_eq!(finished(&late), Status::Complete);
    assert!(reader.close(LIMIT));
    // Nobody is left who could say that the second transfer is done, and the process lives.
    assert!(!owner.close(Duration::from_millis(100)));
}

#[test]
fn connectors_number_their_exposures_from_a_random_number() {
    // A word of one that was closed may lie where another's does, and must not be taken for that.
    let network = FakeNetwork::new();
    let remote = Buffer::patterned(64, 1);
    let generations: Vec<u64> = (0..4)
        .map(|number| {
            let owner = Connector::with_factory(&format!("owner-{number}"), Settings::default(), network.factory());
            let exposed = owner
                .expose(Direction::Read, vec![remote.memory()], None, false)
                .unwrap();
            assert!(exposed.operation().wait(Phase::Started, Some(LIMIT)));
            let envelope = wire::decode(&exposed.metadata(Encoding::Base64).unwrap()).unwrap();
            drop(exposed);
            assert!(owner.close(LIMIT));
            envelope.trailer.unwrap().generation
        })
        .collect();
    for (index, generation) in generations.iter().enumerate() {
        assert!(*generation > 1 << 32, "small numbers are what other memory holds");
        assert!(!generations[..index].contains(generation));
    }
}
