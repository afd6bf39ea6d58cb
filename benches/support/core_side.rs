//! Both ends on the crate's own core.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use dynamo_nixl::connector::{BeginOptions, Connector};
use dynamo_nixl::handle::OperationHandle;
use dynamo_nixl::operation::{Phase, Status};
use dynamo_nixl::region::Region;
use dynamo_nixl::types::{ByteLen, Direction, MemoryRange, OperationKey};
use dynamo_nixl::wire::Encoding;

use super::memory::{Arena, blocks, fresh_ranges, local, remote};
use super::process::{self, Exposer};
use super::protocol::{Batch, Exposed};

/// The most fresh ranges that a connector meets: what it has loaded before is part of a new one's price.
const MOST_FRESH: usize = 1024;

/// The side that begins transfers.
pub(crate) struct Reader {
    connector: Option<Connector>,
    /// The range to keep registered; without one, each transfer registers its own.
    kept: Option<MemoryRange>,
    held: Option<Region>,
    /// How many transfers a connector makes before it is replaced by a new one.
    life: usize,
    transfers: usize,
}

impl Reader {
    /// A reader whose range stays registered, and whose owner exposes the same memory again and again.
    pub(crate) fn keeping(range: MemoryRange) -> Self {
        Self {
            connector: None,
            kept: Some(range),
            held: None,
            life: usize::MAX,
            transfers: 0,
        }
    }

    /// A reader to which every range of its owner is new: it is replaced before the owner's arena starts over.
    pub(crate) fn forgetful(bytes: usize) -> Self {
        let life = fresh_ranges(bytes).min(MOST_FRESH);
        Self {
            connector: None,
            kept: None,
            held: None,
            life,
            transfers: 0,
        }
    }

    fn connector(&self) -> &Connector {
        self.connector.as_ref().expect("the owner was not met")
    }

    /// From the peer's text on.
    fn begin(&mut self, direction: Direction, exposed: &Exposed, ranges: &[MemoryRange]) -> OperationHandle {
        self.transfers += 1;
        let remote: Vec<MemoryRange> = remote(ranges, exposed.addr).collect();
        let key = OperationKey::new(exposed.key.clone());
        let memory = ranges.iter().copied().map(local).collect();
        let options = BeginOptions::default();
        self.connector()
            .begin(direction, &exposed.metadata, key, &remote, memory, options)
            .unwrap()
    }

    fn close(&mut self) {
        drop(self.held.take());
        if let Some(connector) = self.connector.take() {
            assert!(connector.close(Duration::from_secs(5)), "a transfer was left in flight");
        }
    }
}

impl process::Reader for Reader {
    fn is_new(&self, transfers: usize) -> bool {
        self.connector.is_none() || self.transfers.saturating_add(transfers) > self.life
    }

    fn meet(&mut self, _exposed: &Exposed) {
        static READERS: AtomicUsize = AtomicUsize::new(0);
        self.close();
        let number = READERS.fetch_add(1, Ordering::Relaxed);
        let connector = Connector::new(&format!("bench-reader-{}-{number}", std::process::id()));
        connector.open().unwrap();
        self.held = self.kept.map(|range| connector.register(&local(range)).unwrap());
        self.connector = Some(connector);
        self.transfers = 0;
    }

    /// The first big transfer has the agents made that help with those to come.
    fn settle(&mut self) {
        let deadline = Instant::now() + Duration::from_secs(5);
        let connector = self.connector();
        while connector.stats().copy_lanes < connector.settings().copy_lanes && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// Everything from the peer's text to the end of the transfer, waiting as any thread would.
    fn transfer(&mut self, direction: Direction, exposed: &Exposed, local: &[MemoryRange]) {
        finish(&self.begin(direction, exposed, local));
    }

    /// All are begun before the first is waited for.
    fn transfer_all(&mut self, direction: Direction, exposed: &[Exposed], local: &[Vec<MemoryRange>]) {
        let begun: Vec<OperationHandle> = exposed
            .iter()
            .zip(local)
            .map(|(exposed, local)| self.begin(direction, exposed, local))
            .collect();
        begun.iter().for_each(finish);
    }
}

fn finish(handle: &OperationHandle) {
    handle.operation().wait(Phase::Finished, None);
    assert_eq!(handle.operation().status(), Status::Complete);
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.close();
    }
}

/// The side that exposes memory.
pub(crate) struct CoreOwner {
    connector: Connector,
    arena: Arena,
    exposures: Vec<OperationHandle>,
    /// Keeps all of the arena registered, for exposures of many blocks: as with a cache, of which each takes some.
    whole: Option<Region>,
}

impl CoreOwner {
    pub(crate) fn new(arena: Arena) -> Self {
        let connector = Connector::new(&format!("bench-owner-{}", std::process::id()));
        Self {
            connector,
            arena,
            exposures: Vec::new(),
            whole: None,
        }
    }

    fn expose_one(&mut self, batch: Batch) -> Exposed {
        if batch.blocks > 1 && self.whole.is_none() {
            self.whole = Some(self.connector.register(&local(self.arena.whole())).unwrap());
        }
        let range = self.arena.place(batch.span(), batch.placement);
        let first = MemoryRange {
            len: ByteLen(batch.bytes as u64),
            ..range
        };
        let memory = blocks(first, batch.blocks).map(local).collect();
        let handle = self.connector.expose(batch.direction, memory, None, false).unwrap();
        handle.operation().wait(Phase::Started, None);
        let exposed = Exposed {
            key: handle.operation().key().to_text(),
            addr: range.addr.0,
            metadata: handle.metadata(Encoding::Base64).unwrap(),
        };
        self.exposures.push(handle);
        exposed
    }
}

impl Exposer for CoreOwner {
    const POLLS: bool = false;

    fn expose(&mut self, batch: Batch) -> Vec<Exposed> {
        (0..batch.count).map(|_| self.expose_one(batch)).collect()
    }

    fn end(&mut self) {
        for handle in self.exposures.drain(..) {
            // A batch is ended only when all of it was moved, so every owner has to learn of it.
            assert!(handle.operation().wait(Phase::Finished, Some(Duration::from_secs(10))));
            assert_eq!(handle.operation().status(), Status::Complete);
        }
    }
}

impl Drop for CoreOwner {
    fn drop(&mut self) {
        drop(self.whole.take());
        self.connector.close(Duration::from_secs(5));
    }
}
