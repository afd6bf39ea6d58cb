//! What NIXL's serialisation of an agent says, and how two of them compare.
//!
//! The layout and the reading of it are in the sibling file `parse.rs`; here is what a blob means to the rest.

use std::collections::HashMap;

use bytes::Bytes;

use crate::error::Result;
use crate::types::{AgentName, MemoryKind, MemoryRange};
use crate::wire::parse::parse_and_split;

/// What one agent tells the world: its name, how to reach it, and the regions that it lets others touch.
///
/// A parsed blob is well formed and within the [limits](crate::wire::limits). That says nothing about the content of
/// connection information and keys, which only their back end understands; of UCX's keys the outer shape is checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentBlob {
    /// The agent that made the blob.
    pub agent: AgentName,
    /// How to reach it, per back end; empty in a partial blob.
    pub connections: Vec<Connection>,
    /// What it exposes, per back end and kind of memory.
    pub sections: Vec<Section>,
}

/// How one back end of an agent is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Connection {
    /// The back end's name, such as `UCX`.
    pub backend: String,
    /// Opaque to everything but that back end.
    pub info: Bytes,
}

/// The regions registered with one back end, all of one kind of memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    /// The back end's name, such as `UCX`.
    pub backend: String,
    /// Where the regions lie.
    pub kind: MemoryKind,
    /// At least one region.
    pub entries: Vec<RegionEntry>,
}

/// One registered region and the key that lets a peer touch it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionEntry {
    /// Where it lies in the owner's address space.
    pub range: MemoryRange,
    /// Opaque to everything but the back end. Shares the memory of the whole blob.
    pub key: Bytes,
}

impl AgentBlob {
    /// Reads a blob that NIXL made.
    ///
    /// Only [`MemoryKind`]'s kinds are understood. A blob with a section of any other kind (block, object, file, or
    /// a number that NIXL does not know) is refused whole: no connector moves such memory, and NIXL indexes an array
    /// with the number unchecked.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Metadata`] for anything NIXL would refuse or read out of bounds: a wrong tag or length, a count
    /// above what the blob can hold, bytes after the end, a range that wraps, a region or a connection that is
    /// listed twice with different content; and for anything above the [limits](crate::wire::limits).
    pub fn parse(blob: &[u8]) -> Result<Self> {
        parse_and_split(blob).map(|(parsed, _)| parsed)
    }

    /// Whether both blobs reach the same agent in the same way, whatever regions they list.
    ///
    /// Where this is false although the names are equal, the agent behind the name is another one (a worker that
    /// was started again), and NIXL refuses to load the second blob while the first is loaded.
    #[must_use]
    pub fn same_connections(&self, other: &Self) -> bool {
        // Back ends are unique within a blob, so equal length and inclusion mean equality, in any order.
        self.agent == other.agent
            && self.connections.len() == other.connections.len()
            && self
                .connections
                .iter()
                .all(|connection| other.connections.contains(connection))
    }

    /// All regions, each with the back end that it is registered with.
    pub fn regions(&self) -> impl Iterator<Item = (&str, &RegionEntry)> {
        self.sections
            .iter()
            .flat_map(|section| section.entries.iter().map(|entry| (section.backend.as_str(), entry)))
    }

    /// The first region that both blobs list with different keys, if any.
    ///
    /// NIXL refuses to load one of them while the other is loaded, and then forgets the peer altogether.
    #[must_use]
    pub fn conflicting_region(&self, other: &Self) -> Option<MemoryRange> {
        let known: HashMap<_, _> = other
            .regions()
            .map(|(backend, entry)| ((backend, entry.range), &entry.key))
            .collect();
        self.regions()
            .find(|(backend, entry)| {
                known
                    .get(&(*backend, entry.range))
                    .is_some_and(|key| **key != entry.key)
            })
            .map(|(_, entry)| entry.range)
    }

    /// Whether an agent that never heard of this one can load the blob: each section's back end has a connection.
    ///
    /// NIXL refuses to load regions of a back end that it cannot reach. Whether the loading agent has one of these
    /// back ends itself is not said.
    #[must_use]
    pub fn is_self_contained(&self) -> bool {
        !self.connections.is_empty()
            && self
                .sections
                .iter()
                .all(|section| self.connections.iter().any(|known| known.backend == section.backend))
    }

    /// Whether one listed region holds all of `range`. NIXL does not join neighbours, and neither does this.
    #[must_use]
    pub fn covers(&self, range: &MemoryRange) -> bool {
        self.regions().any(|(_, entry)| entry.range.covers(range))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::types::{Addr, ByteLen};
    use crate::wire::samples::{UCX_KEY, blob, section};

    fn parsed(connections: &[(&str, &[u8])], regions: &[(u64, &[u8])]) -> AgentBlob {
        AgentBlob::parse(&blob("worker", connections, &[section("UCX", 0, regions)])).unwrap()
    }

    #[test]
    fn connections_compare_in_any_order() {
        let one = parsed(&[("A", b"1"), ("UCX", b"p")], &[(0, UCX_KEY)]);
        assert!(one.same_connections(&parsed(&[("UCX", b"p"), ("A", b"1")], &[(0x9000, UCX_KEY)])));
        assert!(!one.same_connections(&parsed(&[("A", b"1"), ("UCX", b"q")], &[(0, UCX_KEY)])));
        assert!(!one.same_connections(&parsed(&[("A", b"1")], &[(0, UCX_KEY)])));
        let renamed = AgentBlob {
            agent: AgentName::new("other"),
            ..one.clone()
        };
        assert!(!one.same_connections(&renamed));
    }

    #[test]
    fn a_region_conflicts_only_with_itself_under_another_key() {
        let marked = [UCX_KEY, &[0xff]].concat();
        let known = parsed(&[], &[(0x1000, UCX_KEY), (0x5000, UCX_KEY)]);
        assert_eq!(
            known.conflicting_region(&parsed(&[], &[(0x5000, UCX_KEY), (0x9000, &marked)])),
            None
        );
        let conflict = known.conflicting_region(&parsed(&[], &[(0x5000, &marked)])).unwrap();
        assert_eq!(conflict.addr, Addr(0x5000));
    }

    #[test]
    fn standing_by_itself_needs_a_connection_for_every_section() {
        assert!(parsed(&[("UCX", b"1")], &[(0, UCX_KEY)]).is_self_contained());
        assert!(!parsed(&[("A", b"1")], &[(0, UCX_KEY)]).is_self_contained());
        assert!(!AgentBlob::parse(&blob("worker", &[], &[])).unwrap().is_self_contained());
    }

    #[test]
    fn neighbours_do_not_cover_together() {
        let neighbours = parsed(&[], &[(0x1000, UCX_KEY), (0x2000, UCX_KEY)]);
        let range = |addr, len| MemoryRange {
            kind: MemoryKind::Dram,
            device: 0,
            addr: Addr(addr),
            len: ByteLen(len),
        };
        assert!(neighbours.covers(&range(0x1800, 0x800)));
        assert!(!neighbours.covers(&range(0x1800, 0x801)));
    }
}
