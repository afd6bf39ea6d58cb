//! Values by memory range, and the searches that NIXL's way of finding regions asks for.

use std::collections::BTreeMap;
use std::collections::btree_map;

use crate::types::{Addr, ByteLen, MemoryRange};

/// A map from ranges to values, in NIXL's order. Ranges may overlap.
#[derive(Clone, Debug)]
pub(crate) struct RangeMap<V> {
    entries: BTreeMap<MemoryRange, V>,
    /// The length of the longest range that was ever inserted: it bounds how far back a search has to begin.
    longest: u64,
}

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            longest: 0,
        }
    }
}

impl<V> RangeMap<V> {
    pub(crate) fn insert(&mut self, range: MemoryRange, value: V) {
        self.longest = self.longest.max(range.len.0);
        self.entries.insert(range, value);
    }

    pub(crate) fn entry(&mut self, range: MemoryRange) -> btree_map::Entry<'_, MemoryRange, V> {
        self.longest = self.longest.max(range.len.0);
        self.entries.entry(range)
    }

    pub(crate) fn get(&self, range: &MemoryRange) -> Option<&V> {
        self.entries.get(range)
    }

    pub(crate) fn get_key_value(&self, range: &MemoryRange) -> Option<(&MemoryRange, &V)> {
        self.entries.get_key_value(range)
    }

    pub(crate) fn get_mut(&mut self, range: &MemoryRange) -> Option<&mut V> {
        self.entries.get_mut(range)
    }

    pub(crate) fn remove(&mut self, range: &MemoryRange) -> Option<V> {
        self.entries.remove(range)
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
        self.longest = 0;
    }

    pub(crate) fn contains(&self, range: &MemoryRange) -> bool {
        self.entries.contains_key(range)
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    #[cfg(test)]
    pub(crate) fn iter(&self) -> btree_map::Iter<'_, MemoryRange, V> {
        self.entries.iter()
    }

    /// The two entries at which NIXL looks for `range`, in its order: the first that is not before it, and the last
    /// before it.
    pub(crate) fn nearest(&self, range: &MemoryRange) -> impl Iterator<Item = &MemoryRange> {
        let before = self.entries.range(..range).next_back();
        let after = self.entries.range(range..).next();
        after.into_iter().chain(before).map(|(known, _)| known)
    }

    /// Follows NIXL through a list of ranges.
    pub(crate) fn walk(&self) -> Walk<'_, V> {
        Walk { map: self, last: None }
    }

    /// The entries that share a byte with `range`.
    pub(crate) fn overlapping(&self, range: &MemoryRange) -> impl Iterator<Item = (&MemoryRange, &V)> {
        // They begin before its end, and at most the longest entry's length before its start.
        let first = MemoryRange {
            addr: Addr(range.addr.0.saturating_sub(self.longest)),
            len: ByteLen(0),
            ..*range
        };
        let last = MemoryRange {
            addr: Addr(range.end().unwrap_or(u64::MAX)),
            len: ByteLen(0),
            ..*range
        };
        self.entries
            .range(first..last)
            .filter(|(known, _)| known.overlaps(range))
    }

    /// The entries that hold all of `range`, which has at least one byte.
    pub(crate) fn covering(&self, range: &MemoryRange) -> impl Iterator<Item = &MemoryRange> {
        self.overlapping(range)
            .map(|(known, _)| known)
            .filter(|known| known.covers(range))
    }
}

/// NIXL's way through a list of ranges.
///
/// It searches for the first range, and for each that is before its predecessor; from any other it only walks forward,
/// beginning at the entry that it found last.
pub(crate) struct Walk<'map, V> {
    map: &'map RangeMap<V>,
    /// The last range, and the entry that it was found in.
    last: Option<(MemoryRange, MemoryRange)>,
}

impl<V> Walk<'_, V> {
    /// The entry that NIXL takes for the next range of the list. Where there is none, it gives up: [`Walk::assume`].
    pub(crate) fn find(&mut self, range: &MemoryRange) -> Option<MemoryRange> {
        let found = match self.last {
            Some((previous, last)) if *range >= previous => {
                let mut onward = self.map.entries.range(last..).map(|(known, _)| known);
                onward.find(|known| known.covers(range))
            }
            _ => self.map.nearest(range).find(|known| known.covers(range)),
        };
        let found = found.copied()?;
        self.last = Some((*range, found));
        Some(found)
    }

    /// Goes on as if `range` itself were an entry.
    pub(crate) fn assume(&mut self, range: &MemoryRange) {
        self.last = Some((*range, *range));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::MemoryKind;
    use proptest::prelude::*;

    fn range(device: u64, addr: u64, len: u64) -> MemoryRange {
        MemoryRange {
            kind: MemoryKind::Dram,
            device,
            addr: Addr(addr),
            len: ByteLen(len),
        }
    }

    fn ranges() -> impl Strategy<Value = MemoryRange> {
        (0_u64..2, 0_u64..40, 1_u64..20).prop_map(|(device, addr, len)| range(device, addr, len))
    }

    proptest! {
        #[test]
        fn searches_find_what_a_look_at_each_entry_finds(known in prop::collection::vec(ranges(), 0..20), wanted in ranges()) {
            let mut map = RangeMap::default();
            for each in &known {
                map.insert(*each, ());
            }
            let overlapping: Vec<_> = map.overlapping(&wanted).map(|(each, ())| *each).collect();
            let covering: Vec<_> = map.covering(&wanted).copied().collect();
            let all = || map.iter().map(|(each, ())| *each);
            prop_assert_eq!(overlapping, all().filter(|each| each.overlaps(&wanted)).collect::<Vec<_>>());
            prop_assert_eq!(covering, all().filter(|each| each.covers(&wanted)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn the_nearest_are_the_ones_on_both_sides() {
        let mut map = RangeMap::default();
        for addr in [10, 20, 30] {
            map.insert(range(0, addr, 5), ());
        }
        let near = |addr, len| -> Vec<u64> { map.nearest(&range(0, addr, len)).map(|each| each.addr.0).collect() };
        assert_eq!(near(20, 5), [20, 10], "an equal one is not before it");
        assert_eq!(
            near(20, 3),
            [20, 10],
            "one as long or longer at the same address is not before it"
        );
        assert_eq!(near(21, 1), [30, 20]);
        assert_eq!(near(40, 1), [30]);
    }

    #[test]
    fn the_end_of_the_address_space_is_searched_too() {
        let mut map = RangeMap::default();
        let last = range(0, u64::MAX - 4, 4);
        map.insert(last, ());
        assert_eq!(map.covering(&last).count(), 1);
        assert_eq!(map.overlapping(&range(0, u64::MAX - 2, 9)).count(), 1);
    }
}
