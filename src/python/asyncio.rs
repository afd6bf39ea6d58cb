//! Rust futures as asyncio futures, by pyo3-async-runtimes: for what happens seldom, such as opening a connector.
//!
//! The crate's own tokio runtime hands results over on threads that nobody stops: one that attaches while the
//! interpreter ends crashes the process, and one whose loop was closed meanwhile prints a traceback. So this module is
//! its runtime, which counts what is under way, drains it at [`shutdown`], and drops what nobody can receive.

use std::any::Any;
use std::future::Future;
use std::pin::Pin;
use std::sync::OnceLock;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::sync::lock::{Condvar, Mutex};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use pyo3_async_runtimes::TaskLocals;
use pyo3_async_runtimes::generic::{self, ContextExt, JoinError, Runtime};

use super::errors::to_exception;
use crate::error::{Error, ErrorKind};
use crate::process::PerProcess;

/// What is under way.
static PENDING: PerProcess<Pending> = PerProcess::new();

#[derive(Default)]
struct Pending {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    count: usize,
    /// The interpreter ends: nothing more is begun.
    is_shut: bool,
    /// It did not wait any longer: nothing is handed over.
    is_abandoned: bool,
}

/// An asyncio future for a Rust one. The running loop's; cancelling it drops the Rust future.
///
/// # Errors
/// `RuntimeError` without a running loop, `ConnectorClosedError` once the interpreter ends, `OSError` without threads.
pub(super) fn into_asyncio<F>(py: Python<'_>, future: F) -> PyResult<Bound<'_, PyAny>>
where
    F: Future<Output = Result<(), Error>> + Send + 'static,
{
    start_runtime()?;
    let event_loop = generic::get_current_locals::<Asyncio>(py)?.event_loop(py).unbind();
    let locals = TaskLocals::new(Bound::new(py, Receiver { event_loop })?.into_any());
    {
        let mut state = PENDING.here().state.lock();
        if state.is_shut {
            let error = Error::new(ErrorKind::Closed, "open connector", "the interpreter is exiting");
            return Err(to_exception(py, &error));
        }
        state.count += 1;
    }
    let delivered = generic::future_into_py_with_locals::<Asyncio, _, ()>(py, locals, async move {
        let result = future.await;
        // On the thread that hands over, where waiting for the interpreter holds up nobody.
        let converted =
            runtime().spawn_blocking(move || attached(|py| result.map_err(|error| to_exception(py, &error))));
        if let Ok(Some(result)) = converted.await {
            return result;
        }
        // The interpreter is gone, or does not wait any longer.
        PENDING.here().end();
        std::future::pending().await
    });
    if delivered.is_err() {
        PENDING.here().end();
    }
    delivered
}

/// Begins nothing more, and waits until what is under way was handed over. What is not by `deadline` never will be. For
/// the process's exit; the caller is detached.
pub(super) fn shutdown(deadline: Instant) {
    let pending = PENDING.here();
    let mut state = pending.state.lock();
    state.is_shut = true;
    while state.count > 0 {
        if pending.changed.wait_until(&mut state, deadline).timed_out() {
            state.is_abandoned = true;
            return;
        }
    }
}

impl Pending {
    fn end(&self) {
        let mut state = self.state.lock();
        // One that nobody could receive may still be cancelled, and end again.
        state.count = state.count.saturating_sub(1);
        self.changed.notify_all();
    }
}

/// An event loop, for pyo3-async-runtimes: one that was closed meanwhile receives nothing, where that one would print a
/// traceback. A look beforehand would leave it the time to be closed behind the look.
#[pyclass(frozen)]
struct Receiver {
    event_loop: Py<PyAny>,
}

#[pymethods]
impl Receiver {
    fn create_future(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        self.event_loop.call_method0(py, intern!(py, "create_future"))
    }

    #[pyo3(signature = (*arguments, **options))]
    fn call_soon_threadsafe(
        &self,
        arguments: &Bound<'_, PyTuple>,
        options: Option<&Bound<'_, PyDict>>,
    ) -> PyResult<()> {
        let event_loop = self.event_loop.bind(arguments.py());
        let called = event_loop.call_method(intern!(event_loop.py(), "call_soon_threadsafe"), arguments, options);
        match called {
            Err(_) if !is_open(event_loop) => Ok(()),
            called => called.map(drop),
        }
    }
}

/// Attaches to the interpreter, which waits for whoever is counted, up to a deadline.
fn attached<T>(work: impl FnOnce(Python<'_>) -> T) -> Option<T> {
    let is_abandoned = PENDING.here().state.lock().is_abandoned;
    if is_abandoned { None } else { Python::try_attach(work) }
}

fn is_open(event_loop: &Bound<'_, PyAny>) -> bool {
    let closed = event_loop.call_method0(intern!(event_loop.py(), "is_closed"));
    closed.and_then(|closed| closed.is_truthy()).is_ok_and(|closed| !closed)
}

/// Each process's, since a forked child inherits one without threads.
static RUNTIME: PerProcess<OnceLock<tokio::runtime::Runtime>> = PerProcess::new();

/// # Errors
/// `OSError` where the system refuses another thread.
fn start_runtime() -> PyResult<()> {
    if RUNTIME.here().get().is_none() {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            // Each hand-over waits for the interpreter on such a thread: hundreds at once would start as many.
            .max_blocking_threads(1)
            .thread_name("nixl-asyncio")
            .build()?;
        // Whoever was faster has one of its own there; this one ends.
        let _ = RUNTIME.here().set(runtime);
    }
    Ok(())
}

fn runtime() -> &'static tokio::runtime::Runtime {
    RUNTIME
        .here()
        .get()
        .expect("`into_asyncio` has started it before anything runs on it")
}

tokio::task_local! {
    static LOCALS: TaskLocals;
}

/// The runtime that pyo3-async-runtimes uses here.
struct Asyncio;

/// A task's end.
struct Joined(tokio::task::JoinHandle<()>);

struct Failed(tokio::task::JoinError);

impl JoinError for Failed {
    fn is_panic(&self) -> bool {
        self.0.is_panic()
    }

    fn into_panic(self) -> Box<dyn Any + Send + 'static> {
        self.0.into_panic()
    }
}

impl Future for Joined {
    type Output = Result<(), Failed>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map_err(Failed)
    }
}

impl Runtime for Asyncio {
    type JoinError = Failed;
    type JoinHandle = Joined;

    fn spawn<F>(future: F) -> Joined
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Joined(runtime().spawn(future))
    }

    /// The hand-over, once for each future that [`into_asyncio`] made: of its result, or of its panic.
    fn spawn_blocking<F>(hand_over: F) -> Joined
    where
        F: FnOnce() + Send + 'static,
    {
        Joined(runtime().spawn_blocking(move || {
            // It attaches by itself, too; like this nothing can end the interpreter in between.
            let mut hand_over = Some(hand_over);
            attached(|_| hand_over.take().map(|hand_over| hand_over()));
            // Not dropped where the interpreter is gone, with the references to Python objects in it.
            std::mem::forget(hand_over);
            PENDING.here().end();
        }))
    }
}

impl ContextExt for Asyncio {
    fn scope<F, R>(locals: TaskLocals, future: F) -> Pin<Box<dyn Future<Output = R> + Send>>
    where
        F: Future<Output = R> + Send + 'static,
    {
        Box::pin(LOCALS.scope(locals, future))
    }

    fn get_task_locals() -> Option<TaskLocals> {
        LOCALS.try_with(Clone::clone).ok()
    }
}
