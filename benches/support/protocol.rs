//! What reader and owner say to each other over the owner's stdin and stdout: one line each.

use std::fmt;

use dynamo_nixl::types::Direction;

/// Which implementation the owner runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The crate's own core.
    Core,
    /// The crate's transport, without the core on top.
    Transport,
    /// NIXL and nothing else.
    Raw,
}

impl Kind {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Core => "core",
            Self::Transport => "transport",
            Self::Raw => "raw",
        }
    }

    pub(crate) fn from_name(name: &str) -> Option<Self> {
        [Self::Core, Self::Transport, Self::Raw]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// Which memory each exposure of a batch gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Placement {
    /// The same range every time: after the first transfer the reader has it loaded.
    Same,
    /// A range that no exposure had before, as with a new tensor: the reader has to load it.
    Fresh,
}

/// Asks the owner for a batch of exposures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) direction: Direction,
    pub(crate) placement: Placement,
    /// How big each block of an exposure is.
    pub(crate) bytes: usize,
    /// How many blocks an exposure has, with a gap of a block's size behind each.
    pub(crate) blocks: usize,
    /// How many exposures there are.
    pub(crate) count: usize,
}

impl Batch {
    /// How much memory an exposure reaches over, gaps included.
    pub(crate) fn span(self) -> usize {
        (self.blocks * 2 - 1) * self.bytes
    }

    /// How many bytes an exposure moves.
    pub(crate) fn moved(self) -> usize {
        self.blocks * self.bytes
    }
}

/// Ends a batch; the owner answers with the same line.
pub(crate) const END: &str = "end";

impl fmt::Display for Batch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let placement = match self.placement {
            Placement::Same => "same",
            Placement::Fresh => "fresh",
        };
        write!(
            formatter,
            "{} {placement} {} {} {}",
            self.direction, self.bytes, self.blocks, self.count
        )
    }
}

impl Batch {
    /// Panics on a line that [`Batch`] did not write: both ends are this executable.
    pub(crate) fn parse(line: &str) -> Self {
        let fields: Vec<&str> = line.split(' ').collect();
        let [direction, placement, bytes, blocks, count] = fields[..] else {
            panic!("not a batch: {line}")
        };
        Self {
            direction: if direction == Direction::Read.to_string() {
                Direction::Read
            } else {
                Direction::Write
            },
            placement: if placement == "same" {
                Placement::Same
            } else {
                Placement::Fresh
            },
            bytes: bytes.parse().unwrap(),
            blocks: blocks.parse().unwrap(),
            count: count.parse().unwrap(),
        }
    }
}

/// One exposure as the reader learns of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Exposed {
    /// The notification that ends it.
    pub(crate) key: String,
    /// Where its first block lies in the owner.
    pub(crate) addr: u64,
    /// What `RdmaMetadata.nixl_metadata` would hold.
    pub(crate) metadata: String,
}

impl fmt::Display for Exposed {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{} {} {}", self.key, self.addr, self.metadata)
    }
}

impl Exposed {
    /// Panics on a line that [`Exposed`] did not write.
    pub(crate) fn parse(line: &str) -> Self {
        let fields: Vec<&str> = line.split(' ').collect();
        let [key, addr, metadata] = fields[..] else {
            panic!("not an exposure: {line}")
        };
        Self {
            key: key.to_owned(),
            addr: addr.parse().unwrap(),
            metadata: metadata.to_owned(),
        }
    }
}
