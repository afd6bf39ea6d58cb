//! Completions into an event loop: one eventfd, one batch a wake-up.
//!
//! The reactor only appends a ticket and, where the list was empty, writes the eventfd; futures are resolved on the
//! loop's own thread, where a look at `done()` settles every race with a cancelled wait.

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};

use crate::sync::lock::Mutex;
use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::intern;
use pyo3::prelude::*;

use super::operation::{Operation, phase};
use crate::operation::{CompletionSink, Operation as CoreOperation, next_ticket};
use crate::process::{Origin, PerProcess};

/// The hubs of this process, for [`nudge`].
static HUBS: PerProcess<Mutex<Vec<Weak<Arrivals>>>> = PerProcess::new();

/// Has the loops enter Python soon, so that references given up on a lane's thread are dropped: every loop, since nobody
/// here knows which of them still runs. Where none does, they are dropped when Python code next calls into this module.
pub(super) fn nudge() {
    for arrivals in HUBS.here().lock().iter().filter_map(Weak::upgrade) {
        // Once until it is seen: a flood of references is dropped in one go.
        if !arrivals.is_nudged.swap(true, Ordering::AcqRel) {
            arrivals.signal();
        }
    }
}

/// What has arrived for one loop.
struct Arrivals {
    event: OwnedFd,
    tickets: Mutex<Vec<u64>>,
    is_nudged: AtomicBool,
}

impl Arrivals {
    fn signal(&self) {
        // The counter cannot overflow before it is read; any other failure leaves the loop to its next wake-up.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }
}

impl CompletionSink for Arrivals {
    fn arrived(&self, ticket: u64) {
        let was_empty = {
            let mut tickets = self.tickets.lock();
            tickets.push(ticket);
            tickets.len() == 1
        };
        if was_empty {
            self.signal();
        }
    }
}

struct Watch {
    future: Py<PyAny>,
    operation: Arc<CoreOperation>,
}

/// Carries completions into one event loop.
#[pyclass(frozen, weakref, module = "dynamo_nixl._core")]
pub(super) struct Hub {
    origin: Origin,
    arrivals: Arc<Arrivals>,
    watches: Mutex<HashMap<u64, Watch>>,
}

#[pymethods]
impl Hub {
    #[new]
    fn new() -> PyResult<Self> {
        use rustix::event::{EventfdFlags, eventfd};
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|error| PyOSError::new_err((error.raw_os_error(), format!("no eventfd: {error}"))))?;
        let arrivals = Arc::new(Arrivals {
            event,
            tickets: Mutex::new(Vec::new()),
            is_nudged: AtomicBool::new(false),
        });
        let mut hubs = HUBS.here().lock();
        hubs.retain(|hub| hub.strong_count() > 0);
        hubs.push(Arc::downgrade(&arrivals));
        drop(hubs);
        Ok(Self {
            origin: Origin::here(),
            arrivals,
            watches: Mutex::new(HashMap::new()),
        })
    }

    fn fileno(&self) -> i32 {
        self.arrivals.event.as_raw_fd()
    }

    fn watch(&self, py: Python<'_>, operation: &Operation, phase: u8, future: Py<PyAny>) -> PyResult<Option<u64>> {
        operation.refuse_forked(py)?;
        let phase = self::phase(phase).ok_or_else(|| PyValueError::new_err(format!("no such phase: {phase}")))?;
        let operation = Arc::clone(operation.core());
        let ticket = next_ticket();
        // Before the watch: the ticket may arrive at once.
        self.watches.lock().insert(
            ticket,
            Watch {
                future,
                operation: Arc::clone(&operation),
            },
        );
        let sink: Arc<dyn CompletionSink> = Arc::clone(&self.arrivals) as _;
        if operation.watch(phase, &sink, ticket) {
            return Ok(Some(ticket));
        }
        let watch = self.watches.lock().remove(&ticket);
        drop(watch);
        Ok(None)
    }

    /// Gives a watch up. True where its operation had arrived, whether or not its future knows.
    fn forget(&self, ticket: u64) -> bool {
        if !self.origin.is_here() {
            return false;
        }
        let watch = self.watches.lock().remove(&ticket);
        watch.is_none_or(|watch| !watch.operation.unwatch(ticket))
    }

    fn drain(&self, py: Python<'_>) -> PyResult<()> {
        if !self.origin.is_here() {
            // Its parent's wake-ups are not for a child.
            return Ok(());
        }
        // Read before the list is taken: what arrives in between signals anew.
        let mut count = [0_u8; 8];
        let _ = rustix::io::read(&self.arrivals.event, &mut count);
        self.arrivals.is_nudged.store(false, Ordering::Release);
        let tickets = std::mem::take(&mut *self.arrivals.tickets.lock());
        let mut result = Ok(());
        for ticket in tickets {
            let watch = self.watches.lock().remove(&ticket);
            if let Some(watch) = watch {
                // One that fails must not take those behind it along.
                result = result.and(resolve(watch.future.bind(py)));
            }
        }
        result
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        // A held lock means that another thread is in here: the hub is alive, and the collector comes again.
        if let Some(watches) = self.watches.try_lock() {
            for watch in watches.values() {
                visit.call(&watch.future)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let watches = std::mem::take(&mut *self.watches.lock());
        drop(watches);
    }
}

/// Resolves a future, unless it was cancelled: cancelled waits stay cancelled.
fn resolve(future: &Bound<'_, PyAny>) -> PyResult<()> {
    let py = future.py();
    if !future.call_method0(intern!(py, "done"))?.is_truthy()? {
        future.call_method1(intern!(py, "set_result"), (py.None(),))?;
    }
    Ok(())
}
