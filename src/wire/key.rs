//! The shape of UCX's addresses and remote keys, as far as UCX relies on it without looking.
//!
//! An address begins with a byte whose lower half is its version; UCX aborts the process over one that it does not know.
//! What follows is trusted: it names transports, devices and shared memory of the peer's choice.
//!
//! NIXL hands a key to UCX without its length, so a key that is shorter than it claims makes UCX read what lies
//! behind it. UCX writes `map u64, memory type u8`, then, for each bit set in the map, `size u8` and as many bytes.
//! A system device and distances may follow; they depend on the version and are not examined.

/// The back end whose keys have this shape.
pub(super) const BACKEND: &str = "UCX";

/// The map of memory domains and the memory type.
const HEADER_BYTES: usize = 8 + 1;

/// The versions of addresses that UCX knows: 0 until 1.12, and 1.
const MAX_ADDRESS_VERSION: u8 = 1;

/// Whether UCX can tell what the address is.
pub(super) fn is_known_address(address: &[u8]) -> bool {
    address
        .first()
        .is_some_and(|header| header & 0x0f <= MAX_ADDRESS_VERSION)
}

/// Whether every part that the key announces lies within it.
pub(super) fn is_complete(key: &[u8]) -> bool {
    let (Some(map), Some(mut parts)) = (key.first_chunk::<8>(), key.get(HEADER_BYTES..)) else {
        return false;
    };
    for _ in 0..u64::from_le_bytes(*map).count_ones() {
        let Some((size, rest)) = parts.split_first() else {
            return false;
        };
        let Some(rest) = rest.get(usize::from(*size)..) else {
            return false;
        };
        parts = rest;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_other_versions_are_unknown() {
        assert!(is_known_address(&[0x21, 0]) && is_known_address(&[0xf0]));
        for unknown in [&[][..], &[0x22], &[0xff]] {
            assert!(!is_known_address(unknown), "{unknown:?}");
        }
    }

    #[test]
    fn parts_must_lie_within_the_key() {
        let two_parts = [&[0b101, 0, 0, 0, 0, 0, 0, 0, 0, 2, 7, 7, 0][..], &[0xff]].concat();
        assert!(is_complete(&two_parts));
        assert!(is_complete(&two_parts[..13]), "what follows the parts is optional");
        for end in 0..13 {
            assert!(!is_complete(&two_parts[..end]), "cut at {end}");
        }
        assert!(is_complete(&[0; 9]), "no parts");
    }
}
