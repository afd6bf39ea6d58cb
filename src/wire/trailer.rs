//! What one dynamo_nixl tells another, behind the end of the compressed stream where upstream never looks.
//!
//! Version 1.0, numbers little-endian:
//!
//! ```text
//! "DNXL"  major u8 = 1  minor u8  length u16 (of all of it)  { kind u8, size u8, value }*  crc32 u32
//! ```
//!
//! The sum covers everything before it. Deflate's own sum covers the blob, so no bit of an envelope is unguarded.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::wire::limits;

const DECODE: &str = "decode trailer";

const MAGIC: [u8; 4] = *b"DNXL";
const MAJOR: u8 = 1;
const MINOR: u8 = 0;
const HEADER_BYTES: usize = 8;
const CHECKSUM_BYTES: usize = 4;

const FLAGS: u8 = 1;
const GENERATION: u8 = 2;
const LEASE: u8 = 3;

/// The bit in the flags that says that the owner's notifications ride shared memory.
const SHARED_MEMORY_NOTIFICATIONS: u8 = 1;

/// The extension that marks the owner of a blob as a dynamo_nixl.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// The owner's agent runs UCX with `MM_ERROR_HANDLING=y`, so a reader may use an agent that does so too.
    ///
    /// Such a reader against an owner without it waits for ever; where this is false, a plain agent has to be used.
    pub shared_memory_notifications: bool,
    /// Grows each time the owner exposes something anew; tells a fresh exposure of a region from a stale one.
    pub generation: u64,
    /// How long the owner keeps the exposure open, counted from its own start of the operation; `None`: no limit.
    ///
    /// Whole milliseconds travel: a fraction is cut off, and what exceeds `u64` becomes its maximum.
    pub lease: Option<Duration>,
}

/// A trailer and what came with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) trailer: Trailer,
    /// Fields of kinds that this version does not know.
    pub(super) unknown_fields: usize,
}

impl Trailer {
    /// The bytes to put behind the compressed stream: at most 35.
    #[must_use]
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(40);
        bytes.extend_from_slice(&MAGIC);
        bytes.extend_from_slice(&[MAJOR, MINOR, 0, 0]);
        let flags = if self.shared_memory_notifications {
            SHARED_MEMORY_NOTIFICATIONS
        } else {
            0
        };
        bytes.extend_from_slice(&[FLAGS, 1, flags]);
        bytes.extend_from_slice(&[GENERATION, 8]);
        bytes.extend_from_slice(&self.generation.to_le_bytes());
        if let Some(lease) = self.lease {
            let millis = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
            bytes.extend_from_slice(&[LEASE, 8]);
            bytes.extend_from_slice(&millis.to_le_bytes());
        }
        // Fits: at most 35 bytes.
        let length = (bytes.len() + CHECKSUM_BYTES) as u16;
        bytes[6..8].copy_from_slice(&length.to_le_bytes());
        let sum = checksum(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        bytes
    }

    /// Reads the bytes behind the compressed stream.
    ///
    /// `Ok(None)` is a foreign peer: no bytes, bytes that do not begin with the magic, or another major version.
    /// Fields of unknown kinds are skipped and counted; a newer minor version is read as far as it is known.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`] for bytes that begin with the magic (or end within it) and are truncated, too long,
    /// damaged, or hold a field of a known kind that is malformed, repeated or missing.
    pub(super) fn decode(bytes: &[u8]) -> Result<Option<Decoded>> {
        if bytes.is_empty() || !starts_like(bytes, &MAGIC) {
            return Ok(None);
        }
        let refuse =
            |message: &str| Error::new(ErrorKind::Metadata, DECODE, message).with_context("length", bytes.len());
        let Some(major) = bytes.get(MAGIC.len()) else {
            return Err(refuse("ends before the version"));
        };
        if *major != MAJOR {
            return Ok(None);
        }
        if bytes.len() > limits::MAX_TRAILER {
            return Err(refuse("the trailer is too long").with_context("limit", limits::MAX_TRAILER));
        }
        let Some((body, sum)) = bytes
            .split_last_chunk::<CHECKSUM_BYTES>()
            .filter(|(body, _)| body.len() >= HEADER_BYTES)
        else {
            return Err(refuse("ends within the header"));
        };
        let announced = u16::from_le_bytes([body[6], body[7]]);
        if usize::from(announced) != bytes.len() {
            return Err(refuse("the announced length does not match").with_context("announced", announced));
        }
        if checksum(body) != u32::from_le_bytes(*sum) {
            return Err(refuse("the checksum does not match"));
        }
        fields(&body[HEADER_BYTES..]).map(Some)
    }
}

/// Whether `bytes` begin with `magic`, or end before it is complete.
fn starts_like(bytes: &[u8], magic: &[u8]) -> bool {
    let shared = bytes.len().min(magic.len());
    bytes[..shared] == magic[..shared]
}

fn fields(mut rest: &[u8]) -> Result<Decoded> {
    let refuse = |message: &str, kind: u8| Error::new(ErrorKind::Metadata, DECODE, message).with_context("field", kind);
    let mut flags = None;
    let mut generation = None;
    let mut lease = None;
    let mut unknown_fields = 0;
    while let [kind, size, tail @ ..] = rest {
        let Some((value, tail)) = tail.split_at_checked(usize::from(*size)) else {
            return Err(refuse("ends within a field", *kind));
        };
        rest = tail;
        let number = || {
            <[u8; 8]>::try_from(value)
                .map(u64::from_le_bytes)
                .map_err(|_| refuse("a field has the wrong size", *kind))
        };
        let repeated = match *kind {
            FLAGS => match value.first() {
                // Later versions may append bytes; the bits of this one are in the first.
                Some(first) => flags.replace(*first).is_some(),
                None => return Err(refuse("a field has the wrong size", *kind)),
            },
            GENERATION => generation.replace(number()?).is_some(),
            LEASE => lease.replace(number()?).is_some(),
            _ => {
                unknown_fields += 1;
                false
            }
        };
        if repeated {
            return Err(refuse("a field is repeated", *kind));
        }
    }
    if let [kind] = rest {
        return Err(refuse("ends within a field", *kind));
    }
    let flags = flags.ok_or_else(|| refuse("a field is missing", FLAGS))?;
    let generation = generation.ok_or_else(|| refuse("a field is missing", GENERATION))?;
    let trailer = Trailer {
        shared_memory_notifications: flags & SHARED_MEMORY_NOTIFICATIONS != 0,
        generation,
        lease: lease.map(Duration::from_millis),
    };
    Ok(Decoded {
        trailer,
        unknown_fields,
    })
}

fn checksum(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const FULL: Trailer = Trailer {
        shared_memory_notifications: true,
        generation: 7,
        lease: Some(Duration::from_secs(600)),
    };

    /// The example in docs/protocol.md; its checksum was computed with Python's zlib.
    const EXAMPLE: &str = "444e584c010023000101010208070000000000000003 08c0270900000000003d3f0a11";

    fn bytes_of(hex: &str) -> Vec<u8> {
        let digits: String = hex.split_whitespace().collect();
        (0..digits.len())
            .step_by(2)
            .map(|at| u8::from_str_radix(&digits[at..at + 2], 16).unwrap())
            .collect()
    }

    /// A trailer with these bytes between length and sum.
    fn sealed(major: u8, minor: u8, fields: &[u8]) -> Vec<u8> {
        let length = (HEADER_BYTES + fields.len() + CHECKSUM_BYTES) as u16;
        let mut bytes = [&MAGIC[..], &[major, minor], &length.to_le_bytes(), fields].concat();
        bytes.extend(checksum(&bytes).to_le_bytes());
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
        assert_eq!(FULL.encode(), bytes_of(EXAMPLE));
        assert_eq!(
            Trailer::decode(&bytes_of(EXAMPLE)).unwrap(),
            Some(Decoded {
                trailer: FULL,
                unknown_fields: 0
            })
        );
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
        let good = FULL.encode();
        for end in 1..good.len() {
            refusal(&good[..end]);
        }
        refusal(&[good.as_slice(), &[0]].concat());
        for at in 5..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            refusal(&bad);
        }
        let mut longer = good[..good.len() - CHECKSUM_BYTES].to_vec();
        longer[6] += 1;
        longer.extend(checksum(&longer).to_le_bytes());
        assert!(
            refusal(&longer).contains("announced length"),
            "although the sum is right"
        );
        let room = limits::MAX_TRAILER - HEADER_BYTES - CHECKSUM_BYTES - REQUIRED.len();
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
            .encode();
            assert_eq!(Trailer::decode(&bytes).unwrap().unwrap().trailer.lease, Some(arrives));
        }
    }
}
