//! Tables of 64-bit words in memory that NIXL can reach.
//!
//! An owner keeps one word for each exposure whose metadata was asked for; a peer of our own kind reads it with NIXL to
//! learn whether the exposure is open. The reader has words of its own, into which it reads.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::error::{Error, ErrorKind, Result};
use crate::region::{LocalMemory, Region, RegionTable};
use crate::sync::{AtomicU64, Mutex};
use crate::types::{Addr, ByteLen, MemoryKind, MemoryRange};

/// Words of one page. A page is registered as a whole, and costs memory only where it was written to.
const PAGE_WORDS: usize = if cfg!(all(test, feature = "model")) { 2 } else { 4096 };
/// Bytes of a word: 8, and more only where it is modelled.
const WORD_BYTES: u64 = size_of::<AtomicU64>() as u64;

/// Aligned, so that no page of the operating system is shared with anything else.
#[repr(C, align(4096))]
struct Page([AtomicU64; PAGE_WORDS]);

/// A growing table of words, registered with one agent for as long as the agent lives.
pub(crate) struct WordTable {
    regions: Arc<RegionTable>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    pages: Vec<(Arc<Page>, Region)>,
    /// The word that was free for longest comes first: what it said last can be read for as long as possible.
    free: VecDeque<(usize, usize)>,
    is_closed: bool,
}

impl WordTable {
    pub(crate) fn new(regions: Arc<RegionTable>) -> Arc<Self> {
        Arc::new(Self {
            regions,
            state: Mutex::default(),
        })
    }

    /// Takes a word that nobody uses, with this value.
    ///
    /// # Errors
    /// Where a new page cannot be registered; [`ErrorKind::Closed`] after [`WordTable::close`].
    pub(crate) fn take(self: &Arc<Self>, value: u64) -> Result<Word> {
        let mut state = self.state.lock();
        if state.is_closed {
            return Err(Error::new(ErrorKind::Closed, "take word", "the connector is closed"));
        }
        if state.free.is_empty() {
            let page = Arc::new(Page(std::array::from_fn(|_| AtomicU64::new(0))));
            let region = self.regions.acquire(&LocalMemory {
                range: range_of(&page.0),
                keep_alive: Some(Arc::clone(&page) as _),
            })?;
            self.regions.transport()?.note_words(region.range());
            let number = state.pages.len();
            state.pages.push((page, region));
            state.free.extend((0..PAGE_WORDS).map(|index| (number, index)));
        }
        let place = state.free.pop_front().unwrap_or_default();
        let page = Arc::clone(&state.pages[place.0].0);
        drop(state);
        let word = Word {
            table: Arc::clone(self),
            page,
            place,
        };
        word.set(value);
        Ok(word)
    }

    /// Lets the pages go. Words taken earlier stay valid memory, but NIXL no longer reaches them.
    pub(crate) fn close(&self) {
        let mut state = self.state.lock();
        state.is_closed = true;
        let pages = std::mem::take(&mut state.pages);
        drop(state);
        drop(pages);
    }

    /// How many pages are registered.
    pub(crate) fn pages(&self) -> usize {
        self.state.lock().pages.len()
    }
}

/// One word. Dropping it gives it back; its value stays until it is taken anew.
pub(crate) struct Word {
    table: Arc<WordTable>,
    page: Arc<Page>,
    place: (usize, usize),
}

impl Word {
    /// The word's own memory.
    pub(crate) fn range(&self) -> MemoryRange {
        range_of(std::slice::from_ref(&self.page.0[self.place.1]))
    }

    /// The registered memory around it.
    pub(crate) fn page(&self) -> MemoryRange {
        range_of(&self.page.0)
    }

    pub(crate) fn get(&self) -> u64 {
        self.page.0[self.place.1].load(Ordering::Acquire)
    }

    pub(crate) fn set(&self, value: u64) {
        self.page.0[self.place.1].store(value, Ordering::Release);
    }
}

impl Drop for Word {
    fn drop(&mut self) {
        self.table.state.lock().free.push_back(self.place);
    }
}

impl fmt::Debug for Word {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Word").field(&self.get()).finish()
    }
}

impl fmt::Debug for WordTable {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = self.state.lock();
        formatter
            .debug_struct("WordTable")
            .field("pages", &state.pages.len())
            .field("free", &state.free.len())
            .finish_non_exhaustive()
    }
}

fn range_of(words: &[AtomicU64]) -> MemoryRange {
    MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr(words.as_ptr().expose_provenance() as u64),
        len: ByteLen(words.len() as u64 * WORD_BYTES),
    }
}

#[cfg(all(test, feature = "model"))]
mod model;
