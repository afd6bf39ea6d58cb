//! Plain-data lists of what a transfer moves, and how it is cut into pieces.
//!
//! Nothing here owns memory or knows NIXL: a [`TransferPlan`] pairs local with remote ranges, and a [`PieceCursor`]
//! hands out bounded pieces of it in order.

use crate::error::{Error, ErrorKind, Result};
use crate::types::{Addr, ByteLen, MemoryRange};

/// A local range and the remote range of the same size that it is copied from or to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// Memory of this process.
    pub local: MemoryRange,
    /// Memory of the peer.
    pub remote: MemoryRange,
}

/// The checked pairs of one transfer. By default none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TransferPlan {
    pairs: Vec<Pair>,
    total: u64,
}

impl TransferPlan {
    /// Pairs `local[i]` with `remote[i]`.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where the lists are empty, differ in length, a pair differs in size, one side
    /// mixes memory kinds, or a range wraps around the address space.
    pub fn new(local: &[MemoryRange], remote: &[MemoryRange]) -> Result<Self> {
        const OPERATION: &str = "pair descriptors";
        if local.is_empty() || remote.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                OPERATION,
                "a transfer needs at least one descriptor on each side",
            ));
        }
        if local.len() != remote.len() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                OPERATION,
                "the two sides differ in their number of descriptors",
            )
            .with_context("local", local.len())
            .with_context("remote", remote.len()));
        }
        check_side("local", local)?;
        check_side("remote", remote)?;
        let mut pairs = Vec::with_capacity(local.len());
        let mut total = 0_u64;
        for (index, (local, remote)) in local.iter().zip(remote).enumerate() {
            if local.len != remote.len {
                return Err(Error::new(
                    ErrorKind::InvalidArgument,
                    OPERATION,
                    "paired descriptors differ in size",
                )
                .with_context("index", index)
                .with_context("local", local.len.0)
                .with_context("remote", remote.len.0));
            }
            total = total.checked_add(local.len.0).ok_or_else(|| {
                Error::new(
                    ErrorKind::InvalidArgument,
                    OPERATION,
                    "the sizes add up to more than 2^64 bytes",
                )
            })?;
            if local.len.0 > 0 {
                pairs.push(Pair {
                    local: *local,
                    remote: *remote,
                });
            }
        }
        Ok(Self { pairs, total })
    }

    /// The pairs that move at least one byte, in the order given.
    #[must_use]
    pub fn pairs(&self) -> &[Pair] {
        &self.pairs
    }

    /// How many bytes the transfer moves.
    #[must_use]
    pub fn total_bytes(&self) -> u64 {
        self.total
    }
}

/// Checks one side of a transfer, or an exposure: one memory kind, no range that wraps.
///
/// # Errors
/// [`ErrorKind::InvalidArgument`].
pub fn check_side(side: &'static str, ranges: &[MemoryRange]) -> Result<()> {
    const OPERATION: &str = "check descriptors";
    for (index, range) in ranges.iter().enumerate() {
        if range.end().is_none() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                OPERATION,
                "a descriptor wraps around the address space",
            )
            .with_context("side", side)
            .with_context("index", index));
        }
        if range.kind != ranges[0].kind {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                OPERATION,
                "the descriptors of one side must all be host memory or all be device memory",
            )
            .with_context("side", side)
            .with_context("index", index));
        }
    }
    Ok(())
}

/// How big one piece may get. A piece is one NIXL request: the unit of progress, of interleaving and of cancellation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PieceLimits {
    /// At most so many bytes a piece.
    pub bytes: u64,
    /// At most so many descriptors a piece.
    pub descriptors: usize,
}

/// One bounded part of a transfer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Local ranges.
    pub local: Vec<MemoryRange>,
    /// Remote ranges, paired with `local`.
    pub remote: Vec<MemoryRange>,
    /// The sum of the local lengths.
    pub bytes: u64,
}

/// Hands out the pieces of a plan in order, each byte exactly once.
///
/// A piece holds either whole pairs or a part of a single one: NIXL looks a list's ranges up one after the other and may
/// miss a part among wholes, though it finds each by itself.
#[derive(Clone, Debug)]
pub struct PieceCursor {
    plan: TransferPlan,
    limits: PieceLimits,
    index: usize,
    offset: u64,
}

impl PieceCursor {
    /// A cursor at the start of `plan`.
    #[must_use]
    pub fn new(plan: TransferPlan, limits: PieceLimits) -> Self {
        debug_assert!(limits.bytes > 0 && limits.descriptors > 0);
        Self {
            plan,
            limits,
            index: 0,
            offset: 0,
        }
    }

    /// Goes back to the start, for pieces of another size.
    pub fn limit(&mut self, limits: PieceLimits) {
        self.limits = limits;
        self.rewind();
    }

    /// Goes back to the start.
    pub fn rewind(&mut self) {
        (self.index, self.offset) = (0, 0);
    }

    /// Whether every byte was handed out.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.index == self.plan.pairs.len()
    }

    /// Whether the next piece is the last one.
    #[must_use]
    pub fn is_at_last_piece(&self) -> bool {
        let mut ahead = self.clone_position();
        !self.is_exhausted() && {
            ahead.advance(&self.plan, self.limits, |_, _| {});
            ahead.index == self.plan.pairs.len()
        }
    }

    /// Goes to the end.
    pub fn skip_all(&mut self) {
        (self.index, self.offset) = (self.plan.pairs.len(), 0);
    }

    /// The next piece, or `None` at the end.
    pub fn next_piece(&mut self) -> Option<Piece> {
        if self.is_exhausted() {
            return None;
        }
        let mut piece = Piece {
            local: Vec::new(),
            remote: Vec::new(),
            bytes: 0,
        };
        let mut position = self.clone_position();
        position.advance(&self.plan, self.limits, |local, remote| {
            piece.bytes += local.len.0;
            piece.local.push(local);
            piece.remote.push(remote);
        });
        self.index = position.index;
        self.offset = position.offset;
        Some(piece)
    }

    fn clone_position(&self) -> Position {
        Position {
            index: self.index,
            offset: self.offset,
        }
    }
}

struct Position {
    index: usize,
    offset: u64,
}

impl Position {
    /// Walks over one piece, showing what it takes of each pair: several pairs as a whole, or a part of one.
    fn advance(&mut self, plan: &TransferPlan, limits: PieceLimits, mut take: impl FnMut(MemoryRange, MemoryRange)) {
        let mut bytes = 0;
        let mut descriptors = 0;
        while self.index < plan.pairs.len() && descriptors < limits.descriptors {
            let pair = &plan.pairs[self.index];
            let left = pair.local.len.0 - self.offset;
            if self.offset > 0 || left > limits.bytes {
                if descriptors == 0 {
                    let length = left.min(limits.bytes);
                    take(
                        part(&pair.local, self.offset, length),
                        part(&pair.remote, self.offset, length),
                    );
                    self.offset += length;
                    if length == left {
                        self.index += 1;
                        self.offset = 0;
                    }
                }
                return;
            }
            if bytes + left > limits.bytes {
                return;
            }
            take(pair.local, pair.remote);
            bytes += left;
            descriptors += 1;
            self.index += 1;
        }
    }
}

fn part(range: &MemoryRange, offset: u64, length: u64) -> MemoryRange {
    MemoryRange {
        addr: Addr(range.addr.0 + offset),
        len: ByteLen(length),
        ..*range
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::types::MemoryKind;

    fn range(addr: u64, len: u64) -> MemoryRange {
        MemoryRange {
            kind: MemoryKind::Dram,
            device: 0,
            addr: Addr(addr),
            len: ByteLen(len),
        }
    }

    #[test]
    fn refuses_what_does_not_pair() {
        let cases: [(&[MemoryRange], &[MemoryRange]); 4] = [
            (&[], &[range(0x1000, 8)]),
            (&[range(0x1000, 8)], &[range(0x2000, 8), range(0x3000, 8)]),
            (&[range(0x1000, 8)], &[range(0x2000, 9)]),
            (&[range(u64::MAX - 1, 8)], &[range(0x2000, 8)]),
        ];
        for (local, remote) in cases {
            assert_eq!(
                TransferPlan::new(local, remote).unwrap_err().kind(),
                ErrorKind::InvalidArgument
            );
        }
        let mixed = [
            range(0x1000, 8),
            MemoryRange {
                kind: MemoryKind::Vram,
                ..range(0x2000, 8)
            },
        ];
        let plain = [range(0x1000, 8), range(0x2000, 8)];
        assert_eq!(
            TransferPlan::new(&mixed, &plain).unwrap_err().kind(),
            ErrorKind::InvalidArgument
        );
    }

    #[test]
    fn empty_ranges_are_no_pieces() {
        let plan = TransferPlan::new(&[range(0x1000, 0)], &[range(0x2000, 0)]).unwrap();
        assert_eq!(plan.total_bytes(), 0);
        let mut cursor = PieceCursor::new(
            plan,
            PieceLimits {
                bytes: 8,
                descriptors: 1,
            },
        );
        assert!(cursor.is_exhausted());
        assert!(!cursor.is_at_last_piece());
        assert_eq!(cursor.next_piece(), None);
    }

    #[test]
    fn a_piece_spans_small_pairs_or_holds_a_part_of_a_big_one() {
        let plan = TransferPlan::new(
            &[range(0x1000, 4), range(0x2000, 4), range(0x3000, 20), range(0x4000, 1)],
            &[range(0x9000, 4), range(0xa000, 4), range(0xb000, 20), range(0xc000, 1)],
        )
        .unwrap();
        let mut cursor = PieceCursor::new(
            plan,
            PieceLimits {
                bytes: 10,
                descriptors: 8,
            },
        );
        assert_eq!(cursor.next_piece().unwrap().local, [range(0x1000, 4), range(0x2000, 4)]);
        assert_eq!(cursor.next_piece().unwrap().local, [range(0x3000, 10)]);
        assert_eq!(cursor.next_piece().unwrap().remote, [range(0xb00a, 10)]);
        assert!(cursor.is_at_last_piece());
        assert_eq!(cursor.next_piece().unwrap().remote, [range(0xc000, 1)]);
        assert!(cursor.is_exhausted());
    }
}
