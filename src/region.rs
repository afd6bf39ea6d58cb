//! Registrations of one agent: counted by range, kept alive with their owner, never twice, never pulled from under
//! another holder.
//!
//! Registering a range twice with one agent is unsound in NIXL, so a second holder only adds to a count; deregistration
//! happens when the last holder lets go, under the same lock, so that no one can register the range in between.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::process::Origin;
use crate::range_map::RangeMap;
use crate::sync::Mutex;
use crate::transport::{Registration, Transport};
use crate::types::MemoryRange;
use crate::wire::CompressedBlob;

/// Whatever owns the memory of a range. Dropping it may let the memory go, so it is dropped last.
pub type KeepAlive = Arc<dyn Any + Send + Sync>;

/// A local range and what keeps it alive; `None` where the caller vouches for the memory.
#[derive(Clone)]
pub struct LocalMemory {
    /// Where the bytes lie.
    pub range: MemoryRange,
    /// What keeps them there.
    pub keep_alive: Option<KeepAlive>,
}

impl fmt::Debug for LocalMemory {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LocalMemory")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

/// Which registration may serve a holder, where one covers its range without being exactly of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// One that its owner registered to be used in parts. For what is shown to a peer, which sees the whole of it.
    Offered,
    /// Any, for what stays in this process.
    Any,
}

/// The registrations of one agent.
#[derive(Debug)]
pub struct RegionTable {
    origin: Origin,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// `None` once the table was closed.
    transport: Option<Arc<dyn Transport>>,
    entries: RangeMap<Entry>,
}

#[derive(Debug)]
struct Entry {
    holders: usize,
    /// How many of them offered it to be used in parts.
    offers: usize,
    /// Its metadata together with that of another range, once it was asked for: it stands as long as the registration.
    exported: Option<(MemoryRange, CompressedBlob)>,
    _registration: Box<dyn Registration>,
}

impl RegionTable {
    /// An empty table over `transport`.
    #[must_use]
    pub fn new(transport: Arc<dyn Transport>) -> Arc<Self> {
        Arc::new(Self {
            origin: Origin::here(),
            state: Mutex::new(State {
                transport: Some(transport),
                entries: RangeMap::default(),
            }),
        })
    }

    /// Registers `memory`, or counts one more holder of it.
    ///
    /// Ranges of no bytes need no registration: they get a [`Region`] that holds nothing.
    ///
    /// # Errors
    /// [`ErrorKind::Registration`] where NIXL refuses, [`ErrorKind::Closed`] after [`RegionTable::close`].
    pub fn acquire(self: &Arc<Self>, memory: &LocalMemory) -> Result<Region> {
        self.hold(memory, None)
    }

    /// As [`RegionTable::acquire`], except that a registration that covers the memory serves as well.
    ///
    /// # Errors
    /// As [`RegionTable::acquire`].
    pub fn share(self: &Arc<Self>, memory: &LocalMemory, sharing: Sharing) -> Result<Region> {
        self.hold(memory, Some(sharing))
    }

    fn hold(self: &Arc<Self>, memory: &LocalMemory, sharing: Option<Sharing>) -> Result<Region> {
        let mut range = memory.range;
        if range.len.0 > 0 {
            let mut state = self.state.lock();
            let transport = state.transport.clone().ok_or_else(closed)?;
            if let Some(serving) = sharing.and_then(|sharing| state.serving(&range, sharing)) {
                range = serving;
            }
            if !state.hold(&range) {
                state.register(&*transport, &range)?;
            }
        }
        Ok(Region {
            table: Arc::clone(self),
            range,
            is_offer: false,
            _keep_alive: memory.keep_alive.clone(),
        })
    }

    /// Registers `memory` to be used in parts by whoever names one, for as long as the region returned lives.
    ///
    /// # Errors
    /// As [`RegionTable::acquire`].
    pub fn offer(self: &Arc<Self>, memory: &LocalMemory) -> Result<Region> {
        let mut region = self.acquire(memory)?;
        if let Some(entry) = self.state.lock().entries.get_mut(&region.range) {
            entry.offers += 1;
            region.is_offer = true;
        }
        Ok(region)
    }

    /// The registration that [`RegionTable::share`] would take for `range`, where it need not make one.
    #[must_use]
    pub fn serving(&self, range: &MemoryRange, sharing: Sharing) -> Option<MemoryRange> {
        self.state.lock().serving(range, sharing)
    }

    /// The metadata of a registered range together with that of another one: `export` makes it the first time.
    ///
    /// # Errors
    /// What `export` reports.
    pub fn exported(
        &self,
        range: &MemoryRange,
        with: &MemoryRange,
        export: impl FnOnce() -> Result<CompressedBlob>,
    ) -> Result<CompressedBlob> {
        let kept = |entry: &Entry| entry.exported.clone().filter(|(other, _)| other == with);
        if let Some((_, blob)) = self.state.lock().entries.get(range).and_then(kept) {
            return Ok(blob);
        }
        // Not under the lock, which others wait for. The caller holds both ranges, so that their keys cannot change.
        let blob = export()?;
        if let Some(entry) = self.state.lock().entries.get_mut(range) {
            entry.exported = Some((*with, blob.clone()));
        }
        Ok(blob)
    }

    /// The agent behind the table.
    ///
    /// # Errors
    /// [`ErrorKind::Closed`] after [`RegionTable::close`].
    pub fn transport(&self) -> Result<Arc<dyn Transport>> {
        self.state.lock().transport.clone().ok_or_else(closed)
    }

    /// Whether `range` is registered now.
    #[must_use]
    pub fn is_registered(&self, range: &MemoryRange) -> bool {
        range.len.0 == 0 || self.state.lock().entries.contains(range)
    }

    /// Makes a request over `ranges`, and holds whatever registrations NIXL may have bound it to: they stay until the
    /// regions returned here are dropped, which the caller does when the wire is done with the request.
    ///
    /// NIXL looks a range up by its nearest start, so it can bind to somebody else's registration that covers the range
    /// as well, or miss the covering one behind another that begins inside of it. Those it binds to are held, those it
    /// would miss are registered by themselves; and nothing is registered or released in between.
    ///
    /// # Errors
    /// What `make` reports, [`ErrorKind::Registration`], [`ErrorKind::Closed`].
    pub fn bind<T>(
        self: &Arc<Self>,
        ranges: &[MemoryRange],
        make: impl FnOnce(&dyn Transport) -> Result<T>,
    ) -> Result<(T, Vec<Region>)> {
        let mut state = self.state.lock();
        let transport = state.transport.clone().ok_or_else(closed)?;
        let mut held = state.register_what_nixl_misses(&*transport, ranges)?;
        for range in state.covering(ranges) {
            state.hold(&range);
            held.push(range);
        }
        let made = make(&*transport);
        if made.is_err() {
            for range in &held {
                state.release(range);
            }
            held.clear();
        }
        drop(state);
        let regions = held.into_iter().map(|range| Region {
            table: Arc::clone(self),
            range,
            is_offer: false,
            _keep_alive: None,
        });
        let regions = regions.collect();
        made.map(|made| (made, regions))
    }

    /// How many ranges are registered.
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.lock().entries.len()
    }

    /// Whether no range is registered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Deregisters everything and lets the agent go. Later holders' drops do nothing. The caller has nothing in flight.
    pub fn close(&self) {
        let mut state = self.state.lock();
        state.entries.clear();
        state.transport = None;
    }
}

impl State {
    /// The registration to use for `range`, where there is one. One that NIXL would not find by the range is none.
    fn serving(&self, range: &MemoryRange, sharing: Sharing) -> Option<MemoryRange> {
        let may_serve = |known: &MemoryRange| match sharing {
            Sharing::Offered => self.entries.get(known).is_some_and(|entry| entry.offers > 0),
            Sharing::Any => true,
        };
        if self.entries.contains(range) {
            return Some(*range);
        }
        let mut covering = self.entries.nearest(range).filter(|known| known.covers(range));
        covering.find(|known| may_serve(known)).copied()
    }

    /// Counts one more holder; false where the range is not registered.
    fn hold(&mut self, range: &MemoryRange) -> bool {
        match self.entries.get_mut(range) {
            Some(entry) => {
                entry.holders += 1;
                true
            }
            None => false,
        }
    }

    fn register(&mut self, transport: &dyn Transport, range: &MemoryRange) -> Result<()> {
        let registration = transport.register(range)?;
        self.entries.insert(
            *range,
            Entry {
                holders: 1,
                offers: 0,
                exported: None,
                _registration: registration,
            },
        );
        Ok(())
    }

    fn release(&mut self, range: &MemoryRange) {
        // Absent after `close`.
        if let Some(entry) = self.entries.get_mut(range) {
            entry.holders -= 1;
            if entry.holders == 0 {
                self.entries.remove(range);
            }
        }
    }

    /// Registers those of `ranges` that NIXL would not find; returns them.
    fn register_what_nixl_misses(
        &mut self,
        transport: &dyn Transport,
        ranges: &[MemoryRange],
    ) -> Result<Vec<MemoryRange>> {
        let mut registered = Vec::new();
        loop {
            let missed = self.missed(ranges);
            if missed.is_empty() {
                return Ok(registered);
            }
            // One that is registered by itself is found, but it may hide another one from the search.
            for range in missed {
                if let Err(error) = self.register(transport, &range) {
                    for range in &registered {
                        self.release(range);
                    }
                    return Err(error);
                }
                registered.push(range);
            }
        }
    }

    /// Those of `ranges` that NIXL would not find, each once.
    fn missed(&self, ranges: &[MemoryRange]) -> Vec<MemoryRange> {
        let mut walk = self.entries.walk();
        let mut missed = Vec::new();
        for range in ranges {
            if walk.find(range).is_none() {
                missed.push(*range);
                // Once it is registered, it is what is found.
                walk.assume(range);
            }
        }
        missed.sort_unstable();
        missed.dedup();
        missed
    }

    /// Every registration that covers one of `ranges`, once.
    fn covering(&self, ranges: &[MemoryRange]) -> Vec<MemoryRange> {
        let covering = ranges.iter().flat_map(|range| self.entries.covering(range));
        let mut found: Vec<MemoryRange> = covering.copied().collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

fn closed() -> Error {
    Error::new(ErrorKind::Closed, "register memory", "the connector is closed")
}

/// One holder's share in a registration. Dropping it gives the share back, then lets go of the owner.
pub struct Region {
    table: Arc<RegionTable>,
    range: MemoryRange,
    is_offer: bool,
    /// Dropped after `Drop::drop` has given the share back: memory outlives its registration.
    _keep_alive: Option<KeepAlive>,
}

impl Region {
    /// The registered range.
    #[must_use]
    pub fn range(&self) -> &MemoryRange {
        &self.range
    }

    /// Whether the registration stands; it does until the connector is closed.
    #[must_use]
    pub fn is_registered(&self) -> bool {
        self.table.origin.is_here() && self.table.is_registered(&self.range)
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // Nothing is deregistered by a forked child.
        if self.range.len.0 > 0 && self.table.origin.is_here() {
            let mut state = self.table.state.lock();
            if self.is_offer {
                // Absent after `close`.
                if let Some(entry) = state.entries.get_mut(&self.range) {
                    entry.offers -= 1;
                }
            }
            state.release(&self.range);
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Region")
            .field("range", &self.range)
            .finish_non_exhaustive()
    }
}

#[cfg(all(test, feature = "model"))]
mod model;
#[cfg(test)]
mod tests;
