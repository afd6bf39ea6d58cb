//! Properties of cutting a transfer into pieces.
#![allow(clippy::unwrap_used)]

use dynamo_nixl::descriptor::{PieceCursor, PieceLimits, TransferPlan};
use dynamo_nixl::types::{Addr, ByteLen, MemoryKind, MemoryRange};
use proptest::collection::vec;
use proptest::prelude::*;

fn range(addr: u64, len: u64) -> MemoryRange {
    MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr(addr),
        len: ByteLen(len),
    }
}

/// Pairs of these lengths, scattered: the remote side lies in the opposite order.
fn pairs(lengths: &[u64]) -> (Vec<MemoryRange>, Vec<MemoryRange>) {
    let count = lengths.len() as u64;
    let at = |index: u64| index * 0x1_0000;
    lengths
        .iter()
        .zip(0..)
        .map(|(length, index)| {
            (
                range(0x10_0000_0000 + at(index), *length),
                range(0x20_0000_0000 + at(count - index), *length),
            )
        })
        .unzip()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// The pieces, laid end to end, are the pairs laid end to end: each byte once, in order, to its own counterpart.
    #[test]
    fn pieces_cover_each_byte_once(
        lengths in vec(prop_oneof![2 => Just(0_u64), 5 => 1_u64..40, 1 => 200_u64..2000], 1..30),
        bytes in 1_u64..100,
        descriptors in 1_usize..6,
    ) {
        let (local, remote) = pairs(&lengths);
        let plan = TransferPlan::new(&local, &remote).unwrap();
        let total = plan.total_bytes();
        prop_assert_eq!(total, lengths.iter().sum::<u64>());
        let limits = PieceLimits { bytes, descriptors };
        let mut cursor = PieceCursor::new(plan, limits);
        let mut pieces = Vec::new();
        loop {
            let (exhausted, last) = (cursor.is_exhausted(), cursor.is_at_last_piece());
            let Some(piece) = cursor.next_piece() else {
                prop_assert!(exhausted && !last);
                break;
            };
            prop_assert!(!exhausted);
            prop_assert_eq!(last, cursor.is_exhausted(), "the last piece is the one nothing follows");
            prop_assert!(piece.bytes > 0 && piece.bytes <= bytes);
            prop_assert!(piece.local.len() <= descriptors && piece.local.len() == piece.remote.len());
            prop_assert_eq!(piece.bytes, piece.local.iter().map(|range| range.len.0).sum::<u64>());
            let wholes = piece.local.iter().filter(|part| local.contains(part)).count();
            prop_assert!(wholes == piece.local.len() || piece.local.len() == 1, "a part comes alone");
            pieces.push(piece);
        }
        let mut expected = local.iter().zip(&remote).filter(|(local, _)| local.len.0 > 0);
        let mut current = expected.next();
        let mut offset = 0;
        for piece in &pieces {
            for (local, remote) in piece.local.iter().zip(&piece.remote) {
                let (whole_local, whole_remote) = current.unwrap();
                prop_assert_eq!(local.addr.0, whole_local.addr.0 + offset);
                prop_assert_eq!(remote.addr.0, whole_remote.addr.0 + offset);
                prop_assert_eq!(local.len, remote.len);
                offset += local.len.0;
                prop_assert!(offset <= whole_local.len.0 && local.len.0 > 0);
                if offset == whole_local.len.0 {
                    (current, offset) = (expected.next(), 0);
                }
            }
        }
        prop_assert!(current.is_none(), "bytes are left over");
    }

    /// Whatever the two sides are: either a plan whose pairs are the input's, or a refusal; never a panic.
    #[test]
    fn plans_pair_or_refuse(
        local in vec((any::<u64>(), 0_u64..4), 0..5),
        remote in vec((any::<u64>(), 0_u64..4), 0..5),
    ) {
        let side = |ranges: &[(u64, u64)]| -> Vec<MemoryRange> {
            ranges.iter().map(|(addr, len)| range(*addr, *len)).collect()
        };
        let (local, remote) = (side(&local), side(&remote));
        let fits = !local.is_empty()
            && local.len() == remote.len()
            && local.iter().zip(&remote).all(|(local, remote)| local.len == remote.len)
            && local.iter().chain(&remote).all(|range| range.end().is_some());
        match TransferPlan::new(&local, &remote) {
            Ok(plan) => {
                prop_assert!(fits);
                prop_assert!(plan.pairs().iter().all(|pair| local.contains(&pair.local) && remote.contains(&pair.remote)));
            }
            Err(_) => prop_assert!(!fits),
        }
    }
}
