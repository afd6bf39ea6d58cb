//! Named threads of the core, which never take the GIL, and the certainty that each one is joined before the process ends.

use std::cell::Cell;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use crate::sync::lock::Mutex;

use crate::error::{Error, ErrorKind, Result};
use crate::process::PerProcess;

thread_local! {
    static IS_OURS: Cell<bool> = const { Cell::new(false) };
}

/// Whether this is a thread of the core's, which must neither block nor enter Python.
#[cfg(feature = "python")]
pub(crate) fn is_ours() -> bool {
    IS_OURS.get()
}

/// Threads whose owner is gone. They end on their own; joining them keeps the process's exit from tearing NIXL down
/// under a thread that still destroys an agent.
static ORPHANS: PerProcess<Mutex<Vec<JoinHandle<()>>>> = PerProcess::new();

/// Starts a thread of the core's.
///
/// # Errors
/// [`ErrorKind::Backend`] where the system refuses another thread.
pub(crate) fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>> {
    Builder::new()
        .name(name.to_owned())
        .spawn(move || {
            IS_OURS.set(true);
            // The kernel rounds sleeps by 50 us unless told otherwise, which is more than a small transfer takes. A
            // refusal only costs those microseconds.
            let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
            body();
        })
        .map_err(|source| {
            Error::new(ErrorKind::Backend, "start thread", "no thread could be started")
                .with_hint("check `ulimit -u` and the container's pids limit")
                .with_source(source)
        })
}

/// How much this thread gives way to others, its process's event loop among them.
const NICE: i32 = 3;

/// Has this thread give way to all others of the process.
pub(crate) fn be_nice() {
    // On Linux the priority is the thread's own. A refusal only costs the others some time.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
}

/// Takes over a thread whose owner cannot wait for it.
pub(crate) fn adopt(thread: JoinHandle<()>) {
    let mut orphans = ORPHANS.here().lock();
    orphans.retain(|orphan| !orphan.is_finished());
    orphans.push(thread);
}

/// Waits for every adopted thread until `deadline`. Each has been told to end; one that is stuck inside of NIXL is left
/// behind, rather than holding up the process's exit.
pub(crate) fn join_orphans(deadline: Instant) {
    const LOOK: Duration = Duration::from_millis(1);
    let mut orphans = std::mem::take(&mut *ORPHANS.here().lock());
    while Instant::now() < deadline && orphans.iter().any(|orphan| !orphan.is_finished()) {
        std::thread::sleep(LOOK);
    }
    orphans.retain(JoinHandle::is_finished);
    for orphan in orphans {
        // A panic there was reported where it happened.
        let _ = orphan.join();
    }
}
