//! What drives the wire: lanes, their threads, and the transfers they carry.
//!
//! A *lane* is one NIXL agent with a named thread of its own. Commands go in
//! through a channel; completions leave through [`crate::operation::CompletionSink`]. The thread never takes the GIL. A
//! caller may also drive a lane itself for a moment, when the transfer is small and nobody else holds the lane: such a
//! transfer ends without a thread hop.

mod answers;
pub(crate) mod closing;
pub(crate) mod copies;
pub(crate) mod crew;
pub(crate) mod driver;
pub(crate) mod idle;
pub(crate) mod lane;
mod mailbox;
pub(crate) mod state;
#[cfg(test)]
mod tests;
pub(crate) mod transfer;
