//! The one error type of the core: what kind, in which operation, with which facts, caused by what.
//!
//! Callers branch on [`ErrorKind`]; the text is for people. An [`Error`] is cheap to clone, because one failure ends
//! the wait of every task that awaits the operation.

use std::error::Error as StdError;
use std::fmt;
use std::sync::Arc;

/// What a caller can act on. Each kind maps to one Python exception class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An argument is out of range or does not fit another one (`ValueError`).
    InvalidArgument,
    /// Metadata from outside is malformed, too big, of an unknown version or in conflict (`MetadataError`).
    Metadata,
    /// NIXL refused to register or deregister memory (`RegistrationError`).
    Registration,
    /// A transfer could not be started or did not end well (`TransferError`).
    Transfer,
    /// A transfer did not end in time, or did not move for too long (`TransferTimeoutError`).
    Timeout,
    /// The peer's process is gone (`PeerLostError`).
    PeerLost,
    /// The peer ended the operation (`CancelledByPeerError`).
    CancelledByPeer,
    /// The exposure has reached the end of its lease (`LeaseExpiredError`).
    LeaseExpired,
    /// The exposure that the metadata speaks of has ended, though what it names may still exist (`StaleMetadataError`).
    Stale,
    /// What has arrived is not what was exposed (`IntegrityError`).
    Integrity,
    /// Too much memory is still pinned by transfers with the peer that have ended otherwise (`QuarantineFullError`).
    QuarantineFull,
    /// The object was inherited by a forked child, or no NIXL of its own can be made for it (`ForkedError`).
    Forked,
    /// The connector was closed (`ConnectorClosedError`).
    Closed,
    /// The NIXL library is missing, incomplete or out of range (`ImportError`).
    Library,
    /// NIXL failed outside of a transfer: agent or back-end creation, metadata export (`NixlConnectError`).
    Backend,
}

impl ErrorKind {
    /// Every kind, so that tests can prove that each one maps to an exception.
    pub const ALL: [Self; 15] = [
        Self::InvalidArgument,
        Self::Metadata,
        Self::Registration,
        Self::Transfer,
        Self::Timeout,
        Self::PeerLost,
        Self::CancelledByPeer,
        Self::LeaseExpired,
        Self::Stale,
        Self::Integrity,
        Self::QuarantineFull,
        Self::Forked,
        Self::Closed,
        Self::Library,
        Self::Backend,
    ];
}

/// A failure, with the facts known where it was born.
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    message: String,
    context: Vec<(&'static str, String)>,
    hint: Option<String>,
    source: Option<Arc<dyn StdError + Send + Sync>>,
}

/// The result of everything in the core that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// A new error of `kind`, born in `operation` (the NIXL call or the step of ours, as in `"load peer"`).
    pub fn new(kind: ErrorKind, operation: &'static str, message: impl Into<String>) -> Self {
        Self(Arc::new(Inner {
            kind,
            operation,
            message: message.into(),
            context: Vec::new(),
            hint: None,
            source: None,
        }))
    }

    /// Adds a fact, such as the peer's name.
    #[must_use]
    pub fn with_context(mut self, key: &'static str, value: impl fmt::Display) -> Self {
        Arc::make_mut(&mut self.0).context.push((key, value.to_string()));
        self
    }

    /// Adds advice on what to do about it.
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        Arc::make_mut(&mut self.0).hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    #[must_use]
    pub fn with_source(mut self, source: impl StdError + Send + Sync + 'static) -> Self {
        Arc::make_mut(&mut self.0).source = Some(Arc::new(source));
        self
    }

    /// What a caller can act on.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    /// The step that failed.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The facts, in the order in which they were added.
    #[must_use]
    pub fn context(&self) -> &[(&'static str, String)] {
        &self.0.context
    }

    /// The advice, if there is any.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        self.0.hint.as_deref()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.0.operation, self.0.message)?;
        if !self.0.context.is_empty() {
            formatter.write_str(" (")?;
            for (index, (key, value)) in self.0.context.iter().enumerate() {
                if index > 0 {
                    formatter.write_str(", ")?;
                }
                write!(formatter, "{key}={value}")?;
            }
            formatter.write_str(")")?;
        }
        if let Some(source) = &self.0.source {
            write!(formatter, ": {source}")?;
        }
        if let Some(hint) = &self.0.hint {
            write!(formatter, "; {hint}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Error")
            .field("kind", &self.0.kind)
            .field("operation", &self.0.operation)
            .field("message", &self.0.message)
            .field("context", &self.0.context)
            .field("hint", &self.0.hint)
            .field("source", &self.0.source)
            .finish()
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.0
            .source
            .as_deref()
            .map(|source| source as &(dyn StdError + 'static))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_operation_context_source_and_hint() {
        let error = Error::new(ErrorKind::Transfer, "post transfer", "NIXL refused the request")
            .with_context("peer", "worker-1")
            .with_context("bytes", 4096)
            .with_source(std::io::Error::other("wire"))
            .with_hint("check that the owner still runs");
        assert_eq!(
            error.to_string(),
            "post transfer: NIXL refused the request (peer=worker-1, bytes=4096): wire; check that the owner still runs"
        );
        assert_eq!(error.kind(), ErrorKind::Transfer);
        assert_eq!(error.operation(), "post transfer");
        assert!(StdError::source(&error).is_some());
    }
}
