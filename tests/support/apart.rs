//! Connectors in one process that take each other for processes on other hosts, and a wire for their messages that can
//! be cut.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dynamo_nixl::error::Result;
use dynamo_nixl::transport::{AgentFlavor, Registration, Request, Transport, TransportFactory};
use dynamo_nixl::types::{AgentName, Direction, MemoryRange, ProcessId};
use dynamo_nixl::wire::{ControlMessage, Encoding, Incoming, decode, encode};

/// What becomes of messages. Requests are the network's affair, and so are the notifications that they carry.
#[derive(Debug, Default)]
pub(crate) struct Wire {
    is_cut: AtomicBool,
    lost: AtomicUsize,
    pings: AtomicUsize,
}

impl Wire {
    /// Messages vanish from now on, and nobody is told.
    pub(crate) fn cut(&self) {
        self.is_cut.store(true, Ordering::SeqCst);
    }

    pub(crate) fn mend(&self) {
        self.is_cut.store(false, Ordering::SeqCst);
    }

    /// How many have vanished.
    pub(crate) fn lost(&self) -> usize {
        self.lost.load(Ordering::SeqCst)
    }

    /// How many pings were sent.
    pub(crate) fn pings(&self) -> usize {
        self.pings.load(Ordering::SeqCst)
    }
}

/// Makes agents whose processes are out of sight of each other.
pub(crate) fn apart(factory: TransportFactory, wire: &Arc<Wire>) -> TransportFactory {
    let wire = Arc::clone(wire);
    Arc::new(move |name, flavor: AgentFlavor| {
        let inner = factory(name, flavor)?;
        let wire = Arc::clone(&wire);
        Ok(Arc::new(Apart { inner, wire }))
    })
}

/// Metadata as an owner on another host would have made it.
pub(crate) fn from_elsewhere(metadata: &str) -> String {
    let envelope = decode(metadata).unwrap();
    let mut trailer = envelope.trailer.unwrap();
    trailer.process = trailer.process.map(elsewhere);
    encode(&envelope.blob, Some(&trailer), Encoding::Base64).unwrap()
}

fn elsewhere(process: ProcessId) -> ProcessId {
    ProcessId {
        host: !process.host,
        ..process
    }
}

#[derive(Debug)]
struct Apart {
    inner: Arc<dyn Transport>,
    wire: Arc<Wire>,
}

impl Transport for Apart {
    fn agent_name(&self) -> &AgentName {
        self.inner.agent_name()
    }

    fn register(&self, range: &MemoryRange) -> Result<Box<dyn Registration>> {
        self.inner.register(range)
    }

    fn connection_info(&self) -> Result<Vec<u8>> {
        self.inner.connection_info()
    }

    fn partial_metadata(&self, ranges: &[MemoryRange]) -> Result<Vec<u8>> {
        self.inner.partial_metadata(ranges)
    }

    fn full_metadata(&self) -> Result<Vec<u8>> {
        self.inner.full_metadata()
    }

    fn load_peer(&self, blob: &[u8]) -> Result<AgentName> {
        self.inner.load_peer(blob)
    }

    fn drop_peer(&self, peer: &AgentName) -> Result<()> {
        self.inner.drop_peer(peer)
    }

    fn prepare(
        &self,
        direction: Direction,
        local: &[MemoryRange],
        remote: &[MemoryRange],
        peer: &AgentName,
        notification: Option<&[u8]>,
    ) -> Result<Box<dyn Request>> {
        self.inner.prepare(direction, local, remote, peer, notification)
    }

    fn notify(&self, peer: &AgentName, message: &[u8]) -> Result<()> {
        let mut message = message.to_vec();
        match ControlMessage::decode(&message)? {
            Incoming::Message {
                message:
                    ControlMessage::Hello {
                        operation,
                        transfer,
                        connection,
                        process,
                    },
                ..
            } => {
                let process = elsewhere(process);
                let hello = ControlMessage::Hello {
                    operation,
                    transfer,
                    connection,
                    process,
                };
                message = hello.encode()?;
            }
            Incoming::Message {
                message: ControlMessage::Ping { .. },
                ..
            } => {
                self.wire.pings.fetch_add(1, Ordering::SeqCst);
            }
            _ => {}
        }
        if self.wire.is_cut.load(Ordering::SeqCst) {
            self.wire.lost.fetch_add(1, Ordering::SeqCst);
            return Ok(());
        }
        self.inner.notify(peer, &message)
    }

    fn poll_notifications(&self, receive: &mut dyn FnMut(&AgentName, &[u8])) -> Result<usize> {
        self.inner.poll_notifications(receive)
    }
}
