//! How a peer is noticed to be gone whose process cannot be watched, on the scripted wire.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use dynamo_nixl::connector::{BeginOptions, Connector};
use dynamo_nixl::error::ErrorKind;
use dynamo_nixl::handle::OperationHandle;
use dynamo_nixl::operation::{Outcome, Phase, Status};
use dynamo_nixl::settings::Settings;
use dynamo_nixl::transport::fake::{Call, Completion, Event, FakeNetwork};
use dynamo_nixl::types::{Direction, OperationKey, TransferId};
use dynamo_nixl::wire::{ControlMessage, Encoding};

use support::apart::{Wire, apart, from_elsewhere};
use support::memory::Buffer;
use support::{LIMIT, eventually};

/// Longer than any test waits.
const GRACE: Duration = Duration::from_secs(1000);
/// As short as is allowed.
const SHORT: Duration = Duration::from_millis(100);
/// Long enough for this process to be held up without anybody being taken for lost.
const LONG: Duration = Duration::from_secs(2);
const BYTES: usize = 1 << 20;

const LOST: (Status, Option<ErrorKind>) = (Status::Errored, Some(ErrorKind::PeerLost));
const FAILED: (Status, Option<ErrorKind>) = (Status::Errored, Some(ErrorKind::Transfer));
const DONE: (Status, Option<ErrorKind>) = (Status::Complete, None);

/// A reader, an owner, and a transfer between them that stands still. Each takes the other for a process elsewhere.
struct Bench {
    network: FakeNetwork,
    wire: Arc<Wire>,
    reader: Connector,
    owner: Connector,
    exposed: OperationHandle,
    moving: OperationHandle,
    _buffers: [Arc<Buffer>; 2],
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let network = FakeNetwork::new();
        // SAFETY: these tests register nothing but `Buffer`s, which a registration keeps alive, and the connectors the
        // pages of their words, likewise.
        unsafe { network.copy_bytes() };
        let wire = Arc::<Wire>::default();
        let settings = Settings {
            grace: GRACE,
            ..settings
        };
        let [reader, owner] =
            ["reader", "owner"].map(|name| Connector::with_factory(name, settings, apart(network.factory(), &wire)));
        let [remote, local] = [1, 2].map(|seed| Arc::new(Buffer::patterned(BYTES, seed)));
        let memory = vec![remote.memory()];
        let exposed = owner.expose(Direction::Read, memory, settings.lease, false).unwrap();
        assert!(exposed.operation().wait(Phase::Started, Some(LIMIT)));
        let metadata = from_elsewhere(&exposed.metadata(Encoding::Base64).unwrap());
        network.set_completion(Completion::Held);
        let key = exposed.operation().key().clone();
        let (ranges, memory) = ([remote.range()], vec![local.memory()]);
        let moving = reader
            .begin(
                Direction::Read,
                &metadata,
                key,
                &ranges,
                memory,
                BeginOptions::default(),
            )
            .unwrap();
        eventually("a request is in flight", || network.in_flight() == 1);
        eventually("the owner knows of it", || owner.stats().messages_received == 1);
        Self {
            network,
            wire,
            reader,
            owner,
            exposed,
            moving,
            _buffers: [remote, local],
        }
    }

    fn asking(keepalive: Duration) -> Self {
        Self::new(Settings {
            keepalive: Some(keepalive),
            ..Settings::default()
        })
    }

    /// Lets so many more pings be sent.
    fn await_pings(&self, count: usize) {
        let target = self.wire.pings() + count;
        eventually("peers are asked", || self.wire.pings() >= target);
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
            "long before the grace is over"
        );
        self.close();
    }

    fn close(self) {
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
fn a_reader_that_answers_is_not_lost_and_outlasts_the_lease() {
    let bench = Bench::new(Settings {
        keepalive: Some(LONG),
        lease: Some(LONG * 3 / 2),
        ..Settings::default()
    });
    bench.await_pings(3);
    eventually("both have said something", || {
        bench.owner.stats().messages_received >= 3
    });
    assert_eq!(bench.exposed.operation().status(), Status::Initialized);
    bench.network.release_all();
    assert_eq!((end(&bench.moving), end(&bench.exposed)), (DONE, DONE));
    bench.finish();
}

#[test]
fn a_reader_that_does_not_answer_is_lost_and_its_memory_is_not_let_go() {
    let bench = Bench::asking(SHORT);
    bench.wire.cut();
    assert_eq!(end(&bench.exposed), LOST);
    assert_eq!(bench.moving.operation().status(), Status::InProgress);
    assert!(!bench.exposed.operation().is_quiet());
    assert_eq!(bench.owner.stats().exposures_in_grace, 1);
    // It is back, finds that it has come too late, and says that it is done.
    bench.wire.mend();
    bench.network.release_all();
    assert_eq!(end(&bench.moving), (Status::Errored, Some(ErrorKind::Transfer)));
    bench.finish();
}

#[test]
fn an_outage_that_is_short_enough_is_none() {
    let bench = Bench::asking(LONG);
    bench.await_pings(1);
    bench.wire.cut();
    eventually("a ping is lost", || bench.wire.lost() > 0);
    bench.wire.mend();
    let heard = bench.owner.stats().messages_received;
    eventually("the next one is answered", || {
        bench.owner.stats().messages_received > heard
    });
    bench.await_pings(3);
    assert_eq!(bench.exposed.operation().status(), Status::Initialized);
    bench.network.release_all();
    assert_eq!((end(&bench.moving), end(&bench.exposed)), (DONE, DONE));
    bench.finish();
}

#[test]
fn nobody_is_asked_without_a_keepalive() {
    let bench = Bench::new(Settings {
        keepalive: None,
        ..Settings::default()
    });
    bench.wire.cut();
    std::thread::sleep(8 * SHORT);
    assert_eq!(bench.exposed.operation().status(), Status::Initialized);
    bench.wire.mend();
    bench.network.fail("reader", Call::Poll, 1);
    assert_eq!((end(&bench.moving), end(&bench.exposed)), (FAILED, FAILED));
    assert_eq!(bench.wire.pings(), 0);
    bench.finish();
}

#[test]
fn nobody_is_asked_once_all_is_said() {
    let bench = Bench::asking(SHORT);
    bench.network.release_all();
    assert_eq!((end(&bench.moving), end(&bench.exposed)), (DONE, DONE));
    eventually("nobody is known to be at work", || {
        let pings = bench.wire.pings();
        std::thread::sleep(8 * SHORT);
        bench.wire.pings() == pings
    });
    bench.finish();
}

#[test]
fn a_reader_whose_process_is_gone_is_lost() {
    let bench = Bench::asking(SHORT);
    bench.network.kill("reader");
    assert_eq!(end(&bench.exposed), LOST);
    assert_eq!(bench.owner.stats().exposures_in_grace, 1);
}

#[test]
fn an_owner_that_has_missed_the_end_of_a_transfer_learns_of_it() {
    let bench = Bench::asking(LONG);
    bench.wire.cut();
    bench.moving.cancel();
    bench.network.release_all();
    assert!(bench.moving.operation().wait(Phase::Quiet, Some(LIMIT)));
    eventually("its last words are lost", || bench.wire.lost() >= 2);
    bench.wire.mend();
    assert_eq!(end(&bench.exposed), FAILED);
    bench.finish();
}

#[test]
fn an_owner_that_lives_is_not_lost_with_the_connection() {
    let bench = Bench::asking(LONG);
    bench.network.fail("reader", Call::Poll, 1);
    assert_eq!((end(&bench.moving), end(&bench.exposed)), (FAILED, FAILED));
    let reloads = |event: &Event| matches!(event, Event::Dropped(agent, _) if agent.as_str() == "reader");
    assert_eq!(bench.network.count(reloads), 1);
    bench.finish();
}

#[test]
fn an_owner_that_is_gone_is_lost() {
    let bench = Bench::asking(LONG);
    bench.network.kill("owner");
    assert_eq!(end(&bench.moving), LOST);
    assert!(bench.moving.operation().wait(Phase::Quiet, Some(LIMIT)) && bench.moving.operation().is_quiet());
}

#[test]
fn an_owner_that_is_silent_behind_a_broken_connection_is_lost() {
    let bench = Bench::asking(SHORT);
    bench.wire.cut();
    bench.network.fail("reader", Call::Poll, 1);
    assert_eq!(end(&bench.moving), LOST);
    assert_eq!(end(&bench.exposed), LOST);
    bench.wire.mend();
    drop(bench);
}

#[test]
fn an_inquiry_is_over_with_the_transfers_limits() {
    let bench = Bench::new(Settings {
        keepalive: Some(GRACE),
        stall_timeout: Some(SHORT),
        ..Settings::default()
    });
    assert_eq!(
        end(&bench.moving),
        (Status::Errored, Some(ErrorKind::Timeout)),
        "nothing has failed"
    );
    bench.finish();
    let bench = Bench::new(Settings {
        keepalive: Some(GRACE),
        stall_timeout: Some(LONG),
        ..Settings::default()
    });
    bench.wire.cut();
    bench.network.fail("reader", Call::Poll, 1);
    assert_eq!(end(&bench.moving), FAILED);
}

#[test]
fn closing_does_not_wait_for_an_answer() {
    let bench = Bench::asking(GRACE);
    bench.wire.cut();
    bench.network.fail("reader", Call::Poll, 1);
    bench.await_pings(1);
    assert!(bench.reader.close(LIMIT));
    assert_eq!(end(&bench.moving), (Status::Errored, Some(ErrorKind::Closed)));
}

#[test]
fn pings_of_strangers_load_nobody_and_are_not_answered() {
    let bench = Bench::asking(GRACE);
    let loads = |event: &Event| matches!(event, Event::Loaded(..));
    let sent = |event: &Event| matches!(event, Event::Notified(..));
    let before = (bench.network.count(loads), bench.network.count(sent));
    for operation in [bench.exposed.operation().key().clone(), OperationKey::new("of nobody")] {
        let ping = ControlMessage::Ping {
            operation,
            transfer: TransferId(1),
            nonce: 1,
        };
        let ping = ping.encode().unwrap();
        for name in ["reader", "owner"] {
            let heard = || bench.owner.stats().messages_received + bench.reader.stats().messages_received;
            let target = heard() + 1000;
            for _ in 0..1000 {
                assert!(bench.network.deliver(name, &ping));
            }
            eventually("they are heard", || heard() == target);
        }
    }
    assert_eq!((bench.network.count(loads), bench.network.count(sent)), before);
    assert_eq!(bench.wire.pings(), 0);
    bench.network.release_all();
    assert_eq!((end(&bench.moving), end(&bench.exposed)), (DONE, DONE));
    bench.finish();
}
