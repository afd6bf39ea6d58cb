//! Exposures whose holders, peers and timers end them at once, and whose lane closes meanwhile.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::operation::{Phase, Status};
use crate::reactor::driver::model::Stage;
use crate::settings::Settings;
use crate::sync::{check, spawn};
use crate::transport::AgentFlavor;
use crate::types::{Addr, AgentName, ByteLen, Direction, MemoryKind, OperationKey, ProcessId, TransferId};
use crate::wire::ControlMessage;
use crate::words::Word;

const OWNER: &str = "owner";
const BYTES: u64 = 4096;
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);

fn stage(quarantine_limit: u64) -> Stage {
    let settings = Settings {
        grace: 10 * SECOND,
        quarantine_limit,
        // Nobody is asked in a model, so nobody would be missed.
        keepalive: None,
        ..Settings::default()
    };
    Stage::new(OWNER, settings)
}

fn opened(stage: &Stage) -> &Opened {
    stage.lane.opened().unwrap().as_ref().unwrap()
}

fn expose(stage: &Stage, number: u64, lease: Option<Duration>) -> (Arc<Operation>, Exposure) {
    let key = OperationKey::new(number.to_be_bytes().to_vec());
    let operation = Operation::new(Direction::Read, key, None, BYTES);
    let memory = LocalMemory {
        range: MemoryRange {
            kind: MemoryKind::Dram,
            device: 0,
            addr: Addr(number << 20),
            len: ByteLen(BYTES),
        },
        keep_alive: None,
    };
    let terms = Terms {
        generation: number,
        lease,
        verify: false,
    };
    let exposure = Exposure::start(&operation, Arc::clone(&stage.lane), vec![memory], terms).unwrap();
    (operation, exposure)
}

fn publish(exposure: &Exposure) {
    exposure.metadata(Encoding::Base64).unwrap();
}

/// How many ranges are registered that are no words.
fn registered(stage: &Stage) -> usize {
    opened(stage).regions.len() - opened(stage).words.pages()
}

/// Looks until there is nothing left to do.
fn tick_until_idle(ledger: &Ledger, now: Instant) {
    ledger.begin_look();
    while ledger.tick(now) {}
}

/// The notification of its peer arrives.
fn receive(ledger: &Arc<Ledger>, operation: &Operation) {
    let key = operation.key().as_bytes().to_vec();
    assert!(ledger.receive(&AgentName::new("peer"), &key).is_none());
}

fn word_state(record: &Record) -> Option<WordState> {
    let word = record.inner().word.as_ref().map(Word::get)?;
    WordState::read(word, record.generation())
}

#[test]
fn a_peer_and_a_holder_end_it_once_and_the_holders_end_gives_it_back() {
    check(|| {
        let stage = stage(u64::MAX);
        let (operation, exposure) = expose(&stage, 1, None);
        publish(&exposure);
        let ledger = Arc::clone(&opened(&stage).ledger);
        let reactor = spawn({
            let (ledger, operation) = (Arc::clone(&ledger), Arc::clone(&operation));
            move || receive(&ledger, &operation)
        });
        let cancelled = exposure.end();
        reactor.join().unwrap();
        tick_until_idle(&ledger, Instant::now());
        let (status, word) = (operation.status(), word_state(&exposure.record));
        if cancelled {
            assert_eq!((status, word), (Status::Cancelled, Some(WordState::Cancelled)));
            assert_eq!(
                (ledger.in_grace(), registered(&stage)),
                ((1, BYTES), 1),
                "a peer may be at work"
            );
            assert!(!operation.has_reached(Phase::Quiet));
            tick_until_idle(&ledger, Instant::now() + HOUR);
        } else {
            assert_eq!((status, word), (Status::Complete, Some(WordState::Complete)));
        }
        assert_eq!((ledger.in_grace(), registered(&stage)), ((0, 0), 0), "given back");
        assert!(operation.is_quiet());
        assert!(!exposure.end() && ledger.waiting() == 0 && ledger.next_due().is_none());
    });
}

#[test]
fn whoever_sees_the_end_finds_it_in_the_word() {
    check(|| {
        let stage = stage(u64::MAX);
        let (operation, exposure) = expose(&stage, 1, None);
        publish(&exposure);
        let ledger = Arc::clone(&opened(&stage).ledger);
        let word = exposure
            .record
            .inner()
            .word
            .as_ref()
            .map(Word::seen_by_the_wire)
            .unwrap();
        let reactor = spawn({
            let operation = Arc::clone(&operation);
            move || receive(&ledger, &operation)
        });
        if operation.is_finished() {
            assert_eq!(WordState::read(word(), 1), Some(WordState::Complete));
        }
        reactor.join().unwrap();
    });
}

#[test]
fn metadata_that_is_exported_at_the_end_never_shows_an_open_word() {
    check(|| {
        let stage = stage(u64::MAX);
        let (operation, exposure) = expose(&stage, 1, None);
        let exposure = Arc::new(exposure);
        let exporter = spawn({
            let exposure = Arc::clone(&exposure);
            move || exposure.metadata(Encoding::Base64).is_ok()
        });
        receive(&opened(&stage).ledger, &operation);
        let exported = exporter.join().unwrap();
        let expected = exported.then_some(WordState::Complete);
        assert_eq!(
            (operation.status(), word_state(&exposure.record)),
            (Status::Complete, expected)
        );
    });
}

#[test]
fn a_renewal_that_is_accepted_holds() {
    check(|| {
        let stage = stage(u64::MAX);
        let (operation, exposure) = expose(&stage, 1, Some(SECOND));
        let ledger = Arc::clone(&opened(&stage).ledger);
        let reactor = spawn({
            let ledger = Arc::clone(&ledger);
            move || ledger.tick(Instant::now() + 60 * SECOND)
        });
        let renewed = exposure.renew(Some(HOUR)).is_ok();
        reactor.join().unwrap();
        assert_eq!(operation.is_finished(), !renewed);
        assert_eq!(ledger.next_due().is_some(), renewed);
    });
}

#[test]
fn what_is_held_for_a_while_is_counted_and_let_go_once() {
    check(|| {
        // Room for one of the two.
        let stage = stage(BYTES);
        let ledger = Arc::clone(&opened(&stage).ledger);
        let (one, first) = expose(&stage, 1, None);
        let (two, second) = expose(&stage, 2, None);
        publish(&first);
        publish(&second);
        let holder = spawn(move || first.end());
        assert!(second.end());
        tick_until_idle(&ledger, Instant::now());
        assert!(holder.join().unwrap());
        tick_until_idle(&ledger, Instant::now());
        assert_eq!((ledger.in_grace(), registered(&stage)), ((1, BYTES), 1));
        assert!(one.is_quiet() != two.is_quiet(), "the older one made room");
        tick_until_idle(&ledger, Instant::now() + HOUR);
        assert_eq!((ledger.in_grace(), registered(&stage)), ((0, 0), 0));
        assert!(one.is_quiet() && two.is_quiet());
    });
}

#[test]
fn what_is_registered_after_the_end_is_let_go_at_once() {
    check(|| {
        let stage = stage(u64::MAX);
        let ledger = Arc::clone(&opened(&stage).ledger);
        let lane = spawn({
            let ledger = Arc::clone(&ledger);
            move || ledger.close(&crate::reactor::state::closed())
        });
        let (operation, _exposure) = expose(&stage, 1, None);
        lane.join().unwrap();
        tick_until_idle(&ledger, Instant::now());
        assert_eq!((operation.status(), registered(&stage)), (Status::Errored, 0));
        assert!(operation.is_quiet());
    });
}

#[test]
fn an_exposure_that_meets_the_lanes_end_is_ended_and_let_go() {
    check(|| {
        let stage = stage(u64::MAX);
        let ledger = Arc::clone(&opened(&stage).ledger);
        let lane = spawn({
            let (ledger, words) = (Arc::clone(&ledger), Arc::clone(&opened(&stage).words));
            let regions = Arc::clone(&opened(&stage).regions);
            move || {
                ledger.close(&crate::reactor::state::closed());
                ledger.end_all();
                words.close();
                regions.close();
            }
        });
        let (operation, exposure) = expose(&stage, 1, Some(HOUR));
        let _ = exposure.metadata(Encoding::Base64);
        let cancelled = exposure.end();
        lane.join().unwrap();
        assert_eq!(
            operation.status(),
            if cancelled { Status::Cancelled } else { Status::Errored }
        );
        assert!(operation.is_quiet(), "nothing is held any more");
        assert_eq!(
            (ledger.in_grace(), ledger.waiting(), ledger.next_due()),
            ((0, 0), 0, None)
        );
        drop(exposure);
        assert!(stage.network.registered(OWNER).is_empty());
    });
}

#[test]
fn a_peer_that_says_hello_at_the_end_is_told_of_it() {
    check(|| {
        let stage = stage(u64::MAX);
        let ledger = Arc::clone(&opened(&stage).ledger);
        let (operation, exposure) = expose(&stage, 1, None);
        publish(&exposure);
        let peer = stage
            .network
            .agent(&AgentName::new("peer"), AgentFlavor::Plain)
            .unwrap();
        let elsewhere = ProcessId {
            pid: 1,
            start: 1,
            host: u32::MAX,
        };
        let hello = ControlMessage::Hello {
            operation: operation.key().clone(),
            transfer: TransferId(1),
            connection: peer.connection_info().unwrap().into(),
            process: elsewhere,
        };
        let hello = hello.encode().unwrap();
        let reactor = spawn({
            let ledger = Arc::clone(&ledger);
            move || assert!(ledger.receive(&AgentName::new("peer"), &hello).is_none())
        });
        assert!(exposure.end());
        reactor.join().unwrap();
        assert!(!ledger.take_outbox().is_empty(), "by whoever came second");
        tick_until_idle(&ledger, Instant::now() + HOUR);
        assert_eq!(registered(&stage), 1, "it has not said that it is done");
        let quiet = ControlMessage::Quiet {
            operation: operation.key().clone(),
            transfer: TransferId(1),
        };
        let quiet = quiet.encode().unwrap();
        assert!(ledger.receive(&AgentName::new("peer"), &quiet).is_none());
        for _ in 0..2 {
            tick_until_idle(&ledger, Instant::now() + HOUR);
        }
        assert_eq!(registered(&stage), 0);
    });
}
