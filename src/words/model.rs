//! Words that are taken and given back while others take some, and while the lane ends.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::sync::{check, spawn};
use crate::transport::AgentFlavor;
use crate::transport::fake::FakeNetwork;
use crate::types::AgentName;

impl Word {
    /// Looks at the word as the wire does: without a lock.
    pub(crate) fn seen_by_the_wire(&self) -> impl Fn() -> u64 + Send + 'static {
        let (page, place) = (Arc::clone(&self.page), self.place);
        move || page.0[place.1].load(Ordering::Acquire)
    }
}

fn table() -> (FakeNetwork, Arc<RegionTable>, Arc<WordTable>) {
    let network = FakeNetwork::new();
    let transport = network.agent(&AgentName::new("owner"), AgentFlavor::SharedMemoryErrors);
    let regions = RegionTable::new(transport.unwrap());
    let words = WordTable::new(Arc::clone(&regions));
    (network, regions, words)
}

#[test]
fn no_word_is_given_to_two() {
    check(|| {
        let (network, regions, words) = table();
        // One word of the page is left, so that one of the two takes it and the other makes a page.
        let first = words.take(1).unwrap();
        let other = spawn({
            let words = Arc::clone(&words);
            move || words.take(2).unwrap()
        });
        let mine = words.take(3).unwrap();
        let other = other.join().unwrap();
        assert_eq!((first.get(), other.get(), mine.get()), (1, 2, 3));
        assert!(mine.place != other.place && mine.range() != other.range());
        assert_eq!((words.pages(), regions.len()), (2, 2));
        drop((first, other, mine));
        words.close();
        assert!(regions.is_empty());
        assert_eq!(network.violations(), [""; 0]);
    });
}

#[test]
fn a_word_that_was_given_back_and_taken_anew_says_what_its_new_holder_says() {
    check(|| {
        let (_network, _regions, words) = table();
        let (one, _two) = (words.take(1).unwrap(), words.take(2).unwrap());
        let place = one.place;
        let giver = spawn(move || {
            one.set(10);
            drop(one);
        });
        let mine = words.take(3).unwrap();
        giver.join().unwrap();
        assert_eq!(mine.get(), 3, "also where another had the word before");
        if mine.place == place {
            assert_eq!(words.pages(), 1);
        }
    });
}

#[test]
fn a_table_that_closes_leaves_nothing_registered() {
    check(|| {
        let (network, regions, words) = table();
        let taker = spawn({
            let words = Arc::clone(&words);
            move || words.take(1).map(|word| word.get())
        });
        words.close();
        match taker.join().unwrap() {
            Ok(value) => assert_eq!(value, 1),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Closed),
        }
        assert_eq!((words.pages(), regions.len()), (0, 0));
        assert_eq!(network.registered("owner"), []);
        assert_eq!(network.violations(), [""; 0]);
    });
}
