//! What a lane's driver works on: the agent with its peers and registrations, and the transfers under way.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::dispatch::Dispatcher;
use super::idle::Activity;
use super::transfer::{Step, Transfer};
use crate::error::{Error, ErrorKind};
use crate::operation::Outcome;
use crate::peer::PeerTable;
use crate::region::{Region, RegionTable};
use crate::transport::Transport;

/// How long a lane that closes goes on driving what no request tells of. Connecting to a peer that looks at the wire every
/// 10 ms takes a few turns.
const UNHEARD_GRACE: Duration = Duration::from_millis(250);

/// An agent and what is known of its memory and peers.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) peers: PeerTable,
    pub(crate) regions: Arc<RegionTable>,
    /// When a peer was last connected to, or notified, without a request that tells when that is over.
    pub(crate) last_unheard: Option<Instant>,
}

/// One lane's state. Whoever holds its lock drives the lane: its thread, or a caller with a small transfer.
#[derive(Debug)]
pub(crate) struct LaneState {
    resources: Resources,
    dispatcher: Arc<Dispatcher>,
    transfers: Vec<Transfer>,
    /// Memory under pieces that can never be shown quiet; pinned for the agent's life.
    unquiet: Vec<Region>,
    is_closing: bool,
}

impl LaneState {
    pub(crate) fn new(
        transport: Arc<dyn Transport>,
        peers: PeerTable,
        regions: Arc<RegionTable>,
        dispatcher: Arc<Dispatcher>,
    ) -> Self {
        Self {
            resources: Resources {
                transport,
                peers,
                regions,
                last_unheard: None,
            },
            dispatcher,
            transfers: Vec::new(),
            unquiet: Vec::new(),
            is_closing: false,
        }
    }

    /// Takes a transfer in; the next [`LaneState::tick`] starts it.
    pub(crate) fn add(&mut self, mut transfer: Transfer) {
        if self.is_closing {
            transfer.abandon(Outcome::Failed(closed()));
        } else {
            self.transfers.push(transfer);
        }
    }

    /// Whether a transfer may be driven by its caller: small, and nothing to wait for.
    pub(crate) fn takes_inline(&self, transfer: &Transfer) -> bool {
        !self.is_closing && transfer.is_inline(&self.resources)
    }

    /// Starts a transfer and drives it for at most `budget`. False where the rest of it is now the lane's.
    pub(crate) fn run_inline(&mut self, mut transfer: Transfer, budget: Duration) -> bool {
        let start = Instant::now();
        while transfer.step(&mut self.resources) != Step::Over {
            if start.elapsed() > budget {
                self.transfers.push(transfer);
                return false;
            }
            std::hint::spin_loop();
        }
        self.unquiet.extend(transfer.take_unquiet());
        true
    }

    /// One look at the wire: notifications in, every transfer one step on.
    pub(crate) fn tick(&mut self) -> Activity {
        let dispatcher = Arc::clone(&self.dispatcher);
        let received = self
            .resources
            .transport
            .poll_notifications(&mut |message| dispatcher.dispatch(message));
        let mut progressed = match received {
            Ok(count) => count > 0,
            Err(error) => {
                tracing::warn!(%error, "notifications could not be polled");
                false
            }
        };
        self.resources.peers.begin_round();
        let (resources, unquiet) = (&mut self.resources, &mut self.unquiet);
        // In the order they came, so that transfers that wait for the same peer get it in that order.
        self.transfers.retain_mut(|transfer| {
            let step = transfer.step(resources);
            progressed |= step != Step::Unchanged;
            if step == Step::Over {
                unquiet.extend(transfer.take_unquiet());
            }
            step != Step::Over
        });
        Activity {
            progressed,
            transfers: self.transfers.len(),
            waiting: self.dispatcher.waiting(),
            attached: !self.resources.peers.is_empty() || !self.resources.regions.is_empty(),
        }
    }

    /// Whether something was handed in, beside the lane's thread, since that look.
    pub(crate) fn has_news(&self, seen: &Activity) -> bool {
        self.transfers.len() != seen.transfers || self.dispatcher.waiting() != seen.waiting
    }

    /// Takes nothing new any more and ends what has no outcome yet; pieces in flight are still driven.
    pub(crate) fn begin_close(&mut self) {
        self.is_closing = true;
        self.dispatcher.close(&closed());
        for transfer in &mut self.transfers {
            transfer.abandon(Outcome::Failed(closed()));
        }
    }

    /// Whether the wire is given a little longer, since something may still be on its way that no request tells of.
    pub(crate) fn lingers(&self, now: Instant) -> bool {
        let sent = self.resources.last_unheard;
        sent.is_some_and(|sent| now.duration_since(sent) < UNHEARD_GRACE)
    }

    /// How many transfers the wire is not done with.
    pub(crate) fn transfers(&self) -> usize {
        self.transfers.len()
    }

    /// The loaded peers.
    pub(crate) fn peers(&self) -> &PeerTable {
        &self.resources.peers
    }

    /// How many ranges stay pinned because a piece over them can never be shown quiet.
    pub(crate) fn unquiet(&self) -> usize {
        self.unquiet.len()
    }

    /// Whether the agent can be destroyed without the wire touching memory that is no longer pinned.
    pub(crate) fn is_quiet(&self) -> bool {
        self.transfers.is_empty() && self.unquiet.is_empty()
    }
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "use connector", "it is closed")
}
