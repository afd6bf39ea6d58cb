//! A passive side's metadata, as the active side uses it.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::range_map::RangeMap;
use crate::types::{AgentName, ByteLen, MemoryKind, MemoryRange};
use crate::wire::{AgentBlob, Connection, Envelope, RegionEntry, Section, Trailer, decode};

/// A region's keys, by back end.
pub(super) type Keys = Arc<[(Arc<str>, Bytes)]>;

/// A passive side's metadata, decoded, parsed and bounded.
#[derive(Clone)]
pub struct RemoteMetadata {
    agent: AgentName,
    /// By back end.
    connections: Vec<Connection>,
    /// Each region once.
    regions: RangeMap<Keys>,
    trailer: Option<Trailer>,
    unknown_fields: usize,
}

impl RemoteMetadata {
    /// Decodes and parses the text of `RdmaMetadata.nixl_metadata`, in either encoding.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`].
    pub fn decode(text: &str) -> Result<Self> {
        let Envelope {
            blob,
            trailer,
            unknown_fields,
        } = decode(text)?;
        Ok(Self {
            trailer,
            unknown_fields,
            ..Self::from_blob(&blob)?
        })
    }

    /// Parses a blob of NIXL's, of which nothing says that it is of a peer of our own kind.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`].
    pub fn from_blob(blob: &[u8]) -> Result<Self> {
        let mut blob = AgentBlob::parse(blob)?;
        if !blob.is_self_contained() {
            // NIXL would refuse it, and then never load this name again.
            return Err(Error::new(
                ErrorKind::Metadata,
                "check metadata",
                "the metadata lacks the connection information that its regions need",
            )
            .with_context("peer", &blob.agent)
            .with_hint("partial metadata of some regions alone cannot be loaded"));
        }
        blob.connections.sort_by(|left, right| left.backend.cmp(&right.backend));
        blob.sections.sort_by(|left, right| left.backend.cmp(&right.backend));
        let mut regions: RangeMap<Keys> = RangeMap::default();
        for section in &blob.sections {
            let backend: Arc<str> = Arc::from(section.backend.as_str());
            for entry in &section.entries {
                let key = || (Arc::clone(&backend), entry.key.clone());
                regions
                    .entry(entry.range)
                    .and_modify(|keys| *keys = keys.iter().cloned().chain([key()]).collect())
                    .or_insert_with(|| Arc::from([key()]));
            }
        }
        Ok(Self {
            agent: blob.agent,
            connections: blob.connections,
            regions,
            trailer: None,
            unknown_fields: 0,
        })
    }

    /// How many regions it exposes.
    pub(crate) fn region_count(&self) -> usize {
        self.regions.len()
    }

    /// The agent that exposes the memory.
    #[must_use]
    pub fn agent(&self) -> &AgentName {
        &self.agent
    }

    /// What a peer of our own kind says of itself; `None` for a foreign one.
    #[must_use]
    pub fn trailer(&self) -> Option<&Trailer> {
        self.trailer.as_ref()
    }

    /// Fields of the trailer that this version does not know and ignores.
    #[must_use]
    pub fn unknown_fields(&self) -> usize {
        self.unknown_fields
    }

    /// Where the owner says whether the exposure is open, and the generation that it is of; `None` where it does not.
    #[must_use]
    pub fn validity(&self) -> Option<(MemoryRange, u64)> {
        let trailer = self.trailer.as_ref()?;
        let word = MemoryRange {
            kind: MemoryKind::Dram,
            device: 0,
            addr: trailer.validity_word?,
            len: ByteLen(8),
        };
        Some((word, trailer.generation))
    }

    /// Checks that the metadata covers every range that moves bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`] naming the first range that it does not.
    pub fn check_covers(&self, ranges: &[MemoryRange]) -> Result<()> {
        if let Some((word, _)) = self
            .validity()
            .filter(|(word, _)| self.regions.covering(word).next().is_none())
        {
            return Err(Error::new(
                ErrorKind::Metadata,
                "check metadata",
                "the validity word lies outside of the regions that the peer's metadata exposes",
            )
            .with_context("peer", self.agent())
            .with_context("address", format_args!("{:?}", word.addr)));
        }
        for (index, range) in ranges.iter().enumerate() {
            if range.len.0 > 0 && self.regions.covering(range).next().is_none() {
                return Err(Error::new(
                    ErrorKind::Metadata,
                    "check metadata",
                    "a descriptor lies outside of the regions that the peer's metadata exposes",
                )
                .with_context("peer", self.agent())
                .with_context("index", index)
                .with_context("address", format_args!("{:?}", range.addr))
                .with_context("bytes", range.len.0)
                .with_context("memory", format_args!("{:?}:{}", range.kind, range.device)));
            }
        }
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn ranges(&self) -> impl Iterator<Item = &MemoryRange> {
        self.regions.iter().map(|(range, _)| range)
    }

    pub(super) fn connections(&self) -> &[Connection] {
        &self.connections
    }

    /// The region to load for a range: itself, if it is one, or else one that covers it.
    pub(super) fn region_of(&self, range: &MemoryRange) -> Option<(&MemoryRange, &Keys)> {
        let (range, keys) = match self.regions.get_key_value(range) {
            Some(exact) => exact,
            None => {
                let covering = self.regions.covering(range).next()?;
                self.regions.get_key_value(covering)?
            }
        };
        Some((range, keys))
    }

    /// Whether these keys open a range, according to this metadata.
    pub(super) fn grants(&self, range: &MemoryRange, keys: &Keys) -> bool {
        let mut covering = self.regions.covering(range);
        covering.any(|region| self.regions.get(region) == Some(keys))
    }

    /// What NIXL is given to load: the connection, and nothing but these regions.
    pub(super) fn blob_of(&self, regions: &[(MemoryRange, Keys)]) -> Vec<u8> {
        let mut sections: Vec<Section> = Vec::new();
        for (range, keys) in regions {
            for (backend, key) in keys.iter() {
                let entry = RegionEntry {
                    range: *range,
                    key: key.clone(),
                };
                let of_kind = |section: &&mut Section| section.kind == range.kind && *section.backend == **backend;
                match sections.iter_mut().find(of_kind) {
                    Some(section) => section.entries.push(entry),
                    None => sections.push(Section {
                        backend: backend.to_string(),
                        kind: range.kind,
                        entries: vec![entry],
                    }),
                }
            }
        }
        for section in &mut sections {
            // As NIXL keeps them, or it would sort them in one by one.
            section.entries.sort_unstable_by_key(|entry| entry.range);
        }
        let blob = AgentBlob {
            agent: self.agent.clone(),
            connections: self.connections.clone(),
            sections,
        };
        blob.to_bytes()
    }
}

impl fmt::Debug for RemoteMetadata {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RemoteMetadata")
            .field("agent", self.agent())
            .field("regions", &self.regions.len())
            .field("trailer", &self.trailer)
            .finish_non_exhaustive()
    }
}
