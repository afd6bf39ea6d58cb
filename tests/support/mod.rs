//! What the integration tests share. Each test binary uses a part of it.
#![allow(dead_code)]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

pub(crate) mod apart;
pub(crate) mod memory;
pub(crate) mod owner;
pub(crate) mod process;

use std::time::{Duration, Instant};

use dynamo_nixl::error::ErrorKind;
use dynamo_nixl::handle::OperationHandle;
use dynamo_nixl::operation::Outcome;

/// The longest that any wait may take: far above what it does take, and below a test runner's patience.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// Waits until `condition` holds, for what no call can be awaited for.
#[track_caller]
pub(crate) fn eventually(what: &str, condition: impl FnMut() -> bool) {
    eventually_within(LIMIT, what, condition);
}

/// As [`eventually`], with another limit.
#[track_caller]
pub(crate) fn eventually_within(limit: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + limit;
    while !condition() {
        assert!(Instant::now() < deadline, "this did not happen in time: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// The kind of failure an operation ended with, if it did.
pub(crate) fn error_kind(handle: &OperationHandle) -> Option<ErrorKind> {
    match handle.operation().outcome() {
        Some(Outcome::Failed(error)) => Some(error.kind()),
        _ => None,
    }
}
