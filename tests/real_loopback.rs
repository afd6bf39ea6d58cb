//! A read and a write between two connectors of one process, on real NIXL: everything of ours in one place, for tools that
//! watch one process. `tests/python/test_valgrind.py` runs it under memcheck.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

#[macro_use]
mod support;

use dynamo_nixl::connector::{BeginOptions, Connector};
use dynamo_nixl::operation::{Phase, Status};
use dynamo_nixl::region::LocalMemory;
use dynamo_nixl::types::Direction;
use dynamo_nixl::wire::Encoding;
use support::LIMIT;
use support::memory::Buffer;

scenarios!(
    log_level: Some("FATAL"),
    scenarios: [an_agent_alone, a_read_and_a_write, a_leak],
    roles: []
);

/// The second is cut into pieces and has several descriptors.
const LISTS: [&[usize]; 2] = [&[4096], &[1, 5 << 20, 4096]];

fn an_agent_alone() {
    let connector = Connector::new("alone");
    connector.open().unwrap();
    assert!(connector.close(LIMIT));
}

/// What such a tool has to find.
fn a_leak() {
    let connector = Connector::new("alone");
    connector.open().unwrap();
    std::mem::forget(std::hint::black_box(vec![7_u8; 1000]));
    assert!(connector.close(LIMIT));
}

fn a_read_and_a_write() {
    let (owner, peer) = (Connector::new("owner"), Connector::new("peer"));
    for lengths in LISTS {
        for direction in [Direction::Read, Direction::Write] {
            transfer(&owner, &peer, direction, lengths);
        }
    }
    cancel(&owner, &peer);
    assert!(peer.close(LIMIT) && owner.close(LIMIT));
}

fn memory(buffers: &[Buffer]) -> Vec<LocalMemory> {
    buffers.iter().map(Buffer::memory).collect()
}

fn transfer(owner: &Connector, peer: &Connector, direction: Direction, lengths: &[usize]) {
    let (there, here) = (7, 11);
    let buffers = |seed| lengths.iter().map(|length| Buffer::patterned(*length, seed)).collect();
    let (remote, local): (Vec<Buffer>, Vec<Buffer>) = (buffers(there), buffers(here));
    let ranges: Vec<_> = remote.iter().map(|buffer| buffer.memory().range).collect();
    let exposed = owner.expose(direction, memory(&remote), None, false).unwrap();
    assert!(exposed.operation().wait(Phase::Started, Some(LIMIT)));
    let metadata = exposed.metadata(Encoding::Base64).unwrap();
    let key = exposed.operation().key().clone();
    let options = BeginOptions::default();
    let moving = peer
        .begin(direction, &metadata, key, &ranges, memory(&local), options)
        .unwrap();
    for handle in [&moving, &exposed] {
        assert!(handle.operation().wait(Phase::Finished, Some(LIMIT)));
        assert_eq!(
            handle.operation().status(),
            Status::Complete,
            "{:?}",
            handle.operation().outcome()
        );
    }
    let (buffers, seed) = match direction {
        Direction::Read => (&local, there),
        Direction::Write => (&remote, here),
    };
    assert!(buffers.iter().all(|buffer| buffer.is_patterned(seed)));
}

/// A transfer that is dropped as soon as it has begun.
fn cancel(owner: &Connector, peer: &Connector) {
    let (remote, local) = ([Buffer::patterned(5 << 20, 7)], [Buffer::zeroed(5 << 20)]);
    let ranges = [remote[0].memory().range];
    let exposed = owner.expose(Direction::Read, memory(&remote), None, false).unwrap();
    assert!(exposed.operation().wait(Phase::Started, Some(LIMIT)));
    let metadata = exposed.metadata(Encoding::Base64).unwrap();
    let key = exposed.operation().key().clone();
    let options = BeginOptions::default();
    let moving = peer
        .begin(Direction::Read, &metadata, key, &ranges, memory(&local), options)
        .unwrap();
    let operation = moving.operation().clone();
    drop(moving);
    assert!(operation.wait(Phase::Quiet, Some(LIMIT)));
}
