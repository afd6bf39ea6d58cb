#![allow(clippy::unwrap_used)]

use super::*;

const FULL: Trailer = Trailer {
    shared_memory_notifications: true,
    generation: 7,
    lease: Some(Duration::from_secs(600)),
    validity_word: Some(Addr(0x7f00_0000_1008)),
    process: Some(ProcessId {
        pid: 4242,
        start: 1000,
        host: 0xdead_beef,
    }),
    checksum: None,
};

/// The example in docs/protocol.md; its sum was computed with Python's zlib.
const EXAMPLE: &str = "444e584c 0101 3b00 010101 02080700000000000000 0308c027090000000000
    040808100000007f0000 050c92100000e8030000efbeadde 3a8b67c0";

/// What version 1.0 wrote of it.
const OLDER: &str = "444e584c 0100 2300 010101 02080700000000000000 0308c027090000000000 3d3f0a11";

fn bytes_of(hex: &str) -> Vec<u8> {
    let digits: String = hex.split_whitespace().collect();
    (0..digits.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
        .collect()
}

/// A trailer with these bytes between length and sum.
fn sealed(major: u8, minor: u8, fields: &[u8]) -> Vec<u8> {
    let length = (HEADER_BYTES + fields.len() + SUM_BYTES) as u16;
    let mut bytes = [&MAGIC[..], &[major, minor], &length.to_le_bytes(), fields].concat();
    bytes.extend(sum_of(&bytes).to_le_bytes());
    bytes
}

fn refusal(bytes: &[u8]) -> String {
    let error = Trailer::decode(bytes).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Metadata);
    error.to_string()
}

const REQUIRED: &[u8] = &[FLAGS, 1, 0, GENERATION, 8, 9, 0, 0, 0, 0, 0, 0, 0];

#[test]
fn matches_the_documented_example() {
    assert_eq!(FULL.encode().unwrap(), bytes_of(EXAMPLE));
    assert_eq!(
        Trailer::decode(&bytes_of(EXAMPLE)).unwrap(),
        Some(Decoded {
            trailer: FULL,
            unknown_fields: 0
        })
    );
}

#[test]
fn the_older_version_is_read() {
    let older = Trailer {
        validity_word: None,
        process: None,
        ..FULL
    };
    let decoded = Trailer::decode(&bytes_of(OLDER)).unwrap().unwrap();
    assert_eq!((decoded.trailer, decoded.unknown_fields), (older, 0));
    let written = older.encode().unwrap();
    assert_eq!(written[5], MINOR, "whatever fields there are");
    assert_eq!(Trailer::decode(&written).unwrap(), Some(decoded));
}

#[test]
fn a_checksum_of_the_bytes_is_carried() {
    let summed = Trailer {
        checksum: Some(0xe306_9283),
        ..FULL
    };
    let bytes = summed.encode().unwrap();
    assert_eq!(bytes.len(), 65, "the most that is written");
    assert_eq!(Trailer::decode(&bytes).unwrap().unwrap().trailer, summed);
}

#[test]
fn a_generation_must_fit_into_its_word() {
    let of = |generation, validity_word| Trailer {
        generation,
        validity_word,
        ..FULL
    };
    let word = FULL.validity_word;
    for fits in [of(Trailer::GENERATION_LIMIT - 1, word), of(u64::MAX, None)] {
        let decoded = Trailer::decode(&fits.encode().unwrap()).unwrap().unwrap();
        assert_eq!(decoded.trailer, fits);
    }
    let error = of(Trailer::GENERATION_LIMIT, word).encode().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Metadata);
    let fields = [
        &[FLAGS, 1, 0, GENERATION, 8, 0, 0, 0, 0, 0, 0, 0, 1][..],
        &[VALIDITY_WORD, 8, 0, 0, 0, 0, 0, 0, 0, 0],
    ];
    let text = refusal(&sealed(MAJOR, MINOR, &fields.concat()));
    assert!(text.contains("does not fit into a validity word"), "{text}");
}

#[test]
fn foreign_bytes_are_no_trailer() {
    for bytes in [&b""[..], b"\0", b"DNXl", b"anything that follows"] {
        assert_eq!(Trailer::decode(bytes).unwrap(), None);
    }
    assert_eq!(Trailer::decode(&sealed(2, 0, b"of another shape")).unwrap(), None);
    assert_eq!(
        Trailer::decode(b"DNXL\x00").unwrap(),
        None,
        "whatever the length of another major version"
    );
}

#[test]
fn later_minor_versions_are_read_as_far_as_known() {
    let fields = [REQUIRED, &[200, 2, 1, 2, 77, 0]].concat();
    let decoded = Trailer::decode(&sealed(1, 9, &fields)).unwrap().unwrap();
    assert_eq!((decoded.trailer.generation, decoded.unknown_fields), (9, 2));
    let wide_flags = [&[FLAGS, 2, 0xff, 0xff][..], &REQUIRED[3..]].concat();
    let decoded = Trailer::decode(&sealed(1, 1, &wide_flags)).unwrap().unwrap();
    assert!(decoded.trailer.shared_memory_notifications);
}

#[test]
fn malformed_fields_are_refused() {
    for (fields, expected) in [
        (&REQUIRED[..12], "ends within a field"),
        (&[REQUIRED, &[LEASE]].concat(), "ends within a field"),
        (&[REQUIRED, &[LEASE, 4, 1, 0, 0, 0]].concat(), "wrong size"),
        (&[REQUIRED, &[FLAGS, 0]].concat(), "wrong size"),
        (&[REQUIRED, &[VALIDITY_WORD, 4, 8, 0, 0, 0]].concat(), "wrong size"),
        (&[REQUIRED, &[PROCESS, 13], &[1; 13]].concat(), "wrong size"),
        (&[REQUIRED, &[CHECKSUM, 8], &[1; 8]].concat(), "wrong size"),
        (
            &[REQUIRED, &[CHECKSUM, 4, 1, 2, 3, 4].repeat(2)].concat(),
            "repeated (field=6)",
        ),
        (&[REQUIRED, REQUIRED].concat(), "repeated"),
        (&REQUIRED[..3], "missing (field=2)"),
        (&REQUIRED[3..], "missing (field=1)"),
    ] {
        let text = refusal(&sealed(MAJOR, MINOR, fields));
        assert!(text.contains(expected), "{text}");
    }
}

#[test]
fn damage_is_refused() {
    let good = FULL.encode().unwrap();
    for end in 1..good.len() {
        refusal(&good[..end]);
    }
    refusal(&[good.as_slice(), &[0]].concat());
    for at in 5..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 0x10;
        refusal(&bad);
    }
    let mut longer = good[..good.len() - SUM_BYTES].to_vec();
    longer[6] += 1;
    longer.extend(sum_of(&longer).to_le_bytes());
    assert!(
        refusal(&longer).contains("announced length"),
        "although the sum is right"
    );
    let room = limits::MAX_TRAILER - HEADER_BYTES - SUM_BYTES - REQUIRED.len();
    let padded = |room: usize| sealed(MAJOR, MINOR, &[REQUIRED, &[9, 0].repeat(room / 2)].concat());
    assert!(Trailer::decode(&padded(room)).unwrap().is_some());
    assert!(refusal(&padded(room + 2)).contains("too long"));
}

#[test]
fn leases_travel_in_milliseconds() {
    for (lease, arrives) in [
        (Duration::from_micros(1999), Duration::from_millis(1)),
        (Duration::MAX, Duration::from_millis(u64::MAX)),
    ] {
        let bytes = Trailer {
            lease: Some(lease),
            ..FULL
        }
        .encode()
        .unwrap();
        assert_eq!(Trailer::decode(&bytes).unwrap().unwrap().trailer.lease, Some(arrives));
    }
}
