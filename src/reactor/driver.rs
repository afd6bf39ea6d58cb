//! A lane's thread: it makes the agent, drives the lane, and takes it apart in the end.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::sync::mpsc::error::TryRecvError;

use super::closing::{Closing, ClosingOrder};
use super::idle::{Activity, IdlePolicy, Rest};
use super::lane::{Command, Opened, Role, Shared, Work};
use super::mailbox::Inbox;
use super::state::{Introduction, LaneState, Resources, closed};
use crate::error::{Error, ErrorKind, Result};
use crate::exposure::Ledger;
use crate::operation::Outcome;
use crate::peer::{MAX_PEERS, MAX_PEERS_OF_COPIES, PeerTable, RefusedNames};
use crate::process;
use crate::region::RegionTable;
use crate::sync::{Mutex, MutexGuard};
use crate::thread;
use crate::transport::{AgentFlavor, TransportFactory};
use crate::words::WordTable;

/// How long a lane that nobody holds any more drives what is in flight.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);
/// So many commands are taken between two looks at the wire, so that a flood of them holds up no transfer.
const COMMANDS_PER_LOOK: usize = 64;
/// How often a lane that has nothing left to move looks whether its group may end.
const CLOSING_NAP: Duration = Duration::from_micros(100);

/// The thread's body.
pub(super) fn run(shared: &Shared, flavor: AgentFlavor, factory: &TransportFactory, mut commands: Inbox<Command>) {
    let life = AssertUnwindSafe(|| live(shared, flavor, factory, &mut commands));
    let quiet = catch_unwind(life).unwrap_or_else(|_| give_up(shared));
    leave(shared, &mut commands, quiet);
}

/// The last of the thread: nothing is taken any more, and those are told who wait for that.
fn leave(shared: &Shared, commands: &mut Inbox<Command>, quiet: bool) {
    commands.close();
    // To the end of the channel: something that is just being sent, which a look without waiting misses, would be
    // dropped, and its operation would never end.
    while let Some(command) = commands.blocking_recv() {
        command.refuse();
    }
    shared.open_gate(|| shared.closed_quietly.get_or_init(|| quiet));
}

/// Ends everything after a panic, so that nobody waits for ever. What the wire may still touch stays pinned. True where
/// there was no agent yet.
fn give_up(shared: &Shared) -> bool {
    shared.open_gate(|| {
        shared
            .opened
            .get_or_init(|| Err(Error::new(ErrorKind::Backend, "lane", "its thread has panicked")))
    });
    let Some(Ok(opened)) = shared.opened.get() else {
        return true;
    };
    // First of all, so that whoever learns of it through an operation is given a new lane.
    shared.open_gate(|| shared.closed_quietly.get_or_init(|| false));
    if let Some(mut state) = opened.state.lock().take() {
        state.begin_close();
        state.leak();
    }
    false
}

/// Makes the agent and drives it to its end. True where everything was quiet.
fn live(shared: &Shared, flavor: AgentFlavor, factory: &TransportFactory, commands: &mut Inbox<Command>) -> bool {
    let opened = open(shared, flavor, factory);
    let failure = opened.as_ref().err().cloned();
    shared.open_gate(|| shared.opened.get_or_init(|| opened));
    match (shared.opened.get(), failure) {
        (Some(Ok(opened)), _) => Driver::new(shared, opened, commands).drive(),
        (_, failure) => {
            // Everything that was handed in fails for the reason the agent failed.
            while let Some(command) = commands.blocking_recv() {
                match command {
                    Command::Start(mut transfer) => {
                        transfer.abandon(Outcome::Failed(failure.clone().unwrap_or_else(closed)));
                    }
                    Command::Run(mut work) => while work() {},
                    Command::Wake => {}
                    Command::Close(_) => break,
                }
            }
            true
        }
    }
}

/// Makes the agent, and what goes with it.
fn open(shared: &Shared, flavor: AgentFlavor, factory: &TransportFactory) -> Result<Opened> {
    let transport = factory(&shared.name, flavor)?;
    let connection_info = transport.connection_info()?;
    let regions = RegionTable::new(Arc::clone(&transport));
    let ledger = Arc::new(Ledger::new(&shared.settings));
    let words = WordTable::new(Arc::clone(&regions));
    let refused = RefusedNames::default();
    let most_peers = match shared.role {
        Role::Whole => MAX_PEERS,
        Role::Copy => MAX_PEERS_OF_COPIES,
    };
    let peers = PeerTable::new(Arc::clone(&refused), most_peers);
    let resources = Resources {
        transport,
        peers,
        regions: Arc::clone(&regions),
        words: Arc::clone(&words),
        introduction: process::here().map(|process| Introduction {
            connection: Bytes::copy_from_slice(&connection_info),
            process,
        }),
        keepalive: shared.settings.keepalive_interval(),
        last_unheard: None,
    };
    let state = LaneState::new(resources, Arc::clone(&ledger), shared.settings.quarantine_limit);
    Ok(Opened {
        regions,
        words,
        ledger,
        connection_info,
        refused,
        state: Mutex::new(Some(state)),
    })
}

/// What the thread has to itself while the lane lives.
struct Driver<'lane> {
    shared: &'lane Shared,
    opened: &'lane Opened,
    commands: &'lane mut Inbox<Command>,
    closing: Option<ClosingOrder>,
    /// Work that is done a slice at a look, so that the lane is never deaf for long.
    works: VecDeque<Work>,
}

impl<'lane> Driver<'lane> {
    fn new(shared: &'lane Shared, opened: &'lane Opened, commands: &'lane mut Inbox<Command>) -> Self {
        Self {
            shared,
            opened,
            commands,
            closing: None,
            works: VecDeque::new(),
        }
    }

    /// The lane's life. True where everything was quiet at its end.
    fn drive(mut self) -> bool {
        if self.shared.role == Role::Copy {
            // Not before the agent is made: its own threads would inherit it.
            thread::be_nice();
        }
        let mut idle = IdlePolicy::new(Instant::now());
        loop {
            let activity = match self.turn() {
                ControlFlow::Break(quiet) => return quiet,
                ControlFlow::Continue(activity) => activity,
            };
            match idle.next(activity, Instant::now()) {
                Rest::Spin => std::hint::spin_loop(),
                Rest::Yield => std::thread::yield_now(),
                Rest::Nap(duration) => std::thread::sleep(duration),
                Rest::Park(_) if self.closing.is_some() => std::thread::sleep(CLOSING_NAP),
                Rest::Park(duration) => {
                    if self.park(duration) {
                        idle.wake(Instant::now());
                    }
                }
            }
        }
    }

    /// Takes what has come and looks at the wire. Breaks at the lane's end, with whether everything was quiet.
    fn turn(&mut self) -> ControlFlow<bool, Activity> {
        let mut handled = self.handle_some();
        if let Some(work) = self.works.front_mut() {
            handled = true;
            if !work() {
                self.works.pop_front();
            }
        }
        let Some(mut activity) = look(self.opened) else {
            return ControlFlow::Break(true);
        };
        activity.progressed |= handled;
        // Nobody connects to a lane that only copies.
        activity.attached &= self.shared.role == Role::Whole;
        if let Some(order) = &mut self.closing {
            // Peers that are known to be at work here have been told, and end what they have begun.
            if activity.transfers == 0 && !lingers(self.opened) && !self.opened.ledger.is_used() {
                order.note_quiet();
            }
            if order.may_end(Instant::now()) {
                return ControlFlow::Break(end(self.opened));
            }
        }
        ControlFlow::Continue(activity)
    }

    /// Sleeps until there is something to look at. Whether a command came.
    fn park(&mut self, duration: Duration) -> bool {
        let command = match self.commands.rest(duration) {
            Ok(command) => command,
            Err(TryRecvError::Disconnected) => orphaned(),
            Err(TryRecvError::Empty) => return false,
        };
        self.handle(command);
        true
    }

    /// Takes what has come through the channel. Whether there was anything.
    fn handle_some(&mut self) -> bool {
        for count in 0..COMMANDS_PER_LOOK {
            match self.commands.try_recv() {
                Ok(command) => self.handle(command),
                Err(TryRecvError::Disconnected) if self.closing.is_none() => self.handle(orphaned()),
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return count > 0,
            }
        }
        true
    }

    fn handle(&mut self, command: Command) {
        match command {
            // Done outside of the lane's lock: it takes the locks that it needs.
            Command::Run(work) => self.works.push_back(work),
            Command::Wake => {}
            Command::Start(transfer) => {
                if let Some(state) = self.opened.state.lock().as_mut() {
                    state.add(*transfer);
                }
            }
            // The first order stands; a second one is dropped, and its group does not wait for this lane.
            Command::Close(_) if self.closing.is_some() => {}
            Command::Close(order) => {
                tracing::debug!(lane = %self.shared.name, "closing");
                self.closing = Some(order);
                if let Some(state) = self.opened.state.lock().as_mut() {
                    state.begin_close();
                }
            }
        }
    }
}

/// One look at the wire; `None` where the lane was taken apart.
fn look(opened: &Opened) -> Option<Activity> {
    let mut state = opened.state.lock();
    let activity = state.as_mut().map(LaneState::tick);
    // Somebody may wait for a look at the lane, and the next turn is close.
    MutexGuard::unlock_fair(state);
    activity
}

fn lingers(opened: &Opened) -> bool {
    let state = opened.state.lock();
    state.as_ref().is_some_and(|state| state.lingers(Instant::now()))
}

/// What a lane does whose last holder is gone.
fn orphaned() -> Command {
    Command::Close(Closing::by(Instant::now() + ORPHAN_GRACE).order())
}

/// Takes the state apart. What the wire may still touch is leaked on purpose: its memory must outlive the process's
/// sight of it.
fn end(opened: &Opened) -> bool {
    let Some(state) = opened.state.lock().take() else {
        return true;
    };
    let is_in_reach = opened.ledger.is_in_reach();
    if state.is_quiet() && !is_in_reach {
        drop(state);
        opened.ledger.end_all();
        opened.words.close();
        opened.regions.close();
        true
    } else {
        tracing::warn!(
            transfers = state.transfers(),
            is_in_reach,
            "a lane was closed with transfers in flight, its own or a peer's; their memory stays pinned"
        );
        state.leak();
        false
    }
}

#[cfg(all(test, feature = "model"))]
pub(crate) mod model;
