#![allow(clippy::unwrap_used)]

use super::*;
use crate::operation::{Operation, Phase, Status};
use crate::region::{LocalMemory, RegionTable};
use crate::transport::AgentFlavor;
use crate::transport::fake::FakeNetwork;
use crate::types::{Addr, AgentName, ByteLen, Direction, MemoryKind, MemoryRange};
use crate::wire::CompressedBlob;

const BYTES: u64 = 4096;
const SECOND: Duration = Duration::from_secs(1);

/// A ledger with memory to expose; nothing is ever behind its addresses.
struct Bench {
    ledger: Arc<Ledger>,
    regions: Arc<RegionTable>,
    made: u64,
}

impl Bench {
    fn new(grace: Duration, quarantine_limit: u64) -> Self {
        let settings = Settings {
            grace,
            quarantine_limit,
            ..Settings::default()
        };
        let network = FakeNetwork::new();
        let transport = network.agent(&AgentName::new("owner"), AgentFlavor::SharedMemoryErrors);
        Self {
            ledger: Arc::new(Ledger::new(&settings)),
            regions: RegionTable::new(transport.unwrap()),
            made: 0,
        }
    }

    /// An open exposure of `BYTES`, known to a peer where it is published.
    fn expose(&mut self, key: &[u8], lease: Option<Duration>, is_published: bool) -> Arc<Record> {
        self.made += 1;
        let operation = Operation::new(Direction::Read, OperationKey::new(key.to_vec()), None, BYTES);
        let record = Record::new(&operation, self.made, lease.map(|lease| Instant::now() + lease));
        let range = MemoryRange {
            kind: MemoryKind::Dram,
            device: 0,
            addr: Addr(self.made << 20),
            len: ByteLen(BYTES),
        };
        let memory = LocalMemory {
            range,
            keep_alive: None,
        };
        record.inner().regions.push(self.regions.acquire(&memory).unwrap());
        record.inner().exported = is_published.then(|| CompressedBlob::new(b"metadata").unwrap());
        self.ledger.open(&record);
        record
    }

    fn receive(&self, message: &[u8]) {
        assert!(self.ledger.receive(&AgentName::new("peer"), message).is_none());
    }

    /// Lets go of all that is to be let go by then.
    fn tick_until_idle(&self, now: Instant) {
        while self.ledger.tick(now) {}
    }
}

fn status(record: &Record) -> Status {
    record.operation().status()
}

fn kind(record: &Record) -> Option<ErrorKind> {
    let outcome = record.operation().outcome()?;
    outcome.error().map(Error::kind)
}

#[test]
fn a_key_ends_its_operation_once_and_no_other() {
    let mut bench = Bench::new(SECOND, u64::MAX);
    let (one, other) = (bench.expose(b"key", None, true), bench.expose(b"key-2", None, true));
    bench.receive(b"key");
    bench.receive(b"key");
    assert_eq!((status(&one), status(&other)), (Status::Complete, Status::Initialized));
    assert_eq!((bench.ledger.waiting(), bench.ledger.counts()), (1, (1, 1, 0)));
    bench.tick_until_idle(Instant::now());
    assert!(
        !one.operation().is_quiet(),
        "another may have found it open, whose hello comes at the next look"
    );
    bench.ledger.begin_look();
    bench.tick_until_idle(Instant::now());
    assert!(one.operation().is_quiet(), "its peer is done");
    assert_eq!(bench.regions.len(), 2, "registered until its holder gives it up");
}

#[test]
fn what_matches_nothing_is_dropped_and_counted() {
    let mut bench = Bench::new(SECOND, u64::MAX);
    for message in [&b"early"[..], b"", b"early ", b"\xff\xfe"] {
        bench.receive(message);
    }
    assert_eq!(bench.ledger.counts(), (0, 3, 1));
    let early = bench.expose(b"early", None, true);
    assert!(
        !early.operation().is_finished(),
        "a notification from before it was expected is nobody's"
    );
}

#[test]
fn keys_are_bytes_and_need_not_be_text() {
    let mut bench = Bench::new(SECOND, u64::MAX);
    let binary = bench.expose(&[0xff, 0, 1], None, true);
    bench.receive(&[0xff, 0, 1]);
    assert_eq!((status(&binary), bench.ledger.counts()), (Status::Complete, (1, 0, 0)));
}

#[test]
fn what_has_ended_is_not_ended_again() {
    let mut bench = Bench::new(SECOND, u64::MAX);
    let cancelled = bench.expose(b"cancelled", Some(SECOND), true);
    assert!(bench.ledger.end(&cancelled, Outcome::Cancelled));
    assert!(!bench.ledger.end(&cancelled, Outcome::Complete));
    bench.receive(b"cancelled");
    bench.ledger.tick(Instant::now() + 9 * SECOND);
    assert_eq!(status(&cancelled), Status::Cancelled);
    assert_eq!(
        bench.ledger.renew(&cancelled, None).unwrap_err().kind(),
        ErrorKind::InvalidArgument
    );
}

#[test]
fn memory_that_a_peer_may_know_stays_for_the_grace() {
    let mut bench = Bench::new(10 * SECOND, u64::MAX);
    let (known, unknown) = (
        bench.expose(b"known", None, true),
        bench.expose(b"unknown", None, false),
    );
    for record in [&known, &unknown] {
        bench.ledger.end(record, Outcome::Cancelled);
    }
    let now = Instant::now();
    bench.tick_until_idle(now);
    assert!(unknown.operation().is_quiet() && !known.operation().is_quiet());
    assert_eq!((bench.regions.len(), bench.ledger.in_grace()), (1, (1, BYTES)));
    let due = bench.ledger.next_due().unwrap();
    assert!(due > now && due <= now + 10 * SECOND);
    bench.tick_until_idle(due);
    assert!(known.operation().has_reached(Phase::Quiet) && known.operation().is_quiet());
    assert_eq!((bench.regions.len(), bench.ledger.in_grace()), (0, (0, 0)));
}

#[test]
fn the_oldest_make_room_where_grace_holds_too_much() {
    let mut bench = Bench::new(SECOND, 2 * BYTES);
    let records: Vec<_> = (0_u8..4).map(|key| bench.expose(&[key], None, true)).collect();
    for record in &records {
        bench.ledger.end(record, Outcome::Cancelled);
    }
    bench.tick_until_idle(Instant::now());
    let quiet: Vec<bool> = records.iter().map(|record| record.operation().is_quiet()).collect();
    assert_eq!(quiet, [true, true, false, false]);
    assert_eq!(bench.ledger.in_grace(), (2, 2 * BYTES));
}

#[test]
fn one_that_is_bigger_than_the_limit_is_held_all_the_same() {
    let mut bench = Bench::new(SECOND, BYTES / 2);
    let (first, second) = (bench.expose(b"first", None, true), bench.expose(b"second", None, true));
    bench.ledger.end(&first, Outcome::Cancelled);
    bench.tick_until_idle(Instant::now());
    assert!(!first.operation().is_quiet());
    bench.ledger.end(&second, Outcome::Cancelled);
    bench.tick_until_idle(Instant::now());
    assert!(first.operation().is_quiet() && !second.operation().is_quiet());
}

#[test]
fn leases_end_in_their_order_and_can_be_renewed() {
    let mut bench = Bench::new(SECOND, u64::MAX);
    let start = Instant::now();
    let (short, long) = (
        bench.expose(b"short", Some(SECOND), true),
        bench.expose(b"long", Some(5 * SECOND), true),
    );
    let (renewed, endless) = (
        bench.expose(b"renewed", Some(SECOND), true),
        bench.expose(b"endless", Some(SECOND), true),
    );
    bench.ledger.renew(&renewed, Some(100 * SECOND)).unwrap();
    bench.ledger.renew(&endless, None).unwrap();
    bench.ledger.tick(start + 2 * SECOND);
    assert_eq!((kind(&short), kind(&long)), (Some(ErrorKind::LeaseExpired), None));
    bench.ledger.tick(start + 50 * SECOND);
    assert_eq!((kind(&long), kind(&renewed)), (Some(ErrorKind::LeaseExpired), None));
    bench.ledger.tick(start + 1000 * SECOND);
    assert_eq!((kind(&renewed), kind(&endless)), (Some(ErrorKind::LeaseExpired), None));
    assert_eq!(bench.ledger.waiting(), 1);
}

#[test]
fn what_has_come_counts_before_a_lease_of_the_same_moment() {
    let mut bench = Bench::new(SECOND, u64::MAX);
    let record = bench.expose(b"key", Some(Duration::ZERO), true);
    bench.receive(b"key");
    bench.ledger.tick(Instant::now() + SECOND);
    assert_eq!(status(&record), Status::Complete);
}

#[test]
fn a_long_list_is_let_go_in_slices() {
    let mut bench = Bench::new(SECOND, u64::MAX);
    let record = bench.expose(b"list", None, false);
    for _ in 0..2 * RELEASED_PER_TICK {
        let other = bench.expose(b"part", None, false);
        let regions = std::mem::take(&mut other.inner().regions);
        record.inner().regions.extend(regions);
    }
    bench.ledger.end(&record, Outcome::Cancelled);
    let mut left = Vec::new();
    while bench.ledger.tick(Instant::now()) {
        left.push(bench.regions.len());
    }
    assert_eq!(left, [RELEASED_PER_TICK + 1, 1, 0]);
    assert!(record.operation().is_quiet());
}

#[test]
fn closing_ends_what_waits_and_what_comes_later() {
    let mut bench = Bench::new(SECOND, u64::MAX);
    let waiting = bench.expose(b"waiting", None, true);
    bench.ledger.close(&Error::new(ErrorKind::Closed, "test", "closed"));
    let late = bench.expose(b"late", None, false);
    assert_eq!(
        (kind(&waiting), kind(&late)),
        (Some(ErrorKind::Closed), Some(ErrorKind::Closed))
    );
    assert_eq!(bench.ledger.waiting(), 0);
    bench.ledger.end_all();
    assert!(bench.regions.is_empty() && waiting.operation().is_quiet() && late.operation().is_quiet());
    let last = bench.expose(b"last", None, true);
    assert!(
        last.operation().is_quiet() && bench.regions.is_empty(),
        "nobody would let it go later"
    );
}
