//! What one dynamo_nixl tells another, behind the end of the compressed stream where upstream never looks.
//!
//! Version 1.1, numbers little-endian:
//!
//! ```text
//! "DNXL"  major u8 = 1  minor u8  length u16 (of all of it)  { kind u8, size u8, value }*  crc32 u32
//! ```
//!
//! The sum covers everything before it. Deflate's own sum covers the blob, so no bit of an envelope is unguarded.

use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::types::{Addr, ProcessId};
use crate::wire::{limits, process};

const ENCODE: &str = "encode trailer";
const DECODE: &str = "decode trailer";

const MAGIC: [u8; 4] = *b"DNXL";
const MAJOR: u8 = 1;
const MINOR: u8 = 1;
const HEADER_BYTES: usize = 8;
const SUM_BYTES: usize = 4;

const FLAGS: u8 = 1;
const GENERATION: u8 = 2;
const LEASE: u8 = 3;
const VALIDITY_WORD: u8 = 4;
const PROCESS: u8 = 5;
const CHECKSUM: u8 = 6;

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
    ///
    /// With a validity word it is below [`Self::GENERATION_LIMIT`].
    pub generation: u64,
    /// How long the owner keeps the exposure open, counted from its own start of the operation; `None`: no limit.
    ///
    /// Whole milliseconds travel: a fraction is cut off, and what exceeds `u64` becomes its maximum.
    pub lease: Option<Duration>,
    /// Where the owner says whether the exposure is open, in its own address space; `None`: it cannot be asked.
    ///
    /// It is what the owner claims: whether a region of the blob holds eight bytes there is not examined.
    pub validity_word: Option<Addr>,
    /// The owner; `None`: it does not say, and takes no control messages.
    pub process: Option<ProcessId>,
    /// CRC-32C of the exposed bytes, in the order of the descriptors; `None`: the owner was not asked for one.
    pub checksum: Option<u32>,
}

/// A trailer and what came with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) trailer: Trailer,
    /// Fields of kinds that this version does not know.
    pub(super) unknown_fields: usize,
}

impl Trailer {
    /// One past the highest generation of an exposure with a validity word, whose upper byte says how it ended.
    pub const GENERATION_LIMIT: u64 = 1 << 56;

    /// The bytes to put behind the compressed stream: at most 65.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`] for what [`Self::decode`] refuses: a generation that a validity word cannot hold.
    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        if self.generation_exceeds_word() {
            return Err(generation_too_high(ENCODE, self.generation));
        }
        let mut bytes = Vec::with_capacity(72);
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
        if let Some(word) = self.validity_word {
            bytes.extend_from_slice(&[VALIDITY_WORD, 8]);
            bytes.extend_from_slice(&word.0.to_le_bytes());
        }
        if let Some(owner) = self.process {
            bytes.extend_from_slice(&[PROCESS, process::BYTES as u8]);
            bytes.extend_from_slice(&process::to_bytes(owner));
        }
        if let Some(checksum) = self.checksum {
            bytes.extend_from_slice(&[CHECKSUM, 4]);
            bytes.extend_from_slice(&checksum.to_le_bytes());
        }
        // Fits: at most 65 bytes.
        let length = (bytes.len() + SUM_BYTES) as u16;
        bytes[6..8].copy_from_slice(&length.to_le_bytes());
        let sum = sum_of(&bytes);
        bytes.extend_from_slice(&sum.to_le_bytes());
        Ok(bytes)
    }

    /// Reads the bytes behind the compressed stream.
    ///
    /// `Ok(None)` is a foreign peer: no bytes, bytes that do not begin with the magic, or another major version.
    /// Fields of unknown kinds are skipped and counted; a newer minor version is read as far as it is known.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`] for bytes that begin with the magic (or end within it) and are truncated, too long,
    /// damaged, or hold a field of a known kind that is malformed, repeated or missing, or a generation
    /// that their validity word cannot hold.
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
            .split_last_chunk::<SUM_BYTES>()
            .filter(|(body, _)| body.len() >= HEADER_BYTES)
        else {
            return Err(refuse("ends within the header"));
        };
        let announced = u16::from_le_bytes([body[6], body[7]]);
        if usize::from(announced) != bytes.len() {
            return Err(refuse("the announced length does not match").with_context("announced", announced));
        }
        if sum_of(body) != u32::from_le_bytes(*sum) {
            return Err(refuse("the checksum does not match"));
        }
        fields(&body[HEADER_BYTES..]).map(Some)
    }

    fn generation_exceeds_word(&self) -> bool {
        self.validity_word.is_some() && self.generation >= Self::GENERATION_LIMIT
    }
}

/// Whether `bytes` begin with `magic`, or end before it is complete.
fn starts_like(bytes: &[u8], magic: &[u8]) -> bool {
    let shared = bytes.len().min(magic.len());
    bytes[..shared] == magic[..shared]
}

/// The fields of known kinds, as they were found.
#[derive(Default)]
struct Fields {
    flags: Option<u8>,
    generation: Option<u64>,
    lease: Option<u64>,
    validity_word: Option<u64>,
    process: Option<ProcessId>,
    checksum: Option<u32>,
}

fn fields(mut rest: &[u8]) -> Result<Decoded> {
    let mut found = Fields::default();
    let mut unknown_fields = 0;
    while let [kind, size, tail @ ..] = rest {
        let Some((value, tail)) = tail.split_at_checked(usize::from(*size)) else {
            return Err(refuse("ends within a field", *kind));
        };
        rest = tail;
        let repeated = match *kind {
            FLAGS => match value.first() {
                // Later versions may append bytes; the bits of this one are in the first.
                Some(first) => found.flags.replace(*first).is_some(),
                None => return Err(refuse("a field has the wrong size", *kind)),
            },
            GENERATION => found.generation.replace(number(value, *kind)?).is_some(),
            LEASE => found.lease.replace(number(value, *kind)?).is_some(),
            VALIDITY_WORD => found.validity_word.replace(number(value, *kind)?).is_some(),
            PROCESS => found
                .process
                .replace(process::from_bytes(sized(value, *kind)?))
                .is_some(),
            CHECKSUM => found
                .checksum
                .replace(u32::from_le_bytes(sized(value, *kind)?))
                .is_some(),
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
    let flags = found.flags.ok_or_else(|| refuse("a field is missing", FLAGS))?;
    let trailer = Trailer {
        shared_memory_notifications: flags & SHARED_MEMORY_NOTIFICATIONS != 0,
        generation: found
            .generation
            .ok_or_else(|| refuse("a field is missing", GENERATION))?,
        lease: found.lease.map(Duration::from_millis),
        validity_word: found.validity_word.map(Addr),
        process: found.process,
        checksum: found.checksum,
    };
    if trailer.generation_exceeds_word() {
        return Err(generation_too_high(DECODE, trailer.generation));
    }
    Ok(Decoded {
        trailer,
        unknown_fields,
    })
}

fn number(value: &[u8], kind: u8) -> Result<u64> {
    sized(value, kind).map(u64::from_le_bytes)
}

fn sized<const N: usize>(value: &[u8], kind: u8) -> Result<[u8; N]> {
    value.try_into().map_err(|_| refuse("a field has the wrong size", kind))
}

fn refuse(message: &str, kind: u8) -> Error {
    Error::new(ErrorKind::Metadata, DECODE, message).with_context("field", kind)
}

fn generation_too_high(operation: &'static str, generation: u64) -> Error {
    Error::new(
        ErrorKind::Metadata,
        operation,
        "the generation does not fit into a validity word",
    )
    .with_context("generation", generation)
}

fn sum_of(bytes: &[u8]) -> u32 {
    let mut crc = flate2::Crc::new();
    crc.update(bytes);
    crc.sum()
}

#[cfg(test)]
mod tests;
