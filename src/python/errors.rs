//! The core's errors as Python exceptions.

use pyo3::exceptions::{PyImportError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;

use crate::error::{Error, ErrorKind};

/// The exception for an error. The classes are defined in Python, because some have two bases.
pub(super) fn to_exception(py: Python<'_>, error: &Error) -> PyErr {
    let text = error.to_string();
    let class = match error.kind() {
        ErrorKind::InvalidArgument => return PyValueError::new_err(text),
        ErrorKind::Library => return PyImportError::new_err(text),
        ErrorKind::Metadata => "MetadataError",
        ErrorKind::Registration => "RegistrationError",
        ErrorKind::Transfer => "TransferError",
        ErrorKind::Timeout => "TransferTimeoutError",
        ErrorKind::PeerLost => "PeerLostError",
        ErrorKind::CancelledByPeer => "CancelledByPeerError",
        ErrorKind::LeaseExpired => "LeaseExpiredError",
        ErrorKind::Stale => "StaleMetadataError",
        ErrorKind::Integrity => "IntegrityError",
        ErrorKind::QuarantineFull => "QuarantineFullError",
        ErrorKind::Forked => "ForkedError",
        ErrorKind::Closed => "ConnectorClosedError",
        ErrorKind::Backend => "NixlConnectError",
    };
    let made = class_named(py, class).and_then(|class| {
        let exception = class.call1((text,))?;
        exception.setattr(intern!(py, "phase"), error.operation())?;
        let status = error.context().iter().find(|(key, _)| *key == "status");
        exception.setattr(intern!(py, "status"), status.map(|(_, status)| status))?;
        for (key, value) in error.context() {
            match *key {
                "peer" => exception.setattr(intern!(py, "peer"), value)?,
                "bytes_done" => exception.setattr(intern!(py, "bytes_done"), value.parse::<u64>().ok())?,
                _ => {}
            }
        }
        exception.setattr(intern!(py, "hint"), error.hint())?;
        Ok(exception)
    });
    match made {
        Ok(exception) => PyErr::from_value(exception),
        // The package is broken: that is what has to be told.
        Err(failure) => failure,
    }
}

fn class_named<'py>(py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    static MODULE: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    MODULE
        .get_or_try_init(py, || py.import("dynamo_nixl.errors").map(Bound::unbind))?
        .bind(py)
        .getattr(name)
}
