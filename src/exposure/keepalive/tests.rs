#![allow(clippy::unwrap_used)]

use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::operation::{Operation, Status};
use crate::region::{LocalMemory, RegionTable};
use crate::settings::Settings;
use crate::transport::AgentFlavor;
use crate::transport::fake::FakeNetwork;
use crate::types::{Addr, ByteLen, Direction, MemoryKind, MemoryRange, ProcessId};
use crate::wire::{CompressedBlob, EndReason, Incoming};

const KEEPALIVE: Duration = Duration::from_secs(5);
const GRACE: Duration = Duration::from_secs(100);
const KEY: &str = "key";

/// An exposure, and peers on another host.
struct Bench {
    network: FakeNetwork,
    ledger: Arc<Ledger>,
    record: Arc<Record>,
    /// What time it is for the ledger.
    now: Instant,
}

impl Bench {
    fn new(lease: Option<Duration>, keepalive: Option<Duration>) -> Self {
        let settings = Settings {
            grace: GRACE,
            keepalive,
            ..Settings::default()
        };
        let network = FakeNetwork::new();
        let transport = network.agent(&AgentName::new("owner"), AgentFlavor::SharedMemoryErrors);
        let regions = RegionTable::new(transport.unwrap());
        let ledger = Arc::new(Ledger::new(&settings));
        let now = Instant::now();
        let operation = Operation::new(Direction::Read, OperationKey::new(KEY), None, 4096);
        let record = Record::new(&operation, 1, lease.map(|lease| now + lease));
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
        Self {
            network,
            ledger,
            record,
            now,
        }
    }

    fn asking() -> Self {
        Self::new(None, Some(KEEPALIVE))
    }

    fn hello(&mut self, name: &str) {
        let agent = self
            .network
            .agent(&AgentName::new(name), AgentFlavor::SharedMemoryErrors)
            .unwrap();
        self.receive(
            name,
            &ControlMessage::Hello {
                operation: OperationKey::new(KEY),
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

    fn receive(&self, sender: &str, message: &ControlMessage) {
        let message = message.encode().unwrap();
        assert!(self.ledger.receive(&AgentName::new(sender), &message).is_none());
    }

    fn pong(&self, sender: &str, nonce: u64) {
        let operation = OperationKey::new(KEY);
        self.receive(sender, &ControlMessage::Pong { operation, nonce });
    }

    /// An interval passes. Says who is pinged with which nonce; these letters have been sent.
    fn beat(&mut self) -> Vec<(String, u64)> {
        self.now += KEEPALIVE;
        self.ledger.tick(self.now);
        let asked = self.sent().into_iter().filter_map(|(to, message)| match message {
            ControlMessage::Ping { nonce, .. } => Some((to, nonce)),
            _ => None,
        });
        asked.collect()
    }

    fn sent(&self) -> Vec<(String, ControlMessage)> {
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

    fn kind(&self) -> Option<ErrorKind> {
        let outcome = self.record.operation().outcome()?;
        outcome.error().map(Error::kind)
    }
}

#[test]
fn nobody_is_asked_before_a_hello_or_after_all_is_quiet() {
    let mut bench = Bench::asking();
    assert!(bench.beat().is_empty());
    assert_eq!(bench.ledger.next_due(), None);
    bench.hello("reader");
    assert!(bench.ledger.next_due().is_some());
    assert_eq!(bench.beat().len(), 1);
    let operation = OperationKey::new(KEY);
    bench.receive("reader", &ControlMessage::Quiet { operation });
    assert!(bench.beat().is_empty());
    assert_eq!(bench.ledger.next_due(), None);
}

#[test]
fn nor_without_a_keepalive() {
    let mut bench = Bench::new(None, None);
    bench.hello("reader");
    assert!((0..9).all(|_| bench.beat().is_empty()));
    assert_eq!(bench.kind(), None);
}

#[test]
fn silence_ends_the_exposure_and_not_the_hold_on_its_memory() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    for _ in 0..MOST_UNANSWERED {
        assert_eq!(bench.beat().len(), 1);
        assert_eq!(bench.kind(), None);
    }
    assert!(bench.beat().is_empty());
    assert_eq!(bench.kind(), Some(ErrorKind::PeerLost));
    assert!(!bench.record.operation().is_quiet());
    assert_eq!(bench.ledger.in_grace().0, 1);
    // It was only stopped, and is done now.
    let operation = OperationKey::new(KEY);
    bench.receive("reader", &ControlMessage::Quiet { operation });
    bench.ledger.tick(bench.now);
    assert!(bench.record.operation().is_quiet());
}

#[test]
fn the_lost_one_is_told_as_well() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    let mut told = Vec::new();
    while bench.kind().is_none() {
        bench.now += KEEPALIVE;
        bench.ledger.tick(bench.now);
        told = bench.sent();
    }
    assert!(matches!(
        told.as_slice(),
        [(
            _,
            ControlMessage::Ended {
                reason: EndReason::Failed,
                ..
            }
        )]
    ));
}

#[test]
fn only_answers_to_the_question_count() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    for _ in 0..20 {
        let asked = bench.beat();
        bench.pong("reader", asked[0].1);
    }
    for _ in 0..=MOST_UNANSWERED {
        assert_eq!(bench.kind(), None);
        let asked = bench.beat();
        if let [(_, nonce)] = asked.as_slice() {
            bench.pong("stranger", *nonce);
            bench.pong("reader", nonce ^ 1);
        }
    }
    assert_eq!(bench.kind(), Some(ErrorKind::PeerLost));
}

#[test]
fn another_transfer_that_answers_keeps_the_exposure() {
    let mut bench = Bench::asking();
    bench.hello("silent");
    bench.hello("other");
    for _ in 0..20 {
        for (name, nonce) in bench.beat() {
            if name == "other" {
                bench.pong(&name, nonce);
            }
        }
    }
    assert_eq!(bench.kind(), None);
    let asked = bench.beat();
    assert!(asked.iter().all(|(name, _)| name == "other"), "{asked:?}");
    let left = ControlMessage::Left {
        operation: OperationKey::new(KEY),
        reason: EndReason::Cancelled,
        text: String::new(),
    };
    bench.receive("other", &left);
    assert_eq!(bench.kind(), Some(ErrorKind::CancelledByPeer));
}

#[test]
fn whoever_answers_outlasts_the_lease_and_the_grace_and_whoever_does_not_does_not() {
    for answers in [true, false] {
        let mut bench = Bench::new(Some(KEEPALIVE * 2 + KEEPALIVE / 2), Some(KEEPALIVE));
        bench.hello("reader");
        let beat = |bench: &mut Bench, count: usize| {
            for _ in 0..count {
                for (name, nonce) in bench.beat() {
                    if answers {
                        bench.pong(&name, nonce);
                    }
                }
            }
        };
        beat(&mut bench, 2);
        assert_eq!(bench.kind(), None);
        bench.ledger.tick(bench.now + KEEPALIVE * 2 / 3);
        if !answers {
            assert_eq!(bench.kind(), Some(ErrorKind::LeaseExpired));
            continue;
        }
        assert_eq!(bench.kind(), None);
        bench.ledger.end(&bench.record, Outcome::Cancelled);
        beat(&mut bench, 30);
        assert!(!bench.record.operation().is_quiet(), "long after the grace");
        let operation = OperationKey::new(KEY);
        bench.receive("reader", &ControlMessage::Quiet { operation });
        bench.ledger.tick(bench.now);
        assert!(bench.record.operation().is_quiet());
    }
}

#[test]
fn a_flood_of_pings_has_one_answer_at_a_time() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    let flood = |sender: &str| {
        for nonce in 0..1000 {
            let operation = OperationKey::new(KEY);
            bench.receive(sender, &ControlMessage::Ping { operation, nonce });
        }
        bench.sent()
    };
    assert!(flood("stranger").is_empty());
    for _ in 0..2 {
        let answers = flood("reader");
        assert!(matches!(answers.as_slice(), [(to, ControlMessage::Pong { nonce: 0, .. })] if to == "reader"));
    }
}

#[test]
fn what_closes_asks_nobody() {
    let mut bench = Bench::asking();
    bench.hello("reader");
    bench.ledger.close(&Error::new(ErrorKind::Closed, "test", "closed"));
    assert!(bench.beat().is_empty());
    assert_eq!(bench.record.operation().status(), Status::Errored);
    bench.hello("late");
    assert!(bench.beat().is_empty());
    assert!(bench.ledger.next_due().is_none_or(|due| due > bench.now));
}
