//! Faults as Python holds them.

use std::collections::BTreeMap;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use super::duration;
use crate::transport::faulty::{Effect, Fault as CoreFault, Faults as CoreFaults, Notifications, When};

/// (the first event, how many or None, how likely, the peer's name or None).
type WhenTuple = (u64, Option<u64>, f64, Option<String>);

/// A set of faults that connectors share.
#[pyclass(frozen, weakref, module = "dynamo_nixl._core")]
pub(super) struct Faults {
    core: CoreFaults,
}

impl Faults {
    pub(super) fn core(&self) -> &CoreFaults {
        &self.core
    }
}

#[pymethods]
impl Faults {
    #[new]
    fn new(seed: u64) -> Self {
        Self {
            core: CoreFaults::new(seed),
        }
    }

    #[pyo3(signature = (effect, variant, seconds, when))]
    fn add(&self, effect: &str, variant: &str, seconds: Option<f64>, when: WhenTuple) -> PyResult<Fault> {
        let no_such = || PyValueError::new_err(format!("no such fault: {effect} {variant}"));
        let notifications = || match variant {
            "completion" => Ok(Notifications::Keys),
            "message" => Ok(Notifications::Messages),
            "any" => Ok(Notifications::All),
            _ => Err(no_such()),
        };
        let held = seconds.map(duration);
        let effect = match (effect, variant) {
            ("drop", _) => Effect::Drop(notifications()?),
            ("delay", _) => Effect::Delay(notifications()?, held),
            ("duplicate", _) => Effect::Duplicate(notifications()?),
            ("stall", "") => Effect::Stall(held),
            ("slow", "") => Effect::Slow(held.unwrap_or_default()),
            ("fail", "") => Effect::Fail { after_moving: false },
            ("fail", "after moving") => Effect::Fail { after_moving: true },
            ("stale", "") => Effect::Stale,
            ("lost", "") => Effect::Lost { is_dead: false },
            ("lost", "dead") => Effect::Lost { is_dead: true },
            _ => return Err(no_such()),
        };
        let (at, count, probability, peer) = when;
        let when = When {
            at,
            count,
            probability,
            peer,
        };
        Ok(Fault {
            core: self.core.add(effect, when),
        })
    }

    fn release(&self) {
        self.core.release();
    }

    fn clear(&self) {
        self.core.clear();
    }

    /// How often each kind has struck; those that have not are left out.
    #[getter]
    fn injected(&self) -> BTreeMap<&'static str, u64> {
        self.core.injected()
    }
}

/// One fault of a set.
#[pyclass(frozen, weakref, module = "dynamo_nixl._core")]
pub(super) struct Fault {
    core: CoreFault,
}

#[pymethods]
impl Fault {
    /// How often it has struck.
    #[getter]
    fn injected(&self) -> u64 {
        self.core.injected()
    }

    fn release(&self) {
        self.core.release();
    }

    fn clear(&self) {
        self.core.clear();
    }
}
