//! Memory for tests to move.

use std::ptr::NonNull;
use std::sync::{Arc, Weak};

use dynamo_nixl::region::LocalMemory;
use dynamo_nixl::types::{Addr, ByteLen, MemoryKind, MemoryRange};

/// Bytes that a wire may write to behind the compiler's back.
struct Bytes(NonNull<[u8]>);

// SAFETY: who looks at the content does so before an operation over it starts or after it has ended.
unsafe impl Send for Bytes {}
// SAFETY: as for `Send`.
unsafe impl Sync for Bytes {}

impl Drop for Bytes {
    fn drop(&mut self) {
        // SAFETY: `Buffer::patterned` got it from a box, and this is its only owner's end.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

/// A buffer that registrations keep alive.
pub(crate) struct Buffer(Arc<Bytes>);

impl Buffer {
    /// `len` bytes of the pattern that `seed` makes.
    pub(crate) fn patterned(len: usize, seed: u8) -> Self {
        Self::of((0..len).map(|index| pattern(index, seed)).collect())
    }

    /// `len` zeros, without touching each.
    pub(crate) fn zeroed(len: usize) -> Self {
        Self::of(vec![0; len].into_boxed_slice())
    }

    fn of(bytes: Box<[u8]>) -> Self {
        Self(Arc::new(Bytes(NonNull::from(Box::leak(bytes)))))
    }

    /// Where it lies.
    pub(crate) fn range(&self) -> MemoryRange {
        let address = self.0.0.cast::<u8>().as_ptr().expose_provenance();
        address_only(address as u64, self.0.0.len() as u64)
    }

    /// The range and what keeps it alive.
    pub(crate) fn memory(&self) -> LocalMemory {
        LocalMemory {
            range: self.range(),
            keep_alive: Some(Arc::clone(&self.0) as _),
        }
    }

    /// The content, copied. Nothing may be moving it.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        // SAFETY: the callers look only when the operations over it have ended.
        unsafe { self.0.0.as_ref() }.to_vec()
    }

    /// Whether every byte is what `patterned` made of `seed`.
    pub(crate) fn is_patterned(&self, seed: u8) -> bool {
        self.bytes()
            .iter()
            .enumerate()
            .all(|(index, byte)| *byte == pattern(index, seed))
    }

    /// Tells whether anything keeps it alive.
    pub(crate) fn downgrade(&self) -> Weak<dyn Send + Sync> {
        let shared: Arc<dyn Send + Sync> = Arc::clone(&self.0) as _;
        Arc::downgrade(&shared)
    }
}

/// A range of host memory. Nothing says that anything is there.
pub(crate) fn address_only(addr: u64, len: u64) -> MemoryRange {
    MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr(addr),
        len: ByteLen(len),
    }
}

/// Differs between neighbours, pages, pieces and seeds.
fn pattern(index: usize, seed: u8) -> u8 {
    (index.wrapping_mul(0x9e37_79b9) >> 13) as u8 ^ (index >> 20) as u8 ^ seed.wrapping_mul(37)
}
