//! Writes an agent's metadata in NIXL's layout, so that the code that reads real metadata reads the fake's, too.

use bytes::Bytes;

use crate::types::{AgentName, MemoryKind, MemoryRange};
use crate::wire::{AgentBlob, Connection, RegionEntry, Section};

const BACKEND: &str = "UCX";
/// What an address of UCX begins with: its version and flags.
const ADDRESS_HEADER: u8 = 0x20;

/// A whole blob. Without `instance` it has no connection information.
pub(super) fn blob(agent: &AgentName, instance: Option<u64>, regions: &[(MemoryRange, u64)]) -> Vec<u8> {
    let connection = |instance: u64| Connection {
        backend: BACKEND.to_owned(),
        info: [&[ADDRESS_HEADER][..], &instance.to_le_bytes()].concat().into(),
    };
    let section = |kind| {
        let of_kind = regions.iter().filter(|(range, _)| range.kind == kind);
        let entries = of_kind.map(|(range, serial)| RegionEntry {
            range: *range,
            key: key(*serial),
        });
        Section {
            backend: BACKEND.to_owned(),
            kind,
            entries: entries.collect(),
        }
    };
    let sections = [MemoryKind::Dram, MemoryKind::Vram].map(section);
    let blob = AgentBlob {
        agent: agent.clone(),
        connections: instance.map(connection).into_iter().collect(),
        sections: sections
            .into_iter()
            .filter(|section| !section.entries.is_empty())
            .collect(),
    };
    blob.to_bytes()
}

/// A key of UCX's shape: an empty map of domains and a memory type. What follows is free.
fn key(serial: u64) -> Bytes {
    [&[0; 9][..], &serial.to_le_bytes()].concat().into()
}

/// Which agent wrote this connection information; `None` where it is not the fake's.
pub(super) fn instance_of(connection_info: &[u8]) -> Option<u64> {
    let (header, instance) = connection_info.split_first()?;
    (*header == ADDRESS_HEADER).then_some(())?;
    instance.try_into().ok().map(u64::from_le_bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Addr, ByteLen};
    use crate::wire::compose;

    #[test]
    fn what_it_writes_parses_and_composes() {
        let range = |kind, addr| MemoryRange {
            kind,
            device: 0,
            addr: Addr(addr),
            len: ByteLen(64),
        };
        let regions = [
            (range(MemoryKind::Dram, 0x1000), 1),
            (range(MemoryKind::Vram, 0x1000), 2),
        ];
        let name = AgentName::new("owner");
        let parsed = AgentBlob::parse(&blob(&name, Some(7), &regions)).unwrap();
        assert_eq!(parsed.sections.len(), 2);
        assert_eq!(instance_of(&parsed.connections[0].info), Some(7));
        let composed = compose(&blob(&name, Some(7), &[]), &blob(&name, None, &regions)).unwrap();
        assert_eq!(AgentBlob::parse(&composed).unwrap(), parsed);
    }
}
