//! Two processes on real NIXL when something goes wrong: death, cancel, and a peer of the wrong kind.
#![cfg(feature = "testing")]
#![allow(clippy::unwrap_used)]

#[macro_use]
mod support;

use std::time::{Duration, Instant};

use dynamo_nixl::connector::{BeginOptions, Connector};
use dynamo_nixl::handle::OperationHandle;
use dynamo_nixl::operation::{Phase, Status};
use dynamo_nixl::region::LocalMemory;
use dynamo_nixl::settings::Settings;
use dynamo_nixl::transport::{AgentFlavor, nixl};
use dynamo_nixl::types::{Direction, MemoryRange};
use support::memory::Buffer;
use support::owner::{Exposed, Kind, Owner, only};
use support::process::{Process, answer};
use support::{LIMIT, eventually};

// NIXL logs a peer's death on standard error, which is otherwise to stay empty.
scenarios!(
    log_level: Some("FATAL"),
    scenarios: [
        an_owner_that_is_killed,
        a_cancel_in_the_middle,
        a_dropped_handle_in_the_middle,
        a_close_in_the_middle,
    ],
    roles: [trapped_reader]
);

const BIG: usize = 256 << 20;
/// How often the big memory is moved in one operation, so that its middle is easily met.
const TIMES: usize = 8;

fn begin(connector: &Connector, exposed: &Exposed, local: &Buffer, times: usize) -> OperationHandle {
    let remote: Vec<MemoryRange> = vec![exposed.ranges[0]; times];
    let memory: Vec<LocalMemory> = vec![local.memory(); times];
    connector
        .begin(
            Direction::Read,
            &exposed.metadata,
            exposed.key.clone(),
            &remote,
            memory,
            BeginOptions::default(),
        )
        .unwrap()
}

/// Begins to read big memory and returns in the middle of it.
fn begin_big(connector: &Connector, exposed: &Exposed, local: &Buffer) -> OperationHandle {
    let moving = begin(connector, exposed, local, TIMES);
    let deadline = Instant::now() + LIMIT;
    while moving.operation().bytes_done() == 0 && !moving.operation().is_finished() {
        assert!(Instant::now() < deadline, "nothing moves");
        std::thread::yield_now();
    }
    assert_eq!(moving.operation().status(), Status::InProgress);
    moving
}

fn read_well(connector: &Connector, owner: &mut Owner) {
    let exposed = owner.expose(Direction::Read, &[5 << 20], 7);
    let local = Buffer::zeroed(5 << 20);
    let moving = begin(connector, &exposed, &local, 1);
    assert!(
        moving.operation().wait(Phase::Finished, Some(LIMIT)),
        "{moving:?} does not end"
    );
    assert_eq!(
        moving.operation().status(),
        Status::Complete,
        "{:?}",
        moving.operation().outcome()
    );
    assert_eq!(owner.outcome(&exposed), "Complete");
    assert!(local.is_patterned(7));
}

/// Everything the wire held is given back, and the end is clean.
fn assert_quiet(connector: &Connector) {
    eventually("the wire is done", || connector.stats().transfers == 0);
    assert_eq!(nixl::leaked_requests(), 0);
    assert_eq!(connector.stats().unquiet_regions, 0);
    assert!(connector.close(LIMIT), "close was not quiet");
}

fn an_owner_that_is_killed() {
    let connector = Connector::new("reader");
    let mut owner = Owner::start("owner", Kind::Own);
    read_well(&connector, &mut owner);
    let exposed = owner.expose(Direction::Read, &[BIG], 7);
    let local = Buffer::zeroed(BIG);
    let moving = begin_big(&connector, &exposed, &local);
    owner.kill();
    assert!(
        moving.operation().wait(Phase::Finished, Some(LIMIT)),
        "the death goes unnoticed"
    );
    assert_eq!(moving.operation().status(), Status::Errored);
    drop(moving);
    for name in ["another", "owner"] {
        let mut next = Owner::start(name, Kind::Own);
        read_well(&connector, &mut next);
        next.finish();
    }
    assert_quiet(&connector);
}

fn a_cancel_in_the_middle() {
    let connector = Connector::new("reader");
    let mut owner = Owner::start("owner", Kind::Own);
    let exposed = owner.expose(Direction::Read, &[BIG], 7);
    let local = Buffer::zeroed(BIG);
    let moving = begin_big(&connector, &exposed, &local);
    assert!(moving.cancel());
    assert_eq!(moving.operation().status(), Status::Cancelled);
    assert!(!moving.cancel());
    let weak = local.downgrade();
    drop(local);
    let pinned = weak.strong_count() > 0;
    // Asked after the memory: what is quiet now may have been let go before.
    let quiet = connector.stats().transfers == 0;
    assert!(pinned || quiet, "the memory was let go while pieces move");
    eventually("the wire is done", || connector.stats().transfers == 0);
    eventually("the memory is let go", || weak.strong_count() == 0);
    assert!(moving.operation().bytes_done() < (TIMES * BIG) as u64);
    // The peer is as good as before.
    read_well(&connector, &mut owner);
    assert_quiet(&connector);
    // Told of it, it has ended what was half read.
    assert_eq!(owner.close(), "true 0");
    owner.finish();
}

fn a_dropped_handle_in_the_middle() {
    let connector = Connector::new("reader");
    let mut owner = Owner::start("owner", Kind::Own);
    let exposed = owner.expose(Direction::Read, &[BIG], 7);
    let local = Buffer::zeroed(BIG);
    drop(begin_big(&connector, &exposed, &local));
    assert_quiet(&connector);
    owner.finish();
}

fn a_close_in_the_middle() {
    let connector = Connector::new("reader");
    let mut owner = Owner::start("owner", Kind::Own);
    let exposed = owner.expose(Direction::Read, &[BIG], 7);
    let local = Buffer::zeroed(BIG);
    let moving = begin_big(&connector, &exposed, &local);
    assert!(connector.close(LIMIT), "close was not quiet");
    assert_eq!(moving.operation().status(), Status::Errored);
    assert_eq!(nixl::leaked_requests(), 0);
    owner.finish();
}

/// Why there is a plain lane: a reader with `MM_ERROR_HANDLING` against an owner without it mostly waits for ever, and
/// sometimes fails. Should it ever complete, NIXL has changed, and the plain lane may go.
#[test]
fn a_reader_of_the_wrong_kind_never_completes() {
    let mut reader = Process::start("trapped_reader", &[]);
    let outcome = reader.hear("how the read ended");
    reader.kill();
    assert!(outcome == "pending" || outcome.contains("Failed"), "{outcome}");
}

/// Reads an owner that says that it is one of us and is not. Cannot end cleanly, with a request that never will.
fn trapped_reader() {
    let mut impostor = Owner::start("impostor", Kind::Impostor);
    let exposed = impostor.expose(Direction::Read, &[4096], 7);
    let connector = Connector::with_factory("reader", Settings::default(), only(AgentFlavor::SharedMemoryErrors));
    connector.open().unwrap();
    let moving = begin(&connector, &exposed, &Buffer::zeroed(4096), 1);
    let ended = moving.operation().wait(Phase::Finished, Some(Duration::from_secs(3)));
    impostor.kill();
    answer(&if ended {
        format!("{:?}", moving.operation().outcome())
    } else {
        "pending".to_owned()
    });
    // Until it is killed; or ends, should nobody be left to do that.
    let _ = std::io::stdin().read_line(&mut String::new());
    std::process::abort();
}
