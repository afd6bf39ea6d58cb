//! UCX and nothing in between: what NIXL itself is made of.
//!
//! Memory is registered and its keys unpacked beforehand: a transfer is one `ucp_get_nbx` for each block, and the polls
//! to their end. It is one-sided: the owner progresses its worker, in case the transport needs it, and is not told of a
//! transfer's end. Endpoints have UCX's default, no error handling.
#![allow(clippy::unwrap_used)] // a benchmark that cannot go on has nothing better to do than to stop

mod library;
mod ucp;

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use dynamo_nixl_raw::arena::{Range, Shape, shape};
use dynamo_nixl_raw::case::Case;
use dynamo_nixl_raw::channel::Channel;
use dynamo_nixl_raw::conversation::{self, Exposure, play};
use serde::{Deserialize, Serialize};

use ucp::{Endpoint, Get, Memory, RemoteKey, Worker};

/// Looking at the channel is a system call, which takes as long as many rounds of progress.
const ROUNDS: usize = 200;

fn main() {
    let functions = ucp::Functions::load(&library::find());
    let versions = BTreeMap::from([("ucx", functions.version())]);
    play(&versions, |_| Owner::new(functions), |_| Reader::new(functions));
}

#[derive(Deserialize, Serialize)]
struct Introduction {
    /// The worker's.
    address: String,
    /// Of the memory.
    key: String,
}

struct Owner {
    worker: Worker,
}

impl Owner {
    fn new(functions: &'static ucp::Functions) -> Self {
        Self {
            worker: Worker::new(functions),
        }
    }
}

impl conversation::Owner for Owner {
    type Introduction = Introduction;

    fn register(&mut self, block: Range) -> Introduction {
        let memory = self.worker.map(block);
        Introduction {
            address: STANDARD.encode(self.worker.address()),
            key: STANDARD.encode(self.worker.pack(&memory)),
        }
    }

    fn serve(&mut self, _exposures: &[Exposure], reader: &Channel) -> Vec<u64> {
        while !reader.has_message() {
            for _ in 0..ROUNDS {
                self.worker.progress();
            }
        }
        Vec::new()
    }
}

struct Reader {
    worker: Worker,
    owner: Option<Endpoint>,
    known: HashMap<Shape, (Memory, RemoteKey)>,
    /// That of the batch.
    shape: Shape,
}

impl Reader {
    fn new(functions: &'static ucp::Functions) -> Self {
        Self {
            worker: Worker::new(functions),
            owner: None,
            known: HashMap::new(),
            shape: (0, 0, false),
        }
    }
}

impl conversation::Reader for Reader {
    type Introduction = Introduction;
    type Transfer = Vec<Get>;

    fn prepare(&mut self, case: &Case, block: Range, introduction: Option<Introduction>) {
        self.shape = shape(case);
        if let Some(Introduction { address, key }) = introduction {
            let connect = || self.worker.connect(&STANDARD.decode(address).unwrap());
            let owner = self.owner.get_or_insert_with(connect);
            let key = owner.unpack(&STANDARD.decode(key).unwrap());
            self.known.insert(self.shape, (self.worker.map(block), key));
        }
    }

    fn begin(&mut self, exposure: &Exposure, place: &[Range]) -> Vec<Get> {
        let owner = self.owner.as_ref().expect("the owner was not met");
        let (memory, key) = &self.known[&self.shape];
        let pairs = place.iter().zip(&exposure.ranges);
        pairs
            .map(|(here, &(there, _))| owner.get(*here, memory, there, key))
            .collect()
    }

    fn has_ended(&mut self, transfer: &mut Vec<Get>) -> bool {
        transfer.retain_mut(|get| !get.has_ended());
        if !transfer.is_empty() {
            self.worker.progress();
        }
        transfer.is_empty()
    }
}
