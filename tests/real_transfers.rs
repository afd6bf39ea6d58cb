//! Two processes on real NIXL: what both sides see when all goes well, on UCX's default transports and on TCP.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

#[macro_use]
mod support;

use dynamo_nixl::connector::{BeginOptions, Connector};
use dynamo_nixl::handle::OperationHandle;
use dynamo_nixl::operation::{Phase, Status};
use dynamo_nixl::region::LocalMemory;
use dynamo_nixl::settings::Settings;
use dynamo_nixl::transport::AgentFlavor;
use dynamo_nixl::types::Direction;
use support::memory::Buffer;
use support::owner::{Exposed, Kind, Owner, only, without_trailer};
use support::{LIMIT, eventually};

scenarios!(
    log_level: Some("FATAL"),
    scenarios: [
        every_size_both_ways,
        lists_of_descriptors,
        many_operations_at_once,
        regions_inside_of_regions,
        a_foreign_owner,
        a_foreign_reader,
        owners_that_come_and_go,
        closing_with_live_exposures,
    ],
    roles: []
);

const SIZES: [usize; 6] = [1, 4 << 10, (64 << 10) + 1, 1 << 20, 16 << 20, 64 << 20];

fn begin(connector: &Connector, direction: Direction, exposed: &Exposed, local: &[Buffer]) -> OperationHandle {
    let memory: Vec<LocalMemory> = local.iter().map(Buffer::memory).collect();
    connector
        .begin(
            direction,
            &exposed.metadata,
            exposed.key.clone(),
            &exposed.ranges,
            memory,
            BeginOptions::default(),
        )
        .unwrap()
}

#[track_caller]
fn assert_complete(handle: &OperationHandle) {
    assert!(
        handle.operation().wait(Phase::Finished, Some(LIMIT)),
        "{handle:?} does not end"
    );
    assert_eq!(
        handle.operation().status(),
        Status::Complete,
        "{:?}",
        handle.operation().outcome()
    );
}

/// Moves memory of these lengths one way, checks every byte and both outcomes.
fn transfer(connector: &Connector, owner: &mut Owner, direction: Direction, lengths: &[usize]) {
    let (there, here) = (7, 11);
    let exposed = owner.expose(direction, lengths, there);
    let local: Vec<Buffer> = lengths.iter().map(|length| Buffer::patterned(*length, here)).collect();
    let moving = begin(connector, direction, &exposed, &local);
    assert_complete(&moving);
    assert_eq!(owner.outcome(&exposed), "Complete");
    assert_eq!(moving.operation().bytes_done(), lengths.iter().sum::<usize>() as u64);
    match direction {
        Direction::Read => assert!(local.iter().all(|buffer| buffer.is_patterned(there))),
        Direction::Write => assert!(owner.holds(&exposed, here)),
    }
    owner.end(&exposed);
}

fn both_ways(connector: &Connector, owner: &mut Owner, lengths: &[usize]) {
    transfer(connector, owner, Direction::Read, lengths);
    transfer(connector, owner, Direction::Write, lengths);
}

fn every_size_both_ways() {
    let connector = Connector::new("reader");
    let mut owner = Owner::start("owner", Kind::Own);
    for size in SIZES {
        both_ways(&connector, &mut owner, &[size]);
    }
    assert_eq!(connector.stats().transfers, 0);
    assert!(connector.close(LIMIT));
    owner.finish();
}

fn lists_of_descriptors() {
    let connector = Connector::new("reader");
    let mut owner = Owner::start("owner", Kind::Own);
    both_ways(&connector, &mut owner, &[1, 4096, 3]);
    both_ways(&connector, &mut owner, &[5 << 20, 17, 9 << 20, 64 << 10]);
    both_ways(&connector, &mut owner, &[512; 300]);
    owner.finish();
}

fn many_operations_at_once() {
    let connector = Connector::new("reader");
    let mut owner = Owner::start("owner", Kind::Own);
    let lengths = |index: usize| [[1, 4096, 64 << 10, 300_000][index % 4]];
    let exposed: Vec<Exposed> = (0..200)
        .map(|index| owner.expose(Direction::Read, &lengths(index), index as u8))
        .collect();
    let local: Vec<[Buffer; 1]> = (0..200).map(|index| lengths(index).map(Buffer::zeroed)).collect();
    let moving: Vec<OperationHandle> = exposed
        .iter()
        .zip(&local)
        .map(|(exposed, local)| begin(&connector, Direction::Read, exposed, local))
        .collect();
    for (index, ((moving, exposed), local)) in moving.iter().zip(&exposed).zip(&local).enumerate() {
        assert_complete(moving);
        assert_eq!(owner.outcome(exposed), "Complete", "operation {index}");
        assert!(local[0].is_patterned(index as u8), "operation {index}");
    }
    assert_eq!(connector.stats().peers, 1);
    drop(moving);
    eventually("the memory is given back", || connector.stats().regions == 0);
    owner.finish();
}

/// NIXL finds a region by the nearest start only, so cutting a transfer must mind what else is registered.
fn regions_inside_of_regions() {
    let size = 16 << 20;
    let part_of = |buffer: &Buffer| {
        let mut part = buffer.memory();
        part.range.addr.0 += 4096;
        part.range.len.0 = 4096;
        part
    };
    let connector = Connector::new("reader");
    let mut owner = Owner::start("owner", Kind::Own);
    let exposed = owner.expose(Direction::Read, &[size], 7);
    let local = [Buffer::zeroed(size)];
    let inner = connector.register(&part_of(&local[0])).unwrap();
    assert_complete(&begin(&connector, Direction::Read, &exposed, &local));
    assert!(local[0].is_patterned(7));
    drop(inner);
    // And on the other side; both in this process, because the owner there exposes no overlaps.
    let near = Connector::new("near-owner");
    let whole = Buffer::patterned(size, 9);
    let part = part_of(&whole);
    let ranges = [whole.range(), part.range];
    let handle = near
        .expose(Direction::Read, vec![whole.memory(), part], None, false)
        .unwrap();
    assert!(handle.operation().wait(Phase::Started, Some(LIMIT)));
    let metadata = handle.metadata(dynamo_nixl::wire::Encoding::Base64).unwrap();
    let key = handle.operation().key().clone();
    let here = [Buffer::zeroed(size), Buffer::zeroed(4096)];
    let memory = here.iter().map(Buffer::memory).collect();
    let moving = connector
        .begin(
            Direction::Read,
            &metadata,
            key,
            &ranges,
            memory,
            BeginOptions::default(),
        )
        .unwrap();
    assert_complete(&moving);
    assert_complete(&handle);
    assert!(here[0].is_patterned(9));
    assert_eq!(here[1].bytes(), whole.bytes()[4096..8192]);
    owner.finish();
}

/// Upstream's owner: it must be met by an agent with UCX's default error handling.
fn a_foreign_owner() {
    let connector = Connector::new("reader");
    let mut owner = Owner::start("owner", Kind::Foreign);
    for size in [1, 64 << 10, 9 << 20] {
        both_ways(&connector, &mut owner, &[size]);
    }
    assert!(!connector.is_open(), "the control agent was not needed");
    assert!(connector.close(LIMIT));
    owner.finish();
}

/// Upstream's reader: it knows no trailer and has UCX's default error handling.
fn a_foreign_reader() {
    let connector = Connector::with_factory("reader", Settings::default(), only(AgentFlavor::Plain));
    let mut owner = Owner::start("owner", Kind::Own);
    for size in [1, 64 << 10, 9 << 20] {
        for direction in [Direction::Read, Direction::Write] {
            let mut exposed = owner.expose(direction, &[size], 7);
            exposed.metadata = without_trailer(&exposed.metadata);
            let local = [Buffer::patterned(size, 11)];
            assert_complete(&begin(&connector, direction, &exposed, &local));
            assert_eq!(owner.outcome(&exposed), "Complete");
            assert!(if direction == Direction::Read {
                local[0].is_patterned(7)
            } else {
                owner.holds(&exposed, 11)
            });
        }
    }
    owner.finish();
}

/// Also one that comes back under its old name.
fn owners_that_come_and_go() {
    let connector = Connector::new("reader");
    for name in ["first", "second", "first"] {
        let mut owner = Owner::start(name, Kind::Own);
        both_ways(&connector, &mut owner, &[4096]);
        both_ways(&connector, &mut owner, &[5 << 20]);
        owner.finish();
    }
    assert!(connector.close(LIMIT));
}

fn closing_with_live_exposures() {
    let connector = Connector::new("reader");
    let mut owner = Owner::start("owner", Kind::Own);
    let mut exposed: Vec<Exposed> = (0..3).map(|_| owner.expose(Direction::Read, &[4096], 7)).collect();
    let used = exposed.remove(0);
    assert_complete(&begin(&connector, Direction::Read, &used, &[Buffer::zeroed(4096)]));
    assert_eq!(owner.outcome(&used), "Complete");
    assert_eq!(owner.close(), "true 2", "quiet, and both that nobody read failed");
    assert_eq!(owner.outcome(&exposed[0]), "Errored");
    owner.finish();
    assert!(connector.close(LIMIT));
    // The process ends with exposures that nobody closed, too.
    let mut careless = Owner::start("careless", Kind::Own);
    let _ = careless.expose(Direction::Write, &[1 << 20], 7);
    careless.finish();
}
