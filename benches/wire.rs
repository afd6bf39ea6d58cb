//! The metadata on its way: what each side pays for it, without NIXL.
//!
//! `cargo bench --bench wire`. The blobs are recordings, the same that the tests use.
#![allow(clippy::unwrap_used)] // a benchmark that cannot go on has nothing better to do than to stop

use std::hint::black_box;
use std::path::Path;
use std::time::Duration;

use criterion::{BenchmarkGroup, BenchmarkId, Criterion, Throughput, measurement::WallTime};
use dynamo_nixl::peer::RemoteMetadata;
use dynamo_nixl::types::{Addr, ByteLen, MemoryKind, MemoryRange};
use dynamo_nixl::wire::{AgentBlob, Encoding, Trailer, compose, decode, encode};

fn main() {
    let mut criterion = Criterion::default()
        .configure_from_args()
        .sample_size(50)
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1));
    owner(&mut criterion.benchmark_group("wire_owner"));
    reader(&mut criterion.benchmark_group("wire_reader"));
    criterion.final_summary();
}

/// What `metadata()` does beside NIXL's export.
fn owner(group: &mut BenchmarkGroup<'_, WallTime>) {
    let connection = recorded("nixl_1.5.1_connection.bin");
    let partial = recorded("nixl_1.5.1_partial.bin");
    let blob = compose(&connection, &partial).unwrap();
    let trailer = Trailer {
        shared_memory_notifications: true,
        generation: 7,
        lease: None,
        validity_word: None,
        process: None,
        checksum: None,
    };
    group.bench_function("compose", |bencher| {
        bencher.iter(|| compose(black_box(&connection), black_box(&partial)).unwrap());
    });
    for encoding in [Encoding::Base64, Encoding::Hex] {
        group.bench_function(
            BenchmarkId::new("encode", format!("{encoding:?}").to_lowercase()),
            |bencher| {
                bencher.iter(|| encode(black_box(&blob), Some(black_box(&trailer)), encoding).unwrap());
            },
        );
    }
}

/// What `begin` does before it may look at its peers: `all` is the sum.
fn reader(group: &mut BenchmarkGroup<'_, WallTime>) {
    // A peer of our own, with one region; an upstream peer that has fifty registered and so sends all of them.
    for (name, blob) in [
        (
            "one_region",
            compose(
                &recorded("nixl_1.5.1_connection.bin"),
                &recorded("nixl_1.5.1_partial.bin"),
            )
            .unwrap(),
        ),
        ("fifty_regions", recorded("upstream_1.6.1_among_fifty.bin")),
    ] {
        group.throughput(Throughput::Bytes(blob.len() as u64));
        let text = encode(&blob, None, Encoding::Base64).unwrap();
        let ranges = [first_range(&blob)];
        group.bench_function(BenchmarkId::new("decode", name), |bencher| {
            bencher.iter(|| decode(black_box(&text)).unwrap());
        });
        group.bench_function(BenchmarkId::new("parse", name), |bencher| {
            bencher.iter(|| AgentBlob::parse(black_box(&blob)).unwrap());
        });
        group.bench_function(BenchmarkId::new("all", name), |bencher| {
            bencher.iter(|| {
                let metadata = RemoteMetadata::decode(black_box(&text)).unwrap();
                metadata.check_covers(black_box(&ranges)).unwrap();
                metadata
            });
        });
    }
}

fn first_range(blob: &[u8]) -> MemoryRange {
    let blob = AgentBlob::parse(blob).unwrap();
    let nothing = MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr(1),
        len: ByteLen(0),
    };
    blob.regions().next().map_or(nothing, |(_, entry)| entry.range)
}

fn recorded(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/wire")
        .join(name);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
