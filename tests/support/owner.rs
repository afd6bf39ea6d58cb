//! The passive side in a process of its own, driven line by line by the process that started it.

use std::collections::HashMap;
use std::io::stdin;
use std::sync::Arc;

use dynamo_nixl::connector::Connector;
use dynamo_nixl::handle::OperationHandle;
use dynamo_nixl::operation::Phase;
use dynamo_nixl::settings::Settings;
use dynamo_nixl::transport::{AgentFlavor, TransportFactory, nixl};
use dynamo_nixl::types::{Addr, AgentName, ByteLen, Direction, MemoryRange, OperationKey};
use dynamo_nixl::wire::{Encoding, decode, encode};

use super::memory::{Buffer, address_only};
use super::process::{Process, answer};
use super::{LIMIT, error_kind};

/// Who the other process pretends to be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Kind {
    /// One of us.
    Own,
    /// Upstream or raw NIXL: UCX's default error handling, no trailer.
    Foreign,
    /// A foreign one that claims to be one of us: what must never be met.
    Impostor,
}

/// Makes nothing but agents of one flavor.
pub(crate) fn only(flavor: AgentFlavor) -> TransportFactory {
    Arc::new(move |name: &AgentName, _| nixl::factory()(name, flavor))
}

/// Metadata as a foreign owner writes it.
pub(crate) fn without_trailer(text: &str) -> String {
    encode(&decode(text).unwrap().blob, None, Encoding::Base64).unwrap()
}

/// What an owner has exposed, as its peer knows it.
pub(crate) struct Exposed {
    id: usize,
    pub(crate) metadata: String,
    pub(crate) key: OperationKey,
    pub(crate) ranges: Vec<MemoryRange>,
}

/// An owner in another process.
pub(crate) struct Owner {
    process: Process,
    next_id: usize,
}

impl Owner {
    /// Starts it, on the transports of this process.
    pub(crate) fn start(name: &str, kind: Kind) -> Self {
        Self {
            process: Process::start(&format!("owner {kind:?} {name}"), &[]),
            next_id: 0,
        }
    }

    /// Exposes one range of each length, all of one pattern.
    pub(crate) fn expose(&mut self, direction: Direction, lengths: &[usize], seed: u8) -> Exposed {
        let id = self.next_id;
        self.next_id += 1;
        let lengths: Vec<String> = lengths.iter().map(usize::to_string).collect();
        let said = self
            .process
            .ask(&format!("expose {id} {direction} {seed} {}", lengths.join(",")));
        let mut words = said.split(' ');
        let mut word = || words.next().unwrap_or_else(|| panic!("the owner said {said:?}"));
        let (key, ranges, metadata) = (word(), word(), word());
        let ranges = ranges.split(',').map(|range| {
            let (addr, len) = range.split_once(':').unwrap();
            address_only(addr.parse().unwrap(), len.parse().unwrap())
        });
        Exposed {
            id,
            metadata: metadata.to_owned(),
            key: OperationKey::new(key.as_bytes().to_vec()),
            ranges: ranges.collect(),
        }
    }

    /// Waits for the end of an exposure and says how it ended.
    pub(crate) fn outcome(&mut self, exposed: &Exposed) -> String {
        self.process.ask(&format!("await {}", exposed.id))
    }

    /// Whether all of an exposure's memory holds a pattern.
    pub(crate) fn holds(&mut self, exposed: &Exposed, seed: u8) -> bool {
        self.process.ask(&format!("check {} {seed}", exposed.id)) == "true"
    }

    /// Ends an exposure.
    pub(crate) fn end(&mut self, exposed: &Exposed) {
        self.process.ask(&format!("drop {}", exposed.id));
    }

    /// Closes the owner's connector; whether it was quiet, and how many operations it failed as closed.
    pub(crate) fn close(&mut self) -> String {
        self.process.ask("close")
    }

    pub(crate) fn kill(&mut self) {
        self.process.kill();
    }

    /// Ends it, cleanly.
    pub(crate) fn finish(self) {
        self.process.finish();
    }
}

/// The owner's side of all that: `role` says the kind and the name.
pub(crate) fn serve(role: &str) {
    let (kind, name) = role.split_once(' ').unwrap();
    let connector = match kind {
        "Own" => Connector::new(name),
        _ => Connector::with_factory(name, Settings::default(), only(AgentFlavor::Plain)),
    };
    let mut exposed: HashMap<String, (OperationHandle, Vec<Buffer>)> = HashMap::new();
    for line in stdin().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        let said = match words[..] {
            ["expose", id, direction, seed, lengths] => {
                let seed = seed.parse().unwrap();
                let buffers: Vec<Buffer> = lengths
                    .split(',')
                    .map(|length| Buffer::patterned(length.parse().unwrap(), seed))
                    .collect();
                let direction = if direction == "READ" {
                    Direction::Read
                } else {
                    Direction::Write
                };
                let memory = buffers.iter().map(Buffer::memory).collect();
                let handle = connector.expose(direction, memory, None, false).unwrap();
                assert!(handle.operation().wait(Phase::Started, Some(LIMIT)));
                let metadata = handle.metadata(Encoding::Base64).unwrap();
                let metadata = if kind == "Foreign" {
                    without_trailer(&metadata)
                } else {
                    metadata
                };
                let ranges: Vec<String> = buffers
                    .iter()
                    .map(Buffer::range)
                    .map(
                        |MemoryRange {
                             addr: Addr(addr),
                             len: ByteLen(len),
                             ..
                         }| format!("{addr}:{len}"),
                    )
                    .collect();
                let said = format!("{} {} {metadata}", handle.operation().key().to_text(), ranges.join(","));
                exposed.insert(id.to_owned(), (handle, buffers));
                said
            }
            ["await", id] => {
                let operation = exposed[id].0.operation();
                operation.wait(Phase::Finished, Some(LIMIT / 2));
                format!("{:?}", operation.status())
            }
            ["check", id, seed] => {
                let seed = seed.parse().unwrap();
                exposed[id].1.iter().all(|buffer| buffer.is_patterned(seed)).to_string()
            }
            ["drop", id] => exposed.remove(id).is_some().to_string(),
            ["close"] => {
                let quiet = connector.close(LIMIT / 2);
                let closed = exposed
                    .values()
                    .filter(|(handle, _)| error_kind(handle).is_some())
                    .count();
                format!("{quiet} {closed}")
            }
            _ => panic!("unknown request {line:?}"),
        };
        answer(&said);
    }
}
