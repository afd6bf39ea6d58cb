#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::transport::AgentFlavor;
use crate::transport::fake::{Call, Event, FakeNetwork, FakeOwner};
use crate::types::{Addr, ByteLen, MemoryKind};
use crate::wire::{Encoding, encode};

const READER: &str = "reader";

fn range(addr: u64, len: u64) -> MemoryRange {
    MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr(addr),
        len: ByteLen(len),
    }
}

struct Bench {
    network: FakeNetwork,
    transport: Arc<dyn Transport>,
    peers: PeerTable,
}

impl Bench {
    fn new() -> Self {
        let network = FakeNetwork::new();
        let transport = network.agent(&AgentName::new(READER), AgentFlavor::Plain).unwrap();
        Self {
            network,
            transport,
            peers: PeerTable::default(),
        }
    }

    fn owner(&self, ranges: &[MemoryRange]) -> FakeOwner {
        self.owner_of_name("owner", ranges)
    }

    fn owner_of_name(&self, name: &str, ranges: &[MemoryRange]) -> FakeOwner {
        let mut owner = FakeOwner::new(&self.network, name).unwrap();
        ranges.iter().for_each(|range| owner.register(*range).unwrap());
        owner
    }

    /// So many owners, and what each exposes.
    fn many(&self, count: usize) -> Vec<(FakeOwner, RemoteMetadata)> {
        let exposed = [range(0x1000, 64)];
        let owners = (0..count).map(|number| self.owner_of_name(&format!("owner-{number}"), &exposed));
        owners
            .map(|owner| {
                let metadata = metadata(&owner, &exposed);
                (owner, metadata)
            })
            .collect()
    }

    /// Loads the peer, and has a transfer begin to use it.
    fn begin(&mut self, metadata: &RemoteMetadata) {
        assert!(self.prepare(metadata).unwrap());
        self.peers.begin_use(metadata.agent());
    }

    fn knows(&self, metadata: &RemoteMetadata) -> bool {
        self.peers.names().any(|name| name == metadata.agent())
    }

    /// As for a transfer of each region as a whole, one request each.
    fn prepare(&mut self, metadata: &RemoteMetadata) -> Result<bool> {
        self.prepare_for(metadata, &wholes(metadata))
    }

    fn prepare_for(&mut self, metadata: &RemoteMetadata, lists: &[Vec<MemoryRange>]) -> Result<bool> {
        self.peers.prepare(&*self.transport, Wanted { metadata, lists })
    }

    fn plan(&self, metadata: &RemoteMetadata) -> Plan {
        let lists = wholes(metadata);
        self.peers.plan(Wanted {
            metadata,
            lists: &lists,
        })
    }

    /// How often the peer was loaded and dropped.
    fn counts(&self) -> (usize, usize) {
        (
            self.network.count(|event| matches!(event, Event::Loaded(..))),
            self.network.count(|event| matches!(event, Event::Dropped(..))),
        )
    }
}

fn metadata(owner: &FakeOwner, ranges: &[MemoryRange]) -> RemoteMetadata {
    RemoteMetadata::decode(&owner.metadata(ranges, false).unwrap()).unwrap()
}

fn wholes(metadata: &RemoteMetadata) -> Vec<Vec<MemoryRange>> {
    metadata.ranges().map(|range| vec![*range]).collect()
}

#[test]
fn a_peer_is_loaded_once_and_again_for_new_regions() {
    let mut bench = Bench::new();
    let (first, second) = (range(0x1000, 64), range(0x2000, 64));
    let owner = bench.owner(&[first, second]);
    let (one, two) = (metadata(&owner, &[first]), metadata(&owner, &[second]));
    assert_eq!(bench.plan(&one), Plan::Connect);
    assert!(bench.prepare(&one).unwrap());
    assert_eq!(bench.plan(&one), Plan::Ready);
    assert!(bench.prepare(&one).unwrap());
    assert_eq!(bench.counts(), (1, 0));
    assert_eq!(bench.plan(&two), Plan::Extend);
    bench.peers.begin_use(one.agent());
    assert!(bench.prepare(&two).unwrap(), "more regions need no quiet moment");
    assert_eq!(bench.plan(&one), Plan::Ready);
    assert_eq!((bench.counts(), bench.peers.len()), ((2, 0), 1));
    assert_eq!(bench.network.violations(), [""; 0]);
}

#[test]
fn another_key_or_another_process_behind_the_name_reloads() {
    let mut bench = Bench::new();
    let exposed = range(0x1000, 64);
    let mut owner = bench.owner(&[exposed]);
    assert!(bench.prepare(&metadata(&owner, &[exposed])).unwrap());
    owner.register(exposed).unwrap();
    let renewed = metadata(&owner, &[exposed]);
    assert_eq!(bench.plan(&renewed), Plan::Reload);
    assert!(bench.prepare(&renewed).unwrap());
    drop(owner);
    let restarted = bench.owner(&[exposed]);
    let metadata = metadata(&restarted, &[exposed]);
    assert_eq!(bench.plan(&metadata), Plan::Reload);
    assert!(bench.prepare(&metadata).unwrap());
    assert_eq!((bench.counts(), bench.peers.reloads()), ((3, 2), 2));
    assert_eq!(bench.network.violations(), [""; 0]);
}

/// Reloading costs memory that UCX never gives back, and a heap that reuses its addresses makes such ranges all the time.
#[test]
fn overlaps_and_nests_need_no_reload() {
    for equal_keys in [false, true] {
        let mut bench = Bench::new();
        if equal_keys {
            bench.network.set_equal_keys();
        }
        let ranges = [
            (0x1000, 64),
            (0x1020, 64),
            (0x1040, 64),
            (0x1000, 256),
            (0x1010, 8),
            (0x0fff, 512),
            (0x1050, 1),
        ];
        let ranges = ranges.map(|(addr, len)| range(addr, len));
        let owner = bench.owner(&ranges);
        for exposed in ranges.iter().chain(ranges.iter().rev()) {
            let metadata = metadata(&owner, &[*exposed]);
            // As wholes, in parts, and in a list.
            let halves = [
                range(exposed.addr.0, exposed.len.0.div_ceil(2)),
                range(exposed.addr.0 + exposed.len.0 / 2, exposed.len.0.div_ceil(2)),
            ];
            let parts = halves.map(|half| vec![half]).to_vec();
            // Under different keys two regions may share a part, which NIXL can know under one of them only.
            for lists in [vec![vec![*exposed]], if equal_keys { parts } else { Vec::new() }] {
                assert!(bench.prepare_for(&metadata, &lists).unwrap());
                assert!(
                    lists
                        .iter()
                        .all(|list| bench.network.finds_remote(READER, "owner", list)),
                    "{lists:?}"
                );
            }
        }
        assert_eq!(bench.counts().1, 0, "reloads");
        assert_eq!(bench.network.violations(), [""; 0]);
    }
}

#[test]
fn only_what_is_named_is_loaded() {
    let mut bench = Bench::new();
    let ranges: Vec<MemoryRange> = (0..100).map(|index| range(0x1000 * (index + 1), 64)).collect();
    let owner = bench.owner(&ranges);
    let all = metadata(&owner, &ranges);
    assert!(bench.prepare_for(&all, &[vec![ranges[7], ranges[9]]]).unwrap());
    let loaded = |list: &[MemoryRange]| bench.network.finds_remote(READER, "owner", list);
    assert!(loaded(&[ranges[7]]) && loaded(&[ranges[9]]) && !loaded(&[ranges[8]]));
}

#[test]
fn nothing_is_invalidated_while_it_is_used() {
    let mut bench = Bench::new();
    let exposed = range(0x1000, 64);
    let mut owner = bench.owner(&[exposed]);
    let old = metadata(&owner, &[exposed]);
    assert!(bench.prepare(&old).unwrap());
    bench.peers.begin_use(old.agent());
    bench.peers.begin_use(old.agent());
    owner.register(exposed).unwrap();
    let new = metadata(&owner, &[exposed]);
    for _ in 0..2 {
        assert_eq!(bench.plan(&new), Plan::Wait);
        assert!(!bench.prepare(&new).unwrap());
        bench.peers.end_use(old.agent());
    }
    assert!(bench.prepare(&new).unwrap());
    assert_eq!(bench.counts(), (2, 1));
    assert_eq!(bench.network.violations(), [""; 0]);
}

#[test]
fn a_lost_peer_is_loaded_anew_once_it_is_quiet() {
    let mut bench = Bench::new();
    let exposed = range(0x1000, 64);
    let owner = bench.owner(&[exposed]);
    let metadata = metadata(&owner, &[exposed]);
    assert!(bench.prepare(&metadata).unwrap());
    bench.peers.begin_use(metadata.agent());
    bench.peers.mark_lost(metadata.agent());
    assert_eq!(bench.plan(&metadata), Plan::Wait);
    bench.peers.end_use(metadata.agent());
    assert!(bench.prepare(&metadata).unwrap());
    assert_eq!(bench.plan(&metadata), Plan::Ready);
    assert_eq!(bench.counts(), (2, 1));
}

#[test]
fn a_drop_that_fails_does_not_make_the_peer_look_unknown() {
    let mut bench = Bench::new();
    let exposed = range(0x1000, 64);
    let mut owner = bench.owner(&[exposed]);
    assert!(bench.prepare(&metadata(&owner, &[exposed])).unwrap());
    owner.register(exposed).unwrap();
    let renewed = metadata(&owner, &[exposed]);
    bench.network.fail(READER, Call::Drop, 1);
    assert!(bench.prepare(&renewed).is_err());
    // NIXL still knows what it would not drop; another agent has to take over.
    assert_eq!(bench.prepare(&renewed).unwrap_err().kind(), ErrorKind::Transfer);
    assert_eq!(
        bench.network.violations(),
        [""; 0],
        "the conflicting metadata reached NIXL"
    );
}

#[test]
fn a_load_that_fails_leaves_no_peer_and_is_not_tried_again() {
    let mut bench = Bench::new();
    let exposed = range(0x1000, 64);
    let owner = bench.owner(&[exposed]);
    let metadata = metadata(&owner, &[exposed]);
    bench.network.fail(READER, Call::Load, 1);
    assert_eq!(bench.prepare(&metadata).unwrap_err().kind(), ErrorKind::Metadata);
    assert!(bench.peers.is_empty());
    // This would succeed, were it tried.
    assert_eq!(bench.prepare(&metadata).unwrap_err().kind(), ErrorKind::Transfer);
    assert!(bench.peers.is_empty());
}

#[test]
fn metadata_that_no_agent_could_load_by_itself_is_refused_before_nixl_sees_it() {
    let network = FakeNetwork::new();
    let transport = network.agent(&AgentName::new("owner"), AgentFlavor::Plain).unwrap();
    let exposed = range(0x1000, 64);
    let _registration = transport.register(&exposed).unwrap();
    let partial = transport.partial_metadata(&[exposed]).unwrap();
    let text = encode(&partial, None, Encoding::Base64).unwrap();
    assert_eq!(RemoteMetadata::decode(&text).unwrap_err().kind(), ErrorKind::Metadata);
}

#[test]
fn coverage_is_checked_range_by_range() {
    let bench = Bench::new();
    let owner = bench.owner(&[range(0x1000, 64)]);
    let metadata = metadata(&owner, &[range(0x1000, 64)]);
    assert!(
        metadata
            .check_covers(&[range(0x1000, 64), range(0x1010, 8), range(0, 0)])
            .is_ok()
    );
    let error = metadata
        .check_covers(&[range(0x1000, 8), range(0x1010, 64)])
        .unwrap_err();
    assert!(error.to_string().contains("index=1"), "{error}");
}

#[test]
fn a_full_table_drops_the_peer_unused_for_longest() {
    let mut bench = Bench::new();
    let owners = bench.many(MAX_PEERS + 2);
    for (number, (_, metadata)) in owners[..MAX_PEERS].iter().enumerate() {
        bench.begin(metadata);
        // The second is not done.
        if number != 1 {
            bench.peers.end_use(metadata.agent());
        }
    }
    assert_eq!(
        (bench.peers.len(), bench.counts()),
        (MAX_PEERS, (MAX_PEERS, 0)),
        "it just fits"
    );
    let [first, second, third, fourth] = [0, 1, 2, 3].map(|number| &owners[number].1);
    // The first comes back.
    bench.begin(first);
    bench.peers.end_use(first.agent());
    for (count, gone) in [(1, third), (2, fourth)] {
        assert!(bench.knows(gone));
        bench.begin(&owners[MAX_PEERS + count - 1].1);
        assert!(!bench.knows(gone) && bench.knows(first) && bench.knows(second));
        assert_eq!((bench.peers.len(), bench.counts().1), (MAX_PEERS, count));
    }
    // Who comes back is loaded as if it had never been there, and is no reload.
    assert_eq!(bench.plan(third), Plan::Connect);
    bench.begin(third);
    assert_eq!((bench.peers.len(), bench.peers.reloads()), (MAX_PEERS, 0));
    assert_eq!(bench.network.violations(), [""; 0]);
}

#[test]
fn a_table_of_peers_in_use_grows_and_shrinks_again() {
    let mut bench = Bench::new();
    let owners = bench.many(MAX_PEERS + 6);
    let (early, late) = owners.split_at(MAX_PEERS + 3);
    for (_, metadata) in early {
        bench.begin(metadata);
    }
    assert_eq!(
        (bench.peers.len(), bench.counts().1),
        (MAX_PEERS + 3, 0),
        "nothing to drop"
    );
    for (_, metadata) in early {
        bench.peers.end_use(metadata.agent());
    }
    let mut sizes = Vec::new();
    for (_, metadata) in late {
        bench.begin(metadata);
        sizes.push(bench.peers.len() - MAX_PEERS);
    }
    assert_eq!(sizes, [2, 1, 0]);
    assert!(early[..6].iter().all(|(_, metadata)| !bench.knows(metadata)));
    assert!(early[6..].iter().all(|(_, metadata)| bench.knows(metadata)));
    assert_eq!(bench.network.violations(), [""; 0]);
}

#[test]
fn one_that_cannot_be_dropped_is_kept_and_stops_nobody() {
    let mut bench = Bench::new();
    let owners = bench.many(MAX_PEERS + 2);
    for (_, metadata) in &owners[..MAX_PEERS] {
        assert!(bench.prepare(metadata).unwrap());
    }
    bench.network.fail(READER, Call::Drop, 1);
    bench.begin(&owners[MAX_PEERS].1);
    // NIXL still knows it, and so must the table.
    assert_eq!((bench.peers.len(), bench.counts().1), (MAX_PEERS + 1, 0));
    bench.begin(&owners[MAX_PEERS + 1].1);
    assert_eq!(bench.peers.len(), MAX_PEERS);
    assert_eq!(bench.network.violations(), [""; 0]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Owners that restart and register anew, transfers that overlap and fail in any order: no conflict ever reaches a
    /// load, nothing is invalidated in use, and every metadata is loaded sooner or later.
    #[test]
    fn no_history_breaks_a_rule(steps in prop::collection::vec((0_u8..6, 0_u64..3), 1..80)) {
        let mut bench = Bench::new();
        let ranges = [range(0x1000, 64), range(0x1020, 64), range(0x2000, 64)];
        let mut owner = bench.owner(&ranges);
        let name = AgentName::new("owner");
        let mut in_use = 0;
        for (step, which) in steps {
            let exposed = ranges[which as usize];
            match step {
                0 => owner.register(exposed).unwrap(),
                1 => {
                    drop(owner);
                    owner = bench.owner(&ranges);
                }
                2 => bench.peers.mark_lost(&name),
                3 if in_use > 0 => {
                    bench.peers.end_use(&name);
                    in_use -= 1;
                }
                _ => {
                    bench.peers.begin_round();
                    let metadata = metadata(&owner, &[exposed]);
                    if bench.prepare(&metadata).unwrap() {
                        bench.peers.begin_use(&name);
                        in_use += 1;
                    }
                }
            }
        }
        for _ in 0..in_use {
            bench.peers.end_use(&name);
        }
        let metadata = metadata(&owner, &[ranges[0]]);
        // Nobody asked for quiet in the last two rounds.
        bench.peers.begin_round();
        bench.peers.begin_round();
        prop_assert!(bench.prepare(&metadata).unwrap());
        prop_assert_eq!(bench.network.violations(), [""; 0]);
    }
}
