//! Memory to move, allocated and touched once a process.

use dynamo_nixl::region::LocalMemory;
use dynamo_nixl::types::{Addr, ByteLen, MemoryKind, MemoryRange};

use super::protocol::Placement;

/// The biggest transfer there is.
pub(crate) const ARENA_BYTES: usize = 256 << 20;

/// How many ranges of so many bytes there are before they repeat.
pub(crate) fn fresh_ranges(bytes: usize) -> usize {
    ARENA_BYTES / bytes
}

/// A block of memory that lives as long as the process.
pub(crate) struct Arena {
    addr: u64,
    next: usize,
}

impl Arena {
    /// An arena filled with `byte`, so that every page of it exists.
    pub(crate) fn new(byte: u8) -> Self {
        let memory: &'static mut [u8] = vec![byte; ARENA_BYTES].leak();
        Self {
            addr: memory.as_mut_ptr().expose_provenance() as u64,
            next: 0,
        }
    }

    /// The range for the next exposure of so many bytes.
    pub(crate) fn place(&mut self, bytes: usize, placement: Placement) -> MemoryRange {
        let offset = match placement {
            Placement::Same => 0,
            Placement::Fresh => {
                let offset = if self.next + bytes > ARENA_BYTES { 0 } else { self.next };
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
        assert!(
            offset + bytes <= ARENA_BYTES,
            "the arena is too small for {bytes} bytes"
        );
        MemoryRange {
            kind: MemoryKind::Dram,
            device: 0,
            addr: Addr(self.addr + offset as u64),
            len: ByteLen(bytes as u64),
        }
    }
}

/// The range in the form the core takes; the arena never goes away, so nothing needs to keep it alive.
pub(crate) fn local(range: MemoryRange) -> LocalMemory {
    LocalMemory {
        range,
        keep_alive: None,
    }
}
