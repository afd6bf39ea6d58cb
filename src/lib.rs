//! dynamo_nixl moves tensors between processes on NIXL: one exposes memory, the other copies it one-sided, both await
//! the end.
//!
//! The core knows no Python; feature `python` adds the extension module on top of [`connector`]. `ARCHITECTURE.md` has
//! the map and the rules that hold between the modules.

pub(crate) mod checksum;
pub mod connector;
pub mod descriptor;
pub mod error;
pub(crate) mod exposure;
pub mod handle;
pub(crate) mod hints;
pub mod operation;
pub mod peer;
pub mod process;
#[cfg(feature = "python")]
mod python;
pub(crate) mod range_map;
pub(crate) mod reactor;
pub mod region;
pub mod settings;
pub(crate) mod sync;
pub(crate) mod thread;
pub mod transport;
pub mod types;
pub mod wire;
pub(crate) mod words;
