#![allow(clippy::unwrap_used)]

use rustix::process::Signal;

use super::super::samples::{Sleeper, eventually, fork, in_child, name_of, signal_to, state_and_start, wait_for};
use super::*;

/// A line as the kernel writes it, with the name, the state and the flags to fill in.
fn line(name: &str, state: &str, flags: u32) -> String {
    format!(
        "4242 ({name}) {state} 1 4242 4242 0 -1 {flags} 1104 0 0 0 0 0 0 0 20 0 3 0 5000001000 2867200 200 \
         18446744073709551615 1 1 0 0 0 256 0 0 0 0 0 17 1 0 0 0 0 0 0 0 0 0 0 0 0 0\n"
    )
}

#[test]
fn lines_with_any_name_are_read() {
    for name in [
        "sleep",
        "",
        "a b",
        "x) Z 1 2 3 (y",
        "))))",
        "((",
        ") R 1",
        " ",
        "4242 (a) R",
        "a\\nb",
    ] {
        let stat = Stat::parse(line(name, "S", 4_194_304).as_bytes()).unwrap();
        let expected = Stat {
            pid: 4242,
            state: b'S',
            flags: 4_194_304,
            threads: 3,
            start: 705_033_704,
            pending: 256,
        };
        assert_eq!(stat, expected, "{name}");
    }
    let mut bytes = line("?", "S", 0).into_bytes();
    bytes[6] = 0xff;
    assert!(Stat::parse(&bytes).is_some(), "a name need not be text");
}

#[test]
fn lines_that_are_cut_are_refused() {
    let whole = line("a) (b", "R", 0);
    let needed = whole.find(" 256 ").unwrap() + 2;
    for end in 0..needed {
        assert_eq!(Stat::parse(&whole.as_bytes()[..end]), None, "{end}");
    }
    assert_eq!(Stat::parse(b"no line at all"), None);
    assert_eq!(Stat::parse(b"1 )"), None);
    assert_eq!(Stat::parse(b") 1 ("), None);
}

#[test]
fn a_task_is_exiting_before_it_is_a_zombie() {
    let is_exiting = |state, flags| Stat::parse(line("x", state, flags).as_bytes()).unwrap().is_exiting();
    assert!(is_exiting("R", 0x0040_0004));
    assert!(is_exiting("Z", 0));
    assert!(is_exiting("X", 0));
    assert!(!is_exiting("R", 0x0040_0000));
    assert!(!is_exiting("T", 0x0040_0100));
    assert!(!is_exiting("D", 0));
}

#[test]
fn this_process_has_a_name_and_lives() {
    let here = here().unwrap();
    assert_eq!(here.pid, process::id());
    assert_eq!(here.start, state_and_start(here.pid).1);
    assert_eq!(super::here(), Some(here));
    assert_eq!(liveness(&here), Liveness::Alive);
}

#[test]
fn a_forked_child_is_another_process() {
    let parent = here().unwrap();
    assert!(in_child(|| {
        let child = here().unwrap();
        assert_eq!(child.pid, process::id());
        assert_eq!(child.start, state_and_start(child.pid).1);
        assert_eq!(child.host, parent.host);
        assert_ne!(child, parent);
        assert_eq!(liveness(&parent), Liveness::Alive);
    }));
}

#[test]
fn a_host_is_a_boot_and_its_namespaces() {
    let boot = "5d9a1f5c-8f2b-4e0e-9f6d-0d4f6a9f3b11";
    let (pids, time) = (4_026_531_836, 4_026_531_834);
    let initial = host_of(boot, pids, time);
    for other in 1..100_000 {
        assert_ne!(initial, host_of(boot, pids + other, time));
        assert_ne!(initial, host_of(boot, pids, time + other));
    }
    assert_ne!(initial, host_of("5d9a1f5c-8f2b-4e0e-9f6d-0d4f6a9f3b12", pids, time));
    // As docs/protocol.md has it: python3 -c 'import zlib; print(hex(zlib.crc32(...)))' over the same 52 bytes.
    assert_eq!(initial, 0xc3f6_0738);
}

#[test]
fn a_child_lives_until_it_is_killed() {
    let mut child = Sleeper::start();
    assert_eq!(liveness(&child.id), Liveness::Alive);
    child.signal(Signal::STOP);
    assert!(eventually(|| child.is_in("T")));
    assert_eq!(liveness(&child.id), Liveness::Alive);
    child.signal(Signal::KILL);
    assert!(eventually(|| liveness(&child.id) == Liveness::Dead));
    assert!(eventually(|| child.is_in("Z")));
    assert_eq!(liveness(&child.id), Liveness::Dead, "an unreaped zombie");
    child.reap();
    assert_eq!(liveness(&child.id), Liveness::Dead);
}

#[test]
fn another_start_is_another_process() {
    let child = Sleeper::start();
    let start = child.id.start.wrapping_sub(1);
    assert_eq!(liveness(&ProcessId { start, ..child.id }), Liveness::Dead);
}

#[test]
fn nothing_is_said_about_what_is_out_of_sight() {
    let mut child = Sleeper::start();
    let elsewhere = ProcessId {
        host: !child.id.host,
        ..child.id
    };
    assert_eq!(liveness(&elsewhere), Liveness::Elsewhere);
    child.reap();
    assert_eq!(liveness(&elsewhere), Liveness::Elsewhere);
    // What no process can have come from a peer whose word is worth nothing.
    for pid in [0, 1 << 31, u32::MAX] {
        assert_eq!(liveness(&ProcessId { pid, ..child.id }), Liveness::Elsewhere);
    }
}

#[test]
fn a_process_outlives_its_first_thread() {
    let pid = fork(|| {
        std::thread::spawn(|| {
            loop {
                std::thread::park();
            }
        });
        loop {
            // SAFETY: Ends this thread alone, which nothing in this child waits for or borrows from.
            unsafe { libc::syscall(libc::SYS_exit, 0) };
        }
    });
    let id = name_of(pid);
    assert!(eventually(|| state_and_start(pid).0 == "Z"));
    assert_eq!(liveness(&id), Liveness::Alive);
    signal_to(pid, Signal::KILL);
    assert!(eventually(|| liveness(&id) == Liveness::Dead));
    wait_for(pid);
    assert_eq!(liveness(&id), Liveness::Dead);
}
