//! How operations end on both sides where both are ours, on the scripted wire.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

mod support;

use std::process::Command;
use std::sync::Arc;
use std::time::Duration;

use dynamo_nixl::connector::{BeginOptions, Connector};
use dynamo_nixl::error::ErrorKind;
use dynamo_nixl::handle::OperationHandle;
use dynamo_nixl::operation::{Outcome, Phase, Status};
use dynamo_nixl::settings::Settings;
use dynamo_nixl::transport::fake::{Call, Completion, Event, FakeNetwork};
use dynamo_nixl::types::{Direction, ProcessId};
use dynamo_nixl::wire::{self, ControlMessage, Encoding, Envelope, Incoming};

use support::memory::Buffer;
use support::{LIMIT, eventually};

/// Longer than any test waits: what becomes quiet before has been confirmed by its peer.
const GRACE: Duration = Duration::from_secs(1000);
const BYTES: usize = 1 << 20;

/// A reader, an owner, and a transfer between them that stands still.
struct Bench {
    network: FakeNetwork,
    reader: Connector,
    owner: Connector,
    exposed: OperationHandle,
    moving: OperationHandle,
    buffers: [Arc<Buffer>; 2],
}

impl Bench {
    fn new(direction: Direction, settings: Settings, timeout: Option<Duration>) -> Self {
        let network = FakeNetwork::new();
        // SAFETY: these tests register nothing but `Buffer`s, which a registration keeps alive, and the connectors the
        // pages of their words, likewise.
        unsafe { network.copy_bytes() };
        let settings = Settings {
            grace: GRACE,
            ..settings
        };
        let [reader, owner] =
            ["reader", "owner"].map(|name| Connector::with_factory(name, settings, network.factory()));
        let [remote, local] = [1, 2].map(|seed| Arc::new(Buffer::patterned(BYTES, seed)));
        let exposed = owner
            .expose(direction, vec![remote.memory()], settings.lease, false)
            .unwrap();
        assert!(exposed.operation().wait(Phase::Started, Some(LIMIT)));
        let metadata = exposed.metadata(Encoding::Base64).unwrap();
        network.set_completion(Completion::Held);
        let key = exposed.operation().key().clone();
        let moving = reader
            .begin(
                direction,
                &metadata,
                key,
                &[remote.range()],
                vec![local.memory()],
                BeginOptions { timeout, verify: false },
            )
            .unwrap();
        eventually("a request is in flight", || network.in_flight() == 1);
        eventually("the owner knows of it", || owner.stats().messages_received == 1);
        Self {
            network,
            reader,
            owner,
            exposed,
            moving,
            buffers: [remote, local],
        }
    }

    fn read() -> Self {
        Self::new(Direction::Read, Settings::default(), None)
    }

    /// Lets everything move again, and checks that both memories are let go and nothing broke a rule.
    fn finish(self) {
        self.network.release_all();
        for handle in [&self.exposed, &self.moving] {
            assert!(handle.operation().wait(Phase::Quiet, Some(LIMIT)) && handle.operation().is_quiet());
        }
        assert_eq!(
            self.owner.stats().exposures_in_grace,
            0,
            "the reader has confirmed that it is done"
        );
        drop((self.exposed, self.moving));
        assert!(self.reader.close(LIMIT) && self.owner.close(LIMIT));
        assert_eq!(self.network.violations(), [""; 0]);
    }
}

/// How an operation ends, and for what kind of reason.
fn end(handle: &OperationHandle) -> (Status, Option<ErrorKind>) {
    assert!(handle.operation().wait(Phase::Finished, Some(LIMIT)));
    let outcome = handle.operation().outcome();
    let kind = outcome.as_ref().and_then(Outcome::error).map(|error| error.kind());
    (handle.operation().status(), kind)
}

#[test]
fn a_cancelled_transfer_ends_its_exposure_and_confirms_when_it_is_quiet() {
    let bench = Bench::read();
    assert!(bench.moving.cancel());
    assert_eq!(
        end(&bench.exposed),
        (Status::Cancelled, Some(ErrorKind::CancelledByPeer))
    );
    assert!(
        !bench.exposed.operation().is_quiet() && !bench.moving.operation().is_quiet(),
        "a request is still in flight"
    );
    assert_eq!(bench.owner.stats().exposures_in_grace, 1);
    bench.finish();
}

#[test]
fn a_cancelled_exposure_ends_its_transfer() {
    for direction in [Direction::Read, Direction::Write] {
        let bench = Bench::new(direction, Settings::default(), None);
        assert!(bench.exposed.cancel());
        assert_eq!(
            end(&bench.moving),
            (Status::Cancelled, Some(ErrorKind::CancelledByPeer))
        );
        assert!(!bench.exposed.operation().is_quiet());
        bench.finish();
    }
}

#[test]
fn a_deadline_on_one_side_ends_both() {
    let bench = Bench::new(Direction::Read, Settings::default(), Some(Duration::from_millis(50)));
    assert_eq!(end(&bench.moving), (Status::Errored, Some(ErrorKind::Timeout)));
    assert_eq!(end(&bench.exposed), (Status::Errored, Some(ErrorKind::Transfer)));
    bench.finish();
}

#[test]
fn a_transfer_that_stands_still_ends() {
    let settings = Settings {
        stall_timeout: Some(Duration::from_millis(50)),
        ..Settings::default()
    };
    let bench = Bench::new(Direction::Write, settings, None);
    assert_eq!(end(&bench.moving), (Status::Errored, Some(ErrorKind::Timeout)));
    assert_eq!(end(&bench.exposed), (Status::Errored, Some(ErrorKind::Transfer)));
    bench.finish();
}

#[test]
fn a_lease_is_held_open_for_a_transfer_that_is_at_work() {
    let settings = Settings {
        lease: Some(Duration::from_millis(100)),
        ..Settings::default()
    };
    let bench = Bench::new(Direction::Read, settings, None);
    std::thread::sleep(Duration::from_millis(400));
    assert_eq!(bench.exposed.operation().status(), Status::Initialized);
    bench.network.release_all();
    assert_eq!(end(&bench.moving), (Status::Complete, None));
    assert_eq!(end(&bench.exposed), (Status::Complete, None));
    bench.finish();
}

#[test]
fn a_lost_wire_ends_both() {
    let bench = Bench::read();
    bench.network.fail("reader", Call::Poll, 1);
    assert_eq!(end(&bench.moving), (Status::Errored, Some(ErrorKind::Transfer)));
    assert_eq!(end(&bench.exposed), (Status::Errored, Some(ErrorKind::Transfer)));
    bench.finish();
}

#[test]
fn closing_either_side_tells_the_other() {
    for closes_reader in [true, false] {
        let bench = Bench::read();
        let (closed, other, closing) = if closes_reader {
            (&bench.moving, &bench.exposed, &bench.reader)
        } else {
            (&bench.exposed, &bench.moving, &bench.owner)
        };
        closing.begin_close(LIMIT);
        assert_eq!(end(closed), (Status::Errored, Some(ErrorKind::Closed)));
        assert_eq!(end(other), (Status::Errored, Some(ErrorKind::Transfer)));
        bench.finish();
    }
}

#[test]
fn with_two_transfers_the_first_that_leaves_ends_nothing() {
    let bench = Bench::read();
    let buffer = Buffer::patterned(BYTES, 3);
    let second = Connector::with_factory("second", Settings::default(), bench.network.factory());
    let metadata = bench.exposed.metadata(Encoding::Hex).unwrap();
    let key = bench.exposed.operation().key().clone();
    let remote = bench.buffers[0].range();
    let other = second
        .begin(
            Direction::Read,
            &metadata,
            key,
            &[remote],
            vec![buffer.memory()],
            BeginOptions::default(),
        )
        .unwrap();
    eventually("the owner knows of both", || bench.owner.stats().messages_received == 2);
    assert!(other.cancel());
    eventually("the owner was told", || bench.owner.stats().messages_received == 3);
    assert_eq!(bench.exposed.operation().status(), Status::Initialized);
    bench.network.release_all();
    assert_eq!(end(&bench.moving), (Status::Complete, None));
    assert_eq!(end(&bench.exposed), (Status::Complete, None));
    drop(other);
    assert!(second.close(LIMIT));
    bench.finish();
}

/// How often it was said that this transfer has begun.
fn hellos(network: &FakeNetwork, transfer: &OperationHandle) -> usize {
    network.count(|event| {
        let Event::Notified(_, message) = event else {
            return false;
        };
        let Ok(Incoming::Message { message, .. }) = ControlMessage::decode(message) else {
            return false;
        };
        matches!(message, ControlMessage::Hello { operation, .. } if operation == *transfer.operation().key())
    })
}

#[test]
fn the_exposure_is_asked_for_once_more_behind_the_hello() {
    let bench = Bench::read();
    let posted = || bench.network.count(|event| matches!(event, Event::Posted { .. }));
    for question in 1..=2 {
        eventually("it is asked", || posted() == question && bench.network.in_flight() == 1);
        assert_eq!(hellos(&bench.network, &bench.moving), 1);
        assert_eq!(bench.moving.operation().bytes_done(), 0);
        bench.network.release(1);
    }
    eventually("its bytes move", || posted() == 3);
    bench.network.release(1);
    eventually("they have moved", || {
        bench.moving.operation().bytes_done() == BYTES as u64
    });
    bench.network.release_all();
    assert_eq!(end(&bench.moving), (Status::Complete, None));
    bench.finish();
}

#[test]
fn only_the_transfer_that_breaks_the_connection_fails() {
    let bench = Bench::read();
    let [remote, local] = [4, 5].map(|seed| Buffer::patterned(BYTES, seed));
    let exposed = bench
        .owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    assert!(exposed.operation().wait(Phase::Started, Some(LIMIT)));
    let metadata = exposed.metadata(Encoding::Base64).unwrap();
    let key = exposed.operation().key().clone();
    let options = BeginOptions::default();
    let sibling = bench
        .reader
        .begin(
            Direction::Read,
            &metadata,
            key,
            &[remote.range()],
            vec![local.memory()],
            options,
        )
        .unwrap();
    eventually("both are in flight", || bench.network.in_flight() == 2);
    bench.network.fail("reader", Call::Poll, 1);
    // Which of the two is asked for next, and breaks the connection, is the lane's affair.
    let ended = |handle: &OperationHandle| handle.operation().is_finished();
    eventually("one of them has failed", || ended(&bench.moving) || ended(&sibling));
    let pairs = [
        (&bench.moving, &bench.exposed, (&*bench.buffers[1], 1)),
        (&sibling, &exposed, (&local, 4)),
    ];
    let [culprit, other] = if ended(&bench.moving) {
        pairs
    } else {
        [pairs[1], pairs[0]]
    };
    assert_eq!(end(culprit.0), (Status::Errored, Some(ErrorKind::Transfer)));
    // What was in flight beside it fails as well, since the connection is one.
    bench.network.fail("reader", Call::Poll, 1);
    let reloaded = |event: &Event| matches!(event, Event::Dropped(agent, _) if agent.as_str() == "reader");
    eventually("the owner is loaded anew", || bench.network.count(reloaded) == 1);
    bench.network.release_all();
    assert_eq!(end(other.0), (Status::Complete, None));
    assert_eq!(end(other.1), (Status::Complete, None));
    let (memory, seed) = other.2;
    assert!(memory.is_patterned(seed));
    assert_eq!(
        hellos(&bench.network, other.0),
        2,
        "the first one may have been lost with the connection"
    );
    assert_eq!(end(culprit.1), (Status::Errored, Some(ErrorKind::Transfer)));
    drop((sibling, exposed));
    bench.finish();
}

/// The same metadata, as of an owner that runs in another process.
fn owned_by(metadata: &str, owner: &std::process::Child) -> String {
    let Envelope { blob, trailer, .. } = wire::decode(metadata).unwrap();
    let mut trailer = trailer.unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", owner.id())).unwrap();
    let start: u64 = stat
        .rsplit(") ")
        .next()
        .unwrap()
        .split(' ')
        .nth(19)
        .unwrap()
        .parse()
        .unwrap();
    trailer.process = Some(ProcessId {
        pid: owner.id(),
        start: u32::try_from(start & 0xffff_ffff).unwrap(),
        ..trailer.process.unwrap()
    });
    wire::encode(&blob, Some(&trailer), Encoding::Base64).unwrap()
}

#[test]
fn a_transfer_whose_dead_owner_nothing_tells_of_is_quiet_in_the_end() {
    let network = FakeNetwork::new();
    // SAFETY: as in `Bench::new`.
    unsafe { network.copy_bytes() };
    let settings = Settings::default();
    let [reader, owner] = ["reader", "owner"].map(|name| Connector::with_factory(name, settings, network.factory()));
    let [remote, local] = [1, 2].map(|seed| Buffer::patterned(BYTES, seed));
    let exposed = owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    assert!(exposed.operation().wait(Phase::Started, Some(LIMIT)));
    let mut process = Command::new("sleep").arg("600").spawn().unwrap();
    let metadata = owned_by(&exposed.metadata(Encoding::Base64).unwrap(), &process);
    network.set_completion(Completion::Held);
    let key = exposed.operation().key().clone();
    let memory = vec![local.memory()];
    let options = BeginOptions::default();
    let stranded = reader
        .begin(Direction::Read, &metadata, key, &[remote.range()], memory, options)
        .unwrap();
    eventually("a request is in flight", || network.in_flight() == 1);
    network.vanish("owner");
    process.kill().unwrap();
    process.wait().unwrap();
    assert_eq!(end(&stranded), (Status::Errored, Some(ErrorKind::PeerLost)));
    assert!(!stranded.operation().is_quiet(), "no request has reported its end");
    assert!(stranded.operation().wait(Phase::Quiet, Some(LIMIT)) && stranded.operation().is_quiet());
    assert!(!network.finds_remote("reader", "owner", &[]), "the peer is dropped");
    drop((stranded, exposed));
    assert!(reader.close(LIMIT));
    // In truth it lives, and would wait for a reader that has no more to say to it.
    owner.close(Duration::ZERO);
    assert_eq!(network.violations(), [""; 0]);
}
