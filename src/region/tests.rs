#![allow(clippy::unwrap_used)]

use std::sync::Weak;
use std::thread;

use proptest::prelude::*;

use super::*;
use crate::error::ErrorKind;
use crate::transport::AgentFlavor;
use crate::transport::fake::{Call, Event, FakeNetwork};
use crate::types::{Addr, AgentName, ByteLen, MemoryKind};

fn range(addr: u64, len: u64) -> MemoryRange {
    MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr(addr),
        len: ByteLen(len),
    }
}

fn table(network: &FakeNetwork) -> Arc<RegionTable> {
    RegionTable::new(network.agent(&AgentName::new("agent"), AgentFlavor::Plain).unwrap())
}

/// Tells at its drop whether its range was registered then.
struct Owner {
    network: FakeNetwork,
    range: MemoryRange,
    dropped_while_registered: Arc<Mutex<Option<bool>>>,
}

impl Drop for Owner {
    fn drop(&mut self) {
        let registered = self.network.registered("agent").contains(&self.range);
        *self.dropped_while_registered.lock() = Some(registered);
    }
}

#[test]
fn many_holders_share_one_registration() {
    let network = FakeNetwork::new();
    let table = table(&network);
    let memory = LocalMemory {
        range: range(0x1000, 64),
        keep_alive: None,
    };
    let mut held: Vec<Region> = (0..10).map(|_| table.acquire(&memory).unwrap()).collect();
    assert_eq!((table.len(), network.registered("agent")), (1, vec![memory.range]));
    while let Some(region) = held.pop() {
        assert!(region.is_registered());
        drop(region);
        assert_eq!(table.is_registered(&memory.range), !held.is_empty());
    }
    assert!(table.is_empty());
    assert_eq!(network.count(|event| matches!(event, Event::Registered(..))), 1);
    assert_eq!(network.count(|event| matches!(event, Event::Deregistered(..))), 1);
    drop(table);
    assert_eq!(network.violations(), [""; 0]);
}

#[test]
fn the_owner_is_let_go_after_the_deregistration() {
    let network = FakeNetwork::new();
    let table = table(&network);
    let seen = Arc::new(Mutex::new(None));
    let owner = Arc::new(Owner {
        network,
        range: range(0x1000, 64),
        dropped_while_registered: Arc::clone(&seen),
    });
    let memory = LocalMemory {
        range: owner.range,
        keep_alive: Some(owner),
    };
    let region = table.acquire(&memory).unwrap();
    drop(memory);
    assert_eq!(*seen.lock(), None, "the region keeps its owner");
    drop(region);
    assert_eq!(*seen.lock(), Some(false));
}

#[test]
fn a_refused_registration_leaves_nothing_behind() {
    let network = FakeNetwork::new();
    let table = table(&network);
    let memory = LocalMemory {
        range: range(0x1000, 64),
        keep_alive: None,
    };
    network.fail("agent", Call::Register, 1);
    assert_eq!(table.acquire(&memory).unwrap_err().kind(), ErrorKind::Registration);
    assert!(table.is_empty());
    let region = table.acquire(&memory).unwrap();
    assert!(region.is_registered());
}

#[test]
fn a_range_of_no_bytes_costs_nothing() {
    let network = FakeNetwork::new();
    let table = table(&network);
    let region = table
        .acquire(&LocalMemory {
            range: range(0x1000, 0),
            keep_alive: None,
        })
        .unwrap();
    assert!(region.is_registered() && table.is_empty());
    assert!(network.events().is_empty());
}

#[test]
fn closing_deregisters_under_every_holder_and_takes_nothing_new() {
    let network = FakeNetwork::new();
    let table = table(&network);
    let memory = LocalMemory {
        range: range(0x1000, 64),
        keep_alive: None,
    };
    let region = table.acquire(&memory).unwrap();
    table.close();
    table.close();
    assert!(!region.is_registered());
    assert_eq!(table.acquire(&memory).unwrap_err().kind(), ErrorKind::Closed);
    assert_eq!(table.transport().unwrap_err().kind(), ErrorKind::Closed);
    assert!(network.agents().is_empty(), "the agent is let go");
    drop(region);
    assert_eq!(network.violations(), [""; 0]);
}

#[test]
fn holders_on_many_threads_never_register_twice() {
    let network = FakeNetwork::new();
    let table = table(&network);
    thread::scope(|scope| {
        for thread in 0..4_u64 {
            let table = &table;
            scope.spawn(move || {
                for round in 0..500 {
                    let memory = LocalMemory {
                        range: range(0x1000 + (thread + round) % 3 * 64, 64),
                        keep_alive: None,
                    };
                    let region = table.acquire(&memory).unwrap();
                    assert!(region.is_registered());
                }
            });
        }
    });
    assert!(table.is_empty());
    assert_eq!(network.violations(), [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// In any order of takes and drops over overlapping ranges: what is registered is exactly what is held, nothing is
    /// registered twice, and an owner lives exactly as long as a region of its holds it.
    #[test]
    fn what_is_held_is_what_is_registered(steps in prop::collection::vec((any::<bool>(), 0_usize..6), 1..60)) {
        let network = FakeNetwork::new();
        let table = table(&network);
        let mut held: Vec<(Region, Weak<u32>)> = Vec::new();
        for (takes, number) in steps {
            if takes || held.is_empty() {
                let owner = Arc::new(7_u32);
                let weak = Arc::downgrade(&owner);
                let range = range(0x1000 + number as u64 % 3 * 32, 64 + number as u64 / 3);
                held.push((table.acquire(&LocalMemory { range, keep_alive: Some(owner) }).unwrap(), weak));
            } else {
                let (region, weak) = held.swap_remove(number % held.len());
                prop_assert_eq!(weak.strong_count(), 1);
                drop(region);
                prop_assert_eq!(weak.strong_count(), 0);
            }
            let mut expected: Vec<MemoryRange> = held.iter().map(|(region, _)| *region.range()).collect();
            expected.sort_unstable();
            expected.dedup();
            let mut registered = network.registered("agent");
            registered.sort_unstable();
            prop_assert_eq!(&registered, &expected);
            prop_assert_eq!(table.len(), expected.len());
        }
        held.clear();
        drop(table);
        prop_assert_eq!(network.violations(), [""; 0]);
    }
}
