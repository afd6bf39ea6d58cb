//! CRC-32C over exposed memory, a slice at a time, so that nobody is held up by a big one.

use crate::error::{Error, ErrorKind, Result};
use crate::types::{MemoryKind, MemoryRange};

/// So many bytes are read at once: about as long as a piece takes.
pub(crate) const SLICE: u64 = 4 << 20;

/// A sum over ranges, in their order.
#[derive(Debug)]
pub(crate) struct Checksum {
    ranges: Vec<MemoryRange>,
    index: usize,
    offset: u64,
    sum: u32,
}

impl Checksum {
    /// A sum of nothing yet.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for memory that the processor cannot read.
    pub(crate) fn new(ranges: Vec<MemoryRange>) -> Result<Self> {
        if ranges.iter().any(|range| range.kind != MemoryKind::Dram) {
            let message = "a checksum needs host memory on both sides";
            return Err(Error::new(ErrorKind::InvalidArgument, "verify", message).with_hint("leave `verify` out"));
        }
        Ok(Self {
            ranges,
            index: 0,
            offset: 0,
            sum: 0,
        })
    }

    /// Reads on for at most so many bytes. The sum, once all are read.
    ///
    /// # Safety
    /// The ranges are mapped and readable during the call.
    pub(crate) unsafe fn advance(&mut self, mut bytes: u64) -> Option<u32> {
        while let Some(range) = self.ranges.get(self.index) {
            let length = bytes.min(range.len.0 - self.offset);
            let address = usize::try_from(range.addr.0 + self.offset).unwrap_or(0);
            let data = std::ptr::with_exposed_provenance::<u8>(address);
            if length > 0 {
                // SAFETY: a part of a range that the caller vouches for. Whoever writes there at the same time changes the
                // sum, which is then of no use, and nothing else.
                let slice = unsafe { std::slice::from_raw_parts(data, usize::try_from(length).unwrap_or(0)) };
                self.sum = crc32c::crc32c_append(self.sum, slice);
            }
            self.offset += length;
            bytes -= length;
            if self.offset < range.len.0 {
                return None;
            }
            self.index += 1;
            self.offset = 0;
        }
        Some(self.sum)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::types::{Addr, ByteLen};

    fn range(bytes: &[u8]) -> MemoryRange {
        MemoryRange {
            kind: MemoryKind::Dram,
            device: 0,
            addr: Addr(bytes.as_ptr().expose_provenance() as u64),
            len: ByteLen(bytes.len() as u64),
        }
    }

    #[test]
    fn slices_of_any_size_give_the_sum_of_all_bytes_in_order() {
        let (first, second) = (vec![1_u8; 1000], (0..=255).collect::<Vec<u8>>());
        let all = [first.as_slice(), &second].concat();
        for step in [1, 7, 999, 1000, 1001, 5000] {
            let mut checksum = Checksum::new(vec![range(&first), range(&[]), range(&second)]).unwrap();
            let sum = loop {
                // SAFETY: the vectors live.
                if let Some(sum) = unsafe { checksum.advance(step) } {
                    break sum;
                }
            };
            assert_eq!(sum, crc32c::crc32c(&all));
        }
    }

    #[test]
    fn the_sum_is_that_of_the_standard() {
        let digits = b"123456789";
        let mut checksum = Checksum::new(vec![range(digits)]).unwrap();
        // SAFETY: the constant lives.
        assert_eq!(unsafe { checksum.advance(SLICE) }, Some(0xe306_9283));
    }

    #[test]
    fn device_memory_is_refused() {
        let device = MemoryRange {
            kind: MemoryKind::Vram,
            ..range(&[1])
        };
        assert_eq!(
            Checksum::new(vec![device]).unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
    }
}
