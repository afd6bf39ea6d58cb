//! One registration under holders that come and go together, and under a table that closes.
#![allow(clippy::unwrap_used)]

use std::sync::atomic::Ordering;

use super::*;
use crate::sync::{AtomicU8, check, spawn};
use crate::transport::AgentFlavor;
use crate::transport::fake::FakeNetwork;
use crate::types::{Addr, AgentName, ByteLen, MemoryKind};

const OWNER: &str = "owner";

fn range(addr: u64, len: u64) -> MemoryRange {
    MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr(addr),
        len: ByteLen(len),
    }
}

fn table() -> (FakeNetwork, Arc<RegionTable>) {
    let network = FakeNetwork::new();
    let transport = network.agent(&AgentName::new(OWNER), AgentFlavor::SharedMemoryErrors);
    (network, RegionTable::new(transport.unwrap()))
}

/// Memory that must not be let go while it is registered.
struct Memory {
    network: FakeNetwork,
    range: MemoryRange,
}

impl Drop for Memory {
    fn drop(&mut self) {
        assert!(
            !self.network.registered(OWNER).contains(&self.range),
            "registered memory is let go"
        );
    }
}

fn memory(network: &FakeNetwork, range: MemoryRange) -> LocalMemory {
    LocalMemory {
        range,
        keep_alive: Some(Arc::new(Memory {
            network: network.clone(),
            range,
        })),
    }
}

#[test]
fn a_range_is_registered_once_and_as_long_as_it_has_a_holder() {
    check(|| {
        let (network, table) = table();
        let memory = memory(&network, range(0x1000, 64));
        let holder = spawn({
            let (table, memory) = (Arc::clone(&table), memory.clone());
            move || {
                let region = table.acquire(&memory).unwrap();
                assert!(region.is_registered());
            }
        });
        let region = table.offer(&memory).unwrap();
        drop(memory);
        assert!(region.is_registered());
        drop(region);
        holder.join().unwrap();
        assert!(table.is_empty() && network.registered(OWNER).is_empty());
        assert_eq!(network.violations(), [""; 0]);
    });
}

#[test]
fn a_request_is_made_over_registrations_that_stay() {
    check(|| {
        let (network, table) = table();
        let (whole, other, part) = (range(0x1000, 64), range(0x1008, 32), range(0x1010, 16));
        let memory = memory(&network, whole);
        let offered = table.offer(&memory).unwrap();
        // What the two look at while they hold something, so that loom has them take turns there.
        let turn = Arc::new(AtomicU8::new(0));
        let holder = spawn({
            let (table, turn) = (Arc::clone(&table), Arc::clone(&turn));
            move || {
                drop(offered);
                let region = table.acquire(&LocalMemory {
                    range: other,
                    keep_alive: None,
                });
                turn.store(1, Ordering::Relaxed);
                drop(region);
            }
        });
        // NIXL binds a request to any registration that covers its range.
        let covering = || {
            network
                .registered(OWNER)
                .into_iter()
                .filter(move |range| range.covers(&part))
        };
        let (candidates, bound) = table
            .bind(&[part], |_| {
                turn.load(Ordering::Relaxed);
                Ok(covering().collect::<Vec<_>>())
            })
            .unwrap();
        assert!(!candidates.is_empty());
        holder.join().unwrap();
        let held: Vec<_> = covering().collect();
        assert!(
            candidates.iter().all(|range| held.contains(range)),
            "{candidates:?} {held:?}"
        );
        drop(bound);
        // What is named by the request keeps the whole of it alive, as a view does.
        drop(memory);
        assert!(table.is_empty() && network.registered(OWNER).is_empty());
        assert_eq!(network.violations(), [""; 0]);
    });
}

#[test]
fn a_table_that_closes_deregisters_everything_once() {
    check(|| {
        let (network, table) = table();
        let holder = spawn({
            let (table, memory) = (Arc::clone(&table), memory(&network, range(0x1000, 64)));
            move || match table.offer(&memory) {
                Ok(region) => drop(region),
                Err(error) => assert_eq!(error.kind(), ErrorKind::Closed),
            }
        });
        table.close();
        assert!(network.registered(OWNER).is_empty());
        holder.join().unwrap();
        assert!(network.registered(OWNER).is_empty());
        assert_eq!(network.violations(), [""; 0]);
    });
}
