//! One line of a group: a reader and an owner of its kind, measured over what one case says.

use std::hint::black_box;
use std::thread;
use std::time::{Duration, Instant};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, BenchmarkId, SamplingMode};
use dynamo_nixl::types::{Addr, ByteLen, Direction, MemoryRange};

use super::memory::{ARENA_BYTES, Arena, blocks};
use super::process::{Owner, Reader};
use super::protocol::{Batch, Kind, Placement};

/// What the owner's memory is filled with, and the reader's.
pub(crate) const OWNERS: u8 = 0x5a;
pub(crate) const READERS: u8 = 0xa5;

/// How many exposures the owner holds at a time.
const BATCH: usize = 128;

/// As many where each is a list of thousands.
const LISTED_BATCH: usize = 4;

/// From this size on, a transfer may have helpers that its first run has to set up.
const BIG: usize = 8 << 20;

/// What is moved, and how.
#[derive(Clone, Copy)]
pub(crate) struct Case {
    pub(crate) batch: Batch,
    /// How long the reader sleeps before each window.
    pub(crate) gap: Option<Duration>,
    /// How many transfers are under way at once.
    pub(crate) window: usize,
}

impl Case {
    /// One block at a time, the same each time, back to back.
    pub(crate) fn new(direction: Direction, bytes: usize) -> Self {
        Self {
            batch: Batch {
                direction,
                placement: Placement::Same,
                bytes,
                blocks: 1,
                count: BATCH,
            },
            gap: None,
            window: 1,
        }
    }

    /// Blocks with gaps between them, moved as one.
    pub(crate) fn scattered(direction: Direction, bytes: usize, blocks: usize) -> Self {
        let mut case = Self::new(direction, bytes);
        (case.batch.blocks, case.batch.count) = (blocks, LISTED_BATCH);
        case
    }

    /// As this one, with memory that no exposure had before.
    pub(crate) fn fresh(mut self) -> Self {
        self.batch.placement = Placement::Fresh;
        self
    }

    /// As this one, with a pause before each transfer.
    pub(crate) fn after(mut self, gap: Duration) -> Self {
        self.gap = Some(gap);
        self
    }

    /// As this one, with so many transfers under way at once.
    pub(crate) fn at_once(mut self, window: usize) -> Self {
        assert!(self.batch.count % window == 0, "a window is a part of a batch");
        self.window = window;
        self
    }

    /// How much of its memory the reader needs: each transfer of a window has its own.
    pub(crate) fn reach(self) -> usize {
        self.batch.span() * self.window
    }

    /// The reader's ranges, a list for each transfer of a window.
    fn local(self, arena: &Arena) -> Vec<Vec<MemoryRange>> {
        let all = arena.start(self.reach());
        let first = |index: usize| MemoryRange {
            addr: Addr(all.addr.0 + (index * self.batch.span()) as u64),
            len: ByteLen(self.batch.bytes as u64),
            ..all
        };
        (0..self.window)
            .map(|index| blocks(first(index), self.batch.blocks).collect())
            .collect()
    }
}

/// Measures one kind of reader with an owner of its kind, both made when the first sample is taken.
pub(crate) fn series<R: Reader>(
    group: &mut BenchmarkGroup<'_, WallTime>,
    id: BenchmarkId,
    kind: Kind,
    case: Case,
    arena: &Arena,
    make_reader: impl Fn() -> R,
) {
    let mut pair = None;
    let local = case.local(arena);
    group.sampling_mode(SamplingMode::Flat).bench_function(id, |bencher| {
        let owners_bytes = case.batch.span().max(ARENA_BYTES);
        let (owner, reader) = pair.get_or_insert_with(|| (Owner::spawn(kind, owners_bytes), make_reader()));
        // Agents take half a second to be made, from which criterion would conclude that an iteration does.
        introduce(owner, reader, case, &local, 1);
        bencher.iter_custom(|iterations| timed(owner, reader, case, &local, iterations));
        // A fast transfer of nothing would be no transfer.
        if case.batch.direction == Direction::Read {
            assert_eq!(arena.ends(case.reach()), (OWNERS, OWNERS), "the bytes did not arrive");
        }
        arena.mark(case.reach(), READERS);
    });
}

/// Has a reader meet its owner where it has to, before so many transfers.
fn introduce<R: Reader>(owner: &mut Owner, reader: &mut R, case: Case, local: &[Vec<MemoryRange>], count: usize) {
    if reader.is_new(count + 1) {
        let introduction = owner.expose(Batch { count: 1, ..case.batch });
        reader.meet(&introduction[0]);
        reader.transfer(case.batch.direction, &introduction[0], &local[0]);
        owner.end();
        if case.batch.moved() >= BIG {
            reader.settle();
        }
    }
}

/// Runs so many transfers, batch by batch. Only they are on the clock, not what the owner does for them, nor a pause.
fn timed<R: Reader>(
    owner: &mut Owner,
    reader: &mut R,
    case: Case,
    local: &[Vec<MemoryRange>],
    iterations: u64,
) -> Duration {
    let mut total = Duration::ZERO;
    let wanted = usize::try_from(iterations).unwrap();
    // A window is all or nothing.
    let made = wanted.next_multiple_of(case.window);
    let mut left = made;
    while left > 0 {
        let count = left.min(case.batch.count);
        introduce(owner, reader, case, local, count);
        let exposures = owner.expose(Batch { count, ..case.batch });
        let mut transfer_all = |exposures| reader.transfer_all(case.batch.direction, black_box(exposures), local);
        let windows = exposures.chunks(case.window);
        match case.gap {
            // The clock itself takes a hundredth of the smallest transfer.
            None => {
                let start = Instant::now();
                windows.for_each(transfer_all);
                total += start.elapsed();
            }
            Some(gap) => {
                for window in windows {
                    thread::sleep(gap);
                    let start = Instant::now();
                    transfer_all(window);
                    total += start.elapsed();
                }
            }
        }
        owner.end();
        left -= count;
    }
    total.mul_f64(wanted as f64 / made as f64)
}
