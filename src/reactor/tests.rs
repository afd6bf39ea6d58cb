//! The reactor on a scripted wire, one tick at a time: no thread, no clock.
#![allow(clippy::unwrap_used)]

mod ends;
mod histories;
mod peers;

use std::sync::{Arc, Weak};

use super::state::{LaneState, Resources};
use super::transfer::{Limits, PIECE, Transfer};
use crate::descriptor::TransferPlan;
use crate::error::ErrorKind;
use crate::exposure::{Ledger, Record};
use crate::operation::{Operation, Outcome, Phase, Status};
use crate::peer::PeerTable;
use crate::peer::RemoteMetadata;
use crate::region::{LocalMemory, RegionTable};
use crate::settings::Settings;
use crate::transport::AgentFlavor;
use crate::transport::fake::{Call, Completion, Event, FakeNetwork, FakeOwner};
use crate::types::{Addr, AgentName, ByteLen, Direction, MemoryKind, MemoryRange, OperationKey};
use crate::words::WordTable;

const READER: &str = "reader";
const OWNER: &str = "owner";
/// Where the owner's memory lies. Nothing is ever behind these addresses.
const REMOTE: u64 = 0x7000_0000_0000;
const LOCAL: u64 = 0x1000_0000_0000;

fn range(addr: u64, len: u64) -> MemoryRange {
    MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr(addr),
        len: ByteLen(len),
    }
}

/// A lane without its thread, and the owner it works with.
struct Bench {
    network: FakeNetwork,
    owner: Option<FakeOwner>,
    regions: Arc<RegionTable>,
    ledger: Arc<Ledger>,
    lane: LaneState,
    next_local: u64,
    limits: Limits,
}

/// A transfer that was handed to the lane.
struct Started {
    operation: Arc<Operation>,
    /// Dies when nothing keeps the local memory any more.
    memory: Weak<()>,
}

impl Started {
    fn status(&self) -> Status {
        self.operation.status()
    }

    fn is_pinned(&self) -> bool {
        self.memory.strong_count() > 0
    }

    fn error_kind(&self) -> Option<ErrorKind> {
        match self.operation.outcome() {
            Some(Outcome::Failed(error)) => Some(error.kind()),
            _ => None,
        }
    }
}

impl Bench {
    fn new(completion: Completion) -> Self {
        let network = FakeNetwork::new();
        network.set_completion(completion);
        let transport = network
            .agent(&AgentName::new(READER), AgentFlavor::SharedMemoryErrors)
            .unwrap();
        let regions = RegionTable::new(Arc::clone(&transport));
        let settings = Settings::default();
        let ledger = Arc::new(Ledger::new(&settings));
        let resources = Resources {
            transport,
            peers: PeerTable::default(),
            regions: Arc::clone(&regions),
            words: WordTable::new(Arc::clone(&regions)),
            introduction: None,
            keepalive: None,
            last_unheard: None,
        };
        let lane = LaneState::new(resources, Arc::clone(&ledger), settings.quarantine_limit);
        let owner = Some(FakeOwner::new(&network, OWNER).unwrap());
        Self {
            network,
            owner,
            regions,
            ledger,
            lane,
            next_local: LOCAL,
            limits: Limits::default(),
        }
    }

    fn owner(&mut self) -> &mut FakeOwner {
        self.owner.as_mut().unwrap()
    }

    /// Registers the owner's range anew and gives its metadata.
    fn exposed(&mut self, range: MemoryRange) -> Arc<RemoteMetadata> {
        if range.len.0 > 0 {
            self.owner().register(range).unwrap();
        }
        let exposed = if range.len.0 > 0 { vec![range] } else { vec![] };
        let text = self.owner().metadata(&exposed, false).unwrap();
        Arc::new(RemoteMetadata::decode(&text).unwrap())
    }

    /// A transfer over these pieces of the metadata's range, not yet handed in.
    fn transfer(&mut self, metadata: &Arc<RemoteMetadata>, remote: &[MemoryRange]) -> (Started, Transfer) {
        let owner = Arc::new(());
        let mut memory = Vec::new();
        for range in remote {
            let local = MemoryRange {
                addr: Addr(self.next_local),
                ..*range
            };
            self.next_local += range.len.0 + 64;
            memory.push(LocalMemory {
                range: local,
                keep_alive: Some(Arc::clone(&owner) as _),
            });
        }
        let local: Vec<MemoryRange> = memory.iter().map(|memory| memory.range).collect();
        let plan = TransferPlan::new(&local, remote).unwrap();
        let operation = Operation::new(
            Direction::Read,
            OperationKey::random(),
            Some(metadata.agent().clone()),
            plan.total_bytes(),
        );
        let started = Started {
            operation: Arc::clone(&operation),
            memory: Arc::downgrade(&owner),
        };
        (
            started,
            Transfer::new(operation, Arc::clone(metadata), plan, memory, self.limits),
        )
    }

    /// Hands in a transfer of one descriptor.
    fn start(&mut self, metadata: &Arc<RemoteMetadata>, remote: MemoryRange) -> Started {
        let (started, transfer) = self.transfer(metadata, &[remote]);
        self.lane.add(transfer);
        started
    }

    /// Exposes `pieces` pieces of memory and hands in a transfer of all of it.
    fn start_pieces(&mut self, pieces: u64) -> Started {
        let remote = range(REMOTE, pieces * PIECE.bytes);
        let metadata = self.exposed(remote);
        self.start(&metadata, remote)
    }

    fn ticks(&mut self, count: usize) {
        for _ in 0..count {
            self.lane.tick();
        }
    }

    /// Ends whatever the wire holds, until the lane has nothing left.
    fn drain(&mut self) {
        self.network.release_all();
        for _ in 0..1000 {
            if self.lane.tick().transfers == 0 {
                return;
            }
        }
        panic!("the lane still drives {} transfers", self.lane.transfers());
    }

    /// For each posted request, whether it carried a notification.
    fn posted(&self) -> Vec<bool> {
        let events = self.network.events();
        let posts = events.iter().filter_map(|event| match event {
            Event::Posted { notifies, .. } => Some(*notifies),
            _ => None,
        });
        posts.collect()
    }

    fn assert_rules_kept(&self) {
        assert_eq!(self.network.violations(), [""; 0]);
    }
}
