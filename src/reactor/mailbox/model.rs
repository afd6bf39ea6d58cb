//! A thread that goes to sleep while others change something, send something or leave.
//!
//! A sleep does not run out in a model, so whatever slips past it leaves the thread asleep for ever, which loom reports.
#![allow(clippy::unwrap_used)]

use loom::sync::atomic::AtomicUsize;

use super::*;
use crate::sync::{check, spawn};

const ANY: Duration = Duration::from_secs(1);

#[test]
fn no_change_slips_past_the_last_look() {
    check(|| {
        let (door, mut inbox) = mailbox();
        let door = Arc::new(door);
        let changes = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        let others = [0, 1].map(|other| {
            let (door, changes) = (Arc::clone(&door), Arc::clone(&changes));
            spawn(move || {
                // Relaxed: it is the touch that must publish it.
                changes[other].store(1, Ordering::Relaxed);
                door.touch(());
            })
        });
        while changes.iter().any(|change| change.load(Ordering::Relaxed) == 0) {
            let _ = inbox.rest(ANY);
        }
        for other in others {
            other.join().unwrap();
        }
        drop(door);
    });
}

#[test]
fn no_message_is_lost_and_each_is_taken_once() {
    check(|| {
        let (door, mut inbox) = mailbox();
        let door = Arc::new(door);
        let other = spawn({
            let door = Arc::clone(&door);
            move || {
                assert!(door.send(1).is_ok());
                door.touch(0);
            }
        });
        let sender = spawn(move || {
            door.touch(0);
            assert!(door.send(2).is_ok());
        });
        let mut taken = Vec::new();
        loop {
            match inbox.rest(ANY) {
                Ok(message) => taken.push(message),
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => break,
            }
        }
        other.join().unwrap();
        sender.join().unwrap();
        taken.retain(|message| *message != 0);
        taken.sort_unstable();
        assert_eq!(taken, [1, 2]);
    });
}
