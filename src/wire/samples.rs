//! Hand-made blobs for the unit tests of this module: written by another hand than the parser's.

/// One field as NIXL writes it.
pub(super) fn field(tag: &str, content: &[u8]) -> Vec<u8> {
    [tag.as_bytes(), &(content.len() as u64).to_le_bytes(), content, b"|"].concat()
}

/// A field that holds one count.
pub(super) fn count(tag: &str, value: usize) -> Vec<u8> {
    field(tag, &(value as u64).to_le_bytes())
}

/// Header, name, connections, and the mark before the sections.
pub(super) fn head(agent: &str, connections: &[(&str, &[u8])]) -> Vec<u8> {
    let mut bytes = b"nixlSerDes|".to_vec();
    bytes.extend(field("Agent", agent.as_bytes()));
    bytes.extend(count("Conns", connections.len()));
    for (backend, info) in connections {
        bytes.extend(field("t", backend.as_bytes()));
        bytes.extend(field("c", info));
    }
    bytes.extend(field("", b"MemSection"));
    bytes
}

/// One section with regions of 4096 bytes on device 0, given as address and key.
pub(super) fn section(backend: &str, kind: u32, regions: &[(u64, &[u8])]) -> Vec<u8> {
    let mut bytes = field("bknd", backend.as_bytes());
    bytes.extend(field("nixlDList", b"nixlSDList"));
    bytes.extend(field("t", &kind.to_le_bytes()));
    bytes.extend(count("n", regions.len()));
    for (address, key) in regions {
        let range = [*address, 4096, 0].map(u64::to_le_bytes).concat();
        bytes.extend(field("", &[&range, *key].concat()));
    }
    bytes
}

/// A whole blob.
pub(super) fn blob(agent: &str, connections: &[(&str, &[u8])], sections: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = head(agent, connections);
    bytes.extend(count("nixlSecElms", sections.len()));
    bytes.extend(sections.concat());
    bytes
}

/// A key that UCX could have written: no parts, host memory.
pub(super) const UCX_KEY: &[u8] = &[0, 0, 0, 0, 0, 0, 0, 0, 0];
