//! Properties of the wire format, on generated blobs and on damaged ones.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use dynamo_nixl::error::ErrorKind;
use dynamo_nixl::types::{Addr, AgentName, ByteLen, MemoryKind, MemoryRange, OperationKey, ProcessId, TransferId};
use dynamo_nixl::wire::{
    AgentBlob, Connection, ControlMessage, Encoding, EndReason, Incoming, RegionEntry, Section, Trailer, compose,
    decode, encode, limits,
};
use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::Index;

/// NIXL's serialisation, written from its C++ source and not from the parser under test.
fn serialise(blob: &AgentBlob) -> Vec<u8> {
    fn put(bytes: &mut Vec<u8>, tag: &str, content: &[u8]) {
        bytes.extend_from_slice(tag.as_bytes());
        bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
        bytes.extend_from_slice(content);
        bytes.push(b'|');
    }
    let count = |number: usize| (number as u64).to_le_bytes();
    let mut bytes = b"nixlSerDes|".to_vec();
    put(&mut bytes, "Agent", blob.agent.as_str().as_bytes());
    put(&mut bytes, "Conns", &count(blob.connections.len()));
    for connection in &blob.connections {
        put(&mut bytes, "t", connection.backend.as_bytes());
        put(&mut bytes, "c", &connection.info);
    }
    put(&mut bytes, "", b"MemSection");
    put(&mut bytes, "nixlSecElms", &count(blob.sections.len()));
    for section in &blob.sections {
        put(&mut bytes, "bknd", section.backend.as_bytes());
        put(&mut bytes, "nixlDList", b"nixlSDList");
        put(&mut bytes, "t", &section.kind.nixl_number().to_le_bytes());
        put(&mut bytes, "n", &count(section.entries.len()));
        for entry in &section.entries {
            let range = [entry.range.addr.0, entry.range.len.0, entry.range.device].map(u64::to_le_bytes);
            put(&mut bytes, "", &[range.as_flattened(), &entry.key].concat());
        }
    }
    bytes
}

/// A key with up to three parts, as UCX packs it, and a tail that is not examined.
fn ucx_key() -> impl Strategy<Value = Bytes> {
    (vec(vec(any::<u8>(), 0..20), 0..3), vec(any::<u8>(), 0..5)).prop_map(|(parts, tail)| {
        let map = (1_u64 << parts.len()) - 1;
        let mut key = map.to_le_bytes().to_vec();
        key.push(0);
        for part in &parts {
            key.push(part.len() as u8);
            key.extend_from_slice(part);
        }
        key.extend_from_slice(&tail);
        Bytes::from(key)
    })
}

fn backend() -> impl Strategy<Value = String> {
    prop_oneof![
        Just("UCX".to_owned()),
        Just("LIBFABRIC".to_owned()),
        Just("Mooncake".to_owned())
    ]
}

fn section() -> impl Strategy<Value = Section> {
    let region = (1_u64..1 << 40, 0_u64..8, ucx_key());
    (backend(), any::<bool>(), vec(region, 1..5)).prop_map(|(backend, device_memory, regions)| {
        let kind = if device_memory {
            MemoryKind::Vram
        } else {
            MemoryKind::Dram
        };
        let entries = regions
            .into_iter()
            .map(|(len, device, key)| RegionEntry {
                range: MemoryRange {
                    kind,
                    device,
                    addr: Addr(0),
                    len: ByteLen(len),
                },
                key,
            })
            .collect();
        Section { backend, kind, entries }
    })
}

/// A blob that a new peer can load: every back end has a connection.
fn blob() -> impl Strategy<Value = AgentBlob> {
    // The lower half of a UCX address's first byte is its version.
    let info = || {
        (any::<bool>(), 0_u8..16, vec(any::<u8>(), 0..80))
            .prop_map(|(version, flags, rest)| Bytes::from([&[flags << 4 | u8::from(version)][..], &rest].concat()))
    };
    ("[a-zA-Z0-9é_-]{1,40}", [info(), info(), info()], vec(section(), 0..4)).prop_map(|(agent, infos, mut sections)| {
        // Addresses are made unique, because one region with two keys is a contradiction and refused.
        let regions = sections.iter_mut().flat_map(|section| &mut section.entries);
        for (index, entry) in regions.enumerate() {
            entry.range.addr = Addr(0x7f00_0000_0000 + index as u64 * 4096);
        }
        let backends = ["UCX", "LIBFABRIC", "Mooncake"];
        let connections = backends.into_iter().zip(infos).map(|(backend, info)| Connection {
            backend: backend.to_owned(),
            info,
        });
        AgentBlob {
            agent: AgentName::new(&agent),
            connections: connections.collect(),
            sections,
        }
    })
}

/// NIXL lists a region as often as it was registered: the copies say nothing.
#[test]
fn repetitions_are_dropped_and_contradictions_refused() {
    let entry = |key: &'static [u8]| RegionEntry {
        range: MemoryRange {
            kind: MemoryKind::Dram,
            device: 0,
            addr: Addr(4096),
            len: ByteLen(64),
        },
        key: Bytes::from_static(key),
    };
    let blob = |keys: &[&'static [u8]]| AgentBlob {
        agent: AgentName::new("worker"),
        connections: vec![Connection {
            backend: "UCX".to_owned(),
            info: Bytes::from_static(b"\x20address"),
        }],
        sections: vec![Section {
            backend: "UCX".to_owned(),
            kind: MemoryKind::Dram,
            entries: keys.iter().map(|key| entry(key)).collect(),
        }],
    };
    let (one, other) = (&[0; 9][..], &[0; 10][..]);
    let parsed = AgentBlob::parse(&serialise(&blob(&[one, one, one]))).unwrap();
    assert_eq!(parsed, blob(&[one]));
    assert!(AgentBlob::parse(&serialise(&blob(&[one, other]))).is_err());
}

/// It would be sorted in one by one, under the agent's lock.
#[test]
fn many_regions_in_disorder_are_refused() {
    let blob = |addresses: &mut dyn Iterator<Item = u64>| AgentBlob {
        agent: AgentName::new("worker"),
        connections: Vec::new(),
        sections: vec![Section {
            backend: "UCX".to_owned(),
            kind: MemoryKind::Dram,
            entries: addresses
                .map(|addr| RegionEntry {
                    range: MemoryRange {
                        kind: MemoryKind::Dram,
                        device: 0,
                        addr: Addr(addr * 4096),
                        len: ByteLen(64),
                    },
                    key: Bytes::from_static(&[0; 9]),
                })
                .collect(),
        }],
    };
    assert!(AgentBlob::parse(&serialise(&blob(&mut (0..20_000)))).is_ok());
    assert!(AgentBlob::parse(&serialise(&blob(&mut (0..20_000).rev()))).is_err());
    assert!(AgentBlob::parse(&serialise(&blob(&mut (0..100).rev()))).is_ok());
}

fn process() -> impl Strategy<Value = ProcessId> {
    any::<[u32; 3]>().prop_map(|[pid, start, host]| ProcessId { pid, start, host })
}

fn trailer() -> impl Strategy<Value = Trailer> {
    let older = (any::<bool>(), any::<u64>(), option::of(any::<u64>()));
    let newer = (
        option::of(any::<u64>()),
        option::of(process()),
        option::of(any::<u32>()),
    );
    (older, newer).prop_map(
        |((shared, generation, lease), (validity_word, process, checksum))| Trailer {
            shared_memory_notifications: shared,
            // A validity word has no room for more.
            generation: validity_word.map_or(generation, |_| generation % Trailer::GENERATION_LIMIT),
            lease: lease.map(Duration::from_millis),
            validity_word: validity_word.map(Addr),
            process,
            checksum,
        },
    )
}

fn encoding() -> impl Strategy<Value = Encoding> {
    prop_oneof![Just(Encoding::Base64), Just(Encoding::Hex)]
}

fn end() -> impl Strategy<Value = (OperationKey, EndReason, String)> {
    let reason = prop_oneof![
        Just(EndReason::Cancelled),
        Just(EndReason::Failed),
        Just(EndReason::TimedOut),
        Just(EndReason::Closed),
        Just(EndReason::LeaseExpired),
        Just(EndReason::Completed),
    ];
    // At most 4 bytes a character, so that nothing is cut.
    (operation(), reason, "\\PC{0,256}")
}

fn operation() -> impl Strategy<Value = OperationKey> {
    vec(any::<u8>(), 1..limits::MAX_NOTIFICATION_KEY).prop_map(OperationKey::new)
}

fn transfer() -> impl Strategy<Value = TransferId> {
    any::<u64>().prop_map(TransferId)
}

fn control_message() -> impl Strategy<Value = ControlMessage> {
    let connection = || vec(any::<u8>(), 0..2000).prop_map(Bytes::from);
    prop_oneof![
        (operation(), transfer(), connection(), process()).prop_map(|(operation, transfer, connection, process)| {
            ControlMessage::Hello {
                operation,
                transfer,
                connection,
                process,
            }
        }),
        (end(), transfer()).prop_map(|((operation, reason, text), transfer)| ControlMessage::Left {
            operation,
            transfer,
            reason,
            text
        }),
        (operation(), transfer()).prop_map(|(operation, transfer)| ControlMessage::Quiet { operation, transfer }),
        (operation(), transfer()).prop_map(|(operation, transfer)| ControlMessage::Never { operation, transfer }),
        (end(), transfer()).prop_map(|((operation, reason, text), transfer)| ControlMessage::Ended {
            operation,
            transfer,
            reason,
            text
        }),
        (operation(), transfer(), any::<u64>()).prop_map(|(operation, transfer, nonce)| ControlMessage::Ping {
            operation,
            transfer,
            nonce
        }),
        (operation(), transfer(), any::<u64>()).prop_map(|(operation, transfer, nonce)| ControlMessage::Pong {
            operation,
            transfer,
            nonce
        }),
    ]
}

const CONTROL_PREFIX: &[u8] = b"dnxl/1:";

/// Whatever is understood can be said again, in the same words but for fields that are not understood.
fn stays_the_same(notification: &[u8]) -> Result<(), TestCaseError> {
    match ControlMessage::decode(notification) {
        Ok(Incoming::Message { message, .. }) => {
            let again = Incoming::Message {
                message: message.clone(),
                unknown_fields: 0,
            };
            let written = message.encode().unwrap();
            prop_assert_eq!(ControlMessage::decode(&written).unwrap(), again);
            let longest = limits::MAX_CONTROL_MESSAGE.div_ceil(3) * 4;
            prop_assert!(written.len() <= CONTROL_PREFIX.len() + longest);
        }
        Ok(Incoming::Other | Incoming::Unknown) => {}
        Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Metadata),
    }
    Ok(())
}

proptest! {
    #[test]
    fn parsing_reads_what_was_written(blob in blob()) {
        prop_assert_eq!(AgentBlob::parse(&serialise(&blob)).unwrap(), blob);
    }

    #[test]
    fn every_truncated_blob_is_refused(blob in blob()) {
        let bytes = serialise(&blob);
        for end in 0..bytes.len() {
            let refused = AgentBlob::parse(&bytes[..end]);
            prop_assert!(refused.is_err(), "cut at {} of {}", end, bytes.len());
            prop_assert_eq!(refused.unwrap_err().kind(), ErrorKind::Metadata);
        }
    }

    #[test]
    fn a_damaged_blob_is_refused_or_read_exactly(
        blob in blob(),
        changes in vec((any::<Index>(), any::<u8>()), 1..4),
    ) {
        let mut bytes = serialise(&blob);
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        // Whatever passes is canonical: NIXL would read the same fields at the same places.
        if let Ok(parsed) = AgentBlob::parse(&bytes) {
            prop_assert_eq!(serialise(&parsed), bytes);
        }
    }

    #[test]
    fn noise_after_a_true_start_is_refused_or_read_exactly(
        blob in blob(),
        keep in any::<Index>(),
        noise in vec(any::<u8>(), 0..200),
    ) {
        let mut bytes = serialise(&blob);
        bytes.truncate(keep.index(bytes.len()));
        bytes.extend_from_slice(&noise);
        if let Ok(parsed) = AgentBlob::parse(&bytes) {
            prop_assert_eq!(serialise(&parsed), bytes);
        }
    }

    #[test]
    fn composing_joins_what_was_taken_apart(blob in blob()) {
        let connection = AgentBlob { sections: Vec::new(), ..blob.clone() };
        let partial = AgentBlob { connections: Vec::new(), ..blob.clone() };
        let joined = compose(&serialise(&connection), &serialise(&partial)).unwrap();
        prop_assert_eq!(&joined, &serialise(&blob));
        let parsed = AgentBlob::parse(&joined).unwrap();
        prop_assert!(parsed.is_self_contained());
        prop_assert!(parsed.same_connections(&connection));
        prop_assert_eq!(parsed.conflicting_region(&partial), None);
    }

    #[test]
    fn envelopes_round_trip(
        blob in vec(any::<u8>(), 0..3000),
        trailer in option::of(trailer()),
        encoding in encoding(),
    ) {
        let text = encode(&blob, trailer.as_ref(), encoding).unwrap();
        let envelope = decode(&text).unwrap();
        prop_assert_eq!((envelope.blob, envelope.trailer, envelope.unknown_fields), (blob, trailer, 0));
    }

    #[test]
    fn white_space_and_case_do_not_matter(
        blob in vec(any::<u8>(), 0..300),
        breaks in vec(any::<Index>(), 0..5),
        encoding in encoding(),
    ) {
        let mut text = encode(&blob, None, encoding).unwrap();
        if encoding == Encoding::Hex {
            text.make_ascii_uppercase();
        }
        for at in breaks {
            // Behind the prefix, which upstream compares exactly.
            let at = 4 + at.index(text.len() - 4);
            text.insert(at, '\n');
        }
        prop_assert_eq!(decode(&text).unwrap().blob, blob);
    }

    #[test]
    fn a_cut_envelope_is_refused_unless_just_the_trailer_is_gone(blob in vec(any::<u8>(), 0..200), trailer in trailer()) {
        let bare = encode(&blob, None, Encoding::Hex).unwrap();
        let whole = encode(&blob, Some(&trailer), Encoding::Hex).unwrap();
        for end in (0..whole.len()).step_by(2) {
            match decode(&whole[..end]) {
                // Nothing can tell this from an upstream peer's envelope.
                Ok(envelope) => prop_assert_eq!((end, envelope.trailer), (bare.len(), None)),
                Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Metadata),
            }
        }
    }

    #[test]
    fn a_flipped_bit_never_changes_what_is_read(
        blob in vec(any::<u8>(), 1..200),
        trailer in trailer(),
        byte in any::<Index>(),
        bit in 0_u8..8,
    ) {
        let text = encode(&blob, Some(&trailer), Encoding::Hex).unwrap();
        let at = byte.index(text.len() / 2) * 2;
        let damaged = u8::from_str_radix(&text[at..at + 2], 16).unwrap() ^ (1 << bit);
        let text = format!("{}{damaged:02x}{}", &text[..at], &text[at + 2..]);
        // A damaged magic or major version makes the peer a foreign one, never a peer with other values.
        if let Ok(envelope) = decode(&text) {
            prop_assert_eq!(envelope.blob, blob);
            prop_assert!(envelope.trailer.is_none_or(|read| read == trailer));
        }
    }

    #[test]
    fn control_messages_round_trip(message in control_message()) {
        let written = message.encode().unwrap();
        prop_assert!(written.is_ascii() && written.starts_with(CONTROL_PREFIX));
        let read = ControlMessage::decode(&written).unwrap();
        prop_assert_eq!(read, Incoming::Message { message, unknown_fields: 0 });
    }

    #[test]
    fn a_damaged_control_message_is_refused_or_another_message(
        message in control_message(),
        changes in vec((any::<Index>(), any::<u8>()), 1..4),
        keep in option::of(any::<Index>()),
    ) {
        let written = message.encode().unwrap();
        let mut damaged = written.clone();
        for (at, value) in &changes {
            let at = at.index(damaged.len());
            damaged[at] = *value;
        }
        stays_the_same(&damaged)?;
        // Behind the base64, where damage meets the fields.
        let mut body = STANDARD.decode(&written[CONTROL_PREFIX.len()..]).unwrap();
        for (at, value) in &changes {
            let at = at.index(body.len());
            body[at] = *value;
        }
        if let Some(keep) = keep {
            body.truncate(keep.index(body.len()));
        }
        stays_the_same(&[CONTROL_PREFIX, STANDARD.encode(body).as_bytes()].concat())?;
    }

    #[test]
    fn no_fields_make_reading_a_control_message_panic(
        kind in 0_u8..9,
        fields in vec((0_u8..9, vec(any::<u8>(), 0..14)), 0..8),
        noise in vec(any::<u8>(), 0..4),
    ) {
        let mut body = vec![kind];
        for (kind, value) in fields {
            body.extend_from_slice(&[kind, value.len() as u8, 0]);
            body.extend_from_slice(&value);
        }
        body.extend_from_slice(&noise);
        stays_the_same(&[CONTROL_PREFIX, STANDARD.encode(body).as_bytes()].concat())?;
    }

    #[test]
    fn no_text_makes_reading_a_notification_panic(prefix in "(dnxl(/(1:?)?)?)?", rest in vec(any::<u8>(), 0..200)) {
        stays_the_same(&[prefix.as_bytes(), &rest].concat())?;
    }

    #[test]
    fn no_text_makes_decoding_panic(prefix in "(b64:)?(eJ|78)?", text in "\\PC{0,200}") {
        let _ = decode(&format!("{prefix}{text}"));
    }
}
