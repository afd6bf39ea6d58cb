//! A lane: one NIXL agent, the thread that drives it, and the door through which others reach it.

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::closing::ClosingOrder;
use super::driver;
use super::mailbox::{Door, Inbox, mailbox};
use super::state::{LaneState, closed};
use super::transfer::Transfer;
use crate::error::Result;
use crate::exposure::Ledger;
use crate::operation::Outcome;
use crate::peer::RefusedNames;
use crate::region::RegionTable;
use crate::settings::Settings;
use crate::sync::{Condvar, Mutex};
use crate::thread;
use crate::transport::{AgentFlavor, TransportFactory};
use crate::types::AgentName;
use crate::words::WordTable;

/// How long a caller waits for its own small transfer to move on before it leaves it to the lane.
const INLINE_BUDGET: Duration = Duration::from_micros(30);

/// How long making or destroying an agent may take beyond a deadline.
const AGENT_GRACE: Duration = Duration::from_secs(10);

/// What a lane is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Whole transfers, and exposures.
    Whole,
    /// Parts of other lanes' big transfers. Nobody connects to it.
    Copy,
}

/// Work that is done a slice at a time: true while there is more.
pub(super) type Work = Box<dyn FnMut() -> bool + Send>;

/// What a lane is told through its channel.
pub(super) enum Command {
    Start(Box<Transfer>),
    /// Work for the lane's thread that would hold up a caller: a big registration.
    Run(Work),
    /// Nothing but a look at the wire.
    Wake,
    /// Take nothing new, drive what is in flight, destroy the agent.
    Close(ClosingOrder),
}

/// A lane. Made at once; its agent is made on its thread, and what is handed in before that waits for it.
pub(crate) struct Lane {
    shared: Arc<Shared>,
    door: Door<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// What the door and the driver share.
pub(super) struct Shared {
    pub(super) name: AgentName,
    pub(super) settings: Settings,
    pub(super) role: Role,
    pub(super) opened: OnceLock<Result<Opened>>,
    /// For those who wait for `opened` without a thread.
    opened_signal: Notify,
    /// Guards nothing but the wait for `opened` and `closed_quietly`.
    gate: Mutex<()>,
    gate_signal: Condvar,
    /// Set once the thread has ended its work: whether everything was quiet.
    pub(super) closed_quietly: OnceLock<bool>,
}

/// What exists once the agent does.
pub(crate) struct Opened {
    /// Also the way to the agent: it goes with the table when the lane ends.
    pub(crate) regions: Arc<RegionTable>,
    /// What its peers read and write of ours while the agent lives: words that tell how exposures stand.
    pub(crate) words: Arc<WordTable>,
    pub(crate) ledger: Arc<Ledger>,
    /// The agent's connection information, the same for its whole life.
    pub(crate) connection_info: Vec<u8>,
    /// Peers that the agent can or may not load any more.
    pub(super) refused: RefusedNames,
    /// Taken out when the lane ends.
    pub(super) state: Mutex<Option<LaneState>>,
}

impl Lane {
    /// Starts the lane's thread, which makes the agent.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Backend`] where no thread can be started. The agent's own failure is reported by
    /// [`Lane::wait_open`] and by everything that was handed in.
    pub(crate) fn spawn(
        thread_name: &str,
        name: AgentName,
        flavor: AgentFlavor,
        factory: TransportFactory,
        settings: Settings,
        role: Role,
    ) -> Result<Arc<Self>> {
        let (mut lane, shared, inbox) = Self::threadless(name, settings, role);
        let thread = thread::spawn(thread_name, move || driver::run(&shared, flavor, &factory, inbox))?;
        lane.thread = Mutex::new(Some(thread));
        Ok(Arc::new(lane))
    }

    /// A lane whose thread is still to be started, and what that thread gets.
    pub(super) fn threadless(name: AgentName, settings: Settings, role: Role) -> (Self, Arc<Shared>, Inbox<Command>) {
        let (door, inbox) = mailbox();
        let shared = Arc::new(Shared {
            name,
            settings,
            role,
            opened: OnceLock::new(),
            opened_signal: Notify::new(),
            gate: Mutex::new(()),
            gate_signal: Condvar::new(),
            closed_quietly: OnceLock::new(),
        });
        let lane = Self {
            shared: Arc::clone(&shared),
            door,
            thread: Mutex::new(None),
        };
        (lane, shared, inbox)
    }

    /// The agent, once it exists.
    pub(crate) fn opened(&self) -> Option<&Result<Opened>> {
        self.shared.opened.get()
    }

    /// Whether it is for copying, and its agent exists.
    pub(crate) fn is_ready_to_copy(&self) -> bool {
        self.shared.role == Role::Copy && !self.has_ended() && matches!(self.opened(), Some(Ok(_)))
    }

    /// Whether nothing can be done with it, now or ever.
    pub(crate) fn has_failed(&self) -> bool {
        self.has_ended() || matches!(self.opened(), Some(Err(_)))
    }

    /// Whether the lane's thread has ended its work.
    pub(crate) fn has_ended(&self) -> bool {
        self.shared.closed_quietly.get().is_some()
    }

    /// Waits for the agent on this thread.
    ///
    /// # Errors
    /// Why the agent could not be made.
    pub(crate) fn wait_open(&self) -> Result<&Opened> {
        let mut gate = self.shared.gate.lock();
        loop {
            if let Some(opened) = self.shared.opened.get() {
                return opened.as_ref().map_err(Clone::clone);
            }
            self.shared.gate_signal.wait(&mut gate);
        }
    }

    /// Waits for the agent without a thread.
    ///
    /// # Errors
    /// As [`Lane::wait_open`].
    #[cfg(feature = "python")]
    pub(crate) async fn opening(&self) -> Result<()> {
        loop {
            // Listening before the look, so that the signal cannot fall in between.
            let signal = self.shared.opened_signal.notified();
            let mut signal = std::pin::pin!(signal);
            signal.as_mut().enable();
            if let Some(opened) = self.shared.opened.get() {
                return opened.as_ref().map(drop).map_err(Clone::clone);
            }
            signal.await;
        }
    }

    /// Starts a transfer: on this thread where it is small and the lane is free, on the lane's otherwise.
    pub(crate) fn start(&self, transfer: Transfer) {
        if let Some(Ok(opened)) = self.shared.opened.get() {
            if let Some(mut state) = opened.state.try_lock() {
                if let Some(state) = state.as_mut() {
                    if state.takes_inline(&transfer) {
                        if !state.run_inline(transfer, INLINE_BUDGET) {
                            self.touch();
                        }
                        return;
                    }
                }
            }
        }
        if let Err(refused) = self.door.send(Command::Start(Box::new(transfer))) {
            refused.refuse();
        }
    }

    /// Runs work on the lane's thread, once the agent exists. False where the lane has ended.
    pub(crate) fn run(&self, work: Work) -> bool {
        self.door.send(Command::Run(work)).is_ok()
    }

    /// Something changed that the lane's thread should look at soon: it may sleep for up to 100 ms.
    pub(crate) fn touch(&self) {
        self.door.touch(Command::Wake);
    }

    /// The loaded peers' names.
    pub(crate) fn peers(&self) -> Vec<AgentName> {
        self.with_state(|state| state.peers().names().cloned().collect())
            .unwrap_or_default()
    }

    /// How often one of them was dropped to be loaded anew.
    pub(crate) fn reloads(&self) -> u64 {
        self.with_state(|state| state.peers().reloads()).unwrap_or_default()
    }

    /// Transfers the wire is not done with, and ranges that can never be shown quiet.
    pub(crate) fn pending(&self) -> (usize, usize) {
        self.with_state(|state| (state.whole_transfers(), state.unquiet()))
            .unwrap_or_default()
    }

    fn with_state<T>(&self, look: impl FnOnce(&LaneState) -> T) -> Option<T> {
        match self.shared.opened.get() {
            Some(Ok(opened)) => opened.state.lock().as_ref().map(look),
            _ => None,
        }
    }

    /// Tells the lane to end.
    pub(crate) fn begin_close(&self, order: ClosingOrder) {
        // Refused, and dropped, where the thread has ended already.
        let _ = self.door.send(Command::Close(order));
    }

    /// Whether this lane's agent can or may not load a peer of that name any more.
    pub(crate) fn refuses(&self, peer: &AgentName) -> bool {
        matches!(self.shared.opened.get(), Some(Ok(opened)) if opened.refused.lock().contains(peer))
    }

    /// Waits for the lane's end, which [`Lane::begin_close`] has ordered for `deadline`. True where everything was quiet.
    ///
    /// A lane whose thread is stuck inside of NIXL is left behind after a grace: better a leaked thread than a hang.
    pub(crate) fn join(&self, deadline: Instant) -> bool {
        let mut gate = self.shared.gate.lock();
        while self.shared.closed_quietly.get().is_none() {
            if self
                .shared
                .gate_signal
                .wait_until(&mut gate, deadline + AGENT_GRACE)
                .timed_out()
            {
                tracing::error!(lane = %self.shared.name, "a lane did not end in time; its thread is left behind");
                if let Some(thread) = self.thread.lock().take() {
                    drop(thread);
                }
                return false;
            }
        }
        drop(gate);
        if let Some(thread) = self.thread.lock().take() {
            // A panic was reported where it happened.
            let _ = thread.join();
        }
        self.shared.closed_quietly.get().copied().unwrap_or(false)
    }
}

impl Shared {
    /// Changes what somebody may wait for at the gate.
    pub(super) fn open_gate<T>(&self, change: impl FnOnce() -> T) {
        let _gate = self.gate.lock();
        change();
        self.gate_signal.notify_all();
        self.opened_signal.notify_waiters();
    }
}

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.lock().take() {
            // The channel's end tells the thread to close, if nobody has.
            thread::adopt(thread);
        }
    }
}

impl fmt::Debug for Lane {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Lane")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl Command {
    /// The lane has ended, or never began.
    pub(super) fn refuse(self) {
        if let Self::Start(mut transfer) = self {
            transfer.abandon(Outcome::Failed(closed()));
        }
    }
}
