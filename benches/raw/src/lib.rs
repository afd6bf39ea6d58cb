//! What the baselines in Rust share: the other half of `python/dynamo_nixl/bench/peer/`, which says what is measured.
//!
//! A baseline is a program with two roles, owner and reader, that is called as `python -m peer` is and says the same
//! ([`conversation`]). What it does itself is [`conversation::Owner`] and [`conversation::Reader`].
#![allow(clippy::unwrap_used)] // a benchmark that cannot go on has nothing better to do than to stop

pub mod arena;
pub mod batch;
pub mod case;
pub mod channel;
pub mod conversation;

/// Nanoseconds of `CLOCK_MONOTONIC`, which the processes of a host share.
#[must_use]
pub fn now() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    u64::try_from(time.tv_sec).unwrap() * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap()
}
