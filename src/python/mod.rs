//! The extension module `dynamo_nixl._core`: every pyclass, error mapping and the wake-up of the loops that await.
//!
//! It holds no logic: each class has one field of the core and translates. Everything that may take NIXL's locks runs
//! detached from the interpreter.

mod connector;
mod errors;
mod hub;
mod operation;
mod owner;
mod region;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::transport::loader;

/// The process that imported the module. A forked child inherits our memory but none of our threads.
static PROCESS: OnceLock<u32> = OnceLock::new();

/// Seconds from Python as a duration; negative and not-a-number count as nothing, infinite as very long.
fn duration(seconds: f64) -> Duration {
    const LONG: Duration = Duration::from_secs(60 * 60 * 24 * 365);
    Duration::try_from_secs_f64(seconds).unwrap_or(if seconds > 0.0 { LONG } else { Duration::ZERO })
}

#[pymodule(gil_used = false)]
mod _core {
    use super::*;

    #[pymodule_export]
    use super::connector::Connector;
    #[pymodule_export]
    use super::hub::Hub;
    #[pymodule_export]
    use super::operation::Operation;
    #[pymodule_export]
    use super::region::Region;

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        PROCESS.get_or_init(std::process::id);
        // The runtime that carries `open` into asyncio: nothing hot goes through it.
        let mut runtime = tokio::runtime::Builder::new_multi_thread();
        // Each completion takes the GIL on a blocking thread: hundreds at once would start as many threads.
        runtime
            .worker_threads(1)
            .max_blocking_threads(1)
            .thread_name("nixl-asyncio")
            .enable_time();
        pyo3_async_runtimes::tokio::init(runtime);
        module.add("__version__", env!("CARGO_PKG_VERSION"))?;
        module.add("STARTED", super::operation::STARTED)?;
        module.add("FINISHED", super::operation::FINISHED)?;
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
        if PROCESS.get() != Some(&std::process::id()) {
            // Forked: the lanes' threads do not exist here, and waiting for them would last for ever.
            return true;
        }
        py.detach(|| crate::connector::shutdown(duration(timeout)))
    }
}
