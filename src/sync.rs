//! The locks, atomics and channels of the concurrent core.
//!
//! They are those of [`lock`], the standard library and tokio. In unit tests with the feature `model` they are loom's
//! instead, which runs a test under every order in which its threads may take turns, and every value that a load may see.
//! Statics stay with the former: loom makes everything anew for each run.

pub(crate) mod lock;
#[cfg(all(test, feature = "model"))]
mod model;
#[cfg(not(all(test, feature = "model")))]
mod real;

#[cfg(all(test, feature = "model"))]
pub(crate) use self::model::*;
#[cfg(not(all(test, feature = "model")))]
pub(crate) use self::real::*;
