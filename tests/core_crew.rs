//! Big transfers, whose bytes several agents move, on the scripted wire.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use dynamo_nixl::connector::{BeginOptions, Connector};
use dynamo_nixl::error::{Error, ErrorKind};
use dynamo_nixl::handle::OperationHandle;
use dynamo_nixl::operation::{Outcome, Phase, Status};
use dynamo_nixl::settings::Settings;
use dynamo_nixl::transport::TransportFactory;
use dynamo_nixl::transport::fake::{Call, Completion, Event, FakeNetwork, FakeOwner};
use dynamo_nixl::types::{Direction, MemoryRange, OperationKey};
use dynamo_nixl::wire::Encoding;

use support::memory::Buffer;
use support::{LIMIT, eventually};

const BYTES: usize = 40 << 20;
const LANES: usize = 2;
/// Requests of one lane that are in flight together.
const WINDOW: usize = 4;
/// As many bytes in blocks, of which each piece has several.
const BLOCKS: &[usize] = &[BYTES / 160; 160];

/// A reader with its copy lanes open, and an owner.
struct Bench {
    network: FakeNetwork,
    reader: Connector,
    owner: Connector,
}

/// One transfer.
struct Moving {
    exposed: OperationHandle,
    moving: OperationHandle,
    remote: Vec<Arc<Buffer>>,
    local: Vec<Arc<Buffer>>,
}

impl Bench {
    fn new() -> Self {
        Self::with(Settings::default())
    }

    fn with(settings: Settings) -> Self {
        let network = FakeNetwork::new();
        // SAFETY: these tests register nothing but `Buffer`s, which a registration keeps alive, and the connectors the
        // pages of their words, likewise.
        unsafe { network.copy_bytes() };
        let settings = Settings {
            copy_lanes: LANES,
            grace: Duration::from_secs(1000),
            ..settings
        };
        let [reader, owner] =
            ["reader", "owner"].map(|name| Connector::with_factory(name, settings, network.factory()));
        let bench = Self { network, reader, owner };
        // The first one starts the lanes, and does not wait for them.
        bench.begin(Direction::Read, &[BYTES]).ends_well();
        eventually("the copy lanes are open", || bench.network.agents().len() == 2 + LANES);
        eventually("they help", || {
            bench.begin(Direction::Read, &[BYTES]).ends_well();
            bench.moved_by_copy_lanes() > 0
        });
        bench
    }

    fn begin(&self, direction: Direction, sizes: &[usize]) -> Moving {
        let buffers = |seed| -> Vec<Arc<Buffer>> {
            let each = sizes.iter().map(|size| Arc::new(Buffer::patterned(*size, seed)));
            each.collect()
        };
        let (remote, local) = (buffers(1), buffers(2));
        let exposed = self
            .owner
            .expose(
                direction,
                remote.iter().map(|buffer| buffer.memory()).collect(),
                None,
                false,
            )
            .unwrap();
        assert!(exposed.operation().wait(Phase::Started, Some(LIMIT)));
        let ranges: Vec<MemoryRange> = remote.iter().map(|buffer| buffer.range()).collect();
        let moving = self
            .reader
            .begin(
                direction,
                &exposed.metadata(Encoding::Base64).unwrap(),
                exposed.operation().key().clone(),
                &ranges,
                local.iter().map(|buffer| buffer.memory()).collect(),
                BeginOptions::default(),
            )
            .unwrap();
        Moving {
            exposed,
            moving,
            remote,
            local,
        }
    }

    /// One that stands still as soon as its bytes move, with all lanes at work on it.
    fn begin_and_hold(&self, direction: Direction, sizes: &[usize]) -> Moving {
        self.network.set_completion(Completion::Held);
        let posted = || self.network.count(|event| matches!(event, Event::Posted { .. }));
        let before = posted();
        let moving = self.begin(direction, sizes);
        // Once more behind the hello.
        for question in 1..=2 {
            eventually("the owner is asked", || posted() == before + question);
            self.network.release(1);
        }
        eventually("all lanes are at work", || self.network.in_flight() == LANES * WINDOW);
        moving
    }

    /// How many requests the copy lanes have ended well.
    fn moved_by_copy_lanes(&self) -> usize {
        self.network
            .count(|event| matches!(event, Event::Done(agent, _) if agent.as_str().contains("-copy-")))
    }

    /// How many requests an agent has ended well.
    fn ended_at(&self, agent: &str) -> usize {
        self.network
            .count(|event| matches!(event, Event::Done(at, _) if at.as_str() == agent))
    }

    fn finish(self) {
        self.network.release_all();
        eventually("nothing is under way", || self.reader.stats().transfers == 0);
        assert!(self.reader.close(LIMIT) && self.owner.close(LIMIT));
        assert_eq!(self.network.violations(), [""; 0]);
    }
}

impl Moving {
    fn ends_well(&self) {
        assert_eq!(end(&self.moving), (Status::Complete, None));
        assert_eq!(end(&self.exposed), (Status::Complete, None));
        assert!(self.moving.operation().wait(Phase::Quiet, Some(LIMIT)));
        let (from, to) = match self.moving.operation().direction() {
            Direction::Read => ((&self.remote, 1), &self.local),
            Direction::Write => ((&self.local, 2), &self.remote),
        };
        assert!(from.0.iter().chain(to).all(|buffer| buffer.is_patterned(from.1)));
        let total = self.moving.operation().bytes_total();
        assert_eq!(self.moving.operation().bytes_done(), total);
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
fn several_agents_move_the_bytes_of_one_transfer() {
    for direction in [Direction::Read, Direction::Write] {
        let bench = Bench::new();
        let moving = bench.begin_and_hold(direction, &[BYTES, 5, 1000]);
        assert_eq!(bench.reader.stats().transfers, 1, "parts are not counted");
        bench.network.release_all();
        moving.ends_well();
        drop(moving);
        bench.finish();
    }
}

#[test]
fn a_small_transfer_does_without() {
    let bench = Bench::new();
    let before = bench.moved_by_copy_lanes();
    bench.begin(Direction::Read, &[1 << 20]).ends_well();
    assert_eq!(bench.moved_by_copy_lanes(), before);
    bench.finish();
}

#[test]
fn one_that_is_cancelled_is_quiet_when_every_part_is() {
    let bench = Bench::new();
    let moving = bench.begin_and_hold(Direction::Read, &[BYTES]);
    assert!(moving.moving.cancel());
    assert_eq!(
        end(&moving.exposed),
        (Status::Cancelled, Some(ErrorKind::CancelledByPeer))
    );
    for left in (1..=LANES * WINDOW).rev() {
        // And nothing further is posted.
        eventually("some are left", || bench.network.in_flight() == left);
        assert!(!moving.moving.operation().is_quiet() && !moving.exposed.operation().is_quiet());
        bench.network.release(1);
    }
    assert!(moving.moving.operation().wait(Phase::Quiet, Some(LIMIT)) && moving.moving.operation().is_quiet());
    assert!(moving.exposed.operation().wait(Phase::Quiet, Some(LIMIT)) && moving.exposed.operation().is_quiet());
    drop(moving);
    bench.finish();
}

#[test]
fn memory_stays_while_a_part_is_under_way() {
    let bench = Bench::new();
    let Moving {
        exposed, moving, local, ..
    } = bench.begin_and_hold(Direction::Read, &[BYTES]);
    let memory = local[0].downgrade();
    drop((moving, local));
    // All but one.
    bench.network.release(LANES * WINDOW - 1);
    eventually("one is left", || bench.network.in_flight() == 1);
    std::thread::sleep(Duration::from_millis(50));
    assert!(memory.upgrade().is_some());
    bench.network.release_all();
    eventually("it is let go", || memory.upgrade().is_none());
    drop(exposed);
    bench.finish();
}

#[test]
fn where_a_part_fails_all_of_it_is_moved_anew() {
    for call in [Call::Prepare, Call::Post, Call::Register, Call::Load] {
        let bench = Bench::new();
        bench.network.fail("reader-copy-0", call, 1);
        // New memory each time, which is registered and loaded anew.
        for _ in 0..3 {
            bench.begin(Direction::Read, &[BYTES]).ends_well();
        }
        bench.finish();
    }
}

#[test]
fn a_list_that_fails_on_a_copy_lane_stays_pinned() {
    let bench = Bench::new();
    let moving = bench.begin_and_hold(Direction::Read, BLOCKS);
    bench.network.fail("reader-copy-1", Call::Poll, 1);
    bench.network.release_all();
    assert_eq!(end(&moving.moving), (Status::Errored, Some(ErrorKind::Transfer)));
    assert!(moving.moving.operation().wait(Phase::Quiet, Some(LIMIT)));
    assert!(moving.moving.operation().never_quiet().is_some());
    assert!(bench.reader.stats().unquiet_regions > 0);
    assert_eq!(end(&moving.exposed).0, Status::Errored);
}

/// Also where the last of the crew fails at the moment at which the transfer's own lane looks, or it had ended before.
#[test]
fn what_a_part_leaves_pinned_its_transfer_leaves_pinned() {
    for (round, is_cancelled) in [false, true].into_iter().cycle().take(20).enumerate() {
        let bench = Bench::new();
        let moving = bench.begin_and_hold(Direction::Read, BLOCKS);
        if is_cancelled {
            assert!(moving.moving.cancel());
        }
        for lane in ["reader-copy-0", "reader-copy-1"] {
            bench.network.fail(lane, Call::Poll, 1);
        }
        bench.network.release_all();
        assert!(moving.moving.operation().wait(Phase::Quiet, Some(LIMIT)));
        assert!(moving.moving.operation().never_quiet().is_some(), "in round {round}");
    }
}

/// Its lane has lost sight of the peer, which another transfer uses.
#[test]
fn a_part_that_cannot_begin_holds_nobody_up() {
    for is_cancelled in [false, true] {
        let bench = Bench::new();
        let first = bench.begin_and_hold(Direction::Read, &[BYTES]);
        bench.network.fail("reader-copy-0", Call::Poll, 1);
        eventually("a part has failed", || bench.network.in_flight() < LANES * WINDOW);
        if !is_cancelled {
            bench.network.set_completion(Completion::Inline);
        }
        let second = bench.begin(Direction::Read, &[BYTES]);
        if is_cancelled {
            second.moving.cancel();
            // Its own questions are still on their way.
            eventually("it is quiet", || {
                bench.network.release(1);
                second.moving.operation().is_quiet()
            });
        } else {
            second.ends_well();
        }
        bench.network.release_all();
        bench.network.set_completion(Completion::Inline);
        first.ends_well();
        drop((first, second));
        bench.finish();
    }
}

#[test]
fn a_lane_that_cannot_begin_leaves_its_share_to_the_others() {
    for call in [Call::Register, Call::Load] {
        let bench = Bench::new();
        let (by_crew, by_home) = (bench.moved_by_copy_lanes(), bench.ended_at("reader"));
        bench.network.fail("reader-copy-0", call, 1);
        bench.begin(Direction::Read, &[BYTES]).ends_well();
        assert_eq!(bench.moved_by_copy_lanes() - by_crew, BYTES >> 20);
        // Questions: one before the hello at most, two behind it.
        assert!(bench.ended_at("reader") - by_home <= 4);
        bench.finish();
    }
}

#[test]
fn small_ranges_are_moved_alone() {
    let bench = Bench::new();
    let before = bench.moved_by_copy_lanes();
    bench.begin(Direction::Read, &[16 << 10; 600]).ends_well();
    assert_eq!(bench.moved_by_copy_lanes(), before);
    bench.finish();
}

#[test]
fn lanes_that_cannot_be_made_are_not_tried_each_time() {
    let network = FakeNetwork::new();
    // SAFETY: as in `Bench::with`.
    unsafe { network.copy_bytes() };
    let tried = Arc::new(AtomicUsize::new(0));
    let (made, count) = (network.factory(), Arc::clone(&tried));
    let factory: TransportFactory = Arc::new(move |name, flavor| {
        if name.as_str().contains("-copy-") {
            count.fetch_add(1, Ordering::Relaxed);
            return Err(Error::new(ErrorKind::Backend, "make agent", "made up"));
        }
        made(name, flavor)
    });
    let settings = Settings {
        copy_lanes: LANES,
        ..Settings::default()
    };
    let reader = Connector::with_factory("reader", settings, factory);
    let owner = Connector::with_factory("owner", settings, network.factory());
    let bench = Bench { network, reader, owner };
    for _ in 0..10 {
        bench.begin(Direction::Read, &[BYTES]).ends_well();
    }
    eventually("they have failed", || tried.load(Ordering::Relaxed) == LANES);
    for _ in 0..10 {
        bench.begin(Direction::Read, &[BYTES]).ends_well();
    }
    assert_eq!(tried.load(Ordering::Relaxed), LANES);
    bench.finish();
}

/// Of one without a trailer nobody knows whether it is on this host.
#[test]
fn with_a_foreign_owner_there_is_no_crew() {
    let bench = Bench::new();
    let mut owner = FakeOwner::new(&bench.network, "foreign").unwrap();
    let remote = Buffer::patterned(BYTES, 1);
    owner.register(remote.range()).unwrap();
    let metadata = owner.metadata(&[remote.range()], true).unwrap();
    let before = bench.moved_by_copy_lanes();
    let local = Buffer::patterned(BYTES, 2);
    let key = OperationKey::new(b"key".to_vec());
    let options = BeginOptions::default();
    let memory = vec![local.memory()];
    let handle = bench
        .reader
        .begin(Direction::Read, &metadata, key, &[remote.range()], memory, options)
        .unwrap();
    assert_eq!(end(&handle), (Status::Complete, None));
    assert!(local.is_patterned(1));
    assert_eq!(owner.notifications().unwrap(), [b"key"]);
    assert_eq!(bench.moved_by_copy_lanes(), before);
    bench.finish();
}

#[test]
fn closing_waits_for_the_parts() {
    let bench = Bench::new();
    let moving = bench.begin_and_hold(Direction::Read, &[BYTES]);
    bench.reader.begin_close(LIMIT);
    assert_eq!(end(&moving.moving), (Status::Errored, Some(ErrorKind::Closed)));
    std::thread::sleep(Duration::from_millis(50));
    assert!(!moving.moving.operation().is_quiet());
    bench.network.release_all();
    assert!(bench.reader.close(LIMIT));
    assert!(moving.moving.operation().is_quiet());
    drop(moving);
    assert!(bench.owner.close(LIMIT));
    assert_eq!(bench.network.violations(), [""; 0]);
}

#[test]
fn a_transfer_whose_parts_stand_still_ends() {
    let bench = Bench::with(Settings {
        stall_timeout: Some(Duration::from_millis(500)),
        ..Settings::default()
    });
    let moving = bench.begin_and_hold(Direction::Read, &[BYTES]);
    assert_eq!(end(&moving.moving), (Status::Errored, Some(ErrorKind::Timeout)));
    assert!(!moving.moving.operation().is_quiet());
    bench.network.release_all();
    assert!(moving.moving.operation().wait(Phase::Quiet, Some(LIMIT)) && moving.moving.operation().is_quiet());
    drop(moving);
    bench.finish();
}
