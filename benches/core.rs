//! Each layer beside the one below, between two processes: NIXL alone, the transport, the core.
//!
//! `cargo bench --bench core`. The owner is this executable, started a second time; metadata goes over its stdin and
//! stdout. Series:
//!
//! - `raw`: one request of NIXL, memory registered and metadata loaded beforehand, both sides polling without a pause.
//! - `transport`: the same by the crate's own `Transport`.
//! - `core`: `begin` and the wait for its end, from the peer's text on. Each transfer has the metadata of an exposure of
//!   its own, made beforehand; the memory is the same every time and stays registered.
//! - `core_fresh`: as `core`, but every exposure has memory that the reader never saw, and the reader's memory is
//!   registered and given back within each transfer: what happens to a new tensor.
//!
//! Groups:
//!
//! - `latency_*`, `throughput_*`: one transfer after the other, by size; `throughput_*` without `transport`, which costs big
//!   ones nothing that shows.
//! - `cadence_*`: small ones after a pause, in which caches cool down, processors doze off, and the core rests.
//! - `many_read`: small ones of which so many are begun before the first is waited for; the time is each one's share.
//! - `scattered_read`: one transfer of thousands of blocks, out of memory that is registered as a whole.
#![allow(clippy::unwrap_used)] // a benchmark that cannot go on has nothing better to do than to stop

mod support;

use std::time::Duration;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput};
use dynamo_nixl::types::Direction;

use support::memory::Arena;
use support::process::{keep_efa_out, role, serve};
use support::protocol::Kind;
use support::series::{Case, OWNERS, READERS, series};
use support::{core_side, raw_side, transport_side};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const LATENCY_SIZES: [usize; 3] = [4 * KIB, 64 * KIB, MIB];
const THROUGHPUT_SIZES: [usize; 4] = [16 * MIB, 64 * MIB, 256 * MIB, 1024 * MIB];

/// The pauses of `benches/python/transfer.py`, by their names there.
const CADENCES: [(&str, Duration); 2] = [("warm", Duration::from_micros(300)), ("cold", Duration::from_millis(2))];

/// How many transfers are under way at once.
const WINDOWS: [usize; 3] = [1, 16, 64];

const SCATTERED_BLOCKS: usize = 16_384;
const SCATTERED_BYTES: usize = 8 * KIB;

fn main() {
    keep_efa_out();
    match role() {
        Some((Kind::Core, bytes)) => serve(core_side::CoreOwner::new(Arena::new(OWNERS, bytes))),
        Some((Kind::Transport, bytes)) => serve(transport_side::TransportOwner::new(Arena::new(OWNERS, bytes))),
        Some((Kind::Raw, bytes)) => serve(raw_side::RawOwner::new(Arena::new(OWNERS, bytes))),
        None => {
            let mut criterion = Criterion::default()
                .nresamples(10_000)
                .warm_up_time(Duration::from_millis(300))
                .measurement_time(Duration::from_millis(1200))
                .configure_from_args();
            let arena = Arena::new(READERS, THROUGHPUT_SIZES.into_iter().max().unwrap());
            for direction in [Direction::Read, Direction::Write] {
                latency(&mut criterion, direction, &arena);
                cadence(&mut criterion, direction, &arena);
                throughput(&mut criterion, direction, &arena);
            }
            many(&mut criterion, &arena);
            scattered(&mut criterion, &arena);
            criterion.final_summary();
        }
    }
}

fn latency(criterion: &mut Criterion, direction: Direction, arena: &Arena) {
    let mut group = criterion.benchmark_group(named("latency", direction));
    group.sample_size(30);
    for bytes in LATENCY_SIZES {
        let case = Case::new(direction, bytes);
        let name = |series: &str| BenchmarkId::new(series, bytes);
        raw(&mut group, name("raw"), case, arena);
        transport(&mut group, name("transport"), case, arena);
        core(&mut group, name("core"), case, arena);
        core_fresh(&mut group, name("core_fresh"), case, arena);
    }
    group.finish();
}

fn cadence(criterion: &mut Criterion, direction: Direction, arena: &Arena) {
    let mut group = criterion.benchmark_group(named("cadence", direction));
    // A sample is a mean, and with a pause before each transfer few make one up.
    group.sample_size(20);
    for (cadence, gap) in CADENCES {
        let case = Case::new(direction, 4 * KIB).after(gap);
        let name = |series: &str| BenchmarkId::new(series, cadence);
        raw(&mut group, name("raw"), case, arena);
        transport(&mut group, name("transport"), case, arena);
        core(&mut group, name("core"), case, arena);
        core_fresh(&mut group, name("core_fresh"), case, arena);
    }
    group.finish();
}

fn throughput(criterion: &mut Criterion, direction: Direction, arena: &Arena) {
    let mut group = criterion.benchmark_group(named("throughput", direction));
    for bytes in THROUGHPUT_SIZES {
        group
            .sample_size(if bytes > 256 * MIB { 10 } else { 15 })
            .throughput(Throughput::Bytes(bytes as u64));
        let case = Case::new(direction, bytes);
        raw(&mut group, BenchmarkId::new("raw", bytes), case, arena);
        core(&mut group, BenchmarkId::new("core", bytes), case, arena);
    }
    group.finish();
}

fn many(criterion: &mut Criterion, arena: &Arena) {
    let mut group = criterion.benchmark_group("many_read");
    group.sample_size(30).throughput(Throughput::Elements(1));
    let case = Case::new(Direction::Read, 4 * KIB);
    raw(&mut group, BenchmarkId::new("raw", 1), case, arena);
    for window in WINDOWS {
        core(
            &mut group,
            BenchmarkId::new("core", window),
            case.at_once(window),
            arena,
        );
    }
    group.finish();
}

fn scattered(criterion: &mut Criterion, arena: &Arena) {
    let mut group = criterion.benchmark_group("scattered_read");
    let case = Case::scattered(Direction::Read, SCATTERED_BYTES, SCATTERED_BLOCKS);
    group
        .sample_size(10)
        .throughput(Throughput::Bytes(case.batch.moved() as u64));
    let shape = format!("{SCATTERED_BLOCKS}x{SCATTERED_BYTES}");
    raw(&mut group, BenchmarkId::new("raw", &shape), case, arena);
    core(&mut group, BenchmarkId::new("core", &shape), case, arena);
    group.finish();
}

fn named(group: &str, direction: Direction) -> String {
    format!("{group}_{}", direction.to_string().to_lowercase())
}

fn raw(group: &mut BenchmarkGroup<'_, WallTime>, id: BenchmarkId, case: Case, arena: &Arena) {
    series(group, id, Kind::Raw, case, arena, || raw_side::Reader::new(arena));
}

fn transport(group: &mut BenchmarkGroup<'_, WallTime>, id: BenchmarkId, case: Case, arena: &Arena) {
    let make_reader = || transport_side::Reader::new(arena);
    series(group, id, Kind::Transport, case, arena, make_reader);
}

fn core(group: &mut BenchmarkGroup<'_, WallTime>, id: BenchmarkId, case: Case, arena: &Arena) {
    let make_reader = || core_side::Reader::keeping(arena.start(case.reach()));
    series(group, id, Kind::Core, case, arena, make_reader);
}

fn core_fresh(group: &mut BenchmarkGroup<'_, WallTime>, id: BenchmarkId, case: Case, arena: &Arena) {
    let make_reader = || core_side::Reader::forgetful(case.batch.bytes);
    series(group, id, Kind::Core, case.fresh(), arena, make_reader);
}
