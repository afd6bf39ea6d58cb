//! Recorded metadata of NIXL, of upstream and of released versions of ours stays readable.
//!
//! `tests/fixtures/wire/README.md` says how each file was made. A file of a released version is never changed.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use dynamo_nixl::types::{Addr, ByteLen, MemoryKind, MemoryRange, OperationKey, ProcessId, TransferId};
use dynamo_nixl::wire::{AgentBlob, ControlMessage, Encoding, EndReason, Incoming, Trailer, compose, decode, encode};

/// What the recorded envelopes of version 1.1 say beside their blob.
const RECORDED: Trailer = Trailer {
    validity_word: Some(Addr(0x7f00_0000_1008)),
    process: Some(PROCESS),
    checksum: Some(0xe306_9283),
    ..RECORDED_1_0
};

/// The same of version 1.0.
const RECORDED_1_0: Trailer = Trailer {
    shared_memory_notifications: true,
    generation: 7,
    lease: Some(Duration::from_secs(600)),
    validity_word: None,
    process: None,
    checksum: None,
};

const PROCESS: ProcessId = ProcessId {
    pid: 4242,
    start: 1000,
    host: 0xdead_beef,
};

fn path(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/wire")
        .join(name)
}

fn bytes(name: &str) -> Vec<u8> {
    std::fs::read(path(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn text(name: &str) -> String {
    String::from_utf8(bytes(name)).unwrap().trim_end().to_owned()
}

/// The value of a string member of a recorded JSON object. Upstream writes no escapes and no spaces there.
fn member(json: &str, key: &str) -> String {
    let (_, rest) = json.split_once(&format!("\"{key}\":\"")).unwrap();
    rest.split_once('"').unwrap().0.to_owned()
}

/// The numbers behind every occurrence of a key.
fn numbers(json: &str, key: &str) -> Vec<u64> {
    json.split(&format!("\"{key}\":"))
        .skip(1)
        .map(|rest| {
            rest.split(|character: char| !character.is_ascii_digit())
                .next()
                .unwrap()
                .parse()
                .unwrap()
        })
        .collect()
}

/// The recorded control messages of version 1, each with the end of its file's name.
fn control_messages() -> [(&'static str, ControlMessage); 7] {
    let operation = || OperationKey::new("8ffc1dc9-aafc-43b5-82fd-8406eb1f4eb2");
    let connection = || Bytes::from(bytes("nixl_1.5.1_connection.bin"));
    let nonce = 0x0123_4567_89ab_cdef;
    let transfer = TransferId(0xfedc_ba98_7654_3210);
    [
        (
            "hello",
            ControlMessage::Hello {
                operation: operation(),
                transfer,
                connection: connection(),
                process: PROCESS,
            },
        ),
        (
            "left",
            ControlMessage::Left {
                operation: operation(),
                transfer,
                reason: EndReason::TimedOut,
                text: "nothing moved for 30 s – gave up".to_owned(),
            },
        ),
        (
            "quiet",
            ControlMessage::Quiet {
                operation: operation(),
                transfer,
            },
        ),
        (
            "never",
            ControlMessage::Never {
                operation: operation(),
                transfer,
            },
        ),
        (
            "ended",
            ControlMessage::Ended {
                operation: operation(),
                transfer,
                reason: EndReason::Cancelled,
                text: String::new(),
            },
        ),
        (
            "ping",
            ControlMessage::Ping {
                operation: operation(),
                transfer,
                nonce,
            },
        ),
        (
            "pong",
            ControlMessage::Pong {
                operation: operation(),
                transfer,
                nonce,
            },
        ),
    ]
}

fn host_range(addr: u64, len: u64) -> MemoryRange {
    MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr(addr),
        len: ByteLen(len),
    }
}

#[test]
fn upstream_metadata_is_read_as_python_reads_it() {
    for (case, exposed, listed) in [("one", 1, 1), ("one_hex", 1, 1), ("two", 2, 2), ("among_fifty", 1, 51)] {
        let json = text(&format!("upstream_1.6.1_{case}.json"));
        let envelope = decode(&member(&json, "nixl_metadata")).unwrap();
        assert_eq!(envelope.blob, bytes(&format!("upstream_1.6.1_{case}.bin")), "{case}");
        assert_eq!(envelope.trailer, None, "{case}: upstream is a foreign peer");

        let blob = AgentBlob::parse(&envelope.blob).unwrap();
        assert_eq!(blob.agent.as_str(), format!("upstream-{case}-1"));
        assert!(blob.is_self_contained(), "{case}");
        assert_eq!(blob.regions().count(), listed, "{case}");
        let (addresses, sizes) = (numbers(&json, "ptr"), numbers(&json, "size"));
        assert_eq!((addresses.len(), sizes.len()), (exposed, exposed), "{case}");
        for (addr, len) in addresses.into_iter().zip(sizes) {
            assert!(blob.covers(&host_range(addr, len)), "{case}: {addr:#x}");
            assert!(!blob.covers(&host_range(addr, len + 4096)), "{case}: {addr:#x}");
        }
    }
}

#[test]
fn both_nixl_versions_serialise_alike() {
    for version in ["1.4.1", "1.5.1"] {
        let read = |part: &str| AgentBlob::parse(&bytes(&format!("nixl_{version}_{part}.bin"))).unwrap();
        let (connection, partial, full) = (read("connection"), read("partial"), read("full"));
        assert!(
            connection.sections.is_empty() && partial.connections.is_empty(),
            "{version}"
        );
        assert!(connection.same_connections(&full), "{version}");
        assert_eq!(full.agent.as_str(), "worker-1");

        let lengths = |blob: &AgentBlob| blob.regions().map(|(_, entry)| entry.range.len.0).collect::<Vec<_>>();
        assert_eq!(
            (lengths(&partial), lengths(&full)),
            (vec![4096], vec![4096, 100]),
            "{version}"
        );
        assert_eq!(full.conflicting_region(&partial), None, "{version}");
        assert_eq!(partial.sections[0].entries[0], full.sections[0].entries[0], "{version}");
    }
}

#[test]
fn composing_gives_what_nixl_would_write() {
    for version in ["1.4.1", "1.5.1"] {
        let part = |part: &str| bytes(&format!("nixl_{version}_{part}.bin"));
        let joined = compose(&part("connection"), &part("partial")).unwrap();
        let mut expected = AgentBlob::parse(&part("full")).unwrap();
        expected.sections[0].entries.truncate(1);
        assert_eq!(AgentBlob::parse(&joined).unwrap(), expected, "{version}");
        assert_eq!(
            joined.len(),
            part("full").len() - 44,
            "{version}: one region of 44 bytes less"
        );
    }
}

#[test]
fn agents_of_two_runs_are_told_apart() {
    // Same name, different processes: what a restarted worker looks like.
    let [before, after] = ["1.4.1", "1.5.1"].map(|version| bytes(&format!("nixl_{version}_connection.bin")));
    let [before_blob, after_blob] = [&before, &after].map(|bytes| AgentBlob::parse(bytes).unwrap());
    assert_eq!(before_blob.agent, after_blob.agent);
    assert!(!before_blob.same_connections(&after_blob));
    let error = compose(&before, &bytes("nixl_1.5.1_full.bin")).unwrap_err();
    assert!(error.to_string().contains("other connections"), "{error}");
}

#[test]
fn envelopes_of_every_version_stay_readable() {
    let blob = compose(&bytes("nixl_1.5.1_connection.bin"), &bytes("nixl_1.5.1_partial.bin")).unwrap();
    for (name, trailer) in [
        ("ours_1.0_b64.txt", RECORDED_1_0),
        ("ours_1.0_hex.txt", RECORDED_1_0),
        ("ours_1.1_b64.txt", RECORDED),
        ("ours_1.1_hex.txt", RECORDED),
    ] {
        let envelope = decode(&text(name)).unwrap();
        assert_eq!(envelope.blob, blob, "{name}");
        assert_eq!(envelope.trailer, Some(trailer), "{name}");
        assert_eq!(envelope.unknown_fields, 0, "{name}");
    }
}

#[test]
fn control_messages_of_version_1_stay_readable() {
    for (name, message) in control_messages() {
        let read = ControlMessage::decode(text(&format!("control_1_{name}.txt")).as_bytes()).unwrap();
        let expected = Incoming::Message {
            message,
            unknown_fields: 0,
        };
        assert_eq!(read, expected, "{name}");
    }
}

#[test]
fn an_envelope_of_one_region_stays_near_the_size_of_upstreams() {
    let upstream = member(&text("upstream_1.6.1_one.json"), "nixl_metadata").len();
    let same_blob = bytes("upstream_1.6.1_one.bin");
    let ours = encode(&same_blob, Some(&RECORDED), Encoding::Base64).unwrap().len();
    assert!(ours <= upstream + 170, "{ours} characters against {upstream}");
    // Fifty other registrations must not show: composed metadata lists what is exposed, and nothing else.
    let crowded = member(&text("upstream_1.6.1_among_fifty.json"), "nixl_metadata").len();
    assert!(ours < crowded, "{ours} characters against {crowded}");
}

/// Not a test: writes the envelopes and control messages of the current version. Run it once per released version, under a new name.
#[test]
#[ignore = "writes fixtures"]
fn record() {
    let blob = compose(&bytes("nixl_1.5.1_connection.bin"), &bytes("nixl_1.5.1_partial.bin")).unwrap();
    for (name, encoding) in [
        ("ours_1.1_b64.txt", Encoding::Base64),
        ("ours_1.1_hex.txt", Encoding::Hex),
    ] {
        std::fs::write(path(name), encode(&blob, Some(&RECORDED), encoding).unwrap() + "\n").unwrap();
    }
    for (name, message) in control_messages() {
        let line = [message.encode().unwrap().as_slice(), b"\n"].concat();
        std::fs::write(path(&format!("control_1_{name}.txt")), line).unwrap();
    }
}
