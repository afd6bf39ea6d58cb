//! A connector as Python holds it.

use std::collections::HashMap;

use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::asyncio::into_asyncio;
use super::duration;
use super::errors::to_exception;
use super::faults::Faults;
use super::operation::{Operation, direction};
use super::owner::{LocalTuple, RemoteTuple, local_memory, remote_range};
use super::region::Region;
use crate::connector::{BeginOptions, Connector as CoreConnector};
use crate::error::Error;
use crate::peer::RemoteMetadata;
use crate::region::LocalMemory;
use crate::settings::Settings;
use crate::transport::nixl;
use crate::types::OperationKey;

/// A peer's metadata: the text that travels, or NIXL's own blob.
#[derive(FromPyObject)]
enum RemoteText {
    Encoded(String),
    Blob(Vec<u8>),
}

/// A connector's native half.
#[pyclass(frozen, weakref, module = "dynamo_nixl._core")]
pub(super) struct Connector {
    core: CoreConnector,
}

#[pymethods]
impl Connector {
    #[new]
    #[pyo3(signature = (name, lease, grace, stall_timeout, timeout, keepalive, quarantine_limit, copy_lanes, faults=None))]
    #[expect(clippy::too_many_arguments, reason = "a connector's settings, one by one")]
    fn new(
        name: &str,
        lease: Option<f64>,
        grace: f64,
        stall_timeout: Option<f64>,
        timeout: Option<f64>,
        keepalive: Option<f64>,
        quarantine_limit: u64,
        copy_lanes: Option<usize>,
        faults: Option<&Bound<'_, Faults>>,
    ) -> Self {
        let defaults = Settings::default();
        let settings = Settings {
            lease: lease.map(duration),
            grace: duration(grace),
            stall_timeout: stall_timeout.map(duration),
            timeout: timeout.map(duration),
            keepalive: keepalive.map(duration),
            quarantine_limit,
            copy_lanes: copy_lanes.unwrap_or(defaults.copy_lanes),
        };
        Self {
            core: match faults {
                None => CoreConnector::with_settings(name, settings),
                Some(faults) => {
                    let factory = faults.get().core().wrap(nixl::factory());
                    CoreConnector::with_factory(name, settings, factory)
                }
            },
        }
    }

    #[getter]
    fn name(&self) -> &str {
        self.core.name().as_str()
    }

    #[getter]
    fn is_open(&self) -> bool {
        self.core.is_open()
    }

    fn open<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let core = self.core.clone();
        // First of all, and not as the result of a future that would have to be made.
        core.check_process().map_err(|error| to_exception(py, &error))?;
        into_asyncio(py, async move { core.opening().await })
    }

    fn open_blocking(&self, py: Python<'_>) -> PyResult<()> {
        py.detach(|| self.core.open()).map_err(|error| to_exception(py, &error))
    }

    #[pyo3(signature = (direction, nixl_metadata, notification_key, remote, local, timeout, verify))]
    #[expect(clippy::too_many_arguments, reason = "one call into the core, whatever it needs")]
    fn begin(
        &self,
        py: Python<'_>,
        direction: u8,
        nixl_metadata: &str,
        notification_key: &str,
        remote: Vec<RemoteTuple>,
        local: Vec<LocalTuple>,
        timeout: Option<f64>,
        verify: bool,
    ) -> PyResult<Operation> {
        let options = BeginOptions {
            timeout: timeout.map(duration),
            verify,
        };
        let direction = self::direction(direction)?;
        let local = local_memories(py, local)?;
        py.detach(|| {
            let remote = remote
                .into_iter()
                .map(remote_range)
                .collect::<Result<Vec<_>, Error>>()?;
            let key = OperationKey::new(notification_key.as_bytes().to_vec());
            self.core.begin(direction, nixl_metadata, key, &remote, local, options)
        })
        .map(Operation::new)
        .map_err(|error| to_exception(py, &error))
    }

    fn connect(&self, py: Python<'_>, metadata: RemoteText) -> PyResult<Operation> {
        py.detach(|| {
            let metadata = match metadata {
                RemoteText::Encoded(text) => RemoteMetadata::decode(&text)?,
                RemoteText::Blob(blob) => RemoteMetadata::from_blob(&blob)?,
            };
            self.core.connect(metadata)
        })
        .map(Operation::new)
        .map_err(|error| to_exception(py, &error))
    }

    fn agent_metadata<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        py.detach(|| self.core.agent_metadata())
            .map(|blob| PyBytes::new(py, &blob))
            .map_err(|error| to_exception(py, &error))
    }

    #[pyo3(signature = (direction, local, lease, verify))]
    fn expose(
        &self,
        py: Python<'_>,
        direction: u8,
        local: Vec<LocalTuple>,
        lease: Option<f64>,
        verify: bool,
    ) -> PyResult<Operation> {
        let direction = self::direction(direction)?;
        let local = local_memories(py, local)?;
        py.detach(|| self.core.expose(direction, local, lease.map(duration), verify))
            .map(Operation::new)
            .map_err(|error| to_exception(py, &error))
    }

    fn register(&self, py: Python<'_>, local: Vec<LocalTuple>) -> PyResult<Vec<Region>> {
        let local = local_memories(py, local)?;
        py.detach(|| {
            local
                .iter()
                .map(|memory| self.core.register(memory))
                .collect::<Result<Vec<_>, Error>>()
        })
        .map(|regions| regions.into_iter().map(Region::new).collect())
        .map_err(|error| to_exception(py, &error))
    }

    fn peers(&self, py: Python<'_>) -> Vec<String> {
        py.detach(|| self.core.peers().iter().map(ToString::to_string).collect())
    }

    fn stats(&self, py: Python<'_>) -> HashMap<&'static str, u64> {
        let stats = py.detach(|| self.core.stats());
        HashMap::from([
            ("regions", stats.regions as u64),
            ("peers", stats.peers as u64),
            ("reloads", stats.reloads),
            ("copy_lanes", stats.copy_lanes as u64),
            ("transfers", stats.transfers as u64),
            ("exposures", stats.exposures as u64),
            ("exposures_in_grace", stats.exposures_in_grace as u64),
            ("bytes_in_grace", stats.bytes_in_grace),
            ("unquiet_regions", stats.unquiet_regions as u64),
            ("notifications_matched", stats.notifications_matched),
            ("notifications_unknown", stats.notifications_unknown),
            ("notifications_malformed", stats.notifications_malformed),
            ("messages_received", stats.messages_received),
            ("trailer_fields_unknown", stats.trailer_fields_unknown),
        ])
    }

    fn begin_close(&self, timeout: f64) {
        self.core.begin_close(duration(timeout));
    }

    fn close(&self, py: Python<'_>, timeout: f64) -> bool {
        py.detach(|| self.core.close(duration(timeout)))
    }
}

fn local_memories(py: Python<'_>, local: Vec<LocalTuple>) -> PyResult<Vec<LocalMemory>> {
    local
        .into_iter()
        .map(|tuple| local_memory(py, tuple))
        .collect::<Result<Vec<_>, Error>>()
        .map_err(|error| to_exception(py, &error))
}
