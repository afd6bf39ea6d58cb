//! A lane's thread: it makes the agent, drives the lane, and takes it apart in the end.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::mpsc::error::TryRecvError;

use super::closing::{Closing, ClosingOrder};
use super::idle::{Activity, IdlePolicy, Rest};
use super::lane::{Command, Opened, Shared, Work};
use super::state::{Introduction, LaneState, Resources, closed};
use crate::error::{Error, ErrorKind};
use crate::exposure::Ledger;
use crate::operation::Outcome;
use crate::peer::{PeerTable, RefusedNames};
use crate::process;
use crate::region::RegionTable;
use crate::transport::{AgentFlavor, TransportFactory};
use crate::words::WordTable;

/// How long a lane that nobody holds any more drives what is in flight.
const ORPHAN_GRACE: Duration = Duration::from_secs(5);
/// So many commands are taken between two looks at the wire, so that a flood of them holds up no transfer.
const COMMANDS_PER_LOOK: usize = 64;
/// How often a lane that has nothing left to move looks whether its group may end.
const CLOSING_NAP: Duration = Duration::from_micros(100);

/// The thread's body.
pub(super) fn run(
    shared: &Shared,
    flavor: AgentFlavor,
    factory: &TransportFactory,
    mut commands: UnboundedReceiver<Command>,
) {
    let life = AssertUnwindSafe(|| live(shared, flavor, factory, &mut commands));
    let quiet = catch_unwind(life).unwrap_or_else(|_| give_up(shared));
    commands.close();
    while let Ok(command) = commands.try_recv() {
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
fn live(
    shared: &Shared,
    flavor: AgentFlavor,
    factory: &TransportFactory,
    commands: &mut UnboundedReceiver<Command>,
) -> bool {
    let opened = factory(&shared.name, flavor).and_then(|transport| {
        let connection_info = transport.connection_info()?;
        let regions = RegionTable::new(Arc::clone(&transport));
        let ledger = Arc::new(Ledger::new(&shared.settings));
        let words = WordTable::new(Arc::clone(&regions));
        let refused = RefusedNames::default();
        let peers = PeerTable::new(Arc::clone(&refused));
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
    });
    let failure = opened.as_ref().err().cloned();
    shared.open_gate(|| shared.opened.get_or_init(|| opened));
    match (shared.opened.get(), failure) {
        (Some(Ok(opened)), _) => match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => runtime.block_on(drive(shared, opened, commands)),
            Err(error) => {
                tracing::error!(%error, "a lane has no runtime");
                give_up(shared)
            }
        },
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

/// The lane's life. True where everything was quiet at its end.
async fn drive(shared: &Shared, opened: &Opened, commands: &mut UnboundedReceiver<Command>) -> bool {
    let mut idle = IdlePolicy::new(Instant::now());
    let mut closing: Option<ClosingOrder> = None;
    // Work that is done a slice at a look, so that the lane is never deaf for long.
    let mut works: VecDeque<Work> = VecDeque::new();
    loop {
        let mut handled = handle_some(shared, opened, commands, &mut closing, &mut works);
        if let Some(work) = works.front_mut() {
            handled = true;
            if !work() {
                works.pop_front();
            }
        }
        let Some(mut activity) = look(opened) else {
            return true;
        };
        activity.progressed |= handled;
        if let Some(order) = &mut closing {
            // Peers that are known to be at work here have been told, and end what they have begun.
            if activity.transfers == 0 && !lingers(opened) && !opened.ledger.is_used() {
                order.note_quiet();
            }
            if order.may_end(Instant::now()) {
                return end(opened);
            }
        }
        match idle.next(activity, Instant::now()) {
            Rest::Spin => std::hint::spin_loop(),
            Rest::Yield => std::thread::yield_now(),
            // On purpose a sleep of the whole thread: tokio's timer has a resolution of a millisecond, and nothing else
            // runs here.
            Rest::Nap(duration) => std::thread::sleep(duration),
            Rest::Park(_) if closing.is_some() => std::thread::sleep(CLOSING_NAP),
            Rest::Park(duration) => {
                shared.is_parked.store(true, Ordering::Release);
                // Whoever handed something in before it could see that mark has sent no wake-up.
                let has_news = opened
                    .state
                    .lock()
                    .as_ref()
                    .is_some_and(|state| state.has_news(&activity));
                if !has_news {
                    if let Ok(command) = tokio::time::timeout(duration, commands.recv()).await {
                        handle(
                            shared,
                            opened,
                            command.unwrap_or_else(orphaned),
                            &mut closing,
                            &mut works,
                        );
                        idle.wake(Instant::now());
                    }
                }
                shared.is_parked.store(false, Ordering::Release);
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

/// Takes what has come through the channel. Whether there was anything.
fn handle_some(
    shared: &Shared,
    opened: &Opened,
    commands: &mut UnboundedReceiver<Command>,
    closing: &mut Option<ClosingOrder>,
    works: &mut VecDeque<Work>,
) -> bool {
    for count in 0..COMMANDS_PER_LOOK {
        match commands.try_recv() {
            Ok(command) => handle(shared, opened, command, closing, works),
            Err(TryRecvError::Disconnected) if closing.is_none() => handle(shared, opened, orphaned(), closing, works),
            Err(TryRecvError::Empty | TryRecvError::Disconnected) => return count > 0,
        }
    }
    true
}

/// What a lane does whose last holder is gone.
fn orphaned() -> Command {
    Command::Close(Closing::by(Instant::now() + ORPHAN_GRACE).order())
}

fn handle(
    shared: &Shared,
    opened: &Opened,
    command: Command,
    closing: &mut Option<ClosingOrder>,
    works: &mut VecDeque<Work>,
) {
    match command {
        // Done outside of the lane's lock: it takes the locks that it needs.
        Command::Run(work) => works.push_back(work),
        Command::Wake => {}
        Command::Start(transfer) => {
            if let Some(state) = opened.state.lock().as_mut() {
                state.add(*transfer);
            }
        }
        // The first order stands; a second one is dropped, and its group does not wait for this lane.
        Command::Close(_) if closing.is_some() => {}
        Command::Close(order) => {
            tracing::debug!(lane = %shared.name, "closing");
            *closing = Some(order);
            if let Some(state) = opened.state.lock().as_mut() {
                state.begin_close();
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
        opened.ledger.end_all();
        opened.words.close();
        opened.regions.close();
        true
    } else {
        tracing::warn!(
            transfers = state.transfers(),
            "a lane was closed with transfers in flight; their memory stays pinned"
        );
        state.leak();
        false
    }
}
