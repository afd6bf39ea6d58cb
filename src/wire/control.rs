//! What two dynamo_nixl tell each other about an operation beside its key, each message as one notification.
//!
//! Version 1, numbers little-endian:
//!
//! ```text
//! "dnxl/1:"  base64 of: kind u8  { kind u8, size u16, value }*
//! ```
//!
//! There is no sum: a notification arrives whole or not at all, and no byte of memory depends on what one says.

mod fields;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;

use crate::error::{Error, ErrorKind, Result};
use crate::types::{OperationKey, ProcessId, TransferId};
use crate::wire::control::fields::{
    CONNECTION, Fields, NONCE, OPERATION, PROCESS, REASON, TEXT, TRANSFER, is_key, put, required,
};
use crate::wire::{limits, process};

const ENCODE: &str = "encode control message";
const DECODE: &str = "decode control message";

/// What every message begins with, of whatever version.
const NAME: &[u8] = b"dnxl/";
const VERSION: &[u8] = b"1:";

/// Characters of base64 that the longest message takes.
const MAX_ENCODED: usize = limits::MAX_CONTROL_MESSAGE.div_ceil(3) * 4;

const HELLO: u8 = 1;
const LEFT: u8 = 2;
const QUIET: u8 = 3;
const ENDED: u8 = 4;
const PING: u8 = 5;
const PONG: u8 = 6;
const NEVER: u8 = 7;

/// Why one side is done with an operation that is not complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EndReason {
    /// Its user cancelled it.
    Cancelled = 1,
    /// Something went wrong; also what a reason reads as that this version does not know.
    Failed = 2,
    /// It took longer than its user allows.
    TimedOut = 3,
    /// The connector was closed.
    Closed = 4,
    /// The exposure was open for as long as was promised.
    LeaseExpired = 5,
    /// Another transfer has completed the exposure.
    Completed = 6,
}

impl EndReason {
    fn from_number(number: u8) -> Self {
        match number {
            1 => Self::Cancelled,
            3 => Self::TimedOut,
            4 => Self::Closed,
            5 => Self::LeaseExpired,
            6 => Self::Completed,
            _ => Self::Failed,
        }
    }
}

/// One message. What it says is what its sender claims; only its shape is known to be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlMessage {
    /// Active side: a transfer for this operation is under way, and this is who moves it.
    Hello {
        /// The operation's notification key.
        operation: OperationKey,
        /// Which of the sender's transfers.
        transfer: TransferId,
        /// The sender's agent metadata without regions, not parsed.
        connection: Bytes,
        /// The sender.
        process: ProcessId,
    },
    /// Active side: its transfer has ended without being complete. The wire may still be at work.
    Left {
        /// The operation's notification key.
        operation: OperationKey,
        /// Which of the sender's transfers.
        transfer: TransferId,
        /// Why.
        reason: EndReason,
        /// The same for people, of any characters; cut at [`limits::MAX_CONTROL_TEXT`] bytes when written.
        text: String,
    },
    /// Active side: the wire is done with its transfer, however that ended.
    Quiet {
        /// The operation's notification key.
        operation: OperationKey,
        /// Which of the sender's transfers.
        transfer: TransferId,
    },
    /// Active side: its transfer has ended, and nobody will ever know whether the wire is done with it.
    Never {
        /// The operation's notification key.
        operation: OperationKey,
        /// Which of the sender's transfers.
        transfer: TransferId,
    },
    /// Owner: the exposure has ended without being complete.
    Ended {
        /// The operation's notification key.
        operation: OperationKey,
        /// Which of the active side's transfers is told.
        transfer: TransferId,
        /// Why.
        reason: EndReason,
        /// The same for people, of any characters; cut at [`limits::MAX_CONTROL_TEXT`] bytes when written.
        text: String,
    },
    /// Either side: are you still there, for this operation?
    Ping {
        /// The operation's notification key.
        operation: OperationKey,
        /// Which of the active side's transfers.
        transfer: TransferId,
        /// Comes back in the answer.
        nonce: u64,
    },
    /// Either side: the answer to a ping.
    Pong {
        /// The ping's.
        operation: OperationKey,
        /// The ping's.
        transfer: TransferId,
        /// The ping's.
        nonce: u64,
    },
}

/// What a notification turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// No control message: a key, or a program's own notification.
    Other,
    /// A control message of a version or a kind that this version does not know; to be ignored and counted.
    Unknown,
    /// A control message.
    Message {
        /// What it says.
        message: ControlMessage,
        /// Fields that this version does not know, or not in this kind of message, and has ignored.
        unknown_fields: usize,
    },
}

impl ControlMessage {
    /// The bytes of the notification: ASCII.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`] for what [`Self::decode`] refuses: an operation whose key is empty or exceeds
    /// [`limits::MAX_NOTIFICATION_KEY`], and a connection that makes the message exceed
    /// [`limits::MAX_CONTROL_MESSAGE`].
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut body = Vec::with_capacity(64);
        match self {
            Self::Hello {
                operation,
                transfer,
                connection,
                process,
            } => {
                body.push(HELLO);
                put_transfer(&mut body, operation, *transfer)?;
                put(&mut body, CONNECTION, connection);
                put(&mut body, PROCESS, &process::to_bytes(*process));
            }
            Self::Left {
                operation,
                transfer,
                reason,
                text,
            } => {
                body.push(LEFT);
                put_transfer(&mut body, operation, *transfer)?;
                put_end(&mut body, *reason, text);
            }
            Self::Quiet { operation, transfer } => {
                body.push(QUIET);
                put_transfer(&mut body, operation, *transfer)?;
            }
            Self::Never { operation, transfer } => {
                body.push(NEVER);
                put_transfer(&mut body, operation, *transfer)?;
            }
            Self::Ended {
                operation,
                transfer,
                reason,
                text,
            } => {
                body.push(ENDED);
                put_transfer(&mut body, operation, *transfer)?;
                put_end(&mut body, *reason, text);
            }
            Self::Ping {
                operation,
                transfer,
                nonce,
            } => {
                body.push(PING);
                put_transfer(&mut body, operation, *transfer)?;
                put(&mut body, NONCE, &nonce.to_le_bytes());
            }
            Self::Pong {
                operation,
                transfer,
                nonce,
            } => {
                body.push(PONG);
                put_transfer(&mut body, operation, *transfer)?;
                put(&mut body, NONCE, &nonce.to_le_bytes());
            }
        }
        if body.len() > limits::MAX_CONTROL_MESSAGE {
            return Err(Error::new(ErrorKind::Metadata, ENCODE, "the message is too long")
                .with_context("length", body.len())
                .with_context("limit", limits::MAX_CONTROL_MESSAGE));
        }
        let text = STANDARD.encode(&body);
        Ok([NAME, VERSION, text.as_bytes()].concat())
    }

    /// Reads a notification, which may be anything.
    ///
    /// A key may look like a message. Whoever knows the keys of open exposures looks there first.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`] for a message of this version that exceeds a [limit](limits), is not base64 or is cut,
    /// and for a known field that is repeated, of a wrong size, not UTF-8 though text, or missing. Only the text may
    /// be missing; it is then empty.
    pub fn decode(notification: &[u8]) -> Result<Incoming> {
        let Some(behind_name) = notification.strip_prefix(NAME) else {
            return Ok(Incoming::Other);
        };
        let Some(text) = behind_name.strip_prefix(VERSION) else {
            return Ok(Incoming::Unknown);
        };
        let body = from_base64(text)?;
        let Some((kind, rest)) = body.split_first() else {
            return Err(refused("ends before the kind"));
        };
        if !(HELLO..=NEVER).contains(kind) {
            return Ok(Incoming::Unknown);
        }
        let mut fields = Fields::read(rest)?;
        let message = match *kind {
            HELLO => Self::Hello {
                operation: required(&mut fields.operation, OPERATION)?,
                transfer: required(&mut fields.transfer, TRANSFER)?,
                connection: required(&mut fields.connection, CONNECTION)?,
                process: required(&mut fields.process, PROCESS)?,
            },
            LEFT => Self::Left {
                operation: required(&mut fields.operation, OPERATION)?,
                transfer: required(&mut fields.transfer, TRANSFER)?,
                reason: required(&mut fields.reason, REASON)?,
                text: fields.text.take().unwrap_or_default(),
            },
            QUIET => Self::Quiet {
                operation: required(&mut fields.operation, OPERATION)?,
                transfer: required(&mut fields.transfer, TRANSFER)?,
            },
            ENDED => Self::Ended {
                operation: required(&mut fields.operation, OPERATION)?,
                transfer: required(&mut fields.transfer, TRANSFER)?,
                reason: required(&mut fields.reason, REASON)?,
                text: fields.text.take().unwrap_or_default(),
            },
            PING => Self::Ping {
                operation: required(&mut fields.operation, OPERATION)?,
                transfer: required(&mut fields.transfer, TRANSFER)?,
                nonce: required(&mut fields.nonce, NONCE)?,
            },
            PONG => Self::Pong {
                operation: required(&mut fields.operation, OPERATION)?,
                transfer: required(&mut fields.transfer, TRANSFER)?,
                nonce: required(&mut fields.nonce, NONCE)?,
            },
            _ => Self::Never {
                operation: required(&mut fields.operation, OPERATION)?,
                transfer: required(&mut fields.transfer, TRANSFER)?,
            },
        };
        Ok(Incoming::Message {
            message,
            unknown_fields: fields.left_over(),
        })
    }
}

fn put_end(body: &mut Vec<u8>, reason: EndReason, text: &str) {
    put(body, REASON, &[reason as u8]);
    put(body, TEXT, cut(text).as_bytes());
}

fn put_transfer(body: &mut Vec<u8>, operation: &OperationKey, transfer: TransferId) -> Result<()> {
    put_operation(body, operation)?;
    put(body, TRANSFER, &transfer.0.to_le_bytes());
    Ok(())
}

fn put_operation(body: &mut Vec<u8>, operation: &OperationKey) -> Result<()> {
    if !is_key(operation.as_bytes()) {
        return Err(
            Error::new(ErrorKind::Metadata, ENCODE, "the operation's key is empty or too long")
                .with_context("length", operation.as_bytes().len())
                .with_context("limit", limits::MAX_NOTIFICATION_KEY),
        );
    }
    put(body, OPERATION, operation.as_bytes());
    Ok(())
}

/// As much of the text as may travel, without half a character at its end.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(limits::MAX_CONTROL_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

fn from_base64(text: &[u8]) -> Result<Vec<u8>> {
    let too_long = |length: usize, limit: usize| {
        Err(refused("the message is too long")
            .with_context("length", length)
            .with_context("limit", limit))
    };
    if text.len() > MAX_ENCODED {
        return too_long(text.len(), MAX_ENCODED);
    }
    let body = STANDARD.decode(text).map_err(|error| {
        refused("not standard base64")
            .with_context("length", text.len())
            .with_source(error)
    })?;
    // Base64 counts in threes.
    if body.len() > limits::MAX_CONTROL_MESSAGE {
        return too_long(body.len(), limits::MAX_CONTROL_MESSAGE);
    }
    Ok(body)
}

fn refused(message: &str) -> Error {
    Error::new(ErrorKind::Metadata, DECODE, message)
}

#[cfg(test)]
mod tests;
