//! A lane: one NIXL agent, the thread that drives it, and the door through which others reach it.

use std::fmt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

use super::dispatch::Dispatcher;
use super::idle::{IdlePolicy, Rest};
use super::state::{LaneState, closed};
use super::thread;
use super::transfer::Transfer;
use crate::error::Result;
use crate::operation::Outcome;
use crate::region::RegionTable;
use crate::transport::{AgentFlavor, TransportFactory};
use crate::types::AgentName;

/// How long a caller drives its own small transfer before it leaves it to the lane.
const INLINE_BUDGET: Duration = Duration::from_micros(30);

/// What a lane is told through its channel.
enum Command {
    Start(Box<Transfer>),
    /// Work for the lane's thread that would hold up a caller: a big registration.
    Run(Box<dyn FnOnce() + Send>),
    /// Nothing but a look at the wire.
    Wake,
    /// Take nothing new, drive what is in flight until the deadline, destroy the agent.
    Close(Instant),
}

/// A lane. Made at once; its agent is made on its thread, and what is handed in before that waits for it.
pub(crate) struct Lane {
    shared: Arc<Shared>,
    commands: UnboundedSender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    name: AgentName,
    opened: OnceLock<Result<Opened>>,
    /// Guards nothing but the wait for `opened` and `closed_quietly`.
    gate: Mutex<()>,
    gate_signal: Condvar,
    /// Set once the thread has ended its work: whether everything was quiet.
    closed_quietly: OnceLock<bool>,
    is_parked: AtomicBool,
}

/// What exists once the agent does.
pub(crate) struct Opened {
    /// Also the way to the agent: it goes with the table when the lane ends.
    pub(crate) regions: Arc<RegionTable>,
    pub(crate) dispatcher: Arc<Dispatcher>,
    /// The agent's connection information, the same for its whole life.
    pub(crate) connection_info: Vec<u8>,
    /// Taken out when the lane ends.
    state: Mutex<Option<LaneState>>,
}

impl Lane {
    /// Starts the lane's thread, which makes the agent.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Backend`] where no thread can be started. The agent's own failure is reported by
    /// [`Lane::wait_open`] and by everything that was handed in.
    pub(crate) fn spawn(name: AgentName, flavor: AgentFlavor, factory: TransportFactory) -> Result<Arc<Self>> {
        let (commands, receiver) = unbounded_channel();
        let shared = Arc::new(Shared {
            name,
            opened: OnceLock::new(),
            gate: Mutex::new(()),
            gate_signal: Condvar::new(),
            closed_quietly: OnceLock::new(),
            is_parked: AtomicBool::new(false),
        });
        let body = Arc::clone(&shared);
        let thread = thread::spawn("nixl-lane", move || body.run(flavor, &factory, receiver))?;
        Ok(Arc::new(Self {
            shared,
            commands,
            thread: Mutex::new(Some(thread)),
        }))
    }

    /// The agent, once it exists.
    pub(crate) fn opened(&self) -> Option<&Result<Opened>> {
        self.shared.opened.get()
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
        if let Err(refused) = self.commands.send(Command::Start(Box::new(transfer))) {
            refused.0.refuse();
        }
    }

    /// Runs work on the lane's thread, once the agent exists. False where the lane has ended.
    pub(crate) fn run(&self, work: Box<dyn FnOnce() + Send>) -> bool {
        self.commands.send(Command::Run(work)).is_ok()
    }

    /// Something changed that the lane's thread should look at soon: it may sleep for up to 100 ms.
    pub(crate) fn touch(&self) {
        if self.shared.is_parked.load(Ordering::Acquire) {
            // Refused where the lane has ended.
            let _ = self.commands.send(Command::Wake);
        }
    }

    /// The loaded peers' names.
    pub(crate) fn peers(&self) -> Vec<AgentName> {
        self.with_state(|state| state.peers().names().cloned().collect())
            .unwrap_or_default()
    }

    /// Transfers the wire is not done with, and ranges that can never be shown quiet.
    pub(crate) fn pending(&self) -> (usize, usize) {
        self.with_state(|state| (state.transfers(), state.unquiet()))
            .unwrap_or_default()
    }

    fn with_state<T>(&self, look: impl FnOnce(&LaneState) -> T) -> Option<T> {
        match self.shared.opened.get() {
            Some(Ok(opened)) => opened.state.lock().as_ref().map(look),
            _ => None,
        }
    }

    /// Tells the lane to end by `deadline`.
    pub(crate) fn begin_close(&self, deadline: Instant) {
        // Refused where the thread has ended already.
        let _ = self.commands.send(Command::Close(deadline));
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

impl Drop for Lane {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.get_mut().take() {
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
    fn refuse(self) {
        if let Self::Start(mut transfer) = self {
            transfer.abandon(Outcome::Failed(closed()));
        }
    }
}

/// How long making or destroying an agent may take beyond a deadline.
const AGENT_GRACE: Duration = Duration::from_secs(10);

/// How long a lane that nobody holds any more drives what is in flight.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);

impl Shared {
    fn run(&self, flavor: AgentFlavor, factory: &TransportFactory, mut commands: UnboundedReceiver<Command>) {
        let opened = factory(&self.name, flavor).and_then(|transport| {
            let connection_info = transport.connection_info()?;
            let regions = RegionTable::new(Arc::clone(&transport));
            let dispatcher = Arc::new(Dispatcher::default());
            let state = LaneState::new(transport, Arc::clone(&regions), Arc::clone(&dispatcher));
            Ok(Opened {
                regions,
                dispatcher,
                connection_info,
                state: Mutex::new(Some(state)),
            })
        });
        let failure = opened.as_ref().err().cloned();
        self.open_gate(|| self.opened.get_or_init(|| opened));
        let quiet = match (self.opened.get(), failure) {
            (Some(Ok(opened)), _) => match tokio::runtime::Builder::new_current_thread().enable_time().build() {
                Ok(runtime) => runtime.block_on(self.drive(opened, &mut commands)),
                Err(error) => {
                    tracing::error!(%error, "a lane has no runtime");
                    true
                }
            },
            (_, failure) => {
                // Everything that was handed in fails for the reason the agent failed.
                while let Some(command) = commands.blocking_recv() {
                    match command {
                        Command::Start(mut transfer) => {
                            transfer.abandon(Outcome::Failed(failure.clone().unwrap_or_else(closed)));
                        }
                        Command::Run(work) => work(),
                        Command::Wake => {}
                        Command::Close(_) => break,
                    }
                }
                true
            }
        };
        commands.close();
        while let Ok(command) = commands.try_recv() {
            command.refuse();
        }
        self.open_gate(|| self.closed_quietly.get_or_init(|| quiet));
    }

    fn open_gate<T>(&self, change: impl FnOnce() -> T) {
        let _gate = self.gate.lock();
        change();
        self.gate_signal.notify_all();
    }

    /// The lane's life. True where everything was quiet at its end.
    async fn drive(&self, opened: &Opened, commands: &mut UnboundedReceiver<Command>) -> bool {
        let mut idle = IdlePolicy::new(Instant::now());
        let mut deadline = None;
        loop {
            let mut handled = false;
            loop {
                match commands.try_recv() {
                    Ok(command) => {
                        handled = true;
                        self.handle(opened, command, &mut deadline);
                    }
                    Err(tokio::sync::mpsc::error::TryRecvError::Empty) => break,
                    Err(tokio::sync::mpsc::error::TryRecvError::Disconnected) => {
                        if deadline.is_none() {
                            self.handle(opened, Command::Close(Instant::now() + ORPHAN_GRACE), &mut deadline);
                        }
                        break;
                    }
                }
            }
            let mut activity = match opened.state.lock().as_mut() {
                Some(state) => state.tick(),
                None => return true,
            };
            activity.progressed |= handled;
            if let Some(deadline) = deadline {
                if activity.transfers == 0 || Instant::now() >= deadline {
                    return end(opened);
                }
            }
            match idle.next(activity, Instant::now()) {
                Rest::Spin => std::hint::spin_loop(),
                Rest::Yield => std::thread::yield_now(),
                // On purpose a sleep of the whole thread: tokio's timer has a resolution of a millisecond, and nothing
                // else runs here.
                Rest::Nap(duration) => std::thread::sleep(duration),
                Rest::Park(duration) if deadline.is_none() => {
                    self.is_parked.store(true, Ordering::Release);
                    let command = tokio::time::timeout(duration, commands.recv()).await;
                    self.is_parked.store(false, Ordering::Release);
                    if let Ok(command) = command {
                        let command = command.unwrap_or_else(|| Command::Close(Instant::now() + ORPHAN_GRACE));
                        self.handle(opened, command, &mut deadline);
                        idle.wake(Instant::now());
                    }
                }
                Rest::Park(_) => std::thread::yield_now(),
            }
        }
    }

    fn handle(&self, opened: &Opened, command: Command, deadline: &mut Option<Instant>) {
        match command {
            // Outside of the lane's lock: it takes the locks that it needs.
            Command::Run(work) => work(),
            Command::Wake => {}
            Command::Start(transfer) => {
                if let Some(state) = opened.state.lock().as_mut() {
                    state.add(*transfer);
                }
            }
            Command::Close(by) => {
                tracing::debug!(lane = %self.name, "closing");
                *deadline = Some(by);
                if let Some(state) = opened.state.lock().as_mut() {
                    state.begin_close();
                }
            }
        }
    }
}

/// Takes the state apart. What the wire may still touch is leaked on purpose: its memory must outlive the process's
/// sight of it.
fn end(opened: &Opened) -> bool {
    let Some(state) = opened.state.lock().take() else {
        return true;
    };
    if state.is_quiet() {
        drop(state);
        opened.regions.close();
        true
    } else {
        tracing::warn!(
            transfers = state.transfers(),
            "a lane was closed with transfers in flight; their memory stays pinned"
        );
        std::mem::forget(state);
        false
    }
}
