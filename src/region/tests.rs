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

fn memory(addr: u64, len: u64) -> LocalMemory {
    LocalMemory {
        range: range(addr, len),
        keep_alive: None,
    }
}

#[test]
fn what_is_offered_serves_its_parts() {
    let network = FakeNetwork::new();
    let table = table(&network);
    let (whole, part) = (memory(0x1000, 4096), memory(0x1400, 64));
    let offered = table.offer(&whole).unwrap();
    for sharing in [Sharing::Offered, Sharing::Any] {
        let shared = table.share(&part, sharing).unwrap();
        assert_eq!((shared.range(), table.len()), (&whole.range, 1));
    }
    let shared = table.share(&part, Sharing::Offered).unwrap();
    drop(offered);
    assert!(shared.is_registered(), "as long as somebody holds it");
    assert_eq!(
        table.serving(&part.range, Sharing::Offered),
        None,
        "but it is on offer no more"
    );
    assert_eq!(table.serving(&part.range, Sharing::Any), Some(whole.range));
    drop(shared);
    assert!(table.is_empty());
    assert_eq!(network.violations(), [""; 0]);
}

#[test]
fn what_is_not_offered_is_shown_to_nobody_who_asked_for_a_part() {
    let network = FakeNetwork::new();
    let table = table(&network);
    let (whole, part) = (memory(0x1000, 4096), memory(0x1400, 64));
    let _held = table.acquire(&whole).unwrap();
    let own = table.share(&part, Sharing::Offered).unwrap();
    assert_eq!((own.range(), table.len()), (&part.range, 2));
}

#[test]
fn what_is_exported_is_kept_as_long_as_the_registration() {
    let network = FakeNetwork::new();
    let table = table(&network);
    let memory = memory(0x1000, 64);
    let blob = |text: &[u8]| CompressedBlob::new(text);
    let region = table.acquire(&memory).unwrap();
    let first = table.exported(&memory.range, &memory.range, || blob(b"first")).unwrap();
    let again = table
        .exported(&memory.range, &memory.range, || blob(b"second"))
        .unwrap();
    assert_eq!(first, again);
    drop(region);
    let _region = table.acquire(&memory).unwrap();
    let anew = table.exported(&memory.range, &memory.range, || blob(b"third")).unwrap();
    assert_ne!(first, anew, "another registration has another key");
}

#[test]
fn parts_of_one_registration_need_none_of_their_own() {
    let network = FakeNetwork::new();
    let table = table(&network);
    let _pool = table.offer(&memory(0x1000, 4096)).unwrap();
    let blocks: Vec<MemoryRange> = (0..16).map(|block| range(0x1000 + block * 256, 128)).collect();
    let ((), held) = table.bind(&blocks, |_| Ok(())).unwrap();
    assert_eq!((held.len(), table.len()), (1, 1));
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

    /// Whatever is registered, in whatever order a list names its ranges: NIXL finds each, and nothing is left behind.
    #[test]
    fn whatever_is_bound_is_found(
        known in prop::collection::vec((0_u64..64, 1_u64..64), 0..8),
        wanted in prop::collection::vec((0_u64..64, 1_u64..32), 1..8),
    ) {
        let network = FakeNetwork::new();
        let table = table(&network);
        let held: Vec<Region> = known.iter().map(|(addr, len)| table.acquire(&memory(addr + 1, *len)).unwrap()).collect();
        let before = table.len();
        let list: Vec<MemoryRange> = wanted.iter().map(|(addr, len)| range(addr + 1, *len)).collect();
        let (is_found, bound) = table.bind(&list, |_| Ok(network.finds("agent", &list))).unwrap();
        prop_assert!(is_found);
        drop(bound);
        prop_assert_eq!(table.len(), before);
        drop(held);
        prop_assert!(table.is_empty());
    }

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
