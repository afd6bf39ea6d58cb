//! Writes an agent's blob as NIXL does.
//!
//! What is loaded of a peer is chosen here and not by the peer: its connection, and the regions that a transfer names.

use crate::wire::blob::{AgentBlob, Section};

impl AgentBlob {
    /// The blob in NIXL's layout, which `parse.rs` describes. Reading it gives an equal one, unless regions repeat.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = b"nixlSerDes|".to_vec();
        field(&mut bytes, "Agent", self.agent.as_str().as_bytes());
        number(&mut bytes, "Conns", self.connections.len());
        for connection in &self.connections {
            field(&mut bytes, "t", connection.backend.as_bytes());
            field(&mut bytes, "c", &connection.info);
        }
        field(&mut bytes, "", b"MemSection");
        number(&mut bytes, "nixlSecElms", self.sections.len());
        for each in &self.sections {
            section(&mut bytes, each);
        }
        bytes
    }
}

fn section(bytes: &mut Vec<u8>, section: &Section) {
    field(bytes, "bknd", section.backend.as_bytes());
    field(bytes, "nixlDList", b"nixlSDList");
    field(bytes, "t", &section.kind.nixl_number().to_le_bytes());
    number(bytes, "n", section.entries.len());
    for entry in &section.entries {
        let range = [entry.range.addr.0, entry.range.len.0, entry.range.device].map(u64::to_le_bytes);
        field(bytes, "", &[range.concat().as_slice(), &entry.key].concat());
    }
}

fn number(bytes: &mut Vec<u8>, tag: &str, value: usize) {
    field(bytes, tag, &(value as u64).to_le_bytes());
}

fn field(bytes: &mut Vec<u8>, tag: &str, content: &[u8]) {
    bytes.extend_from_slice(tag.as_bytes());
    bytes.extend_from_slice(&(content.len() as u64).to_le_bytes());
    bytes.extend_from_slice(content);
    bytes.push(b'|');
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::wire::samples::{UCX_KEY, blob, section};

    #[test]
    fn what_is_read_is_written_byte_for_byte() {
        let sections = [
            section("UCX", 0, &[(0x1000, UCX_KEY), (0x9000, UCX_KEY)]),
            section("UCX", 1, &[(0x1000, UCX_KEY)]),
        ];
        for bytes in [
            blob("worker", &[("UCX", b"address"), ("OTHER", b"1")], &sections),
            blob("worker", &[], &[]),
        ] {
            assert_eq!(AgentBlob::parse(&bytes).unwrap().to_bytes(), bytes);
        }
    }
}
