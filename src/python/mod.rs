//! The extension module `dynamo_nixl._core`: every pyclass, error mapping and the wake-up of the loops that await.
//!
//! It holds no logic: each class has one field of the core and translates. Everything that may take NIXL's locks runs
//! detached from the interpreter.

mod asyncio;
mod connector;
mod errors;
mod faults;
mod hub;
mod operation;
mod owner;
mod region;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::settings::LONGEST;
use crate::transport::loader;

/// How long the process's exit waits for results that are on their way into event loops. The lanes have ended by then.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(5);

/// Seconds from Python as a duration; negative and not-a-number count as nothing, infinite as very long.
fn duration(seconds: f64) -> Duration {
    let longest = if seconds > 0.0 { LONGEST } else { Duration::ZERO };
    Duration::try_from_secs_f64(seconds).map_or(longest, |duration| duration.min(LONGEST))
}

#[pymodule(gil_used = false)]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::connector::Connector;
    #[pymodule_export]
    use super::faults::{Fault, Faults};
    #[pymodule_export]
    use super::hub::Hub;
    #[pymodule_export]
    use super::operation::Operation;
    #[pymodule_export]
    use super::region::Region;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("STARTED", super::operation::STARTED)?;
        module.add("FINISHED", super::operation::FINISHED)?;
        module.add("QUIET", super::operation::QUIET)?;
        module.add("READ", super::operation::READ)?;
        module.add("WRITE", super::operation::WRITE)
    }

    /// Load NIXL's C library from a path and check every symbol that is used.
    #[pyfunction]
    #[expect(clippy::needless_pass_by_value, reason = "PyO3 hands arguments over by value")]
    fn load_library(py: Python<'_>, path: PathBuf) -> PyResult<()> {
        py.detach(|| loader::load(&path))
            .map_err(|error| errors::to_exception(py, &error))
    }

    /// NIXL's blob out of the text that travels.
    #[pyfunction]
    fn decode_metadata<'py>(py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyBytes>> {
        py.detach(|| crate::wire::decode(text))
            .map(|envelope| PyBytes::new(py, &envelope.blob))
            .map_err(|error| errors::to_exception(py, &error))
    }

    /// The path NIXL was loaded from, or None.
    #[pyfunction]
    fn loaded_library() -> Option<String> {
        loader::loaded_path().map(|path| path.to_string_lossy().into_owned())
    }

    /// Close every open connector of this process. True when all went quiet in time.
    #[pyfunction]
    fn shutdown(py: Python<'_>, timeout: f64) -> bool {
        py.detach(|| {
            let quiet = crate::connector::shutdown(duration(timeout));
            asyncio::shutdown(Instant::now() + HAND_OVER_PATIENCE);
            quiet
        })
    }
}
