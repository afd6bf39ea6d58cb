//! Joins two things that NIXL can be asked for into the one that it cannot: a small blob that stands by itself.

use crate::error::{Error, ErrorKind, Result};
use crate::wire::blob::AgentBlob;
use crate::wire::parse::parse_and_split;

/// Joins an agent's connection information and a partial blob into one blob that a peer can load by itself.
///
/// `connection_info` is the partial metadata of an **empty** list, `partial` that of the regions to expose. NIXL's
/// full metadata would list every region of the agent; its C interface cannot put connection information into
/// partial metadata.
///
/// # Errors
/// [`ErrorKind::Metadata`] if either part does not [parse](AgentBlob::parse), they are not of the same agent, the
/// first has no connection or lists regions, the second has connections that differ or a region of a back end without
/// one, or the joined blob does not read as the connections of the one and the sections of the other.
pub fn compose(connection_info: &[u8], partial: &[u8]) -> Result<Vec<u8>> {
    let (reachable, reachable_split) = parse_and_split(connection_info)?;
    let (exposed, exposed_split) = parse_and_split(partial)?;
    let refuse = |message: &str| {
        Err(Error::new(ErrorKind::Metadata, "compose metadata", message)
            .with_context("agent", &reachable.agent)
            .with_context("partial_agent", &exposed.agent))
    };
    if reachable.agent != exposed.agent {
        return refuse("the parts are of two agents");
    }
    if reachable.connections.is_empty() {
        return refuse("the connection information has no connection");
    }
    if !reachable.sections.is_empty() {
        return refuse("the connection information lists regions");
    }
    if !exposed.connections.is_empty() && !exposed.same_connections(&reachable) {
        return refuse("the partial metadata has other connections");
    }
    let mut joined = Vec::with_capacity(reachable_split + partial.len() - exposed_split);
    joined.extend_from_slice(&connection_info[..reachable_split]);
    joined.extend_from_slice(&partial[exposed_split..]);
    let expected = AgentBlob {
        agent: reachable.agent.clone(),
        connections: reachable.connections.clone(),
        sections: exposed.sections.clone(),
    };
    if !expected.is_self_contained() {
        return refuse("a region's back end has no connection");
    }
    if AgentBlob::parse(&joined)? != expected {
        return refuse("the joined metadata reads differently from its parts");
    }
    Ok(joined)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::wire::samples::{UCX_KEY, blob, section};

    #[test]
    fn takes_connections_from_the_one_and_regions_from_the_other() {
        let regions = [section("UCX", 0, &[(0x1000, UCX_KEY)])];
        let address: &[(&str, &[u8])] = &[("UCX", b"address")];
        let whole = blob("worker", address, &regions);
        assert_eq!(
            compose(&blob("worker", address, &[]), &blob("worker", &[], &regions)).unwrap(),
            whole
        );
        assert_eq!(
            compose(&blob("worker", address, &[]), &whole).unwrap(),
            whole,
            "equal connections are no conflict"
        );
    }

    #[test]
    fn refuses_parts_that_do_not_belong_together() {
        let regions = [section("UCX", 0, &[(0x1000, UCX_KEY)])];
        let address: &[(&str, &[u8])] = &[("UCX", b"address")];
        let connection = blob("worker", address, &[]);
        let partial = blob("worker", &[], &regions);
        for (reachable, exposed, expected) in [
            (&connection, &blob("other", &[], &regions), "two agents"),
            (&partial, &partial, "has no connection"),
            (&blob("worker", address, &regions), &partial, "lists regions"),
            (
                &connection,
                &blob("worker", &[("UCX", b"another one")], &regions),
                "other connections",
            ),
            (
                &blob("worker", &[("A", b"1")], &[]),
                &partial,
                "back end has no connection",
            ),
        ] {
            let error = compose(reachable, exposed).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Metadata);
            assert!(error.to_string().contains(expected), "{error}");
        }
    }
}
