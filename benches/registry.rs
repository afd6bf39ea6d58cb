//! What an agent knows of memory, its own and its peers', by how much of it there is.
//!
//! `cargo bench --bench registry`. The tables are those of a lane, over a transport that does nothing: what NIXL takes to
//! register or to load comes on top. `begin` asks each table once or twice.
//!
//! - `registry_regions`: a holder more of a range that is registered, or that a registered one covers (`share`), the
//!   question for one that would serve (`serving`), what a request over a range is bound to (`bind`), a range that is
//!   registered and given back (`register`).
//! - `registry_peers`: what a transfer must wait for where all is loaded (`plan`), and one more region (`extend`).
#![allow(clippy::unwrap_used)] // a benchmark that cannot go on has nothing better to do than to stop

mod still;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion};
use dynamo_nixl::peer::{PeerTable, Plan, RemoteMetadata, Wanted};
use dynamo_nixl::region::{LocalMemory, Region, RegionTable, Sharing};
use dynamo_nixl::types::{Addr, AgentName, ByteLen, MemoryKind, MemoryRange};
use dynamo_nixl::wire::{AgentBlob, Connection, RegionEntry, Section};

use still::StillTransport;

/// How many ranges are registered, or loaded of a peer.
const COUNTS: [usize; 3] = [1, 1_000, 10_000];

const REGION_BYTES: u64 = 1 << 16;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(30)
        .nresamples(10_000)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(400))
        .configure_from_args();
    regions(&mut criterion.benchmark_group("registry_regions"));
    peers(&mut criterion.benchmark_group("registry_peers"));
    criterion.final_summary();
}

fn regions(group: &mut BenchmarkGroup<'_, WallTime>) {
    for count in COUNTS {
        let table = RegionTable::new(Arc::new(StillTransport::new("reader")));
        let _held: Vec<Region> = (0..count)
            .map(|index| table.offer(&memory(region(index))).unwrap())
            .collect();
        let known = region(count / 2);
        let part = middle_of(known);
        for (what, range) in [("share", known), ("share_part", part)] {
            let memory = memory(range);
            group.bench_function(BenchmarkId::new(what, count), |bencher| {
                bencher.iter(|| table.share(black_box(&memory), Sharing::Offered).unwrap());
            });
        }
        group.bench_function(BenchmarkId::new("serving", count), |bencher| {
            bencher.iter(|| table.serving(black_box(&part), Sharing::Offered).unwrap());
        });
        group.bench_function(BenchmarkId::new("bind", count), |bencher| {
            bencher.iter(|| table.bind(&[black_box(part)], |_| Ok(())).unwrap());
        });
        let new = memory(region(count));
        group.bench_function(BenchmarkId::new("register", count), |bencher| {
            bencher.iter(|| table.share(black_box(&new), Sharing::Any).unwrap());
        });
        assert_eq!(table.len(), count, "something was left behind");
    }
}

fn peers(group: &mut BenchmarkGroup<'_, WallTime>) {
    let transport = StillTransport::new("reader");
    for count in COUNTS {
        let all: Vec<MemoryRange> = (0..count).map(region).collect();
        let table = || {
            let mut table = PeerTable::default();
            let (metadata, lists) = (exposed(&all), [all.clone()]);
            let wanted = Wanted {
                metadata: &metadata,
                lists: &lists,
            };
            assert!(table.prepare(&transport, wanted).unwrap());
            table
        };
        group.bench_function(BenchmarkId::new("plan", count), |bencher| {
            let table = table();
            let range = region(count / 2);
            let (metadata, lists) = (exposed(&[range]), [vec![middle_of(range)]]);
            bencher.iter(|| {
                let plan = table.plan(black_box(Wanted {
                    metadata: &metadata,
                    lists: &lists,
                }));
                assert_eq!(plan, Plan::Ready);
            });
        });
        // A region cannot be unloaded, so a table is made anew before it has grown by more than a tenth.
        let news: Vec<(RemoteMetadata, [Vec<MemoryRange>; 1])> = (0..(count / 10).clamp(1, 256))
            .map(|index| region(count + index))
            .map(|range| (exposed(&[range]), [vec![range]]))
            .collect();
        group.bench_function(BenchmarkId::new("extend", count), |bencher| {
            bencher.iter_custom(|iterations| {
                let mut total = Duration::ZERO;
                let mut left = usize::try_from(iterations).unwrap();
                while left > 0 {
                    let mut table = table();
                    let some = &news[..left.min(news.len())];
                    let start = Instant::now();
                    for (metadata, lists) in some {
                        assert!(table.prepare(&transport, Wanted { metadata, lists }).unwrap());
                    }
                    total += start.elapsed();
                    left -= some.len();
                }
                total
            });
        });
    }
}

/// Ranges that neither touch nor overlap.
fn region(index: usize) -> MemoryRange {
    MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr((1 << 40) + index as u64 * 2 * REGION_BYTES),
        len: ByteLen(REGION_BYTES),
    }
}

/// A part that begins and ends with none of the range's ends.
fn middle_of(range: MemoryRange) -> MemoryRange {
    MemoryRange {
        addr: Addr(range.addr.0 + range.len.0 / 4),
        len: ByteLen(range.len.0 / 2),
        ..range
    }
}

fn memory(range: MemoryRange) -> LocalMemory {
    LocalMemory {
        range,
        keep_alive: None,
    }
}

/// What an owner of these regions hands out.
fn exposed(ranges: &[MemoryRange]) -> RemoteMetadata {
    const BACKEND: &str = "UCX";
    // Of the shape that is looked at: an address's version and flags; a key's empty map of domains and memory type.
    const ADDRESS: &[u8] = &[0x20, 0, 0, 0, 0, 0, 0, 0, 1];
    const KEY: &[u8] = &[0; 17];
    let entries = ranges.iter().map(|range| RegionEntry {
        range: *range,
        key: KEY.into(),
    });
    let blob = AgentBlob {
        agent: AgentName::new("owner"),
        connections: vec![Connection {
            backend: BACKEND.to_owned(),
            info: ADDRESS.into(),
        }],
        sections: vec![Section {
            backend: BACKEND.to_owned(),
            kind: MemoryKind::Dram,
            entries: entries.collect(),
        }],
    };
    RemoteMetadata::from_blob(&blob.to_bytes()).unwrap()
}
