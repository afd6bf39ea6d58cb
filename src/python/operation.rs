//! One operation as Python holds it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::intern;
use pyo3::prelude::*;

use super::errors::to_exception;
use crate::error::Error;
use crate::handle::OperationHandle;
use crate::operation::{Operation as CoreOperation, Outcome, Phase};
use crate::types::Direction;
use crate::wire::Encoding;

pub(super) const STARTED: u8 = 1;
pub(super) const FINISHED: u8 = 2;
pub(super) const QUIET: u8 = 3;
pub(super) const READ: u8 = 1;
pub(super) const WRITE: u8 = 2;

/// How long a blocking wait sleeps before it looks for Ctrl-C.
const SIGNAL_INTERVAL: Duration = Duration::from_millis(100);

pub(super) fn phase(number: u8) -> Option<Phase> {
    match number {
        STARTED => Some(Phase::Started),
        FINISHED => Some(Phase::Finished),
        QUIET => Some(Phase::Quiet),
        _ => None,
    }
}

pub(super) fn direction(number: u8) -> PyResult<Direction> {
    match number {
        READ => Ok(Direction::Read),
        WRITE => Ok(Direction::Write),
        _ => Err(PyValueError::new_err(format!("no such direction: {number}"))),
    }
}

/// One operation, active or passive. Dropping the last reference cancels it.
#[pyclass(frozen, weakref, module = "dynamo_nixl._core")]
pub(super) struct Operation {
    handle: OperationHandle,
}

impl Operation {
    pub(super) fn new(handle: OperationHandle) -> Self {
        Self { handle }
    }

    pub(super) fn core(&self) -> &Arc<CoreOperation> {
        self.handle.operation()
    }

    /// Raises `ForkedError` where waiting would last for ever.
    pub(super) fn refuse_forked(&self, py: Python<'_>) -> PyResult<()> {
        self.handle.refuse_forked().map_err(|error| self.exception(py, &error))
    }

    /// The exception for an error of this operation.
    fn exception(&self, py: Python<'_>, error: &Error) -> PyErr {
        let exception = to_exception(py, error);
        let name = match (self.core().direction(), self.core().peer()) {
            (Direction::Read, Some(_)) => "read",
            (Direction::Write, Some(_)) => "write",
            (Direction::Read, None) => "readable",
            (Direction::Write, None) => "writable",
        };
        let operation = format!("{name} {}", self.core().key().to_text());
        // What cannot be set is no failure of the operation's.
        match exception.value(py).setattr(intern!(py, "operation"), operation) {
            Ok(()) => exception,
            Err(failure) => failure,
        }
    }
}

#[pymethods]
impl Operation {
    #[getter]
    fn status(&self) -> u8 {
        self.core().status() as u8
    }

    /// Whether the operation got going, which one that failed or was cancelled before that never did.
    #[getter]
    fn has_started(&self, py: Python<'_>) -> PyResult<bool> {
        self.refuse_forked(py)?;
        Ok(self.core().has_started())
    }

    #[getter]
    fn has_finished(&self) -> bool {
        self.core().is_finished()
    }

    #[getter]
    fn notification_key(&self) -> String {
        self.core().key().to_text()
    }

    #[getter]
    fn peer(&self) -> Option<String> {
        self.core().peer().map(ToString::to_string)
    }

    #[getter]
    fn bytes_total(&self) -> u64 {
        self.core().bytes_total()
    }

    #[getter]
    fn bytes_done(&self) -> u64 {
        self.core().bytes_done()
    }

    fn metadata(&self, py: Python<'_>, hex_encode: bool) -> PyResult<String> {
        let encoding = if hex_encode { Encoding::Hex } else { Encoding::Base64 };
        py.detach(|| self.handle.metadata(encoding))
            .map_err(|error| self.exception(py, &error))
    }

    fn cancel(&self, py: Python<'_>) -> bool {
        py.detach(|| self.handle.cancel())
    }

    fn raise_for_outcome(&self, py: Python<'_>) -> PyResult<()> {
        self.refuse_forked(py)?;
        let outcome = self.core().outcome();
        match outcome.as_ref().and_then(Outcome::error) {
            Some(error) => Err(self.exception(py, error)),
            None => Ok(()),
        }
    }

    /// What `raise_for_outcome` would raise.
    #[getter]
    fn error<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        if let Err(forked) = self.refuse_forked(py) {
            return Some(forked.into_value(py).into_bound(py).into_any());
        }
        let outcome = self.core().outcome();
        let error = outcome.as_ref().and_then(Outcome::error)?;
        Some(self.exception(py, error).into_value(py).into_bound(py).into_any())
    }

    #[getter]
    fn is_quiet(&self, py: Python<'_>) -> PyResult<bool> {
        self.refuse_forked(py)?;
        Ok(self.core().is_quiet())
    }

    fn raise_for_never_quiet(&self, py: Python<'_>) -> PyResult<()> {
        self.refuse_forked(py)?;
        match self.core().never_quiet() {
            Some(error) => Err(self.exception(py, &error)),
            None => Ok(()),
        }
    }

    #[pyo3(signature = (lease))]
    fn renew(&self, py: Python<'_>, lease: Option<f64>) -> PyResult<()> {
        py.detach(|| self.handle.renew(lease.map(super::duration)))
            .map_err(|error| self.exception(py, &error))
    }

    #[pyo3(signature = (phase, timeout))]
    fn wait_blocking(&self, py: Python<'_>, phase: u8, timeout: Option<f64>) -> PyResult<bool> {
        let phase = self::phase(phase).ok_or_else(|| PyValueError::new_err(format!("no such phase: {phase}")))?;
        self.refuse_forked(py)?;
        let deadline = timeout.map(|timeout| Instant::now() + super::duration(timeout));
        loop {
            let left = deadline.map_or(SIGNAL_INTERVAL, |deadline| {
                deadline.saturating_duration_since(Instant::now())
            });
            if py.detach(|| self.core().wait(phase, Some(left.min(SIGNAL_INTERVAL)))) {
                return Ok(true);
            }
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok(false);
            }
            py.check_signals()?;
        }
    }
}
