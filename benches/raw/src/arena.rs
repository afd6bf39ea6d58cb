//! Memory to move, allocated and touched once a process: `peer/arena.py`.

use std::collections::HashMap;

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous};

use crate::case::{ARENA_BYTES, Case};

/// Of a shape, as in the other implementations.
const MOST_SLICES: usize = 2048;

/// What the owner's memory is filled with.
pub const OWNERS: u8 = 0x5a;
/// What the reader's is filled with.
pub const READERS: u8 = 0xa5;

/// What takes memory of its own: bytes and blocks of a transfer, and whether it has huge pages.
pub type Shape = (usize, usize, bool);

/// The shape of a case.
#[must_use]
pub fn shape(case: &Case) -> Shape {
    (case.size, case.blocks, case.huge)
}

/// Memory of an arena, which lives as long as the process.
#[derive(Clone, Copy, Debug)]
pub struct Range {
    /// Its address, whose provenance is exposed.
    pub addr: usize,
    /// Its bytes.
    pub len: usize,
}

impl Range {
    /// Its first byte.
    #[must_use]
    pub fn as_ptr(self) -> *mut u8 {
        std::ptr::with_exposed_provenance_mut(self.addr)
    }
}

/// The ranges of one transfer on one side.
pub type Place = Vec<Range>;

/// Memory for each shape of transfer, cut into slices that do not overlap; at its end it starts anew.
pub struct Arena {
    fill: u8,
    blocks: HashMap<Shape, (Range, usize)>,
}

impl Arena {
    /// One that fills its memory with this, so that every page of it exists.
    #[must_use]
    pub fn new(fill: u8) -> Self {
        Self {
            fill,
            blocks: HashMap::new(),
        }
    }

    /// All the memory for one shape, and whether it was just made.
    pub fn block(&mut self, case: &Case) -> (Range, bool) {
        if let Some((block, _)) = self.blocks.get(&shape(case)) {
            return (*block, false);
        }
        let slices = MOST_SLICES.min(ARENA_BYTES / span(case)).max(case.tasks).max(1);
        let block = allocate(span(case) * slices, case.huge);
        // SAFETY: it was just mapped, and nobody else knows of it.
        unsafe { block.as_ptr().write_bytes(self.fill, block.len) };
        self.blocks.insert(shape(case), (block, 0));
        (block, true)
    }

    /// Cuts out the ranges of one transfer: as long as there are any, ones that none has used before.
    pub fn take(&mut self, case: &Case) -> Place {
        self.block(case);
        let (block, next) = self.blocks.get_mut(&shape(case)).unwrap();
        let start = *next;
        *next = (start + span(case)) % block.len;
        let each = case.size / case.blocks;
        let stride = if case.blocks == 1 { each } else { 2 * each };
        let range = |index| Range {
            addr: block.addr + start + index * stride,
            len: each,
        };
        (0..case.blocks).map(range).collect()
    }
}

/// Maps memory for as long as the process lives.
fn allocate(len: usize, huge: bool) -> Range {
    let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE);
    // SAFETY: without an address it takes the place of nothing.
    let memory = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, flags) }.unwrap();
    let advice = if huge {
        Advice::LinuxHugepage
    } else {
        Advice::LinuxNoHugepage
    };
    // SAFETY: it changes nothing of the contents.
    unsafe { madvise(memory, len, advice) }.unwrap();
    let addr = memory.expose_provenance();
    Range { addr, len }
}

/// Bytes from the start of a transfer's memory to that of the next: blocks lie apart by their own size.
fn span(case: &Case) -> usize {
    if case.blocks == 1 { case.size } else { 2 * case.size }
}

/// Overwrites both ends with the reader's byte. Nothing may be in flight to them.
pub fn mark(place: &[Range]) {
    for byte in ends(place) {
        // SAFETY: a byte of an arena, which was leaked; volatile because it is moved behind the compiler's back.
        unsafe { byte.write_volatile(READERS) };
    }
}

/// Panics unless the owner's bytes have arrived at both ends: a fast transfer of nothing would be no transfer.
pub fn check(place: &[Range]) {
    for byte in ends(place) {
        // SAFETY: as in `mark`.
        assert_eq!(unsafe { byte.read_volatile() }, OWNERS, "the bytes did not arrive");
    }
}

fn ends(place: &[Range]) -> [*mut u8; 2] {
    let (first, last) = (place[0], place[place.len() - 1]);
    [first.as_ptr(), last.as_ptr().wrapping_add(last.len - 1)]
}
