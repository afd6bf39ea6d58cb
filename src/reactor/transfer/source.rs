//! Where a transfer takes its pieces from.

use std::sync::Arc;

use super::validity::Validity;
use crate::descriptor::{Piece, PieceCursor, PieceLimits};
use crate::reactor::crew::Load;
use crate::types::MemoryRange;

/// A cursor of its own, or one that others take from, too.
#[derive(Debug)]
pub(super) enum Source {
    Own(PieceCursor),
    Shared(Arc<Load>),
}

impl Source {
    pub(super) fn next(&mut self) -> Option<Piece> {
        match self {
            Self::Own(cursor) => cursor.next_piece(),
            Self::Shared(load) => load.next_piece(),
        }
    }

    /// Whether there is no further piece.
    pub(super) fn is_exhausted(&self) -> bool {
        match self {
            Self::Own(cursor) => cursor.is_exhausted(),
            Self::Shared(load) => load.is_exhausted(),
        }
    }

    /// Whether there is one further piece, with which a notification may go.
    pub(super) fn is_at_last(&self) -> bool {
        match self {
            Self::Own(cursor) => cursor.is_at_last_piece(),
            Self::Shared(_) => false,
        }
    }

    /// Goes back to the start. One that is shared is not gone back with: whoever shared it out does it all anew.
    pub(super) fn rewind(&mut self) {
        if let Self::Own(cursor) = self {
            cursor.rewind();
        }
    }

    /// Begins anew with pieces of another size.
    pub(super) fn limit(&mut self, limits: PieceLimits) {
        if let Self::Own(cursor) = self {
            cursor.limit(limits);
        }
    }

    /// What all requests will name at the peer, and whether a piece has several ranges.
    pub(super) fn lists(&self, validity: Option<&Validity>) -> (Vec<Vec<MemoryRange>>, bool) {
        let mut lists = self.left();
        let has_lists = lists.iter().any(|list| list.len() > 1);
        lists.extend(validity.map(|validity| vec![validity.remote()]));
        (lists, has_lists)
    }

    /// What the pieces that are left name at the peer.
    pub(super) fn left(&self) -> Vec<Vec<MemoryRange>> {
        let Self::Own(cursor) = self else {
            return Vec::new();
        };
        let mut ahead = cursor.clone();
        std::iter::from_fn(|| ahead.next_piece())
            .map(|piece| piece.remote)
            .collect()
    }
}
