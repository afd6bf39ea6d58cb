//! Whether the exposure that a transfer works on is still open: what the owner's word says, read with NIXL.

use crate::error::{Error, ErrorKind, Result};
use crate::exposure::WordState;
use crate::peer::RemoteMetadata;
use crate::types::MemoryRange;
use crate::words::Word;

/// An owner's word, and the one of ours that it is read into.
#[derive(Debug)]
pub(super) struct Validity {
    remote: MemoryRange,
    generation: u64,
    local: Option<Word>,
    /// How often to ask before a byte moves.
    questions: u32,
}

impl Validity {
    /// How to ask; `None` where the owner has no word.
    pub(super) fn of(metadata: &RemoteMetadata) -> Option<Self> {
        let (remote, generation) = metadata.validity()?;
        Some(Self {
            remote,
            generation,
            local: None,
            questions: 1,
        })
    }

    /// The owner has been sent a hello. A request ends when all has left that was sent to the peer before it, so the end of
    /// one question says that the hello has, and only the next one is asked behind it.
    pub(super) fn note_hello(&mut self, asked_before: usize) {
        self.questions = 2 + u32::try_from(asked_before).unwrap_or(u32::MAX - 2);
    }

    /// A question was answered well. Whether it was the last one before the first byte.
    pub(super) fn note_answer(&mut self) -> bool {
        self.questions = self.questions.saturating_sub(1);
        self.questions == 0
    }

    pub(super) fn remote(&self) -> MemoryRange {
        self.remote
    }

    /// Where the word is read to.
    pub(super) fn read_into(&mut self, word: Word) -> MemoryRange {
        let range = word.range();
        self.local = Some(word);
        range
    }

    /// What was read.
    ///
    /// # Errors
    /// Why the exposure is not open.
    pub(super) fn verdict(&self) -> Result<()> {
        let word = self.local.as_ref().map_or(u64::MAX, Word::get);
        let (kind, message) = match WordState::read(word, self.generation) {
            Some(WordState::Open) => return Ok(()),
            Some(WordState::Complete) => (
                ErrorKind::Stale,
                "the operation was completed before, by this or another peer",
            ),
            Some(WordState::Cancelled) => (ErrorKind::CancelledByPeer, "the peer has cancelled the operation"),
            Some(WordState::Expired) => (ErrorKind::LeaseExpired, "the operation's lease has ended at the peer"),
            // As its message says, which may come later.
            Some(WordState::Failed) => (ErrorKind::Transfer, "the operation has failed at the peer"),
            None => (
                ErrorKind::Stale,
                "the operation ended long ago; its memory may have another use",
            ),
        };
        Err(Error::new(kind, "check exposure", message)
            .with_hint("metadata is good for one transfer, while the operation that it comes from is open"))
    }
}
