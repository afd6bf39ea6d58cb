//! The decorator around agents on a scripted network, one call at a time.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use super::{Effect, Faults, Notifications, When};
use crate::error::ErrorKind;
use crate::transport::fake::{Completion, Event, FakeNetwork};
use crate::transport::{AgentFlavor, Progress, Registration, Request, Transport};
use crate::types::{Addr, AgentName, ByteLen, Direction, MemoryKind, MemoryRange};
use crate::wire::compose;

const EVERY: When = When {
    at: 1,
    count: None,
    probability: 1.0,
    peer: None,
};

fn range(addr: u64, len: u64) -> MemoryRange {
    MemoryRange {
        kind: MemoryKind::Dram,
        device: 0,
        addr: Addr(addr),
        len: ByteLen(len),
    }
}

/// A reader with faults that has loaded an owner without.
struct Bench {
    network: FakeNetwork,
    faults: Faults,
    local: MemoryRange,
    remote: MemoryRange,
    blob: Vec<u8>,
    _registrations: [Box<dyn Registration>; 2],
    owner: Arc<dyn Transport>,
    reader: Arc<dyn Transport>,
}

impl Bench {
    fn new() -> Self {
        let (network, faults) = (FakeNetwork::new(), Faults::new(1));
        let (local, remote) = (range(0x1000, 4096), range(0x9000, 4096));
        let owner = network.agent(&AgentName::new("owner-1"), AgentFlavor::Plain).unwrap();
        let made = faults.wrap(network.factory())(&AgentName::new("reader-1"), AgentFlavor::Plain);
        let reader: Arc<dyn Transport> = made.unwrap();
        let registrations = [reader.register(&local).unwrap(), owner.register(&remote).unwrap()];
        let blob = compose(
            &owner.connection_info().unwrap(),
            &owner.partial_metadata(&[remote]).unwrap(),
        )
        .unwrap();
        reader.load_peer(&blob).unwrap();
        owner.load_peer(&reader.connection_info().unwrap()).unwrap();
        Self {
            network,
            faults,
            local,
            remote,
            blob,
            _registrations: registrations,
            owner,
            reader,
        }
    }

    fn read(&self) -> Box<dyn Request> {
        let peer = self.owner.agent_name();
        self.reader
            .prepare(Direction::Read, &[self.local], &[self.remote], peer, Some(b"key"))
            .unwrap()
    }

    /// What has arrived at an agent.
    fn arrived(agent: &Arc<dyn Transport>) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        let count = agent
            .poll_notifications(&mut |_, message| messages.push(message.to_vec()))
            .unwrap();
        assert_eq!(count, messages.len());
        messages
    }

    fn send(&self, messages: &[&[u8]]) {
        for message in messages {
            self.owner.notify(self.reader.agent_name(), message).unwrap();
        }
    }

    fn posted(&self) -> usize {
        self.network.count(|event| matches!(event, Event::Posted { .. }))
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.network.violations(), [""; 0]);
        }
    }
}

#[test]
fn without_faults_everything_passes() {
    let bench = Bench::new();
    assert_eq!(bench.read().post().unwrap(), Progress::Done);
    assert_eq!(Bench::arrived(&bench.owner), [b"key"]);
    bench.send(&[b"one", b"two"]);
    assert_eq!(Bench::arrived(&bench.reader), [b"one", b"two"]);
    assert!(bench.faults.injected().is_empty());
}

#[test]
fn notifications_are_dropped_doubled_and_held() {
    let bench = Bench::new();
    let second = When {
        at: 2,
        ..When::default()
    };
    let drop = bench.faults.add(Effect::Drop(Notifications::Keys), second.clone());
    bench.send(&[b"one", b"two", b"three"]);
    assert_eq!(Bench::arrived(&bench.reader), [&b"one"[..], b"three"]);
    let duplicate = bench.faults.add(Effect::Duplicate(Notifications::All), second);
    bench.send(&[b"one", b"two"]);
    assert_eq!(Bench::arrived(&bench.reader), [b"one", b"two", b"two"]);
    let delay = bench
        .faults
        .add(Effect::Delay(Notifications::Keys, None), When::default());
    bench.send(&[b"one", b"two"]);
    assert_eq!(Bench::arrived(&bench.reader), [b"two"]);
    assert_eq!(Bench::arrived(&bench.reader), [b""; 0]);
    delay.release();
    assert_eq!(Bench::arrived(&bench.reader), [b"one"]);
    assert_eq!([drop, duplicate, delay].map(|fault| fault.injected()), [1, 1, 1]);
}

#[test]
fn keys_and_messages_are_told_apart() {
    let bench = Bench::new();
    let messages = bench.faults.add(Effect::Drop(Notifications::Messages), EVERY);
    bench.send(&[b"key", b"dnxl/1:AgED", b"dnxl/7:later"]);
    assert_eq!(Bench::arrived(&bench.reader), [b"key"]);
    messages.clear();
    let _keys = bench.faults.add(Effect::Drop(Notifications::Keys), EVERY);
    bench.send(&[b"key", b"dnxl/1:AgED"]);
    assert_eq!(Bench::arrived(&bench.reader), [b"dnxl/1:AgED"]);
}

#[test]
fn a_stalled_piece_moves_and_is_not_reported() {
    let bench = Bench::new();
    let stall = bench.faults.add(Effect::Stall(None), When::default());
    let mut request = bench.read();
    assert_eq!(request.post().unwrap(), Progress::Pending);
    // The wire is done with it, and told the owner.
    assert_eq!(Bench::arrived(&bench.owner), [b"key"]);
    assert_eq!(request.poll().unwrap(), Progress::Pending);
    stall.release();
    assert_eq!(request.poll().unwrap(), Progress::Done);
    assert_eq!(request.poll().unwrap(), Progress::Done);
}

#[test]
fn a_piece_is_not_reported_before_the_wire_is_done_with_it() {
    let bench = Bench::new();
    bench.network.set_completion(Completion::Held);
    let _slow = bench.faults.add(Effect::Slow(Duration::ZERO), EVERY);
    let fail = bench.faults.add(Effect::Fail { after_moving: true }, When::default());
    let mut failing = bench.read();
    let mut moving = bench.read();
    for request in [&mut failing, &mut moving] {
        assert_eq!(request.post().unwrap(), Progress::Pending);
    }
    let lost = bench.faults.add(Effect::Lost { is_dead: false }, EVERY);
    assert_eq!(failing.poll().unwrap(), Progress::Pending);
    assert_eq!(moving.poll().unwrap(), Progress::Pending);
    lost.clear();
    bench.network.release_all();
    assert_eq!(failing.poll().unwrap_err().kind(), ErrorKind::Transfer);
    assert_eq!(moving.poll().unwrap(), Progress::Done);
    assert_eq!(fail.injected(), 1);
}

#[test]
fn a_piece_that_does_not_move_is_never_posted() {
    let bench = Bench::new();
    let third = When {
        at: 3,
        ..When::default()
    };
    let fail = bench.faults.add(Effect::Fail { after_moving: false }, third);
    for _ in 0..2 {
        assert_eq!(bench.read().post().unwrap(), Progress::Done);
    }
    let mut failing = bench.read();
    let error = failing.post().unwrap_err();
    assert_eq!(
        (error.kind(), error.operation()),
        (ErrorKind::Transfer, "post transfer")
    );
    assert!(error.to_string().contains("status=NIXL_CAPI_ERROR_BACKEND"), "{error}");
    assert_eq!((bench.posted(), fail.injected()), (2, 1));
    drop(failing);
    assert_eq!(bench.read().post().unwrap(), Progress::Done);
}

#[test]
fn a_failure_of_the_wire_is_held_and_told() {
    let bench = Bench::new();
    bench.network.set_completion(Completion::Held);
    let stall = bench.faults.add(Effect::Stall(None), When::default());
    let mut request = bench.read();
    assert_eq!(request.post().unwrap(), Progress::Pending);
    bench.network.kill("owner-1");
    assert_eq!(request.poll().unwrap(), Progress::Pending);
    stall.clear();
    assert!(request.poll().unwrap_err().to_string().contains("the peer is gone"));
}

#[test]
fn only_questions_are_stale_and_neither_asked_nor_told() {
    let bench = Bench::new();
    let stale = bench.faults.add(Effect::Stale, When::default());
    assert_eq!(bench.read().post().unwrap(), Progress::Done);
    assert_eq!((bench.posted(), stale.injected()), (1, 0));
    assert_eq!(Bench::arrived(&bench.owner), [b"key"]);
    let fail = bench.faults.add(Effect::Fail { after_moving: false }, EVERY);
    bench.reader.note_words(&bench.local);
    assert_eq!(bench.read().post().unwrap(), Progress::Done);
    assert_eq!((bench.posted(), stale.injected()), (1, 1));
    // Asked again, it answers; and it is no piece.
    assert_eq!(bench.read().post().unwrap(), Progress::Done);
    assert_eq!((bench.posted(), fail.injected()), (2, 0));
    assert_eq!(Bench::arrived(&bench.owner), [b"key"]);
}

#[test]
fn nothing_passes_to_or_from_a_lost_peer() {
    let bench = Bench::new();
    let prepared = bench.read();
    let named = |name: &str| When {
        peer: Some(name.to_owned()),
        ..EVERY
    };
    let _other = bench.faults.add(Effect::Lost { is_dead: false }, named("own"));
    bench.send(&[b"before"]);
    assert_eq!(Bench::arrived(&bench.reader), [b"before"]);
    for (is_dead, kind) in [(false, ErrorKind::Transfer), (true, ErrorKind::PeerLost)] {
        let lost = bench.faults.add(Effect::Lost { is_dead }, named("owner"));
        let peer = bench.owner.agent_name();
        let errors = [
            bench.reader.load_peer(&bench.blob).unwrap_err(),
            bench.reader.notify(peer, b"hello").unwrap_err(),
            bench
                .reader
                .prepare(Direction::Read, &[bench.local], &[bench.remote], peer, None)
                .unwrap_err(),
        ];
        assert_eq!(errors.map(|error| error.kind()), [kind; 3]);
        bench.send(&[b"news"]);
        assert_eq!(Bench::arrived(&bench.reader), [b""; 0]);
        assert_eq!(lost.injected(), 4);
        lost.clear();
    }
    let lost = bench.faults.add(Effect::Lost { is_dead: false }, named("owner"));
    let mut prepared = prepared;
    assert_eq!(prepared.post().unwrap_err().kind(), ErrorKind::Transfer);
    assert_eq!(bench.posted(), 0);
    lost.clear();
    assert_eq!(bench.read().post().unwrap(), Progress::Done);
}
