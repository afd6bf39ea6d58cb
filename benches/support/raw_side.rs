//! The baseline: NIXL through `nixl_sys` and nothing in between.
//!
//! The one file of the benchmarks that names `nixl_sys`; of the crate, only `src/transport/nixl.rs` does. Agents are made
//! as the core's control lanes make them, so that both use the same transports. Memory is registered and metadata loaded
//! beforehand: what is measured is one request, from its creation to its end, with a notification.

use std::collections::HashSet;

use dynamo_nixl::transport::loader;
use dynamo_nixl::types::{Direction, MemoryRange, OperationKey};
use dynamo_nixl::wire::{Encoding, decode, encode};
use nixl_sys::{
    Agent, AgentConfig, MemType, MemoryRegion, NixlDescriptor, NotificationMap, OptArgs, Params, RegistrationHandle,
    ThreadSync, XferDescList, XferOp, XferStatus,
};

use super::memory::{Arena, remote};
use super::process::{self, Exposer};
use super::protocol::{Batch, Exposed};

fn agent(role: &str) -> Agent {
    loader::ensure_loaded().unwrap();
    let config = AgentConfig {
        enable_prog_thread: false,
        thread_sync: ThreadSync::None,
        ..AgentConfig::default()
    };
    let agent = Agent::new_configured(&format!("bench-raw-{role}-{}", std::process::id()), &config).unwrap();
    let parameters = Params::from([("engine_config", "MM_ERROR_HANDLING=y,TCP_CONN_NB=y")]).unwrap();
    agent.create_backend("UCX", &parameters).unwrap();
    agent
}

/// The side that posts requests.
pub(crate) struct Reader {
    // Deregistered before its agent goes.
    _registration: RegistrationHandle,
    agent: Agent,
    peer: Option<String>,
}

impl Reader {
    pub(crate) fn new(arena: &Arena) -> Self {
        let agent = agent("reader");
        let registration = agent.register_memory(&Registered(arena.whole()), None).unwrap();
        Self {
            _registration: registration,
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
        self.peer = Some(self.agent.load_remote_md(&blob).unwrap());
    }

    /// One request, polled to its end.
    fn transfer(&mut self, direction: Direction, exposed: &Exposed, local: &[MemoryRange]) {
        let operation = match direction {
            Direction::Read => XferOp::Read,
            Direction::Write => XferOp::Write,
        };
        let mut options = OptArgs::new().unwrap();
        options.set_notification_message(exposed.key.as_bytes()).unwrap();
        options.set_has_notification(true).unwrap();
        let peer = self.peer.as_deref().expect("the owner's metadata was not loaded");
        let request = self
            .agent
            .create_xfer_req(
                operation,
                &list(local.iter().copied()),
                &list(remote(local, exposed.addr)),
                peer,
                Some(&options),
            )
            .unwrap();
        if self.agent.post_xfer_req(&request, Some(&options)).unwrap() {
            while self.agent.get_xfer_status(&request).unwrap() == XferStatus::InProgress {
                std::hint::spin_loop();
            }
        }
    }
}

fn list(ranges: impl Iterator<Item = MemoryRange>) -> XferDescList<'static> {
    let mut list = XferDescList::new(MemType::Dram).unwrap();
    for range in ranges {
        list.add_desc(usize::try_from(range.addr.0).unwrap(), size(&range), range.device);
    }
    list
}

fn size(range: &MemoryRange) -> usize {
    usize::try_from(range.len.0).unwrap()
}

/// The side that is read from and written to. It polls without a pause while it has something exposed.
pub(crate) struct RawOwner {
    _registration: RegistrationHandle,
    agent: Agent,
    arena: Arena,
    metadata: String,
    expected: HashSet<Vec<u8>>,
}

impl RawOwner {
    pub(crate) fn new(arena: Arena) -> Self {
        let agent = agent("owner");
        let registration = agent.register_memory(&Registered(arena.whole()), None).unwrap();
        let metadata = encode(&agent.get_local_md().unwrap(), None, Encoding::Base64).unwrap();
        Self {
            _registration: registration,
            agent,
            arena,
            metadata,
            expected: HashSet::new(),
        }
    }
}

impl Exposer for RawOwner {
    const POLLS: bool = true;

    fn expose(&mut self, batch: Batch) -> Vec<Exposed> {
        (0..batch.count)
            .map(|_| {
                let key = OperationKey::random().to_text();
                self.expected.insert(key.clone().into_bytes());
                let range = self.arena.place(batch.span(), batch.placement);
                Exposed {
                    key,
                    addr: range.addr.0,
                    metadata: self.metadata.clone(),
                }
            })
            .collect()
    }

    fn end(&mut self) {
        while !self.expected.is_empty() {
            self.poll();
        }
    }

    fn poll(&mut self) {
        let mut map = NotificationMap::new().unwrap();
        self.agent.get_notifications(&mut map, None).unwrap();
        for sender in map.agents().flatten() {
            for index in 0..map.get_notifications_size(sender).unwrap() {
                let key = map.get_notification_bytes(sender, index).unwrap();
                assert!(self.expected.remove(&key), "a notification that nobody expects");
            }
        }
    }
}

#[derive(Debug)]
struct Registered(MemoryRange);

impl MemoryRegion for Registered {
    // SAFETY: nothing is dereferenced; the arena was leaked, and its address exposed.
    unsafe fn as_ptr(&self) -> *const u8 {
        std::ptr::with_exposed_provenance(usize::try_from(self.0.addr.0).unwrap())
    }

    fn size(&self) -> usize {
        size(&self.0)
    }
}

impl NixlDescriptor for Registered {
    fn mem_type(&self) -> MemType {
        MemType::Dram
    }

    fn device_id(&self) -> u64 {
        self.0.device
    }
}
