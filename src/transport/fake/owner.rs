//! A passive peer without a reactor: a test registers with it, takes its metadata and reads its notifications.

use std::collections::HashMap;
use std::sync::Arc;

use super::FakeNetwork;
use crate::error::Result;
use crate::transport::{AgentFlavor, Registration, Transport};
use crate::types::{AgentName, MemoryRange};
use crate::wire::{Encoding, Trailer, compose, encode};

/// An agent that exposes memory. Dropping it is its process's end.
#[derive(Debug)]
pub struct FakeOwner {
    registrations: HashMap<MemoryRange, Box<dyn Registration>>,
    transport: Arc<dyn Transport>,
}

impl FakeOwner {
    /// An owner on `network`.
    ///
    /// # Errors
    /// What the network's script says.
    pub fn new(network: &FakeNetwork, name: &str) -> Result<Self> {
        let transport = network.agent(&AgentName::new(name), AgentFlavor::SharedMemoryErrors)?;
        Ok(Self {
            registrations: HashMap::new(),
            transport,
        })
    }

    /// Registers a range; anew, and so with another key, where it is registered.
    ///
    /// # Errors
    /// What the network's script says.
    pub fn register(&mut self, range: MemoryRange) -> Result<()> {
        self.registrations.remove(&range);
        self.registrations.insert(range, self.transport.register(&range)?);
        Ok(())
    }

    /// The metadata of these ranges as text, with the trailer of our own kind or, for a foreign owner, without.
    ///
    /// # Errors
    /// What the network's script says, and where a range is not registered.
    pub fn metadata(&self, ranges: &[MemoryRange], is_foreign: bool) -> Result<String> {
        let partial = self.transport.partial_metadata(ranges)?;
        let blob = compose(&self.transport.connection_info()?, &partial)?;
        let trailer = Trailer {
            shared_memory_notifications: true,
            generation: 1,
            lease: None,
            validity_word: None,
            process: None,
            checksum: None,
        };
        encode(&blob, (!is_foreign).then_some(&trailer), Encoding::Base64)
    }

    /// The notifications that arrived since the last call.
    ///
    /// # Errors
    /// What the network's script says.
    pub fn notifications(&self) -> Result<Vec<Vec<u8>>> {
        let mut messages = Vec::new();
        self.transport
            .poll_notifications(&mut |_, message| messages.push(message.to_vec()))?;
        Ok(messages)
    }
}
