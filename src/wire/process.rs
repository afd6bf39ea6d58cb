//! A process's name in twelve bytes, as the trailer and the control messages carry it.

use crate::types::ProcessId;

/// Three `u32`.
pub(super) const BYTES: usize = 12;

/// The pid, the start and the host, each little-endian.
pub(super) fn to_bytes(process: ProcessId) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (place, part) in bytes
        .chunks_exact_mut(4)
        .zip([process.pid, process.start, process.host])
    {
        place.copy_from_slice(&part.to_le_bytes());
    }
    bytes
}

/// The reverse of [`to_bytes`]. Whether such a process exists is not asked.
pub(super) fn from_bytes(bytes: [u8; BYTES]) -> ProcessId {
    let part = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    ProcessId {
        pid: part(0),
        start: part(4),
        host: part(8),
    }
}
