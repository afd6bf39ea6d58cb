//! The bytes of a big transfer, moved by several agents at a time.
//!
//! Over shared memory the kernel copies within the post, on the core of whoever posts: one agent copies with one core. So
//! a big transfer hands its pieces to *copy lanes*, agents that do nothing else. Each gets a *part*, a transfer of its own
//! that takes pieces from the one cursor until there are none. The transfer itself stays on its lane: it asks the owner before,
//! waits until every part is quiet, and asks and tells the owner behind them.

use std::fmt;
use std::sync::{Arc, Weak};

use super::lane::Lane;
use super::transfer::Transfer;
use crate::descriptor::{Piece, PieceCursor};
use crate::error::{Error, ErrorKind};
use crate::operation::{CompletionSink, Operation, Outcome, Phase, next_ticket};
use crate::sync::Mutex;

/// From this size on a transfer gets a crew: it then takes some ten times as long as waking one up.
pub(crate) const CREW_BYTES: u64 = 8 << 20;

/// The pieces that a crew shares.
#[derive(Debug)]
pub(super) struct Load {
    /// The transfer they are of. When it ends, nobody takes a further piece.
    whole: Arc<Operation>,
    cursor: Mutex<PieceCursor>,
}

impl Load {
    pub(super) fn new(whole: Arc<Operation>, cursor: PieceCursor) -> Arc<Self> {
        Arc::new(Self {
            whole,
            cursor: Mutex::new(cursor),
        })
    }

    pub(super) fn whole(&self) -> &Arc<Operation> {
        &self.whole
    }

    pub(super) fn next_piece(&self) -> Option<Piece> {
        (!self.whole.is_finished()).then(|| self.cursor.lock().next_piece())?
    }

    /// Whether there is nothing left to be taken.
    pub(super) fn is_exhausted(&self) -> bool {
        self.whole.is_finished() || self.cursor.lock().is_exhausted()
    }
}

/// The copy lanes that a transfer may use, and its own lane, which is to be told when they are done.
pub(crate) struct Hands {
    lanes: Vec<Arc<Lane>>,
    home: Weak<Lane>,
}

impl Hands {
    /// `None` where there is nobody.
    pub(crate) fn new(lanes: Vec<Arc<Lane>>, home: &Arc<Lane>) -> Option<Self> {
        let home = Arc::downgrade(home);
        (!lanes.is_empty()).then_some(Self { lanes, home })
    }

    /// Sets a part to work on each lane.
    pub(super) fn hire(self, load: Arc<Load>, mut part: impl FnMut() -> (Transfer, Arc<Operation>)) -> Crew {
        let sink: Arc<dyn CompletionSink> = Arc::new(TouchHome(self.home));
        let mut parts = Vec::with_capacity(self.lanes.len());
        for lane in &self.lanes {
            let (transfer, operation) = part();
            operation.watch(Phase::Quiet, &sink, next_ticket());
            parts.push(operation);
            lane.start(transfer);
        }
        Crew {
            load,
            parts,
            bytes_seen: 0,
        }
    }
}

impl fmt::Debug for Hands {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_tuple("Hands").field(&self.lanes).finish()
    }
}

/// Has the transfer's own lane look at it.
struct TouchHome(Weak<Lane>);

impl CompletionSink for TouchHome {
    fn arrived(&self, _ticket: u64) {
        if let Some(home) = self.0.upgrade() {
            home.touch();
        }
    }
}

/// Those at work for one transfer.
#[derive(Debug)]
pub(super) struct Crew {
    load: Arc<Load>,
    parts: Vec<Arc<Operation>>,
    bytes_seen: u64,
}

/// What has become of a crew that is quiet.
pub(super) enum Verdict {
    /// All pieces have moved.
    Done,
    /// Somebody failed, and what has moved is not known, or nobody could begin. It can be moved anew: nothing of it is under
    /// way.
    Redo,
    /// The owner is dead.
    Lost(Error),
    /// Nobody will ever know whether something is still moving.
    Unquiet(Error),
}

impl Crew {
    /// Whether more has moved than at the last look.
    pub(super) fn has_moved(&mut self, whole: &Operation) -> bool {
        let done = whole.bytes_done();
        std::mem::replace(&mut self.bytes_seen, done) != done
    }

    /// Whether nothing of it is under way any more.
    pub(super) fn is_quiet(&self) -> bool {
        self.parts.iter().all(|part| part.has_reached(Phase::Quiet))
    }

    /// Has the others end where one has failed: it is all moved anew, or not at all.
    pub(super) fn end_together(&self) {
        let has_failed = |part: &Arc<Operation>| error_of(part).is_some();
        if self.parts.iter().any(has_failed) {
            for part in &self.parts {
                part.finish(Outcome::Cancelled);
            }
        }
    }

    /// What has become of it, once it is quiet.
    pub(super) fn verdict(&self) -> Verdict {
        let mut verdict = Verdict::Done;
        for part in &self.parts {
            let error = error_of(part);
            if let Some(reason) = part.never_quiet() {
                return Verdict::Unquiet(error.unwrap_or(reason));
            }
            match error {
                None => {}
                Some(error) if error.kind() == ErrorKind::PeerLost => verdict = Verdict::Lost(error),
                Some(error) => {
                    tracing::debug!(%error, "a part of a transfer has failed");
                    if matches!(verdict, Verdict::Done) {
                        verdict = Verdict::Redo;
                    }
                }
            }
        }
        match verdict {
            Verdict::Done if !self.load.is_exhausted() => Verdict::Redo,
            verdict => verdict,
        }
    }
}

fn error_of(part: &Operation) -> Option<Error> {
    part.outcome().and_then(|outcome| outcome.error().cloned())
}
