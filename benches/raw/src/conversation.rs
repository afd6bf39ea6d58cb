//! What an owner, a reader and who started them say to each other: `peer/__main__.py`.

use std::collections::BTreeMap;
use std::env;

use rustix::process::{Signal, set_parent_process_death_signal};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::arena::{Arena, OWNERS, Place, READERS, Range, mark};
use crate::batch;
use crate::case::{Case, Request, Summary};
use crate::channel::Channel;

/// The side that is read from.
pub trait Owner {
    /// What a reader is told of new memory.
    type Introduction: Serialize;

    /// Registers all the memory of one shape.
    fn register(&mut self, block: Range) -> Self::Introduction;

    /// Serves reads until all of these exposures have ended, where it is told, and the reader says that it is done.
    /// Returns when each ended, or nothing where nobody tells.
    fn serve(&mut self, exposures: &[Exposure], reader: &Channel) -> Vec<u64>;
}

/// The side that reads.
pub trait Reader {
    /// What it is told of an owner's new memory.
    type Introduction: DeserializeOwned;
    /// A transfer under way.
    type Transfer;

    /// Comes before each batch, with all the memory that this side has for its shape. With an introduction where that
    /// is new, as it is on both sides at the same time.
    fn prepare(&mut self, case: &Case, block: Range, introduction: Option<Self::Introduction>);

    /// Begins to read.
    fn begin(&mut self, exposure: &Exposure, place: &[Range]) -> Self::Transfer;

    /// Drives a transfer, and tells whether it has ended. Panics where it ended badly.
    fn has_ended(&mut self, transfer: &mut Self::Transfer) -> bool;
}

/// One thing to read.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Exposure {
    /// What the notification of its end says.
    pub key: String,
    /// Addresses and lengths.
    pub ranges: Vec<(usize, usize)>,
}

#[derive(Deserialize, Serialize)]
struct Offer<T> {
    /// Where there is new memory.
    introduction: Option<T>,
    exposures: Vec<Exposure>,
}

/// Plays the role that the arguments say: `ROLE IMPLEMENTATION DESCRIPTOR...`. Both makers are given the name of the
/// implementation.
pub fn play<O: Owner, R: Reader>(
    versions: &BTreeMap<&str, String>,
    make_owner: impl FnOnce(&str) -> O,
    make_reader: impl FnOnce(&str) -> R,
) {
    // Polls have no end of their own, and whoever started this may be killed.
    set_parent_process_death_signal(Some(Signal::KILL)).unwrap();
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [role, implementation, descriptors @ ..] = arguments.as_slice() else {
        panic!("called as ROLE IMPLEMENTATION DESCRIPTOR... by `dynamo-nixl bench`");
    };
    // SAFETY: they are inherited for us to own, each is taken once, and nothing was opened before.
    let channels = descriptors
        .iter()
        .map(|each| unsafe { Channel::of_descriptor(each.parse().unwrap()) });
    let mut channels = channels.collect::<Vec<_>>().into_iter();
    let peer = channels.next().unwrap();
    if role == "owner" {
        own(&mut make_owner(implementation), peer);
    } else {
        let mut starter = channels.next().unwrap();
        let mut reader = Reading {
            reader: make_reader(implementation),
            arena: Arena::new(READERS),
            owner: peer,
        };
        starter.send(versions);
        while let Some(case) = starter.receive() {
            starter.send(&reader.measure(&case));
        }
    }
}

fn own<O: Owner>(owner: &mut O, mut reader: Channel) {
    let mut arena = Arena::new(OWNERS);
    while let Some(Request { case, count }) = reader.receive() {
        let (block, is_new) = arena.block(&case);
        let introduction = is_new.then(|| owner.register(block));
        let exposures: Vec<Exposure> = (0..count)
            .map(|_| Exposure {
                key: uuid::Uuid::new_v4().to_string(),
                ranges: arena.take(&case).iter().map(|range| (range.addr, range.len)).collect(),
            })
            .collect();
        reader.send(&Offer {
            introduction,
            exposures: exposures.clone(),
        });
        let stamps = owner.serve(&exposures, &reader);
        reader.receive::<Value>();
        // Of several at a time nobody knows whose ends first.
        reader.send(&if case.tasks == 1 { stamps } else { Vec::new() });
    }
}

struct Reading<R> {
    reader: R,
    arena: Arena,
    owner: Channel,
}

/// When the transfers of one or several batches began, and when either side knew that they had ended.
#[derive(Default)]
struct Times {
    begun: Vec<u64>,
    read: Vec<u64>,
    owned: Vec<u64>,
    /// Nanoseconds from the begin of each batch to its end.
    busy: u64,
}

impl<R: Reader> Reading<R> {
    fn measure(&mut self, case: &Case) -> Value {
        self.run(case, case.warm_up);
        let times = self.run(case, case.iterations);
        let owned = (!times.owned.is_empty()).then(|| Summary::since(&times.begun, &times.owned));
        json!({
            "reader": Summary::since(&times.begun, &times.read),
            "owner": owned,
            "per_second": times.begun.len() as f64 / times.busy as f64 * 1e9,
        })
    }

    fn run(&mut self, case: &Case, count: usize) -> Times {
        let mut times = Times::default();
        while times.begun.len() < count {
            self.owner.send(&Request {
                case: *case,
                count: case.batch(),
            });
            let (begun, read) = self.read(case);
            self.owner.send(&"done");
            times
                .owned
                .extend(self.owner.receive::<Vec<u64>>().expect("the owner has ended"));
            times.busy += read.iter().max().unwrap() - begun.iter().min().unwrap();
            times.begun.extend(begun);
            times.read.extend(read);
        }
        times
    }

    fn read(&mut self, case: &Case) -> (Vec<u64>, Vec<u64>) {
        let (block, _) = self.arena.block(case);
        let places: Vec<Place> = (0..case.tasks).map(|_| self.arena.take(case)).collect();
        let offer: Offer<R::Introduction> = self.owner.receive().expect("the owner has ended");
        self.reader.prepare(case, block, offer.introduction);
        places.iter().for_each(|place| mark(place));
        batch::read(&mut self.reader, case, &offer.exposures, &places)
    }
}
