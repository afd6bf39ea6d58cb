//! The reads of one batch: what is on the clock.

use std::thread;
use std::time::Duration;

use crate::arena::{Place, check};
use crate::case::Case;
use crate::conversation::{Exposure, Reader};
use crate::now;

/// Reads all of it, as many at a time as there are places. Returns when each transfer began and ended.
///
/// It polls without a pause; with one transfer at a time, the case's gap comes before each.
pub(crate) fn read<R: Reader>(
    reader: &mut R,
    case: &Case,
    exposures: &[Exposure],
    places: &[Place],
) -> (Vec<u64>, Vec<u64>) {
    let gap = Duration::from_nanos((case.gap_us * 1000.0) as u64);
    let mut begun = Vec::with_capacity(exposures.len());
    let mut ended = Vec::with_capacity(exposures.len());
    let mut waiting = exposures.iter();
    // Of each place, what is under way into it and since when.
    let mut flights: Vec<Option<(u64, R::Transfer)>> = places.iter().map(|_| None).collect();
    while ended.len() < exposures.len() {
        for (flight, place) in flights.iter_mut().zip(places) {
            if let Some((begin, transfer)) = flight {
                if reader.has_ended(transfer) {
                    ended.push(now());
                    begun.push(*begin);
                    // After the clock has stopped: what it held is released.
                    *flight = None;
                }
            } else if let Some(exposure) = waiting.next() {
                if !gap.is_zero() && case.tasks == 1 {
                    thread::sleep(gap);
                }
                let begin = now();
                *flight = Some((begin, reader.begin(exposure, place)));
            }
        }
    }
    for place in places.iter().take(exposures.len()) {
        check(place);
    }
    (begun, ended)
}
