//! Newtypes shared by every module of the core.
//!
//! They exist so that an address is never mistaken for a length, and an agent's name never for a notification key.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

/// The name of a NIXL agent, unique among the agents that talk to each other.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct AgentName(Arc<str>);

impl AgentName {
    /// Wraps a name.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self(Arc::from(name))
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for AgentName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl fmt::Debug for AgentName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "AgentName({})", self.0)
    }
}

/// The exact bytes of the notification that ends an operation; made by the passive side.
///
/// Upstream's keys are the text of a UUID4, but any non-empty byte string is a valid key.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct OperationKey(Bytes);

impl OperationKey {
    /// Wraps the bytes of a key.
    #[must_use]
    pub fn new(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// A fresh key: the text of a random UUID, as upstream makes them.
    #[must_use]
    pub fn random() -> Self {
        Self(Bytes::from(uuid::Uuid::new_v4().to_string()))
    }

    /// The bytes that travel in the notification.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the key of an operation that nobody is told of.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The key as text, for messages.
    #[must_use]
    pub fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

impl fmt::Debug for OperationKey {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "OperationKey({})", self.to_text())
    }
}

/// A virtual address, here or in another process.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addr(pub u64);

impl fmt::Debug for Addr {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:#x}", self.0)
    }
}

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ByteLen(pub u64);

/// Which kind of memory a range lies in, in NIXL's terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MemoryKind {
    /// Host memory.
    Dram,
    /// Accelerator memory.
    Vram,
}

impl MemoryKind {
    /// The number NIXL writes for this kind in its metadata.
    #[must_use]
    pub fn nixl_number(self) -> u32 {
        match self {
            Self::Dram => 0,
            Self::Vram => 1,
        }
    }

    /// The kind behind NIXL's number, if it is one that a connector moves.
    #[must_use]
    pub fn from_nixl_number(number: u32) -> Option<Self> {
        match number {
            0 => Some(Self::Dram),
            1 => Some(Self::Vram),
            _ => None,
        }
    }
}

/// One contiguous range of memory on one device. Plain data: it keeps nothing alive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct MemoryRange {
    /// Host or accelerator memory.
    pub kind: MemoryKind,
    /// The device's ordinal; 0 for host memory.
    pub device: u64,
    /// The first byte.
    pub addr: Addr,
    /// How many bytes.
    pub len: ByteLen,
}

impl MemoryRange {
    /// One past the last byte, or `None` where the range wraps around the address space.
    #[must_use]
    pub fn end(&self) -> Option<u64> {
        self.addr.0.checked_add(self.len.0)
    }

    /// Whether `inner` lies wholly inside this range, on the same device.
    #[must_use]
    pub fn covers(&self, inner: &Self) -> bool {
        match (self.end(), inner.end()) {
            (Some(end), Some(inner_end)) => {
                self.kind == inner.kind && self.device == inner.device && self.addr <= inner.addr && inner_end <= end
            }
            _ => false,
        }
    }

    /// Whether the two share a byte, on the same device.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.kind == other.kind
            && self.device == other.device
            && self.addr.0 < other.addr.0.saturating_add(other.len.0)
            && other.addr.0 < self.addr.0.saturating_add(self.len.0)
    }

    /// Whether this range begins after `outer` and ends before it.
    ///
    /// NIXL finds the region of an address by the nearest start only, so of a region with another one strictly inside,
    /// what lies behind the inner one can only be named together with the region's start.
    #[must_use]
    pub fn is_strictly_inside(&self, outer: &Self) -> bool {
        outer.covers(self) && outer.addr < self.addr && self.end() < outer.end()
    }
}

/// Which way the bytes move, seen from the active side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Direction {
    /// From the remote memory into the local one.
    Read,
    /// From the local memory into the remote one.
    Write,
}

impl fmt::Display for Direction {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Read => "READ",
            Self::Write => "WRITE",
        })
    }
}

/// Names one of the transfers of an agent, of which several may be at work on one exposure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TransferId(pub u64);

impl TransferId {
    /// One that no other transfer has.
    #[must_use]
    pub fn random() -> Self {
        Self(uuid::Uuid::new_v4().as_u64_pair().0)
    }
}

/// Names a process among all that this one may ever hear of. Plain data: it says nothing about whether the process lives.
///
/// A pid alone is given anew some time after its process has ended, and means another process on another host or in
/// another pid namespace; the other two numbers tell these apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ProcessId {
    /// The process's number. It means something only where `host` equals one's own.
    pub pid: u32,
    /// When the process was started: the lower 32 bits of field 22 of `/proc/<pid>/stat`.
    pub start: u32,
    /// Where it runs: the CRC-32 of the kernel's boot id and the inode of the pid namespace.
    pub host: u32,
}
