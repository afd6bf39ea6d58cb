//! A lane on a scripted wire, its thread one of loom's, beside callers who start, drop, wait and close.
#![allow(clippy::unwrap_used)]

use loom::thread;

use super::*;
use crate::descriptor::TransferPlan;
use crate::handle::{OperationHandle, Side};
use crate::operation::{Operation, Phase};
use crate::peer::RemoteMetadata;
use crate::reactor::lane::Lane;
use crate::reactor::transfer::{Limits, Transfer};
use crate::region::LocalMemory;
use crate::settings::Settings;
use crate::sync::{check, spawn};
use crate::transport::fake::{Completion, FakeNetwork, FakeOwner};
use crate::types::{Addr, AgentName, ByteLen, Direction, MemoryKind, MemoryRange, OperationKey};

const LONG: Duration = Duration::from_secs(3600);
const BYTES: u64 = 64;

/// A lane whose thread is the test's to start.
pub(crate) struct Stage {
    pub(crate) network: FakeNetwork,
    pub(crate) lane: Arc<Lane>,
    shared: Arc<Shared>,
    inbox: Inbox<Command>,
}

impl Stage {
    /// With its agent, named `agent`.
    pub(crate) fn new(agent: &str, settings: Settings) -> Self {
        let stage = Self::closed(agent, settings);
        stage.open();
        stage
    }

    fn closed(agent: &str, settings: Settings) -> Self {
        let (lane, shared, inbox) = Lane::threadless(AgentName::new(agent), settings, Role::Whole);
        Self {
            network: FakeNetwork::new(),
            lane: Arc::new(lane),
            shared,
            inbox,
        }
    }

    fn open(&self) {
        let opened = open(&self.shared, AgentFlavor::SharedMemoryErrors, &self.network.factory());
        self.shared.open_gate(|| self.shared.opened.get_or_init(|| opened));
    }

    /// Starts the thread. As the real one, it does not sleep while something moves.
    fn start(self) -> (FakeNetwork, Arc<Lane>, thread::JoinHandle<()>) {
        let Self {
            network,
            lane,
            shared,
            mut inbox,
        } = self;
        let thread = spawn(move || {
            let opened = shared.opened.get().unwrap().as_ref().unwrap();
            let mut driver = Driver::new(&shared, opened, &mut inbox);
            let quiet = loop {
                match driver.turn() {
                    ControlFlow::Break(quiet) => break quiet,
                    ControlFlow::Continue(activity) if activity.transfers > 0 || driver.closing.is_some() => {
                        thread::yield_now();
                    }
                    ControlFlow::Continue(_) => {
                        driver.park(LONG);
                    }
                }
            };
            leave(&shared, &mut inbox, quiet);
        });
        (network, lane, thread)
    }
}

/// A peer's memory, and a transfer from there.
struct Read {
    _owner: FakeOwner,
    memory: std::sync::Weak<()>,
    operation: Arc<Operation>,
    transfer: Transfer,
}

fn read(network: &FakeNetwork) -> Read {
    let range = |addr| MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr(addr),
        len: ByteLen(BYTES),
    };
    let (remote, local) = (range(0x7000_0000), range(0x1000_0000));
    let mut owner = FakeOwner::new(network, "owner").unwrap();
    owner.register(remote).unwrap();
    let metadata = RemoteMetadata::decode(&owner.metadata(&[remote], false).unwrap()).unwrap();
    let keep_alive = Arc::new(());
    let memory = Arc::downgrade(&keep_alive);
    let key = OperationKey::new(b"key".to_vec());
    let operation = Operation::new(Direction::Read, key, Some(metadata.agent().clone()), BYTES);
    let local_memory = LocalMemory {
        range: local,
        keep_alive: Some(keep_alive),
    };
    let plan = TransferPlan::new(&[local], &[remote]).unwrap();
    Read {
        _owner: owner,
        memory,
        operation: Arc::clone(&operation),
        transfer: Transfer::new(
            operation,
            Arc::new(metadata),
            plan,
            vec![local_memory],
            Limits::default(),
        ),
    }
}

fn close(lane: &Lane) {
    lane.begin_close(Closing::by(Instant::now() + LONG).order());
}

#[test]
fn a_handle_that_is_dropped_lets_the_memory_go_when_the_wire_is_done_with_it() {
    check(|| {
        let stage = Stage::new("reader", Settings::default());
        stage.network.set_completion(Completion::AfterPolls(1));
        let Read {
            _owner,
            memory,
            operation,
            transfer,
        } = read(&stage.network);
        let (network, lane, thread) = stage.start();
        lane.start(transfer);
        let side = Side::Active(Arc::clone(&lane));
        drop(OperationHandle::new(Arc::clone(&operation), side, Arc::new(())));
        assert!(operation.is_finished(), "by the drop, where not before");
        let status = operation.status();
        assert!(operation.wait(Phase::Quiet, None));
        assert!(operation.is_quiet());
        assert_eq!(network.in_flight(), 0, "quiet is told when the wire is done");
        close(&lane);
        assert!(lane.join(Instant::now() + LONG));
        thread.join().unwrap();
        assert_eq!((operation.status(), memory.strong_count()), (status, 0));
        assert_eq!(network.violations(), [""; 0]);
    });
}

#[test]
fn a_cancel_while_the_lane_goes_to_sleep_is_looked_at() {
    check(|| {
        let Stage {
            network,
            lane,
            shared,
            mut inbox,
        } = Stage::new("reader", Settings::default());
        network.set_completion(Completion::Held);
        let Read {
            _owner,
            memory,
            operation,
            transfer,
        } = read(&network);
        lane.start(transfer);
        let thread = spawn({
            let operation = Arc::clone(&operation);
            move || {
                let opened = shared.opened.get().unwrap().as_ref().unwrap();
                let mut driver = Driver::new(&shared, opened, &mut inbox);
                // Sleeps between all looks, as a lane does whose transfer stands still.
                loop {
                    let is_over = operation.is_finished();
                    assert!(driver.turn().is_continue());
                    if is_over {
                        break;
                    }
                    driver.park(LONG);
                }
                network.release_all();
                assert!(driver.turn().is_continue());
                assert_eq!(network.violations(), [""; 0]);
            }
        });
        let handle = OperationHandle::new(Arc::clone(&operation), Side::Active(lane), Arc::new(()));
        assert!(handle.cancel());
        thread.join().unwrap();
        assert!(operation.is_quiet() && memory.strong_count() == 0);
    });
}

#[test]
fn a_transfer_that_meets_the_lanes_end_has_an_end_of_its_own() {
    check(|| {
        let stage = Stage::new("reader", Settings::default());
        let Read {
            _owner,
            memory,
            operation,
            transfer,
        } = read(&stage.network);
        let (network, lane, thread) = stage.start();
        let starter = spawn({
            let lane = Arc::clone(&lane);
            move || lane.start(transfer)
        });
        close(&lane);
        starter.join().unwrap();
        thread.join().unwrap();
        assert!(operation.is_finished(), "complete, or refused");
        assert!(operation.is_quiet() && memory.strong_count() == 0);
        assert!(lane.has_ended());
        assert_eq!(network.violations(), [""; 0]);
    });
}

#[test]
fn whoever_waits_for_the_agent_or_for_the_end_is_told() {
    check(|| {
        let stage = Stage::closed("reader", Settings::default());
        let waiter = spawn({
            let lane = Arc::clone(&stage.lane);
            move || {
                assert!(lane.wait_open().is_ok());
                close(&lane);
                assert!(lane.join(Instant::now() + LONG));
            }
        });
        stage.open();
        let (_network, _lane, thread) = stage.start();
        waiter.join().unwrap();
        thread.join().unwrap();
    });
}

#[test]
fn a_lane_that_nobody_holds_ends() {
    check(|| {
        let stage = Stage::new("reader", Settings::default());
        let (network, lane, thread) = stage.start();
        let touching = spawn({
            let lane = Arc::clone(&lane);
            move || lane.touch()
        });
        drop(lane);
        thread.join().unwrap();
        touching.join().unwrap();
        assert_eq!(network.agents(), []);
        assert_eq!(network.violations(), [""; 0]);
    });
}
