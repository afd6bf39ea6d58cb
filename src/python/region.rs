//! A hold on a registration, as Python holds it.

use crate::sync::lock::Mutex;
use pyo3::prelude::*;

use crate::region::Region as CoreRegion;

/// One counted hold on a registration; released when it is dropped.
#[pyclass(frozen, weakref, module = "dynamo_nixl._core")]
pub(super) struct Region {
    region: Mutex<Option<CoreRegion>>,
}

impl Region {
    pub(super) fn new(region: CoreRegion) -> Self {
        Self {
            region: Mutex::new(Some(region)),
        }
    }
}

#[pymethods]
impl Region {
    fn release(&self, py: Python<'_>) {
        let region = self.region.lock().take();
        py.detach(|| drop(region));
    }

    #[getter]
    fn is_registered(&self) -> bool {
        self.region.lock().as_ref().is_some_and(CoreRegion::is_registered)
    }
}
