//! Making the requests of a transfer, and what becomes of them.

use std::time::Instant;

use super::validity::Validity;
use super::{Flight, Purpose, Stage, Transfer, WINDOW};
use crate::checksum::SLICE;
use crate::descriptor::Piece;
use crate::error::{Error, ErrorKind, Result};
use crate::operation::Outcome;
use crate::reactor::state::Resources;
use crate::transport::Progress;
use crate::types::{Direction, OperationKey};

/// So often a transfer begins anew with what is left of it, after others have broken the connection.
const MAX_REPETITIONS: u32 = 3;

impl Transfer {
    /// Looks at every request in flight.
    pub(super) fn poll(&mut self, resources: &mut Resources, now: Instant) -> bool {
        let mut progressed = false;
        let mut index = 0;
        while index < self.in_flight.len() {
            match self.in_flight[index].request.poll() {
                Ok(Progress::Pending) => {
                    index += 1;
                    continue;
                }
                Ok(Progress::Done) => {
                    let flight = self.in_flight.swap_remove(index);
                    self.ended_well(flight.purpose, flight.piece.bytes);
                }
                Err(error) => {
                    let flight = self.in_flight.swap_remove(index);
                    self.ended_badly(resources, flight, error);
                }
            }
            progressed = true;
            self.clock.progress(now);
        }
        progressed
    }

    /// A request has ended, and its notification is on the way.
    fn ended_well(&mut self, purpose: Purpose, bytes: u64) {
        self.operation.add_bytes_done(bytes);
        self.report(bytes);
        let verdict = match (purpose, &self.validity) {
            (Purpose::Check | Purpose::Seal, Some(validity)) => validity.verdict(),
            _ => Ok(()),
        };
        match (purpose, verdict) {
            (_, Err(error)) => {
                self.operation.finish(Outcome::of(self.detailed(error)));
            }
            (Purpose::Check, Ok(())) => {
                if self.validity.as_mut().is_none_or(Validity::note_answer) {
                    self.stage = Stage::Moving;
                }
            }
            (Purpose::Seal, Ok(())) => self.complete(),
            (Purpose::Move, Ok(())) => {}
        }
    }

    /// Posts the next request, if it may go now, or completes the operation.
    pub(super) fn post_next(&mut self, resources: &mut Resources) -> Result<bool> {
        match self.stage {
            Stage::Checking => self.ask(resources, Purpose::Check),
            Stage::Moving if self.is_to_be_shared() => {
                self.share_out();
                Ok(true)
            }
            Stage::Moving if self.crew.is_some() => self.follow_crew(),
            Stage::Moving if !self.has_posted_all() => self.post_piece(resources),
            Stage::Moving | Stage::Sealing => self.conclude(resources),
            Stage::Queued | Stage::Inquiring | Stage::Draining | Stage::Buried(_) | Stage::Over => Ok(false),
        }
    }

    fn post_piece(&mut self, resources: &mut Resources) -> Result<bool> {
        // With the last piece goes the notification, where no question follows.
        let is_last = match self.again.len() {
            0 => self.pieces.is_at_last(),
            1 => self.pieces.is_exhausted(),
            _ => false,
        };
        let notifies = self.validity.is_none() && is_last;
        if self.in_flight.len() >= WINDOW || (notifies && !self.in_flight.is_empty()) {
            return Ok(false);
        }
        let Some(piece) = self.again.pop().or_else(|| self.pieces.next()) else {
            return Ok(false);
        };
        let (purpose, key) = if notifies {
            (Purpose::Seal, Some(self.operation.key().clone()))
        } else {
            (Purpose::Move, None)
        };
        self.operation.mark_in_progress();
        let direction = self.operation.direction();
        self.post(resources, purpose, direction, piece, key.as_ref())
    }

    /// All pieces are posted: what is left is to ask and to tell the owner.
    fn conclude(&mut self, resources: &mut Resources) -> Result<bool> {
        if !self.in_flight.is_empty() {
            return Ok(false);
        }
        if self.checksum.is_some() {
            return self.verify();
        }
        if self.validity.is_some() {
            self.stage = Stage::Sealing;
            return self.ask(resources, Purpose::Seal);
        }
        if self.operation.bytes_total() == 0 {
            if !self.operation.key().is_empty() {
                // No byte moves, so no request could carry the notification.
                resources
                    .transport
                    .notify(self.remote.agent(), self.operation.key().as_bytes())?;
            }
            if !self.is_part() {
                resources.last_unheard = Some(Instant::now());
            }
        }
        self.complete();
        Ok(true)
    }

    /// Sums up some of what was read, and compares the sum once it is complete.
    fn verify(&mut self) -> Result<bool> {
        let Some(checksum) = &mut self.checksum else {
            return Ok(false);
        };
        // SAFETY: the regions keep the memory's owners alive, or the caller of `begin` vouched for it; nothing is in flight.
        let Some(sum) = (unsafe { checksum.advance(SLICE) }) else {
            return Ok(true);
        };
        self.checksum = None;
        let expected = self.remote.trailer().and_then(|trailer| trailer.checksum);
        if expected != Some(sum) {
            let message = "what has arrived is not what was exposed: its checksum differs";
            let error = Error::new(ErrorKind::Integrity, "verify", message)
                .with_context("expected", format_args!("{:#010x}", expected.unwrap_or_default()))
                .with_context("found", format_args!("{sum:#010x}"))
                .with_hint("exposed memory must not be changed while it is exposed");
            self.operation.finish(Outcome::Failed(self.detailed(error)));
        }
        Ok(true)
    }

    /// Nothing is in flight any more, and the bytes are where they belong.
    fn complete(&self) {
        if self.in_flight.is_empty() && !self.is_part() {
            self.pin.settle();
        }
        self.operation.finish(Outcome::Complete);
    }

    /// Reads the owner's word.
    fn ask(&mut self, resources: &mut Resources, purpose: Purpose) -> Result<bool> {
        let Some(validity) = self.validity.as_mut().filter(|_| self.in_flight.is_empty()) else {
            return Ok(false);
        };
        let piece = Piece {
            remote: vec![validity.remote()],
            local: vec![validity.read_into(resources.words.take(u64::MAX)?)],
            bytes: 0,
        };
        let tells = purpose == Purpose::Seal && !self.is_part();
        let key = tells.then(|| self.operation.key().clone());
        self.operation.mark_in_progress();
        self.post(resources, purpose, Direction::Read, piece, key.as_ref())
    }

    fn post(
        &mut self,
        resources: &mut Resources,
        purpose: Purpose,
        direction: Direction,
        piece: Piece,
        key: Option<&OperationKey>,
    ) -> Result<bool> {
        let peer = self.remote.agent();
        let notification = key.map(OperationKey::as_bytes);
        let (mut request, regions) = resources.regions.bind(&piece.local, |transport| {
            transport.prepare(direction, &piece.local, &piece.remote, peer, notification)
        })?;
        let posted = request.post();
        let flight = Flight {
            request,
            purpose,
            piece,
            regions,
        };
        match posted {
            Ok(Progress::Done) => self.ended_well(purpose, flight.piece.bytes),
            Ok(Progress::Pending) => self.in_flight.push(flight),
            Err(error) => self.ended_badly(resources, flight, error),
        }
        Ok(true)
    }

    /// A request has failed: for good, or because the connection was broken by another transfer's.
    fn ended_badly(&mut self, resources: &mut Resources, flight: Flight, error: Error) {
        let several = flight.piece.local.len() > 1;
        // The failure of a single range is the end of its request; it may be made anew. Not so where the notification may
        // have gone out with it.
        let is_victim = resources.peers.is_lost(self.remote.agent())
            && !several
            && flight.purpose != Purpose::Seal
            && self.repetitions < MAX_REPETITIONS
            && !self.is_part()
            && self.refuse_dead().is_ok();
        if is_victim {
            if flight.purpose == Purpose::Move {
                self.again.push(flight.piece);
            }
            return;
        }
        if several {
            self.pin_for_ever(flight.regions);
        }
        self.fail(resources, error);
    }

    /// Goes back to the start. Where a range of a list fails that is not the last one, NIXL calls the request done, and only
    /// the next one finds the connection broken, whosever that is: what has moved as a list before is not known.
    pub(super) fn rewind(&mut self) -> Result<()> {
        self.again.clear();
        self.pieces.rewind();
        self.operation.forget_bytes_done();
        if self.verifies {
            self.checksum = Some(self.new_checksum()?);
        }
        Ok(())
    }

    /// Whether no piece is left to be posted.
    fn has_posted_all(&self) -> bool {
        self.again.is_empty() && self.pieces.is_exhausted()
    }

    /// Waits for the connection to be made anew, where another transfer's failure has broken it: true while it does. What is
    /// in flight is driven to its end first, and the peer is let go, or nobody could load it.
    pub(super) fn waits_for_reload(&mut self, resources: &mut Resources) -> bool {
        let is_others = self.is_part() || self.crew.is_some();
        if is_others || self.repetitions >= MAX_REPETITIONS || !resources.peers.is_lost(self.remote.agent()) {
            return false;
        }
        if self.in_flight.is_empty() {
            self.repetitions += 1;
            if self.has_lists {
                if let Err(error) = self.rewind() {
                    self.operation.finish(Outcome::Failed(self.detailed(error)));
                    return true;
                }
            }
            resources.peers.end_use(self.remote.agent());
            // A hello may have been lost with the connection.
            self.courtesy.forget_greeting();
            let left = self.again.iter().map(|piece| piece.remote.clone());
            self.lists = left.chain(self.pieces.left()).collect();
            self.lists
                .extend(self.validity.as_ref().map(|validity| vec![validity.remote()]));
            self.stage = Stage::Queued;
        }
        true
    }
}
