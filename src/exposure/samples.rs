//! An exposure and its peers, for the tests.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::ledger::Ledger;
use super::record::Record;
use crate::error::{Error, ErrorKind};
use crate::operation::{Operation, Outcome, Status};
use crate::region::{LocalMemory, RegionTable};
use crate::settings::Settings;
use crate::transport::AgentFlavor;
use crate::transport::fake::FakeNetwork;
use crate::types::{Addr, AgentName, ByteLen, Direction, MemoryKind, MemoryRange, OperationKey, ProcessId, TransferId};
use crate::wire::{CompressedBlob, ControlMessage, Incoming};

pub(super) const KEEPALIVE: Duration = Duration::from_secs(5);
pub(super) const GRACE: Duration = Duration::from_secs(100);
pub(super) const KEY: &str = "key";
pub(super) const TRANSFER: TransferId = TransferId(42);

/// An exposure, and peers on another host.
pub(super) struct Bench {
    pub(super) network: FakeNetwork,
    regions: Arc<RegionTable>,
    pub(super) ledger: Arc<Ledger>,
    pub(super) record: Arc<Record>,
    /// What time it is for the ledger.
    pub(super) now: Instant,
}

impl Bench {
    pub(super) fn new(lease: Option<Duration>, keepalive: Option<Duration>) -> Self {
        Self::with_settings(
            lease,
            &Settings {
                grace: GRACE,
                keepalive,
                ..Settings::default()
            },
        )
    }

    pub(super) fn with_grace(grace: Duration) -> Self {
        Self::with_settings(
            None,
            &Settings {
                grace,
                ..Settings::default()
            },
        )
    }

    /// So much is held beyond the end.
    pub(super) fn limited(keepalive: Option<Duration>, grace: Duration, quarantine_limit: u64) -> Self {
        Self::with_settings(
            None,
            &Settings {
                keepalive,
                grace,
                quarantine_limit,
                ..Settings::default()
            },
        )
    }

    /// A second exposure, of as many bytes.
    pub(super) fn another(&self, key: &str) -> Arc<Record> {
        open(&self.ledger, &self.regions, key, None)
    }

    fn with_settings(lease: Option<Duration>, settings: &Settings) -> Self {
        let network = FakeNetwork::new();
        let transport = network.agent(&AgentName::new("owner"), AgentFlavor::SharedMemoryErrors);
        let regions = RegionTable::new(transport.unwrap());
        let ledger = Arc::new(Ledger::new(settings));
        let now = Instant::now();
        let record = open(&ledger, &regions, KEY, lease.map(|lease| now + lease));
        Self {
            network,
            regions,
            ledger,
            record,
            now,
        }
    }

    pub(super) fn asking() -> Self {
        Self::new(None, Some(KEEPALIVE))
    }

    pub(super) fn hello(&mut self, name: &str) {
        self.hello_as(name, TRANSFER);
    }

    pub(super) fn hello_as(&mut self, name: &str, transfer: TransferId) {
        let agent = self
            .network
            .agent(&AgentName::new(name), AgentFlavor::SharedMemoryErrors)
            .unwrap();
        self.receive(
            name,
            &ControlMessage::Hello {
                operation: OperationKey::new(KEY),
                transfer,
                connection: Bytes::from(agent.connection_info().unwrap()),
                process: ProcessId {
                    pid: 1,
                    start: 1,
                    host: !crate::process::here().unwrap().host,
                },
            },
        );
        // The ledger counts from when it heard.
        self.now = self.now.max(Instant::now());
    }

    pub(super) fn receive(&self, sender: &str, message: &ControlMessage) {
        let message = message.encode().unwrap();
        assert!(self.ledger.receive(&AgentName::new(sender), &message).is_none());
    }

    /// The key arrives.
    pub(super) fn complete(&self, name: &str) {
        assert!(self.ledger.receive(&AgentName::new(name), KEY.as_bytes()).is_none());
        assert_eq!(self.record.operation().status(), Status::Complete);
    }

    pub(super) fn pong(&self, sender: &str, nonce: u64) {
        let operation = OperationKey::new(KEY);
        self.receive(
            sender,
            &ControlMessage::Pong {
                operation,
                transfer: TRANSFER,
                nonce,
            },
        );
    }

    /// An interval passes. Says who is pinged with which nonce; these letters have been sent.
    pub(super) fn beat(&mut self) -> Vec<(String, u64)> {
        self.now += KEEPALIVE;
        self.look();
        let asked = self.sent().into_iter().filter_map(|(to, message)| match message {
            ControlMessage::Ping { nonce, .. } => Some((to, nonce)),
            _ => None,
        });
        asked.collect()
    }

    pub(super) fn sent(&self) -> Vec<(String, ControlMessage)> {
        let letters = self.ledger.take_outbox().into_iter();
        let sent = letters.map(|letter| {
            letter.operation.finish(Outcome::Complete);
            match ControlMessage::decode(letter.operation.key().as_bytes()).unwrap() {
                Incoming::Message { message, .. } => (letter.to.agent().to_string(), message),
                other => panic!("{other:?}"),
            }
        });
        sent.collect()
    }

    pub(super) fn kind(&self) -> Option<ErrorKind> {
        let outcome = self.record.operation().outcome()?;
        outcome.error().map(Error::kind)
    }

    /// The transfer is done, as its agent says.
    pub(super) fn quiet(&self, name: &str, transfer: TransferId) {
        let operation = OperationKey::new(KEY);
        self.receive(name, &ControlMessage::Quiet { operation, transfer });
    }

    /// A look at the wire that finds nothing more.
    pub(super) fn look(&self) {
        self.ledger.begin_look();
        self.ledger.tick(self.now);
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.record.operation().is_quiet()
    }
}

/// An exposure of 4096 bytes that a peer was told of.
fn open(ledger: &Ledger, regions: &Arc<RegionTable>, key: &str, lease_end: Option<Instant>) -> Arc<Record> {
    let operation = Operation::new(Direction::Read, OperationKey::new(key.to_owned()), None, 4096);
    let generation = u64::from(crc32c::crc32c(key.as_bytes()));
    let record = Record::new(&operation, generation, lease_end);
    let range = MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr(1 << 20),
        len: ByteLen(4096),
    };
    let memory = LocalMemory {
        range,
        keep_alive: None,
    };
    record.inner().regions.push(regions.acquire(&memory).unwrap());
    record.inner().exported = Some(CompressedBlob::new(b"metadata").unwrap());
    ledger.open(&record);
    record
}
