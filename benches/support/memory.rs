//! Memory to move, allocated and touched once a process.

use dynamo_nixl::region::LocalMemory;
use dynamo_nixl::types::{Addr, ByteLen, MemoryKind, MemoryRange};

use super::protocol::Placement;

/// How big an owner's arena is where no transfer needs a bigger one: touching it takes its time, once an owner.
pub(crate) const ARENA_BYTES: usize = 256 << 20;

/// How many ranges of so many bytes an owner has before they repeat.
pub(crate) fn fresh_ranges(bytes: usize) -> usize {
    ARENA_BYTES / bytes
}

/// A block of memory that lives as long as the process.
pub(crate) struct Arena {
    addr: u64,
    bytes: usize,
    next: usize,
}

impl Arena {
    /// An arena filled with `value`, so that every page of it exists.
    pub(crate) fn new(value: u8, bytes: usize) -> Self {
        let memory: &'static mut [u8] = vec![value; bytes].leak();
        Self {
            addr: memory.as_mut_ptr().expose_provenance() as u64,
            bytes,
            next: 0,
        }
    }

    /// The range for the next exposure of so many bytes.
    pub(crate) fn place(&mut self, bytes: usize, placement: Placement) -> MemoryRange {
        let offset = match placement {
            Placement::Same => 0,
            Placement::Fresh => {
                let offset = if self.next + bytes > self.bytes { 0 } else { self.next };
                self.next = offset + bytes;
                offset
            }
        };
        self.range(offset, bytes)
    }

    /// The first so many bytes.
    pub(crate) fn start(&self, bytes: usize) -> MemoryRange {
        self.range(0, bytes)
    }

    /// All of it.
    pub(crate) fn whole(&self) -> MemoryRange {
        self.range(0, self.bytes)
    }

    /// The first and the last byte of the first so many.
    pub(crate) fn ends(&self, bytes: usize) -> (u8, u8) {
        let first = self.first();
        // SAFETY: the arena was leaked, and `bytes` is at most its size; volatile because NIXL writes it behind the
        // compiler's back.
        unsafe { (first.read_volatile(), first.add(bytes - 1).read_volatile()) }
    }

    /// Overwrites these two bytes.
    pub(crate) fn mark(&self, bytes: usize, value: u8) {
        let first = self.first();
        // SAFETY: as in `ends`; nothing is in flight between two samples.
        unsafe {
            first.write_volatile(value);
            first.add(bytes - 1).write_volatile(value);
        }
    }

    fn first(&self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(usize::try_from(self.addr).unwrap())
    }

    fn range(&self, offset: usize, bytes: usize) -> MemoryRange {
        assert!(offset + bytes <= self.bytes, "the arena is too small for {bytes} bytes");
        MemoryRange {
            kind: MemoryKind::Dram,
            device: 0,
            addr: Addr(self.addr + offset as u64),
            len: ByteLen(bytes as u64),
        }
    }
}

/// So many blocks of a range's size, the first of which it is, with a gap of that size behind each.
pub(crate) fn blocks(first: MemoryRange, count: usize) -> impl Iterator<Item = MemoryRange> {
    (0..count as u64).map(move |index| MemoryRange {
        addr: Addr(first.addr.0 + 2 * index * first.len.0),
        ..first
    })
}

/// What an exposure that begins at `addr` holds for these local ranges: it is laid out as they are.
pub(crate) fn remote(local: &[MemoryRange], addr: u64) -> impl Iterator<Item = MemoryRange> {
    let first = local[0].addr.0;
    local.iter().map(move |range| MemoryRange {
        addr: Addr(range.addr.0 - first + addr),
        ..*range
    })
}

/// The range in the form the core takes; the arena never goes away, so nothing needs to keep it alive.
pub(crate) fn local(range: MemoryRange) -> LocalMemory {
    LocalMemory {
        range,
        keep_alive: None,
    }
}
