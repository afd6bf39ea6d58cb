//! Reads NIXL's serialisation of an agent.
//!
//! NIXL 1.4.1 to 1.5.x write `nixlSerDes|` and then fields `tag, length, content, '|'`, numbers little-endian:
//!
//! ```text
//! Agent <name>   Conns <u64 count>   { t <back end> c <connection information> }*
//! (no tag) MemSection
//! nixlSecElms <u64 count>   { bknd <back end> nixlDList nixlSDList t <u32 kind> n <u64 count>
//!                             { (no tag) <u64 address, u64 length, u64 device, key> }* }*
//! ```
//!
//! NIXL's own reader trusts the lengths and indexes an array with the kind, and one load that it refuses makes an
//! agent's name unloadable for good. So a blob is read here first, more strictly than NIXL does, and what NIXL
//! would refuse half-way is refused before NIXL sees it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::types::{Addr, AgentName, ByteLen, MemoryKind, MemoryRange};
use crate::wire::blob::{AgentBlob, Connection, RegionEntry, Section};
use crate::wire::cursor::{Cursor, FIELD_OVERHEAD, PARSE};
use crate::wire::{key, limits};

const HEADER: &[u8] = b"nixlSerDes|";
const MEMORY_SECTION: &[u8] = b"MemSection";
const DESCRIPTOR_LIST: &[u8] = b"nixlSDList";

/// Address, length and device: what precedes the key in an entry.
const RANGE_BYTES: usize = 24;

/// The fewest bytes a connection can take: two fields with a tag of one byte, both with content.
const MIN_CONNECTION: usize = 2 * (1 + 1 + FIELD_OVERHEAD);

/// The fewest bytes a region can take: one field without a tag.
const MIN_REGION: usize = RANGE_BYTES + FIELD_OVERHEAD;

/// The fewest bytes a section can take: five fields, one of them at least one region.
const MIN_SECTION: usize = 4 + 1 + 9 + DESCRIPTOR_LIST.len() + 1 + 4 + 1 + 8 + 4 * FIELD_OVERHEAD + MIN_REGION;

/// Parses, and says where the part that describes memory begins: just after `MemSection|`.
pub(super) fn parse_and_split(blob: &[u8]) -> Result<(AgentBlob, usize)> {
    if blob.len() > limits::MAX_BLOB {
        return Err(Error::new(ErrorKind::Metadata, PARSE, "the blob is too big")
            .with_context("length", blob.len())
            .with_context("limit", limits::MAX_BLOB));
    }
    let mut cursor = Cursor::new(Bytes::copy_from_slice(blob));
    cursor.literal(HEADER, "NIXL's header")?;
    let agent = agent_name(&mut cursor)?;
    let connections = connections(&mut cursor)?;
    constant(&mut cursor, "", MEMORY_SECTION, "the memory section's mark")?;
    let split = cursor.offset();
    let sections = sections(&mut cursor)?;
    if cursor.remaining() > 0 {
        return Err(cursor.error("bytes follow the last section"));
    }
    Ok((
        AgentBlob {
            agent,
            connections,
            sections,
        },
        split,
    ))
}

fn agent_name(cursor: &mut Cursor) -> Result<AgentName> {
    text(cursor, "Agent", "the agent's name", limits::MAX_AGENT_NAME).map(|name| AgentName::new(&name))
}

fn connections(cursor: &mut Cursor) -> Result<Vec<Connection>> {
    let count = cursor.count_field(
        "Conns",
        "the number of connections",
        MIN_CONNECTION,
        limits::MAX_CONNECTIONS,
    )?;
    let mut connections: Vec<Connection> = Vec::with_capacity(count);
    for _ in 0..count {
        let backend = text(cursor, "t", "a connection's back end", limits::MAX_BACKEND_NAME)?;
        let info = cursor.field("c", "connection information", 1, limits::MAX_CONNECTION_INFO)?;
        if connections.iter().any(|known| known.backend == backend) {
            return Err(cursor
                .error("two connections of one back end")
                .with_context("backend", backend));
        }
        if backend == key::BACKEND && !key::is_known_address(&info) {
            return Err(cursor
                .error("connection information of a version that UCX does not know")
                .with_context("backend", backend));
        }
        connections.push(Connection { backend, info });
    }
    Ok(connections)
}

fn sections(cursor: &mut Cursor) -> Result<Vec<Section>> {
    let count = cursor.count_field(
        "nixlSecElms",
        "the number of sections",
        MIN_SECTION,
        limits::MAX_SECTIONS,
    )?;
    let mut sections = Vec::with_capacity(count);
    let mut left = limits::MAX_REGIONS;
    for _ in 0..count {
        let section = section(cursor, left)?;
        left -= section.entries.len();
        sections.push(section);
    }
    refuse_disorder(cursor, &sections)?;
    drop_repetitions(cursor, &mut sections)?;
    Ok(sections)
}

fn section(cursor: &mut Cursor, max_regions: usize) -> Result<Section> {
    let backend = text(cursor, "bknd", "a section's back end", limits::MAX_BACKEND_NAME)?;
    constant(cursor, "nixlDList", DESCRIPTOR_LIST, "the descriptor list's type")?;
    let number = cursor
        .number_field::<4>("t", "the memory kind")
        .map(u32::from_le_bytes)?;
    let kind = MemoryKind::from_nixl_number(number).ok_or_else(|| {
        cursor
            .error("a section of memory that no connector moves")
            .with_context("memory_kind", number)
            .with_hint("only host (0) and accelerator (1) memory can be exposed")
    })?;
    let count = cursor.count_field("n", "the number of regions", MIN_REGION, max_regions)?;
    if count == 0 {
        return Err(cursor
            .error("a section without regions")
            .with_context("backend", backend));
    }
    let mut entries = Vec::with_capacity(count);
    for _ in 0..count {
        entries.push(region(cursor, &backend, kind)?);
    }
    Ok(Section { backend, kind, entries })
}

fn region(cursor: &mut Cursor, backend: &str, kind: MemoryKind) -> Result<RegionEntry> {
    let content = cursor.field("", "a region", RANGE_BYTES, RANGE_BYTES + limits::MAX_KEY)?;
    let number = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&content[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let range = MemoryRange {
        kind,
        addr: Addr(number(0)),
        len: ByteLen(number(8)),
        device: number(16),
    };
    if range.end().is_none() {
        return Err(cursor
            .error("a region wraps around the address space")
            .with_context("address", format!("{:?}", range.addr))
            .with_context("bytes", range.len.0));
    }
    let key = content.slice(RANGE_BYTES..);
    if backend == key::BACKEND && !key::is_complete(&key) {
        return Err(cursor
            .error("a region's key is shorter than it claims")
            .with_context("address", format!("{:?}", range.addr))
            .with_context("key_bytes", key.len()));
    }
    Ok(RegionEntry { range, key })
}

/// NIXL keeps regions sorted, and lists them so. It would sort in many others one by one, which takes seconds.
fn refuse_disorder(cursor: &Cursor, sections: &[Section]) -> Result<()> {
    for section in sections {
        let ranges = || section.entries.iter().map(|entry| entry.range);
        if section.entries.len() > limits::MAX_UNSORTED_REGIONS && !ranges().is_sorted() {
            return Err(cursor
                .error("too many regions in disorder")
                .with_context("regions", section.entries.len())
                .with_context("limit", limits::MAX_UNSORTED_REGIONS));
        }
    }
    Ok(())
}

/// NIXL lists a region as often as its owner registered it. It refuses, half-way through a load, one that it knows with
/// another key.
fn drop_repetitions(cursor: &Cursor, sections: &mut [Section]) -> Result<()> {
    let mut known: HashMap<(Arc<str>, MemoryRange), Bytes> = HashMap::new();
    let mut contradiction = None;
    for section in sections {
        let backend: Arc<str> = Arc::from(section.backend.as_str());
        section
            .entries
            .retain(|entry| match known.entry((Arc::clone(&backend), entry.range)) {
                Entry::Vacant(vacant) => {
                    vacant.insert(entry.key.clone());
                    true
                }
                Entry::Occupied(earlier) => {
                    if *earlier.get() != entry.key {
                        contradiction.get_or_insert((Arc::clone(&backend), entry.range));
                    }
                    false
                }
            });
    }
    match contradiction {
        None => Ok(()),
        Some((backend, range)) => Err(cursor
            .error("one region is listed twice with different keys")
            .with_context("backend", backend)
            .with_context("address", format!("{:?}", range.addr))
            .with_context("bytes", range.len.0)
            .with_hint("the owner registered the same memory twice on one agent")),
    }
}

/// Reads a name: not empty, UTF-8, and without NUL, because NIXL's C interface ends it there.
fn text(cursor: &mut Cursor, tag: &str, what: &str, max: usize) -> Result<String> {
    let content = cursor.field(tag, what, 1, max)?;
    match std::str::from_utf8(&content) {
        Ok(text) if text.contains('\0') => Err(cursor.error(format!("{what} contains NUL"))),
        Ok(text) => Ok(text.to_owned()),
        Err(error) => Err(cursor.error(format!("{what} is not UTF-8")).with_source(error)),
    }
}

fn constant(cursor: &mut Cursor, tag: &str, expected: &[u8], what: &str) -> Result<()> {
    let content = cursor.field(tag, what, expected.len(), expected.len())?;
    if content != expected {
        return Err(cursor.error(format!("{what} is unknown")));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::wire::samples::{UCX_KEY, blob, count, field, head, section};

    fn refusal(bytes: &[u8]) -> String {
        let error = AgentBlob::parse(bytes).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Metadata);
        error.to_string()
    }

    #[test]
    fn reads_every_part() {
        let bytes = blob(
            "worker",
            &[("UCX", b"address")],
            &[section("UCX", 1, &[(0x1000, UCX_KEY), (0x9000, UCX_KEY)])],
        );
        let parsed = AgentBlob::parse(&bytes).unwrap();
        assert_eq!(parsed.agent.as_str(), "worker");
        assert_eq!(
            parsed.connections,
            [Connection {
                backend: "UCX".into(),
                info: Bytes::from_static(b"address")
            }]
        );
        let [only] = parsed.sections.as_slice() else {
            panic!("one section: {parsed:?}")
        };
        assert_eq!(
            (only.backend.as_str(), only.kind, only.entries.len()),
            ("UCX", MemoryKind::Vram, 2)
        );
        let range = MemoryRange {
            kind: MemoryKind::Vram,
            device: 0,
            addr: Addr(0x9000),
            len: ByteLen(4096),
        };
        assert_eq!(
            only.entries[1],
            RegionEntry {
                range,
                key: Bytes::from_static(UCX_KEY)
            }
        );
    }

    #[test]
    fn refuses_lengths_that_would_wrap() {
        for length in [u64::MAX, u64::MAX - 8, 1 << 63, usize::MAX as u64 - 11] {
            let mut bytes = b"nixlSerDes|Agent".to_vec();
            bytes.extend(length.to_le_bytes());
            bytes.extend(b"worker|");
            assert!(refusal(&bytes).contains("impossible length"), "{length}");
        }
    }

    #[test]
    fn refuses_counts_before_it_allocates_for_them() {
        let mut bytes = head("worker", &[]);
        bytes.extend(count("nixlSecElms", limits::MAX_SECTIONS));
        assert!(refusal(&bytes).contains("exceeds what the rest of the blob can hold"));
        let mut bytes = head("worker", &[]);
        bytes.extend(count("nixlSecElms", limits::MAX_SECTIONS + 1));
        assert!(refusal(&bytes).contains("too high"));
    }

    #[test]
    fn refuses_more_than_the_limits() {
        assert!(refusal(&vec![0; limits::MAX_BLOB + 1]).contains("too big"));
        // One region again and again, without a key: the cheapest way to many.
        let half = section("OTHER", 0, &vec![(0, &b""[..]); limits::MAX_REGIONS / 2]);
        let more = section("OTHER", 0, &vec![(0, &b""[..]); limits::MAX_REGIONS / 2 + 1]);
        assert!(AgentBlob::parse(&blob("worker", &[], &[half.clone(), half.clone()])).is_ok());
        assert!(refusal(&blob("worker", &[], &[half, more])).contains("number of regions is too high"));
    }

    #[test]
    fn refuses_memory_that_is_not_moved_here() {
        for kind in [2, 3, 4, 5, u32::MAX] {
            let text = refusal(&blob("worker", &[], &[section("UCX", kind, &[(0x1000, UCX_KEY)])]));
            assert!(
                text.contains("no connector moves") && text.contains(&format!("memory_kind={kind}")),
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_names_that_c_would_cut() {
        assert!(refusal(&blob("wor\0ker", &[], &[])).contains("NUL"));
        assert!(refusal(&blob("", &[], &[])).contains("impossible length"));
        let mut bytes = b"nixlSerDes|".to_vec();
        bytes.extend(field("Agent", &[0xff, 0xfe]));
        assert!(refusal(&bytes).contains("not UTF-8"));
        let longest = "n".repeat(limits::MAX_AGENT_NAME);
        assert!(AgentBlob::parse(&blob(&longest, &[], &[])).is_ok());
        assert!(refusal(&blob(&(longest + "n"), &[], &[])).contains("impossible length"));
    }

    #[test]
    fn refuses_ranges_that_wrap_and_keys_that_are_cut() {
        let last = u64::MAX - 4096;
        assert!(AgentBlob::parse(&blob("worker", &[], &[section("UCX", 0, &[(last, UCX_KEY)])])).is_ok());
        assert!(refusal(&blob("worker", &[], &[section("UCX", 0, &[(last + 1, UCX_KEY)])])).contains("wraps"));
        assert!(refusal(&blob("worker", &[], &[section("UCX", 0, &[(0, &UCX_KEY[1..])])])).contains("shorter"));
        let other = blob("worker", &[], &[section("OTHER", 0, &[(0, b"")])]);
        assert!(AgentBlob::parse(&other).is_ok(), "only UCX's keys have a known shape");
    }

    #[test]
    fn refuses_what_nixl_refuses_half_way() {
        let marked = [UCX_KEY, &[0xff]].concat();
        let twice = section("UCX", 0, &[(0x1000, UCX_KEY), (0x1000, &marked)]);
        assert!(refusal(&blob("worker", &[], &[twice])).contains("different keys"));
        let apart = [
            section("UCX", 0, &[(0x1000, UCX_KEY)]),
            section("UCX", 0, &[(0x1000, &marked)]),
        ];
        assert!(refusal(&blob("worker", &[], &apart)).contains("different keys"));
        let same = section("UCX", 0, &[(0x1000, UCX_KEY), (0x1000, UCX_KEY)]);
        assert!(AgentBlob::parse(&blob("worker", &[], &[same])).is_ok());
        let kinds = [
            section("UCX", 0, &[(0x1000, UCX_KEY)]),
            section("UCX", 1, &[(0x1000, &marked)]),
        ];
        assert!(
            AgentBlob::parse(&blob("worker", &[], &kinds)).is_ok(),
            "host and device addresses are unrelated"
        );
        assert!(refusal(&blob("worker", &[("UCX", b"a"), ("UCX", b"q")], &[])).contains("two connections"));
        let empty = [
            section("UCX", 0, &[]),
            section("UCX", 1, &[(0, UCX_KEY), (0x1000, UCX_KEY)]),
        ];
        assert!(refusal(&blob("worker", &[], &empty)).contains("without regions"));
    }

    #[test]
    fn refuses_bytes_after_the_end() {
        let mut bytes = blob("worker", &[], &[]);
        bytes.push(b'|');
        assert!(refusal(&bytes).contains("bytes follow"));
    }
}
