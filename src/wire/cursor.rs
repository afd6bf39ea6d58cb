//! Reads NIXL's `tag, length, bytes, '|'` fields from bytes that nobody vouches for.

use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};

/// The step named in every error of the parser.
pub(super) const PARSE: &str = "parse metadata";

/// The byte that ends each field. NIXL skips it unread; requiring it finds a damaged length early.
const FIELD_END: u8 = b'|';

/// What one field costs beside its tag and its content: the length and the end byte.
pub(super) const FIELD_OVERHEAD: usize = 8 + 1;

/// A position in a blob. Every step either stays inside the blob or fails, and no step overflows.
#[derive(Debug)]
pub(super) struct Cursor {
    blob: Bytes,
    offset: usize,
}

impl Cursor {
    pub(super) fn new(blob: Bytes) -> Self {
        Self { blob, offset: 0 }
    }

    pub(super) fn offset(&self) -> usize {
        self.offset
    }

    pub(super) fn remaining(&self) -> usize {
        self.blob.len() - self.offset
    }

    /// An error that points to the current position.
    pub(super) fn error(&self, message: impl Into<String>) -> Error {
        Error::new(ErrorKind::Metadata, PARSE, message)
            .with_context("offset", self.offset)
            .with_context("length", self.blob.len())
    }

    /// Skips bytes that must be exactly `expected`.
    pub(super) fn literal(&mut self, expected: &[u8], what: &str) -> Result<()> {
        if self.remaining() < expected.len() {
            return Err(self.error(format!("ends before {what}")));
        }
        if !self.blob[self.offset..].starts_with(expected) {
            return Err(self.error(format!("{what} expected here")));
        }
        self.offset += expected.len();
        Ok(())
    }

    /// Reads one field of at least `min` and at most `max` bytes. The result shares the blob's memory.
    pub(super) fn field(&mut self, tag: &str, what: &str, min: usize, max: usize) -> Result<Bytes> {
        self.literal(tag.as_bytes(), &format!("the tag of {what}"))?;
        let announced = self.number::<8>(what).map(u64::from_le_bytes)?;
        if announced < min as u64 || announced > max as u64 {
            return Err(self
                .error(format!("{what} has an impossible length"))
                .with_context("announced", announced)
                .with_context("minimum", min)
                .with_context("limit", max));
        }
        // In range of usize: it is at most `max`.
        let announced = announced as usize;
        if self.remaining() <= announced {
            return Err(self
                .error(format!("ends within {what}"))
                .with_context("announced", announced));
        }
        let content = self.blob.slice(self.offset..self.offset + announced);
        self.offset += announced;
        self.literal(&[FIELD_END], &format!("the end of {what}"))?;
        Ok(content)
    }

    /// Reads a field whose content is one number of `N` bytes.
    pub(super) fn number_field<const N: usize>(&mut self, tag: &str, what: &str) -> Result<[u8; N]> {
        let content = self.field(tag, what, N, N)?;
        let mut number = [0; N];
        number.copy_from_slice(&content);
        Ok(number)
    }

    /// Reads a field that counts things of at least `size` bytes each, of which at most `max` are believed.
    pub(super) fn count_field(&mut self, tag: &str, what: &str, size: usize, max: usize) -> Result<usize> {
        let count = self.number_field::<8>(tag, what).map(u64::from_le_bytes)?;
        if count > max as u64 {
            return Err(self
                .error(format!("{what} is too high"))
                .with_context("count", count)
                .with_context("limit", max));
        }
        // In range of usize: it is at most `max`. The product fits, because both factors are small constants.
        let count = count as usize;
        if self.remaining() / size < count {
            return Err(self
                .error(format!("{what} exceeds what the rest of the blob can hold"))
                .with_context("count", count));
        }
        Ok(count)
    }

    fn number<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        match self.blob[self.offset..].first_chunk::<N>() {
            Some(bytes) => {
                let bytes = *bytes;
                self.offset += N;
                Ok(bytes)
            }
            None => Err(self.error(format!("ends within the length of {what}"))),
        }
    }
}
