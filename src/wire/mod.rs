//! Everything that comes from or goes to the outside: bounded, parsed, compared and composed here.
//!
//! The module knows three layers, from the outside in:
//!
//! - [`encode`] and [`decode`]: the text in `RdmaMetadata.nixl_metadata`, a compressed [`AgentBlob`] and the bytes
//!   that follow the compressed stream;
//! - [`Trailer`]: those bytes, in which one dynamo_nixl tells another what an upstream peer never looks at;
//! - [`AgentBlob`] and [`compose`]: NIXL's own serialisation of an agent, read without trusting one length in it.
//!
//! Beside them stands [`ControlMessage`]: what two dynamo_nixl tell each other by notifications.
//!
//! Nothing here calls NIXL. What passes is well formed; whether the peer still lives and the regions still exist,
//! only NIXL can say.

mod blob;
mod compose;
mod control;
mod cursor;
mod envelope;
mod key;
pub mod limits;
mod parse;
mod process;
#[cfg(test)]
mod samples;
mod trailer;
mod write;

pub use blob::{AgentBlob, Connection, RegionEntry, Section};
pub use compose::compose;
pub use control::{ControlMessage, EndReason, Incoming};
pub use envelope::{CompressedBlob, Encoding, Envelope, decode, encode};
pub use trailer::Trailer;
