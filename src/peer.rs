//! What one agent knows of its remote agents: what is loaded, how many transfers use it, and what may be done next.
//!
//! Two facts of NIXL shape this module. A refused load makes a peer's name unloadable for the agent's life, so every
//! conflict is found here, on our own parse, before NIXL sees the metadata. And invalidating a peer loses sight of its
//! requests while their bytes go on landing, so a peer is only invalidated when no transfer uses it; whoever needs that
//! waits, and newcomers wait behind it.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::range_map::RangeMap;
use crate::transport::Transport;
use crate::types::{AgentName, MemoryRange};
use crate::wire::{AgentBlob, Connection, Envelope, Trailer, decode};

/// A peer with more loaded regions than this is reloaded from scratch at the next quiet moment.
const MAX_REGIONS_PER_PEER: usize = 16_384;

/// With so many peers loaded, the one unused for longest makes room: each holds sockets and shared memory, and a process
/// that serves short-lived peers must not collect them for ever.
const MAX_PEERS: usize = 256;

/// So many refused names are remembered.
const MAX_REFUSED: usize = 4096;

/// A passive side's metadata, decoded, parsed and bounded.
#[derive(Clone)]
pub struct RemoteMetadata {
    raw: Vec<u8>,
    agent: AgentName,
    /// By back end.
    connections: Vec<Connection>,
    /// Each region once, with its keys for all back ends.
    regions: RangeMap<Bytes>,
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
            blob: raw,
            trailer,
            unknown_fields,
        } = decode(text)?;
        Ok(Self {
            trailer,
            unknown_fields,
            ..Self::from_blob(raw)?
        })
    }

    /// Parses a blob of NIXL's, of which nothing says that it is of a peer of our own kind.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`].
    pub fn from_blob(raw: Vec<u8>) -> Result<Self> {
        let mut blob = AgentBlob::parse(&raw)?;
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
        let mut regions = RangeMap::default();
        for entry in blob.sections.iter().flat_map(|section| &section.entries) {
            // With its length, so that no two sets of keys read alike.
            let another = |keys: &mut Bytes| {
                let length = (entry.key.len() as u64).to_le_bytes();
                *keys = [keys.as_ref(), &length, entry.key.as_ref()].concat().into();
            };
            regions
                .entry(entry.range)
                .and_modify(another)
                .or_insert_with(|| entry.key.clone());
        }
        Ok(Self {
            raw,
            agent: blob.agent,
            connections: blob.connections,
            regions,
            trailer: None,
            unknown_fields: 0,
        })
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

    /// Checks that the metadata covers every range that moves bytes.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`] naming the first range that it does not.
    pub fn check_covers(&self, ranges: &[MemoryRange]) -> Result<()> {
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
                .with_context("bytes", range.len.0));
            }
        }
        Ok(())
    }

    /// Whether loading it takes microseconds, once its peer is connected.
    pub(crate) fn is_short(&self) -> bool {
        const SHORT: usize = 16 << 10;
        self.raw.len() <= SHORT
    }

    /// Whether a region lies strictly inside of `range`, so that NIXL does not find every part of it.
    pub(crate) fn has_region_inside(&self, range: &MemoryRange) -> bool {
        let mut inside = self.regions.overlapping(range);
        inside.any(|(region, _)| region.is_strictly_inside(range))
    }
}

impl fmt::Debug for RemoteMetadata {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("RemoteMetadata")
            .field("agent", self.agent())
            .field("bytes", &self.raw.len())
            .field("trailer", &self.trailer)
            .finish_non_exhaustive()
    }
}

/// What must happen before a transfer with some metadata can start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// Nothing: all of it is loaded.
    Ready,
    /// Load it: the peer is unknown. Connecting takes milliseconds.
    Connect,
    /// Load it: the peer is known, regions are new. Takes microseconds.
    Extend,
    /// Invalidate the peer, then load: the connection or a region's key changed, or the peer was lost.
    Reload,
    /// As `Reload`, but transfers use the peer; or another transfer waits for that. Try again in the next round.
    Wait,
}

/// The remote agents of one local agent.
#[derive(Debug, Default)]
pub struct PeerTable {
    peers: HashMap<AgentName, Peer>,
    /// Counts uses, to tell which peer was unused for longest.
    clock: u64,
    /// Counts looks at the waiting transfers.
    round: u64,
    refused: RefusedNames,
}

/// The names that an agent can or may not be able to load any more, shared with whoever chooses between agents.
pub type RefusedNames = Arc<Mutex<HashSet<AgentName>>>;

#[derive(Debug)]
struct Peer {
    connections: Vec<Connection>,
    regions: RangeMap<Bytes>,
    /// Transfers between their start and the end of their last piece.
    in_use: usize,
    last_use: u64,
    /// A transfer failed: the endpoint may be broken, whatever NIXL says of it.
    is_lost: bool,
    /// The last round in which somebody waited for the peer to fall quiet; newcomers must not keep it busy.
    wanted_quiet: Option<u64>,
}

impl Peer {
    fn must_reload(&self, metadata: &RemoteMetadata) -> bool {
        self.is_lost
            || self.connections != metadata.connections
            || self.regions.len() > MAX_REGIONS_PER_PEER.max(2 * metadata.regions.len())
            || metadata.regions.iter().any(|(range, key)| self.conflicts(range, key))
    }

    /// Whether the range cannot be loaded beside what is. NIXL refuses the same range with another key, and would pick
    /// either key for a part that two regions cover. And it searches for a region by the nearest start only: what lies
    /// behind a region strictly inside of another, which a freed and reused address easily makes, is not found.
    fn conflicts(&self, range: &MemoryRange, key: &Bytes) -> bool {
        if let Some(loaded) = self.regions.get(range) {
            return loaded != key;
        }
        self.regions
            .overlapping(range)
            .any(|(loaded, loaded_key)| loaded_key != key || hides(loaded, range))
    }

    fn has_all(&self, metadata: &RemoteMetadata) -> bool {
        metadata.regions.iter().all(|(range, _)| self.regions.contains(range))
    }
}

impl PeerTable {
    /// An empty table that notes refused names in `refused`.
    #[must_use]
    pub fn new(refused: RefusedNames) -> Self {
        Self {
            refused,
            ..Self::default()
        }
    }

    /// What must happen before a transfer with `metadata` can start.
    #[must_use]
    pub fn plan(&self, metadata: &RemoteMetadata) -> Plan {
        let Some(peer) = self.peers.get(metadata.agent()) else {
            return Plan::Connect;
        };
        match (peer.must_reload(metadata), peer.in_use > 0) {
            (true, true) => Plan::Wait,
            (true, false) => Plan::Reload,
            // Also in the moment it is quiet: that belongs to whoever waited for it.
            (false, _) if self.is_wanted_quiet(peer) => Plan::Wait,
            (false, _) if peer.has_all(metadata) => Plan::Ready,
            (false, _) => Plan::Extend,
        }
    }

    /// Whether somebody waits for the peer to fall quiet. A waiter asks again in each round; one that gave up does not.
    fn is_wanted_quiet(&self, peer: &Peer) -> bool {
        peer.wanted_quiet.is_some_and(|round| round + 1 >= self.round)
    }

    /// Another look at every waiting transfer begins.
    pub fn begin_round(&mut self) {
        self.round += 1;
    }

    /// Carries the plan out. True when a transfer may start now, false when it has to wait.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`] where NIXL refuses the metadata.
    pub fn prepare(&mut self, transport: &dyn Transport, metadata: &RemoteMetadata) -> Result<bool> {
        if self.refused.lock().contains(metadata.agent()) {
            return Err(Error::new(
                ErrorKind::Transfer,
                "load peer",
                "this agent could not load the peer and cannot try again",
            )
            .with_context("peer", metadata.agent())
            .with_hint("begin the operation once more: another agent takes over"));
        }
        match self.plan(metadata) {
            Plan::Ready => return Ok(true),
            Plan::Wait => {
                let round = self.round;
                if let Some(peer) = self.peers.get_mut(metadata.agent()) {
                    // Not where it only waits behind a waiter, or they would hold each other back for ever.
                    if peer.must_reload(metadata) {
                        peer.wanted_quiet = Some(round);
                    }
                }
                return Ok(false);
            }
            Plan::Reload => {
                // Where this fails, NIXL still knows what is loaded, and so must the table.
                transport
                    .drop_peer(metadata.agent())
                    .inspect_err(|_| self.refuse(metadata.agent()))?;
                self.peers.remove(metadata.agent());
            }
            Plan::Connect => self.make_room(transport),
            Plan::Extend => {}
        }
        let loaded = transport.load_peer(&metadata.raw).map_err(|error| {
            // NIXL has forgotten the peer, but its back end may not have: that name cannot be loaded here any more.
            self.peers.remove(metadata.agent());
            self.refuse(metadata.agent());
            error.with_context("peer", metadata.agent())
        })?;
        debug_assert_eq!(&loaded, metadata.agent());
        let peer = self.peers.entry(loaded).or_insert_with(|| Peer {
            connections: metadata.connections.clone(),
            regions: RangeMap::default(),
            in_use: 0,
            last_use: self.clock,
            is_lost: false,
            wanted_quiet: None,
        });
        // Copied: a key as parsed keeps all of its blob in memory.
        for (range, key) in metadata.regions.iter() {
            peer.regions.insert(*range, Bytes::copy_from_slice(key));
        }
        Ok(true)
    }

    /// This agent does not try that peer again.
    fn refuse(&self, name: &AgentName) {
        let mut refused = self.refused.lock();
        if refused.len() >= MAX_REFUSED {
            // Whoever is still refused will be found out again.
            refused.clear();
        }
        refused.insert(name.clone());
    }

    /// Drops the peer unused for longest, where the table is full and one is unused.
    fn make_room(&mut self, transport: &dyn Transport) {
        if self.peers.len() < MAX_PEERS {
            return;
        }
        let unused = self.peers.iter().filter(|(_, peer)| peer.in_use == 0);
        let Some(name) = unused
            .min_by_key(|(_, peer)| peer.last_use)
            .map(|(name, _)| name.clone())
        else {
            return;
        };
        match transport.drop_peer(&name) {
            Ok(()) => {
                self.peers.remove(&name);
            }
            Err(error) => tracing::warn!(%error, "an unused peer could not be dropped"),
        }
    }

    /// A transfer starts to use the peer.
    pub fn begin_use(&mut self, name: &AgentName) {
        self.clock += 1;
        if let Some(peer) = self.peers.get_mut(name) {
            peer.in_use += 1;
            peer.last_use = self.clock;
        }
    }

    /// A transfer has ended, and the wire is done with its memory.
    pub fn end_use(&mut self, name: &AgentName) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.in_use = peer.in_use.saturating_sub(1);
        }
    }

    /// A transfer with the peer failed: load it anew before the next one.
    pub fn mark_lost(&mut self, name: &AgentName) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.is_lost = true;
        }
    }

    /// The loaded peers' names.
    pub fn names(&self) -> impl Iterator<Item = &AgentName> {
        self.peers.keys()
    }

    /// How many peers are loaded.
    #[must_use]
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether no peer is loaded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }
}

/// Whether one of the two lies strictly inside of the other.
fn hides(left: &MemoryRange, right: &MemoryRange) -> bool {
    left.is_strictly_inside(right) || right.is_strictly_inside(left)
}

#[cfg(test)]
mod tests;
