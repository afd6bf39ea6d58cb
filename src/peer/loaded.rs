//! What one agent has loaded of a peer's regions, and what it lacks for the requests to come.
//!
//! NIXL refuses a range that it knows with other keys, and searches for a range by its nearest start only, so that one
//! region hides parts of another that it lies in. Reloading the peer would cure both, but each reload costs memory or
//! file descriptors that UCX never gives back. So NIXL's search is followed here beforehand, and what it would not find,
//! or would find under stale keys, is loaded as a region of its own: a part opens with the keys of the whole.

use bytes::Bytes;

use super::metadata::{Keys, RemoteMetadata};
use crate::range_map::RangeMap;
use crate::types::MemoryRange;

/// The regions of one peer that an agent has loaded.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    regions: RangeMap<Keys>,
}

/// What is loaded is out of date and stands in the way: the peer has to be loaded anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stale;

impl Loaded {
    pub(super) fn len(&self) -> usize {
        self.regions.len()
    }

    /// Whether NIXL finds all that requests over these lists of ranges name, under the right keys.
    pub(super) fn serves(&self, metadata: &RemoteMetadata, lists: &[Vec<MemoryRange>]) -> Result<bool, Stale> {
        self.missed(metadata, lists).map(|missed| missed.is_empty())
    }

    /// Adds what requests over these lists need; returns it, to be loaded. Changes nothing where what is loaded is stale.
    pub(super) fn add(
        &mut self,
        metadata: &RemoteMetadata,
        lists: &[Vec<MemoryRange>],
    ) -> Result<Vec<(MemoryRange, Keys)>, Stale> {
        let mut added = Vec::new();
        let result = self.add_some(metadata, lists, &mut added);
        if result.is_err() {
            for (range, _) in &added {
                self.regions.remove(range);
            }
        }
        result.map(|()| added)
    }

    fn add_some(
        &mut self,
        metadata: &RemoteMetadata,
        lists: &[Vec<MemoryRange>],
        added: &mut Vec<(MemoryRange, Keys)>,
    ) -> Result<(), Stale> {
        // The regions as the peer lists them: other requests will name other parts of them.
        for range in self.missed(metadata, lists)? {
            if let Some((region, keys)) = metadata.region_of(&range) {
                if !self.regions.contains(region) {
                    self.insert(*region, keys, added);
                }
            }
        }
        // Then what is hidden still. Each of these is found, but may hide another one.
        loop {
            let missed = self.missed(metadata, lists)?;
            if missed.is_empty() {
                return Ok(());
            }
            for range in missed {
                let (_, keys) = metadata.region_of(&range).ok_or(Stale)?;
                if self.regions.contains(&range) {
                    // It is there, and the walk through the list does not come to it.
                    return Err(Stale);
                }
                self.insert(range, keys, added);
            }
        }
    }

    fn insert(&mut self, range: MemoryRange, keys: &Keys, added: &mut Vec<(MemoryRange, Keys)>) {
        // Copied: a key as parsed keeps all of its blob in memory.
        let copied = keys
            .iter()
            .map(|(backend, key)| (backend.clone(), Bytes::copy_from_slice(key)));
        let keys: Keys = copied.collect();
        self.regions.insert(range, keys.clone());
        added.push((range, keys));
    }

    /// The ranges that NIXL would not find, or not under keys that the metadata grants; each once.
    fn missed(&self, metadata: &RemoteMetadata, lists: &[Vec<MemoryRange>]) -> Result<Vec<MemoryRange>, Stale> {
        let mut missed = Vec::new();
        for list in lists {
            let mut walk = self.regions.walk();
            for range in list {
                let grants = |known: &MemoryRange| {
                    let keys = self.regions.get(known);
                    keys.is_some_and(|keys| metadata.grants(range, keys))
                };
                if walk.find(range).is_some_and(|known| grants(&known)) {
                    continue;
                }
                if self.regions.contains(range) && !grants(range) {
                    return Err(Stale);
                }
                missed.push(*range);
                walk.assume(range);
            }
        }
        missed.sort_unstable();
        missed.dedup();
        Ok(missed)
    }
}
