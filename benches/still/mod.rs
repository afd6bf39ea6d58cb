//! A transport that does nothing at once, so that what is above it is measured alone.
//!
//! Not the scripted one of the tests: that keeps a record of everything, and would be what is measured.

use dynamo_nixl::error::{Error, ErrorKind, Result};
use dynamo_nixl::transport::{Registration, Request, Transport};
use dynamo_nixl::types::{AgentName, Direction, MemoryRange};
use dynamo_nixl::wire::AgentBlob;

/// An agent that says yes to registrations and peers, and has no wire.
#[derive(Debug)]
pub(crate) struct StillTransport {
    name: AgentName,
}

impl StillTransport {
    pub(crate) fn new(name: &str) -> Self {
        Self {
            name: AgentName::new(name),
        }
    }
}

#[derive(Debug)]
struct StillRegistration;

impl Registration for StillRegistration {}

fn nothing<T>(operation: &'static str) -> Result<T> {
    Err(Error::new(ErrorKind::Backend, operation, "there is no wire"))
}

impl Transport for StillTransport {
    fn agent_name(&self) -> &AgentName {
        &self.name
    }

    fn register(&self, _range: &MemoryRange) -> Result<Box<dyn Registration>> {
        Ok(Box::new(StillRegistration))
    }

    fn connection_info(&self) -> Result<Vec<u8>> {
        nothing("export metadata")
    }

    fn partial_metadata(&self, _ranges: &[MemoryRange]) -> Result<Vec<u8>> {
        nothing("export metadata")
    }

    fn full_metadata(&self) -> Result<Vec<u8>> {
        nothing("export metadata")
    }

    fn load_peer(&self, blob: &[u8]) -> Result<AgentName> {
        Ok(AgentBlob::parse(blob)?.agent)
    }

    fn drop_peer(&self, _peer: &AgentName) -> Result<()> {
        Ok(())
    }

    fn prepare(
        &self,
        _direction: Direction,
        _local: &[MemoryRange],
        _remote: &[MemoryRange],
        _peer: &AgentName,
        _notification: Option<&[u8]>,
    ) -> Result<Box<dyn Request>> {
        nothing("create request")
    }

    fn notify(&self, _peer: &AgentName, _message: &[u8]) -> Result<()> {
        nothing("send notification")
    }

    fn poll_notifications(&self, _receive: &mut dyn FnMut(&AgentName, &[u8])) -> Result<usize> {
        Ok(0)
    }
}
