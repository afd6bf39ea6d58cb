//! Python objects that own memory, held by the core until the wire is done with it.

use std::any::Any;
use std::sync::Arc;

use pyo3::prelude::*;

use super::hub;
use crate::error::{Error, ErrorKind};
use crate::region::{KeepAlive, LocalMemory};
use crate::thread;
use crate::types::{Addr, ByteLen, MemoryKind, MemoryRange};

/// A Python object, kept alive. It may be dropped on a thread of the core's, which never takes the GIL: PyO3 then defers the
/// decrement until somebody is attached next, and a loop that waits is nudged so that this is soon.
struct Owner(Option<Py<PyAny>>);

impl Drop for Owner {
    fn drop(&mut self) {
        drop(self.0.take());
        if thread::is_ours() {
            hub::nudge();
        }
    }
}

/// The tuples that describe memory: (DeviceKind, device id, address, bytes), for local memory with its owner.
pub(super) type RemoteTuple = (u8, u64, u64, u64);
pub(super) type LocalTuple = (u8, u64, u64, u64, Py<PyAny>);

pub(super) fn remote_range((kind, device, addr, len): RemoteTuple) -> Result<MemoryRange, Error> {
    Ok(MemoryRange {
        kind: memory_kind(kind)?,
        device,
        addr: Addr(addr),
        len: ByteLen(len),
    })
}

pub(super) fn local_memory(py: Python<'_>, (kind, device, addr, len, owner): LocalTuple) -> Result<LocalMemory, Error> {
    let range = remote_range((kind, device, addr, len))?;
    let keep_alive = (!owner.is_none(py)).then(|| {
        let owner: Arc<dyn Any + Send + Sync> = Arc::new(Owner(Some(owner)));
        owner as KeepAlive
    });
    Ok(LocalMemory { range, keep_alive })
}

/// `DeviceKind` to NIXL's kinds: host memory, and every accelerator alike.
fn memory_kind(device_kind: u8) -> Result<MemoryKind, Error> {
    match device_kind {
        1 => Ok(MemoryKind::Dram),
        2 | 3 => Ok(MemoryKind::Vram),
        _ => Err(
            Error::new(ErrorKind::InvalidArgument, "describe memory", "the device has no kind")
                .with_context("kind", device_kind),
        ),
    }
}
