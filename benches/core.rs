//! The core between two processes, beside NIXL alone.
//!
//! `cargo bench --bench core`. The owner is this executable, started a second time; metadata goes over its stdin and
//! stdout. Series of every group:
//!
//! - `raw`: one request of NIXL, memory registered and metadata loaded beforehand, both sides polling without a pause.
//! - `core`: `begin` and the wait for its end, from the peer's text on. Each transfer has the metadata of an exposure of
//!   its own, made beforehand; the memory is the same every time and stays registered.
//! - `core_fresh`: as `core`, but every exposure has memory that the reader never saw, and the reader's memory is
//!   registered and given back within each transfer: what happens to a new tensor.
#![allow(clippy::unwrap_used)] // a benchmark that cannot go on has nothing better to do than to stop

mod support;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, SamplingMode, Throughput};
use dynamo_nixl::types::{Direction, MemoryRange};

use support::memory::Arena;
use support::process::{Owner, Reader, keep_efa_out, role, serve};
use support::protocol::{Batch, Kind, Placement};
use support::{core_side, raw_side};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const LATENCY_SIZES: [usize; 3] = [4 * KIB, 64 * KIB, MIB];
const THROUGHPUT_SIZES: [usize; 2] = [16 * MIB, 256 * MIB];

/// What the owner's memory is filled with, and the reader's.
const OWNERS: u8 = 0x5a;
const READERS: u8 = 0xa5;

/// How many exposures the owner holds at a time.
const BATCH: usize = 128;

fn main() {
    keep_efa_out();
    match role() {
        Some(Kind::Core) => serve(core_side::CoreOwner::new(Arena::new(OWNERS))),
        Some(Kind::Raw) => serve(raw_side::RawOwner::new(Arena::new(OWNERS))),
        None => {
            let mut criterion = Criterion::default().configure_from_args();
            let arena = Arena::new(READERS);
            for direction in [Direction::Read, Direction::Write] {
                latency(&mut criterion, direction, &arena);
                throughput(&mut criterion, direction, &arena);
            }
            criterion.final_summary();
        }
    }
}

fn latency(criterion: &mut Criterion, direction: Direction, arena: &Arena) {
    let mut group = criterion.benchmark_group(format!("latency_{}", direction.to_string().to_lowercase()));
    group
        .sample_size(30)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(2));
    for bytes in LATENCY_SIZES {
        let batch = Batch {
            direction,
            placement: Placement::Same,
            bytes,
            count: BATCH,
        };
        series(&mut group, "raw", Kind::Raw, batch, arena, || {
            raw_side::Reader::new(arena)
        });
        series(&mut group, "core", Kind::Core, batch, arena, || {
            core_side::Reader::keeping(arena.start(bytes))
        });
        let batch = Batch {
            placement: Placement::Fresh,
            ..batch
        };
        series(&mut group, "core_fresh", Kind::Core, batch, arena, || {
            core_side::Reader::forgetful(bytes)
        });
    }
    group.finish();
}

fn throughput(criterion: &mut Criterion, direction: Direction, arena: &Arena) {
    let mut group = criterion.benchmark_group(format!("throughput_{}", direction.to_string().to_lowercase()));
    group
        .sample_size(15)
        .warm_up_time(Duration::from_millis(500))
        .measurement_time(Duration::from_secs(4));
    for bytes in THROUGHPUT_SIZES {
        group.throughput(Throughput::Bytes(bytes as u64));
        let batch = Batch {
            direction,
            placement: Placement::Same,
            bytes,
            count: BATCH,
        };
        series(&mut group, "raw", Kind::Raw, batch, arena, || {
            raw_side::Reader::new(arena)
        });
        series(&mut group, "core", Kind::Core, batch, arena, || {
            core_side::Reader::keeping(arena.start(bytes))
        });
    }
    group.finish();
}

/// Measures one kind of reader with an owner of its kind, both made when the first sample is taken.
fn series<R: Reader>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    kind: Kind,
    batch: Batch,
    arena: &Arena,
    make_reader: impl Fn() -> R,
) {
    let mut pair = None;
    group
        .sampling_mode(SamplingMode::Flat)
        .bench_function(BenchmarkId::new(name, batch.bytes), |bencher| {
            let (owner, reader) = pair.get_or_insert_with(|| (Owner::spawn(kind), make_reader()));
            bencher.iter_custom(|iterations| timed(owner, reader, batch, arena.start(batch.bytes), iterations));
            // A fast transfer of nothing would be no transfer.
            if batch.direction == Direction::Read {
                assert_eq!(arena.ends(batch.bytes), (OWNERS, OWNERS), "the bytes did not arrive");
            }
            arena.mark(batch.bytes, READERS);
        });
}

/// Runs so many transfers, batch by batch. Only they are on the clock, not what the owner does for them.
fn timed<R: Reader>(owner: &mut Owner, reader: &mut R, batch: Batch, range: MemoryRange, iterations: u64) -> Duration {
    let mut total = Duration::ZERO;
    let mut left = usize::try_from(iterations).unwrap();
    while left > 0 {
        let count = left.min(batch.count);
        if reader.is_new(count + 1) {
            let introduction = owner.expose(Batch { count: 1, ..batch });
            reader.meet(&introduction[0]);
            reader.transfer(batch.direction, &introduction[0], range);
            owner.end();
        }
        let exposures = owner.expose(Batch { count, ..batch });
        let start = Instant::now();
        for exposed in &exposures {
            reader.transfer(batch.direction, black_box(exposed), range);
        }
        total += start.elapsed();
        owner.end();
        left -= count;
    }
    total
}
