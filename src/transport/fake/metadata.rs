//! Writes an agent's metadata in NIXL's layout, so that the code that reads real metadata reads the fake's, too.

use crate::types::{AgentName, MemoryRange};

const BACKEND: &[u8] = b"UCX";
/// What an address of UCX begins with: its version and flags.
const ADDRESS_HEADER: u8 = 0x20;

/// A whole blob. Without `instance` it has no connection information.
pub(super) fn blob(agent: &AgentName, instance: Option<u64>, regions: &[(MemoryRange, u64)]) -> Vec<u8> {
    let mut bytes = b"nixlSerDes|".to_vec();
    field(&mut bytes, "Agent", agent.as_str().as_bytes());
    number(&mut bytes, "Conns", u64::from(instance.is_some()));
    if let Some(instance) = instance {
        field(&mut bytes, "t", BACKEND);
        let info = [&[ADDRESS_HEADER][..], &instance.to_le_bytes()].concat();
        field(&mut bytes, "c", &info);
    }
    field(&mut bytes, "", b"MemSection");
    let mut kinds: Vec<u32> = regions.iter().map(|(range, _)| range.kind.nixl_number()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    number(&mut bytes, "nixlSecElms", kinds.len() as u64);
    for kind in kinds {
        let of_kind: Vec<_> = regions
            .iter()
            .filter(|(range, _)| range.kind.nixl_number() == kind)
            .collect();
        field(&mut bytes, "bknd", BACKEND);
        field(&mut bytes, "nixlDList", b"nixlSDList");
        field(&mut bytes, "t", &kind.to_le_bytes());
        number(&mut bytes, "n", of_kind.len() as u64);
        for (range, serial) in of_kind {
            let mut entry = [range.addr.0, range.len.0, range.device].map(u64::to_le_bytes).concat();
            // UCX's shape: an empty map of domains and a memory type. What follows is free.
            entry.extend_from_slice(&[0; 9]);
            entry.extend_from_slice(&serial.to_le_bytes());
            field(&mut bytes, "", &entry);
        }
    }
    bytes
}

/// Which agent wrote this connection information; `None` where it is not the fake's.
pub(super) fn instance_of(connection_info: &[u8]) -> Option<u64> {
    let (header, instance) = connection_info.split_first()?;
    (*header == ADDRESS_HEADER).then_some(())?;
    instance.try_into().ok().map(u64::from_le_bytes)
}

fn number(bytes: &mut Vec<u8>, tag: &str, value: u64) {
    field(bytes, tag, &value.to_le_bytes());
}

fn field(bytes: &mut Vec<u8>, tag: &str, content: &[u8]) {
    bytes.extend_from_slice(tag.as_bytes());
    bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
    bytes.extend_from_slice(content);
    bytes.push(b'|');
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Addr, ByteLen, MemoryKind};
    use crate::wire::{AgentBlob, compose};

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
