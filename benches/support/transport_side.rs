//! One layer above NIXL: the crate's own [`Transport`] on a real agent, with nothing of the core on top.
//!
//! As with the raw side, memory is registered and metadata loaded beforehand, and both sides poll without a pause. What
//! it takes longer than the raw side is the price of the trait: a lock a call, and errors that say something.

use std::collections::HashSet;
use std::sync::Arc;

use dynamo_nixl::transport::{AgentFlavor, Progress, Registration, Transport, nixl};
use dynamo_nixl::types::{AgentName, Direction, MemoryRange, OperationKey};
use dynamo_nixl::wire::{Encoding, decode, encode};

use super::memory::{Arena, remote};
use super::process::{self, Exposer};
use super::protocol::{Batch, Exposed};

/// An agent as the core's control lanes have it.
fn agent(role: &str) -> Arc<dyn Transport> {
    let name = AgentName::new(&format!("bench-transport-{role}-{}", std::process::id()));
    nixl::factory()(&name, AgentFlavor::SharedMemoryErrors).unwrap()
}

/// The side that posts requests.
pub(crate) struct Reader {
    // Deregistered before its agent goes.
    _registration: Box<dyn Registration>,
    agent: Arc<dyn Transport>,
    peer: Option<AgentName>,
}

impl Reader {
    pub(crate) fn new(arena: &Arena) -> Self {
        let agent = agent("reader");
        Self {
            _registration: agent.register(&arena.whole()).unwrap(),
            agent,
            peer: None,
        }
    }
}

impl process::Reader for Reader {
    fn is_new(&self, _transfers: usize) -> bool {
        self.peer.is_none()
    }

    fn meet(&mut self, exposed: &Exposed) {
        let blob = decode(&exposed.metadata).unwrap().blob;
        self.peer = Some(self.agent.load_peer(&blob).unwrap());
    }

    /// One request, polled to its end.
    fn transfer(&mut self, direction: Direction, exposed: &Exposed, local: &[MemoryRange]) {
        let peer = self.peer.as_ref().expect("the owner's metadata was not loaded");
        let remote: Vec<MemoryRange> = remote(local, exposed.addr).collect();
        let mut request = self
            .agent
            .prepare(direction, local, &remote, peer, Some(exposed.key.as_bytes()))
            .unwrap();
        let mut progress = request.post().unwrap();
        while progress == Progress::Pending {
            std::hint::spin_loop();
            progress = request.poll().unwrap();
        }
    }
}

/// The side that is read from and written to. It polls without a pause while it has something exposed.
pub(crate) struct TransportOwner {
    _registration: Box<dyn Registration>,
    agent: Arc<dyn Transport>,
    arena: Arena,
    metadata: String,
    expected: HashSet<Vec<u8>>,
}

impl TransportOwner {
    pub(crate) fn new(arena: Arena) -> Self {
        let agent = agent("owner");
        let registration = agent.register(&arena.whole()).unwrap();
        let metadata = encode(&agent.full_metadata().unwrap(), None, Encoding::Base64).unwrap();
        Self {
            _registration: registration,
            agent,
            arena,
            metadata,
            expected: HashSet::new(),
        }
    }

    fn expose_one(&mut self, batch: Batch) -> Exposed {
        let key = OperationKey::random().to_text();
        self.expected.insert(key.clone().into_bytes());
        Exposed {
            key,
            addr: self.arena.place(batch.span(), batch.placement).addr.0,
            metadata: self.metadata.clone(),
        }
    }
}

impl Exposer for TransportOwner {
    const POLLS: bool = true;

    fn expose(&mut self, batch: Batch) -> Vec<Exposed> {
        (0..batch.count).map(|_| self.expose_one(batch)).collect()
    }

    fn end(&mut self) {
        while !self.expected.is_empty() {
            self.poll();
        }
    }

    fn poll(&mut self) {
        let expected = &mut self.expected;
        self.agent
            .poll_notifications(&mut |_, key| {
                assert!(expected.remove(key), "a notification that nobody expects");
            })
            .unwrap();
    }
}
