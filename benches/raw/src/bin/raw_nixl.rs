//! NIXL through `nixl_sys` and nothing in between, both sides polling without a pause.
//!
//! Memory is registered and metadata loaded beforehand: a transfer is one request, from its creation to its end, with a
//! notification. `raw-rust` has agents like the package's own, and so the same transports. `raw-rust-plain` has NIXL's
//! defaults on both sides: as what others own is read, since a reader like ours would wait for such an owner for ever.
#![allow(clippy::unwrap_used)] // a benchmark that cannot go on has nothing better to do than to stop

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dynamo_nixl::transport::loader;
use dynamo_nixl_raw::arena::Range;
use dynamo_nixl_raw::case::Case;
use dynamo_nixl_raw::channel::Channel;
use dynamo_nixl_raw::conversation::{self, Exposure, play};
use dynamo_nixl_raw::now;
use nixl_sys::{
    Agent, AgentConfig, MemType, MemoryRegion, NixlDescriptor, NotificationMap, OptArgs, Params, RegistrationHandle,
    ThreadSync, XferDescList, XferOp, XferRequest, XferStatus,
};

/// The implementation whose agents are made as NIXL's own bindings make them.
const PLAIN: &str = "raw-rust-plain";
/// What the package gives its agents: shared memory also where a peer's death is to be noticed.
const OURS: [(&str, &str); 1] = [("engine_config", "MM_ERROR_HANDLING=y")];

fn main() {
    // Of the bindings; the library that they load says none.
    let versions = BTreeMap::from([("nixl-sys", "1.5.1".to_string())]);
    play(&versions, Owner::new, Reader::new);
}

fn agent(implementation: &str, role: &str) -> Agent {
    loader::ensure_loaded().unwrap();
    let config = AgentConfig {
        // It would spin beside the polls.
        enable_prog_thread: false,
        thread_sync: ThreadSync::None,
        ..AgentConfig::default()
    };
    let agent = Agent::new_configured(&format!("bench-{role}-{}", std::process::id()), &config).unwrap();
    let parameters: &[_] = if implementation == PLAIN { &[] } else { &OURS };
    let parameters = Params::from(parameters.iter().copied()).unwrap();
    agent.create_backend("UCX", &parameters).unwrap();
    agent
}

struct Owner {
    // Deregistered before its agent goes.
    registrations: Vec<RegistrationHandle>,
    agent: Agent,
}

impl Owner {
    fn new(implementation: &str) -> Self {
        Self {
            registrations: Vec::new(),
            agent: agent(implementation, "owner"),
        }
    }
}

impl conversation::Owner for Owner {
    type Introduction = String;

    fn register(&mut self, block: Range) -> String {
        self.registrations
            .push(self.agent.register_memory(&Registered(block), None).unwrap());
        STANDARD.encode(self.agent.get_local_md().unwrap())
    }

    /// Polls on until the reader is done too: its last flush may need this side.
    fn serve(&mut self, exposures: &[Exposure], reader: &Channel) -> Vec<u64> {
        let mut ended: HashMap<Vec<u8>, u64> = HashMap::new();
        while ended.len() < exposures.len() || !reader.has_message() {
            let mut map = NotificationMap::new().unwrap();
            self.agent.get_notifications(&mut map, None).unwrap();
            let now = now();
            for sender in map.agents().flatten() {
                for index in 0..map.get_notifications_size(sender).unwrap() {
                    ended.insert(map.get_notification_bytes(sender, index).unwrap(), now);
                }
            }
        }
        exposures.iter().map(|each| ended[each.key.as_bytes()]).collect()
    }
}

struct Reader {
    registrations: Vec<RegistrationHandle>,
    agent: Agent,
    peer: Option<String>,
}

impl Reader {
    fn new(implementation: &str) -> Self {
        Self {
            registrations: Vec::new(),
            agent: agent(implementation, "reader"),
            peer: None,
        }
    }
}

struct Transfer {
    request: XferRequest,
    is_posted: bool,
}

impl conversation::Reader for Reader {
    type Introduction = String;
    type Transfer = Transfer;

    fn prepare(&mut self, _case: &Case, block: Range, introduction: Option<String>) {
        if let Some(metadata) = introduction {
            self.registrations
                .push(self.agent.register_memory(&Registered(block), None).unwrap());
            let metadata = STANDARD.decode(metadata).unwrap();
            self.peer = Some(self.agent.load_remote_md(&metadata).unwrap());
        }
    }

    fn begin(&mut self, exposure: &Exposure, place: &[Range]) -> Transfer {
        let mut options = OptArgs::new().unwrap();
        options.set_notification_message(exposure.key.as_bytes()).unwrap();
        options.set_has_notification(true).unwrap();
        let here = list(place.iter().map(|range| (range.addr, range.len)));
        let there = list(exposure.ranges.iter().copied());
        let peer = self.peer.as_deref().expect("the owner's metadata was not loaded");
        let request = self
            .agent
            .create_xfer_req(XferOp::Read, &here, &there, peer, Some(&options))
            .unwrap();
        let is_posted = self.agent.post_xfer_req(&request, Some(&options)).unwrap();
        Transfer { request, is_posted }
    }

    fn has_ended(&mut self, transfer: &mut Transfer) -> bool {
        // What has ended within the post is not under way.
        !transfer.is_posted || self.agent.get_xfer_status(&transfer.request).unwrap() != XferStatus::InProgress
    }
}

fn list(ranges: impl Iterator<Item = (usize, usize)>) -> XferDescList<'static> {
    let mut list = XferDescList::new(MemType::Dram).unwrap();
    for (addr, len) in ranges {
        list.add_desc(addr, len, 0);
    }
    list
}

#[derive(Debug)]
struct Registered(Range);

impl MemoryRegion for Registered {
    // SAFETY: nothing is dereferenced; the memory is an arena's, which was leaked, and its address exposed.
    unsafe fn as_ptr(&self) -> *const u8 {
        self.0.as_ptr()
    }

    fn size(&self) -> usize {
        self.0.len
    }
}

impl NixlDescriptor for Registered {
    fn mem_type(&self) -> MemType {
        MemType::Dram
    }

    fn device_id(&self) -> u64 {
        0
    }
}
