//! Lanes of one group under every order of their ends.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;
use std::time::Duration;

use loom::cell::UnsafeCell;

use super::*;
use crate::sync::{check, spawn};

/// What one lane moves from and to the other's memory.
struct Bytes([UnsafeCell<u8>; 2]);

// SAFETY: loom finds every access to a cell that is not ordered behind the one before.
unsafe impl Sync for Bytes {}

#[test]
fn nobody_takes_an_agent_apart_that_another_lane_still_works_with() {
    check(|| {
        let now = Instant::now();
        let closing = Closing::by(now + Duration::from_secs(3600));
        let bytes = Arc::new(Bytes([UnsafeCell::new(0), UnsafeCell::new(0)]));
        let lanes = [0, 1].map(|lane| {
            let (mut order, bytes) = (closing.order(), Arc::clone(&bytes));
            move || {
                // SAFETY: as above.
                bytes.0[lane].with_mut(|byte| unsafe { *byte = 1 });
                order.note_quiet();
                let ends = order.may_end(now);
                if ends {
                    // What the other one has moved is all there, and nothing is under way.
                    // SAFETY: as above.
                    let moved = bytes.0[1 - lane].with(|byte| unsafe { *byte });
                    assert_eq!(moved, 1);
                }
                ends
            }
        });
        let [one, mut two] = lanes;
        let one = spawn(one);
        let (two, one) = (two(), one.join().unwrap());
        assert!(one || two, "the last one may end");
    });
}

#[test]
fn an_order_that_nobody_takes_leaves_the_group() {
    check(|| {
        let now = Instant::now();
        let closing = Closing::by(now + Duration::from_secs(3600));
        let (mut order, refused) = (closing.order(), closing.order());
        let ended = spawn(move || drop(refused));
        order.note_quiet();
        ended.join().unwrap();
        assert!(order.may_end(now));
    });
}
