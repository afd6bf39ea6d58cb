#![allow(clippy::unwrap_used)]

use super::*;
use crate::transport::fake::{FakeNetwork, FakeOwner};
use crate::types::{Addr, ByteLen, MemoryKind, MemoryRange};

/// What an active side of that number tells of itself.
fn active(network: &FakeNetwork, number: usize) -> Arc<RemoteMetadata> {
    let mut agent = FakeOwner::new(network, &format!("active-{number}")).unwrap();
    let range = MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr(0x1000),
        len: ByteLen(64),
    };
    agent.register(range).unwrap();
    Arc::new(RemoteMetadata::decode(&agent.metadata(&[range], false).unwrap()).unwrap())
}

const TRANSFER: TransferId = TransferId(1);

/// Of another host, so that nothing is watched.
const PROCESS: ProcessId = ProcessId {
    pid: 1,
    start: 1,
    host: 1,
};

#[test]
fn so_many_are_kept_in_mind_and_no_more() {
    let network = FakeNetwork::new();
    let agents: Vec<_> = (0..=MAX_USERS).map(|number| active(&network, number)).collect();
    let (last, known) = agents.split_last().unwrap();
    let mut users = Users::default();
    for agent in known {
        assert!(users.add(Arc::clone(agent), TRANSFER, PROCESS));
    }
    assert!(!users.add(Arc::clone(last), TRANSFER, PROCESS), "one too many");
    let told: Vec<_> = users.to_be_told().map(|(agent, _)| agent.agent().clone()).collect();
    let expected: Vec<_> = known.iter().map(|agent| agent.agent().clone()).collect();
    assert_eq!(told, expected);
    // Nobody waits for the one that is not known, whatever it says.
    assert!(!users.leave(&UserId::new(last.agent(), TRANSFER)));
    assert!(users.remove(&UserId::new(last.agent(), TRANSFER)).is_none());
}

#[test]
fn a_full_list_has_room_for_who_is_on_it_and_when_one_goes() {
    let network = FakeNetwork::new();
    let agents: Vec<_> = (0..=MAX_USERS).map(|number| active(&network, number)).collect();
    let (last, known) = agents.split_last().unwrap();
    let mut users = Users::default();
    for agent in known {
        assert!(users.add(Arc::clone(agent), TRANSFER, PROCESS));
    }
    // It says hello once more.
    assert!(users.add(Arc::clone(&known[0]), TRANSFER, PROCESS));
    assert_eq!(users.to_be_told().count(), MAX_USERS);
    // One that has left is not quiet yet, and so keeps its place.
    assert!(users.leave(&UserId::new(known[1].agent(), TRANSFER)));
    assert_eq!(users.to_be_told().count(), MAX_USERS - 1);
    assert!(!users.add(Arc::clone(last), TRANSFER, PROCESS));
    assert!(users.remove(&UserId::new(known[1].agent(), TRANSFER)).is_some());
    assert!(users.add(Arc::clone(last), TRANSFER, PROCESS));
    assert_eq!(users.to_be_told().count(), MAX_USERS);
    for agent in known.iter().chain([last]) {
        assert!(users.are_under_way() && !users.is_empty());
        users.remove(&UserId::new(agent.agent(), TRANSFER));
    }
    assert!(users.is_empty() && !users.are_under_way());
}
