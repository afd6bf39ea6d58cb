//! What one agent knows of its remote agents: what is loaded, how many transfers use it, and what may be done next.
//!
//! Two facts of NIXL shape this module. A refused load makes a peer's name unloadable for the agent's life, so every
//! conflict is found here, on our own parse, before NIXL sees the metadata. And invalidating a peer loses sight of its
//! requests while their bytes go on landing, so a peer is only invalidated when no transfer uses it; whoever needs that
//! waits, and newcomers wait behind it.

mod loaded;
mod metadata;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use crate::sync::lock::Mutex;

use self::loaded::{Loaded, Stale};
pub use self::metadata::RemoteMetadata;
use crate::error::{Error, ErrorKind, Result};
use crate::transport::{LOAD_PEER, Transport};
use crate::types::{AgentName, MemoryRange};
use crate::wire::Connection;

/// A peer with more loaded regions than this is reloaded from scratch at the next quiet moment.
const MAX_REGIONS_PER_PEER: usize = 16_384;

/// With so many peers loaded, the one unused for longest makes room: each holds sockets and shared memory, and a process
/// that serves short-lived peers must not collect them for ever.
pub(crate) const MAX_PEERS: usize = 256;
/// The same for an agent that copies, of which there are several.
pub(crate) const MAX_PEERS_OF_COPIES: usize = 64;

/// So many refused names are remembered.
const MAX_REFUSED: usize = 4096;

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
#[derive(Debug)]
pub struct PeerTable {
    peers: HashMap<AgentName, Peer>,
    /// Counts uses, to tell which peer was unused for longest.
    clock: u64,
    /// Counts looks at the waiting transfers.
    round: u64,
    /// Counts peers that were dropped to be loaded anew.
    reloads: u64,
    refused: RefusedNames,
    /// How many peers it keeps loaded that nobody uses.
    most: usize,
}

/// The names that an agent can or may not be able to load any more, shared with whoever chooses between agents.
pub(crate) type RefusedNames = Arc<Mutex<HashSet<AgentName>>>;

#[derive(Debug)]
struct Peer {
    connections: Vec<Connection>,
    loaded: Loaded,
    /// Transfers between their start and the end of their last piece.
    in_use: usize,
    last_use: u64,
    /// A transfer failed: the endpoint may be broken, whatever NIXL says of it.
    is_lost: bool,
    /// When a transfer with it last moved.
    last_progress: Option<Instant>,
    /// The last round in which somebody waited for the peer to fall quiet; newcomers must not keep it busy.
    wanted_quiet: Option<u64>,
}

impl Peer {
    /// Whether the peer must be loaded anew, whatever is named of it.
    fn is_out_of_date(&self, metadata: &RemoteMetadata) -> bool {
        self.is_lost || self.connections != metadata.connections() || self.loaded.len() > MAX_REGIONS_PER_PEER
    }

    /// Whether NIXL would find what is named; `Stale` where the peer must be loaded anew.
    fn serves(&self, wanted: &Wanted<'_>) -> Result<bool, Stale> {
        if self.is_out_of_date(wanted.metadata) {
            return Err(Stale);
        }
        self.loaded.serves(wanted.metadata, wanted.lists)
    }
}

/// What a transfer asks of its peer.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'transfer> {
    /// What the peer exposes.
    pub metadata: &'transfer RemoteMetadata,
    /// The remote ranges that the transfer's requests will name, request by request.
    pub lists: &'transfer [Vec<MemoryRange>],
}

impl Default for PeerTable {
    fn default() -> Self {
        Self::new(RefusedNames::default(), MAX_PEERS)
    }
}

impl PeerTable {
    /// An empty table that notes refused names in `refused`.
    #[must_use]
    pub(crate) fn new(refused: RefusedNames, most: usize) -> Self {
        Self {
            peers: HashMap::new(),
            clock: 0,
            round: 0,
            reloads: 0,
            refused,
            most,
        }
    }

    /// What must happen before a transfer can start.
    #[must_use]
    pub fn plan(&self, wanted: Wanted<'_>) -> Plan {
        let Some(peer) = self.peers.get(wanted.metadata.agent()) else {
            return Plan::Connect;
        };
        match (peer.serves(&wanted), peer.in_use > 0) {
            (Err(Stale), true) => Plan::Wait,
            (Err(Stale), false) => Plan::Reload,
            // Also in the moment it is quiet: that belongs to whoever waited for it.
            (Ok(_), _) if self.is_wanted_quiet(peer) => Plan::Wait,
            (Ok(true), _) => Plan::Ready,
            (Ok(false), _) => Plan::Extend,
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
    pub fn prepare(&mut self, transport: &dyn Transport, wanted: Wanted<'_>) -> Result<bool> {
        let name = wanted.metadata.agent();
        if self.refuses(name) {
            return Err(Error::new(
                ErrorKind::Transfer,
                LOAD_PEER,
                "this agent could not load the peer and cannot try again",
            )
            .with_context("peer", name)
            .with_hint("begin the operation once more: another agent takes over"));
        }
        let mut plan = self.plan(wanted);
        let mut added = Vec::new();
        if let (Plan::Extend, Some(peer)) = (plan, self.peers.get_mut(name)) {
            match peer.loaded.add(wanted.metadata, wanted.lists) {
                Ok(regions) => added = regions,
                // It could not be told before: NIXL does not get to what is added.
                Err(Stale) if peer.in_use > 0 => {
                    peer.wanted_quiet = Some(self.round);
                    return Ok(false);
                }
                Err(Stale) => plan = Plan::Reload,
            }
        }
        match plan {
            Plan::Ready => return Ok(true),
            Plan::Wait => {
                // Not where it only waits behind a waiter, or they would hold each other back for ever.
                if let Some(peer) = self.peers.get_mut(name).filter(|peer| peer.serves(&wanted).is_err()) {
                    peer.wanted_quiet = Some(self.round);
                }
                return Ok(false);
            }
            Plan::Extend => {}
            Plan::Reload | Plan::Connect => {
                if plan == Plan::Reload {
                    // Where this fails, NIXL still knows what is loaded, and so must the table.
                    transport.drop_peer(name).inspect_err(|_| self.refuse(name))?;
                    self.peers.remove(name);
                    self.reloads += 1;
                } else {
                    self.make_room(transport);
                }
                let mut loaded = Loaded::default();
                added = loaded.add(wanted.metadata, wanted.lists).unwrap_or_default();
                let peer = Peer {
                    connections: wanted.metadata.connections().to_vec(),
                    loaded,
                    in_use: 0,
                    last_use: self.clock,
                    is_lost: false,
                    last_progress: None,
                    wanted_quiet: None,
                };
                self.peers.insert(name.clone(), peer);
            }
        }
        let loaded = transport.load_peer(&wanted.metadata.blob_of(&added)).map_err(|error| {
            // NIXL has forgotten the peer, but its back end may not have: that name cannot be loaded here any more.
            self.peers.remove(name);
            self.refuse(name);
            error.with_context("peer", name)
        })?;
        debug_assert_eq!(&loaded, name);
        Ok(true)
    }

    /// Whether this agent does not try a peer of that name any more.
    #[must_use]
    pub fn refuses(&self, name: &AgentName) -> bool {
        self.refused.lock().contains(name)
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
        // A table that has grown while all were in use shrinks again, by one with each newcomer.
        for _ in 0..2 {
            if self.peers.len() < self.most {
                return;
            }
            let unused = self.peers.iter().filter(|(_, peer)| peer.in_use == 0);
            let Some(name) = unused
                .min_by_key(|(_, peer)| peer.last_use)
                .map(|(name, _)| name.clone())
            else {
                return;
            };
            if let Err(error) = transport.drop_peer(&name) {
                tracing::warn!(%error, "an unused peer could not be dropped");
                return;
            }
            self.peers.remove(&name);
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

    /// Drops a peer whose process is dead, though `stranded` transfers are in flight with it that will never report their
    /// end. False where others use it as well. Those transfers must not end their use of it any more.
    pub fn bury(&mut self, transport: &dyn Transport, name: &AgentName, stranded: usize) -> bool {
        if self.peers.get(name).is_none_or(|peer| peer.in_use != stranded) {
            return false;
        }
        match transport.drop_peer(name) {
            Ok(()) => self.peers.remove(name).is_some(),
            Err(error) => {
                tracing::warn!(%error, "a dead peer could not be dropped");
                false
            }
        }
    }

    /// A transfer with the peer failed: load it anew before the next one.
    pub fn mark_lost(&mut self, name: &AgentName) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.is_lost = true;
        }
    }

    /// A transfer with the peer has moved.
    pub fn note_progress(&mut self, name: &AgentName, now: Instant) {
        if let Some(peer) = self.peers.get_mut(name) {
            peer.last_progress = Some(now);
        }
    }

    /// When a transfer with the peer last moved, since it was loaded.
    #[must_use]
    pub fn last_progress(&self, name: &AgentName) -> Option<Instant> {
        self.peers.get(name)?.last_progress
    }

    /// Whether a transfer with the peer failed since it was loaded.
    #[must_use]
    pub fn is_lost(&self, name: &AgentName) -> bool {
        self.peers.get(name).is_none_or(|peer| peer.is_lost)
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

    /// How often a peer was dropped to be loaded anew.
    #[must_use]
    pub fn reloads(&self) -> u64 {
        self.reloads
    }

    /// Whether no peer is loaded.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }
}

#[cfg(test)]
mod tests;
