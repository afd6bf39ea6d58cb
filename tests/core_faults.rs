//! Connectors with faults, on the scripted wire: what the operations make of them.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use dynamo_nixl::connector::{BeginOptions, Connector};
use dynamo_nixl::error::ErrorKind;
use dynamo_nixl::handle::OperationHandle;
use dynamo_nixl::operation::{Phase, Status};
use dynamo_nixl::settings::Settings;
use dynamo_nixl::transport::fake::FakeNetwork;
use dynamo_nixl::transport::faulty::{Effect, Faults, Notifications, When};
use dynamo_nixl::types::Direction;
use dynamo_nixl::wire::Encoding;

use support::memory::Buffer;
use support::{LIMIT, error_kind, eventually};

const MOMENT: Duration = Duration::from_millis(50);
/// Four pieces.
const BYTES: usize = 16 << 20;

/// A reader and an owner, to both of which faults happen.
struct Bench {
    network: FakeNetwork,
    faults: Faults,
    reader: Connector,
    owner: Connector,
}

struct Moved {
    exposed: OperationHandle,
    moving: OperationHandle,
    local: Buffer,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let (network, faults) = (FakeNetwork::new(), Faults::new(0));
        // SAFETY: these tests register nothing but `Buffer`s, which a registration keeps alive, and the connectors the
        // pages of their words, likewise.
        unsafe { network.copy_bytes() };
        let factory = faults.wrap(network.factory());
        // A crew moves the pieces in any order, and moves them anew where one of it fails.
        let settings = Settings {
            copy_lanes: 0,
            ..settings
        };
        let [reader, owner] =
            ["reader-1", "owner-1"].map(|name| Connector::with_factory(name, settings, factory.clone()));
        Self {
            network,
            faults,
            reader,
            owner,
        }
    }

    fn expose(&self, direction: Direction, remote: &Buffer) -> OperationHandle {
        let lease = self.owner.settings().lease;
        let exposed = self
            .owner
            .expose(direction, vec![remote.memory()], lease, false)
            .unwrap();
        assert!(exposed.operation().wait(Phase::Started, Some(LIMIT)));
        exposed
    }

    fn begin(
        &self,
        direction: Direction,
        exposed: &OperationHandle,
        remote: &Buffer,
        local: &Buffer,
    ) -> OperationHandle {
        let metadata = exposed.metadata(Encoding::Base64).unwrap();
        let key = exposed.operation().key().clone();
        let local = vec![local.memory()];
        self.reader
            .begin(
                direction,
                &metadata,
                key,
                &[remote.range()],
                local,
                BeginOptions::default(),
            )
            .unwrap()
    }

    /// Exposes a pattern and moves it, or the other way round, until the active side has ended.
    fn move_bytes(&self, direction: Direction) -> Moved {
        let [remote, local] = [1, 2].map(|seed| Buffer::patterned(BYTES, seed));
        let exposed = self.expose(direction, &remote);
        let moving = self.begin(direction, &exposed, &remote, &local);
        assert!(moving.operation().wait(Phase::Finished, Some(LIMIT)));
        Moved { exposed, moving, local }
    }

    fn assert_moves(&self) {
        let moved = self.move_bytes(Direction::Read);
        assert_eq!(moved.moving.operation().status(), Status::Complete);
        assert!(moved.local.is_patterned(1));
        assert!(moved.exposed.operation().wait(Phase::Finished, Some(LIMIT)));
        assert_eq!(moved.exposed.operation().status(), Status::Complete);
    }

    fn assert_rules_kept(self) {
        self.faults.clear();
        for connector in [&self.reader, &self.owner] {
            assert!(connector.close(LIMIT));
        }
        assert_eq!(self.network.violations(), [""; 0]);
    }
}

#[test]
fn a_failed_piece_fails_its_transfer_and_no_other() {
    for after_moving in [false, true] {
        let bench = Bench::new(Settings::default());
        let third = When {
            at: 3,
            ..When::default()
        };
        let fail = bench.faults.add(Effect::Fail { after_moving }, third);
        let failed = bench.move_bytes(Direction::Read);
        assert_eq!(error_kind(&failed.moving), Some(ErrorKind::Transfer));
        assert_eq!(fail.injected(), 1);
        assert!(failed.moving.operation().wait(Phase::Quiet, Some(LIMIT)));
        assert!(failed.moving.operation().is_quiet());
        assert!(failed.exposed.operation().wait(Phase::Finished, Some(LIMIT)));
        assert_eq!(error_kind(&failed.exposed), Some(ErrorKind::Transfer));
        bench.assert_moves();
        drop(failed);
        bench.assert_rules_kept();
    }
}

#[test]
fn a_stalled_piece_keeps_its_memory_until_it_is_released() {
    let settings = Settings {
        // Long enough for what does not stand still, on a machine that is busy.
        stall_timeout: Some(Duration::from_secs(1)),
        ..Settings::default()
    };
    let bench = Bench::new(settings);
    let stall = bench.faults.add(Effect::Stall(None), When::default());
    let stalled = bench.move_bytes(Direction::Read);
    assert_eq!(error_kind(&stalled.moving), Some(ErrorKind::Timeout));
    assert!(!stalled.moving.operation().is_quiet());
    stall.release();
    assert!(stalled.moving.operation().wait(Phase::Quiet, Some(LIMIT)));
    bench.assert_moves();
    drop(stalled);
    bench.assert_rules_kept();
}

#[test]
fn stale_metadata_is_refused_and_leaves_the_exposure_open() {
    for direction in [Direction::Read, Direction::Write] {
        let bench = Bench::new(Settings::default());
        let [remote, local] = [1, 2].map(|seed| Buffer::patterned(BYTES, seed));
        let exposed = bench.expose(direction, &remote);
        // Before the first byte, which is asked twice, and behind the last one.
        for at in [1, 2, 3] {
            let when = When { at, ..When::default() };
            let stale = bench.faults.add(Effect::Stale, when);
            let refused = bench.begin(direction, &exposed, &remote, &local);
            assert!(refused.operation().wait(Phase::Finished, Some(LIMIT)));
            assert_eq!(error_kind(&refused), Some(ErrorKind::Stale));
            assert_eq!(refused.operation().bytes_done() == 0, at < 3);
            assert_eq!(stale.injected(), 1);
            assert!(refused.operation().wait(Phase::Quiet, Some(LIMIT)));
        }
        // The owner heard nothing of it: the same metadata serves once more.
        let moving = bench.begin(direction, &exposed, &remote, &local);
        for operation in [&moving, &exposed] {
            assert!(operation.operation().wait(Phase::Finished, Some(LIMIT)));
            assert_eq!(operation.operation().status(), Status::Complete);
        }
        drop((exposed, moving));
        bench.assert_rules_kept();
    }
}

#[test]
fn what_was_lost_can_be_reached_once_it_is_not() {
    for (is_dead, kind) in [(false, ErrorKind::Transfer), (true, ErrorKind::PeerLost)] {
        let bench = Bench::new(Settings::default());
        bench.assert_moves();
        let when = When {
            count: None,
            peer: Some("owner".to_owned()),
            ..When::default()
        };
        let lost = bench.faults.add(Effect::Lost { is_dead }, when);
        for _ in 0..2 {
            let failed = bench.move_bytes(Direction::Read);
            assert_eq!(error_kind(&failed.moving), Some(kind));
        }
        assert!(lost.injected() > 1);
        lost.clear();
        bench.assert_moves();
        bench.assert_rules_kept();
    }
}

#[test]
fn a_key_that_arrives_twice_completes_once() {
    let bench = Bench::new(Settings::default());
    let every = When {
        count: None,
        ..When::default()
    };
    let duplicate = bench.faults.add(Effect::Duplicate(Notifications::Keys), every);
    bench.assert_moves();
    bench.assert_moves();
    assert_eq!(duplicate.injected(), 2);
    eventually("the second ones are counted", || {
        bench.owner.stats().notifications_unknown == 2
    });
    assert_eq!(bench.owner.stats().notifications_matched, 2);
    bench.assert_rules_kept();
}

#[test]
fn an_exposure_whose_key_is_lost_ends_with_its_lease() {
    let bench = Bench::new(Settings::default());
    let every = When {
        count: None,
        ..When::default()
    };
    // Hellos as well: a transfer that is known to be under way holds its exposure open.
    let drop = bench.faults.add(Effect::Drop(Notifications::All), every);
    let [remote, local] = [1, 2].map(|seed| Buffer::patterned(16, seed));
    let exposed = bench
        .owner
        .expose(Direction::Read, vec![remote.memory()], None, false)
        .unwrap();
    let moving = bench.begin(Direction::Read, &exposed, &remote, &local);
    assert!(moving.operation().wait(Phase::Finished, Some(LIMIT)));
    assert_eq!(moving.operation().status(), Status::Complete);
    eventually("the key is dropped", || drop.injected() > 0);
    assert!(!exposed.operation().is_finished());
    exposed.renew(Some(MOMENT)).unwrap();
    assert!(exposed.operation().wait(Phase::Finished, Some(LIMIT)));
    assert_eq!(error_kind(&exposed), Some(ErrorKind::LeaseExpired));
    std::mem::drop((exposed, moving));
    bench.assert_rules_kept();
}
