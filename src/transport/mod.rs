//! What the core needs from a wire, and nothing more.
//!
//! [`nixl`] is the real one and the only file that names `nixl_sys`; [`fake`] is scripted, for tests of state machines;
//! [`faulty`] goes wrong on purpose, around another one.
//! A transport is driven by polling: it has no threads and calls nobody back.

mod copy;
#[cfg(any(test, feature = "testing"))]
pub mod fake;
pub mod faulty;
mod gate;
pub mod loader;
pub mod nixl;
mod table;

use std::fmt;
use std::sync::Arc;

use crate::error::Result;
use crate::types::{AgentName, Direction, MemoryRange};

/// The operation that errors of [`Transport::load_peer`] name, and those that say why it was not tried.
pub const LOAD_PEER: &str = "load peer";

/// How far a posted request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The wire may still touch the memory.
    Pending,
    /// The wire is done with the memory, and the notification (if one was asked for) is on its way.
    Done,
}

/// A registration of one range with one agent; dropping it deregisters.
pub trait Registration: Send + Sync + fmt::Debug {}

/// One request of the wire. Dropping it while it is in flight must not release it: implementations leak it instead,
/// since NIXL goes on writing after a release.
pub trait Request: Send + fmt::Debug {
    /// Hands the request to the wire. At most once.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Transfer`]; the request is over, but where it has several descriptors, earlier ones
    /// may still be moving.
    fn post(&mut self) -> Result<Progress>;

    /// Looks how far it has come, and drives it.
    ///
    /// # Errors
    /// As [`Request::post`].
    fn poll(&mut self) -> Result<Progress>;

    /// Is told that the peer's process is dead and the agent has dropped it: the request will never report its end, its
    /// bytes have stopped, and it may be released.
    fn give_up(&mut self);
}

/// One agent: its registrations, its loaded peers, its requests and notifications.
///
/// Every method may be called from any thread; calls on one agent are serialised.
pub trait Transport: Send + Sync + fmt::Debug {
    /// The agent's own name.
    fn agent_name(&self) -> &AgentName;

    /// Registers a range. The caller keeps the memory alive until the registration is dropped, and never registers a
    /// range twice.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Registration`].
    fn register(&self, range: &MemoryRange) -> Result<Box<dyn Registration>>;

    /// Is told that a range holds words of the core's own, into which it reads peers' words. Nothing depends on it but
    /// faults that strike these reads.
    fn note_words(&self, _page: &MemoryRange) {}

    /// The metadata that carries the connection information and no region.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Backend`].
    fn connection_info(&self) -> Result<Vec<u8>>;

    /// The metadata of these registered ranges, without connection information.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Backend`].
    fn partial_metadata(&self, ranges: &[MemoryRange]) -> Result<Vec<u8>>;

    /// The metadata of everything that is registered, with connection information.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Backend`].
    fn full_metadata(&self) -> Result<Vec<u8>>;

    /// Loads a peer's metadata. The caller has parsed it and compared it with what is loaded: a refused load makes the
    /// peer's name unloadable for the agent's life.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Transfer`] where the peer cannot be reached, else
    /// [`crate::error::ErrorKind::Metadata`].
    fn load_peer(&self, blob: &[u8]) -> Result<AgentName>;

    /// Forgets a peer and disconnects from it. The caller has nothing in flight with it, or the peer's process is dead.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Backend`].
    fn drop_peer(&self, peer: &AgentName) -> Result<()>;

    /// Makes a request. `notification`, where given, reaches the peer after the last byte.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Transfer`].
    fn prepare(
        &self,
        direction: Direction,
        local: &[MemoryRange],
        remote: &[MemoryRange],
        peer: &AgentName,
        notification: Option<&[u8]>,
    ) -> Result<Box<dyn Request>>;

    /// Sends a notification of its own, behind no transfer.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Transfer`].
    fn notify(&self, peer: &AgentName, message: &[u8]) -> Result<()>;

    /// Drives the agent and hands over each notification that arrived, once, with the name that its sender gives itself.
    /// Returns how many.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Backend`].
    fn poll_notifications(&self, receive: &mut dyn FnMut(&AgentName, &[u8])) -> Result<usize>;
}

/// Which agent a lane needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AgentFlavor {
    /// UCX with `MM_ERROR_HANDLING=y`: notifications ride shared memory. For own peers only: as a reader of an owner
    /// without it, it hangs for ever.
    SharedMemoryErrors,
    /// UCX's default error handling, which every peer understands.
    Plain,
}

/// Makes agents. A connector asks it off the event loop's thread, once a lane.
pub type TransportFactory = Arc<dyn Fn(&AgentName, AgentFlavor) -> Result<Arc<dyn Transport>> + Send + Sync>;
