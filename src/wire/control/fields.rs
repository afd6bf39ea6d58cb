//! The fields of a control message: kind, size, value.

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::types::{OperationKey, ProcessId, TransferId};
use crate::wire::control::{EndReason, refused};
use crate::wire::{limits, process};

pub(super) const OPERATION: u8 = 1;
pub(super) const CONNECTION: u8 = 2;
pub(super) const PROCESS: u8 = 3;
pub(super) const REASON: u8 = 4;
pub(super) const TEXT: u8 = 5;
pub(super) const NONCE: u8 = 6;
pub(super) const TRANSFER: u8 = 7;

/// Appends a field.
pub(super) fn put(body: &mut Vec<u8>, kind: u8, value: &[u8]) {
    body.push(kind);
    // A value whose size does not fit makes the body exceed its limit, which is looked at before it is sent.
    body.extend_from_slice(&(value.len() as u16).to_le_bytes());
    body.extend_from_slice(value);
}

/// Whether these bytes can be the key of an operation.
pub(super) fn is_key(bytes: &[u8]) -> bool {
    (1..=limits::MAX_NOTIFICATION_KEY).contains(&bytes.len())
}

/// The fields of a message, of whatever kind that is. What is kept of them is copied: a key outlives its message, and
/// shall not hold on to all of it.
#[derive(Default)]
pub(super) struct Fields {
    pub(super) operation: Option<OperationKey>,
    pub(super) connection: Option<Bytes>,
    pub(super) process: Option<ProcessId>,
    pub(super) reason: Option<EndReason>,
    pub(super) text: Option<String>,
    pub(super) nonce: Option<u64>,
    pub(super) transfer: Option<TransferId>,
    unknown: usize,
}

impl Fields {
    pub(super) fn read(mut rest: &[u8]) -> Result<Self> {
        let mut fields = Self::default();
        while let [kind, low, high, tail @ ..] = rest {
            let size = usize::from(u16::from_le_bytes([*low, *high]));
            let Some((value, tail)) = tail.split_at_checked(size) else {
                return Err(refused_field("ends within a field", *kind));
            };
            rest = tail;
            fields.take(*kind, value)?;
        }
        match rest {
            [] => Ok(fields),
            [kind, ..] => Err(refused_field("ends within a field", *kind)),
        }
    }

    fn take(&mut self, kind: u8, value: &[u8]) -> Result<()> {
        let wrong_size = || refused_field("a field has the wrong size", kind).with_context("size", value.len());
        let repeated = match kind {
            OPERATION if !is_key(value) => return Err(wrong_size()),
            OPERATION => self
                .operation
                .replace(OperationKey::new(Bytes::copy_from_slice(value)))
                .is_some(),
            CONNECTION => self.connection.replace(Bytes::copy_from_slice(value)).is_some(),
            PROCESS => {
                let bytes = value.try_into().map_err(|_| wrong_size())?;
                self.process.replace(process::from_bytes(bytes)).is_some()
            }
            REASON => {
                let [number] = *value else { return Err(wrong_size()) };
                self.reason.replace(EndReason::from_number(number)).is_some()
            }
            TEXT if value.len() > limits::MAX_CONTROL_TEXT => return Err(wrong_size()),
            TEXT => {
                let text = std::str::from_utf8(value)
                    .map_err(|error| refused_field("a field is not UTF-8", kind).with_source(error))?;
                self.text.replace(text.to_owned()).is_some()
            }
            NONCE => {
                let bytes = value.try_into().map_err(|_| wrong_size())?;
                self.nonce.replace(u64::from_le_bytes(bytes)).is_some()
            }
            TRANSFER => {
                let bytes = value.try_into().map_err(|_| wrong_size())?;
                self.transfer.replace(TransferId(u64::from_le_bytes(bytes))).is_some()
            }
            _ => {
                self.unknown += 1;
                false
            }
        };
        if repeated {
            return Err(refused_field("a field is repeated", kind));
        }
        Ok(())
    }

    /// How many fields the message had no use for.
    pub(super) fn left_over(&self) -> usize {
        let known = [
            self.operation.is_some(),
            self.connection.is_some(),
            self.process.is_some(),
            self.reason.is_some(),
            self.text.is_some(),
            self.nonce.is_some(),
            self.transfer.is_some(),
        ];
        self.unknown + known.into_iter().filter(|is_left| *is_left).count()
    }
}

/// Takes out a field that the message cannot be without.
pub(super) fn required<T>(field: &mut Option<T>, kind: u8) -> Result<T> {
    field.take().ok_or_else(|| refused_field("a field is missing", kind))
}

fn refused_field(message: &str, kind: u8) -> Error {
    refused(message).with_context("field", kind)
}
