//! What a lane's driver works on: the agent with its peers and registrations, and the transfers under way.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::answers::Answers;
use super::idle::Activity;
use super::transfer::{Step, Transfer, Unquiet};
use crate::error::{Error, ErrorKind};
use crate::exposure::{Ledger, News, Notice};
use crate::operation::Outcome;
use crate::peer::PeerTable;
use crate::region::RegionTable;
use crate::transport::Transport;
use crate::types::{AgentName, OperationKey, ProcessId, TransferId};
use crate::wire::{ControlMessage, EndReason};
use crate::words::WordTable;

/// How long a lane that closes goes on driving what no request tells of. Connecting to a peer that looks at the wire every
/// 10 ms takes a few turns.
const UNHEARD_GRACE: Duration = Duration::from_millis(250);

/// A small transfer takes three requests: a question, its bytes, a question.
const MOST_BUDGETS: u32 = 4;

/// How often the processes of peers are looked at, where nothing else would set memory free.
const BURIAL_INTERVAL: Duration = Duration::from_secs(1);

/// An agent and what is known of its memory and peers.
#[derive(Debug)]
pub(crate) struct Resources {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) peers: PeerTable,
    pub(crate) regions: Arc<RegionTable>,
    pub(crate) words: Arc<WordTable>,
    /// How peers of our own kind reach this agent, and whose it is; `None` where they cannot be told.
    pub(crate) introduction: Option<Introduction>,
    /// How long an owner that was lost sight of may take to answer; `None` where it is not asked.
    pub(crate) keepalive: Option<Duration>,
    /// When a peer was last connected to, or notified, without a request that tells when that is over.
    pub(crate) last_unheard: Option<Instant>,
}

/// What an active side says of itself.
#[derive(Clone, Debug)]
pub(crate) struct Introduction {
    /// The agent's metadata without regions.
    pub(crate) connection: Bytes,
    pub(crate) process: ProcessId,
}

impl Introduction {
    /// What it says when it begins to move an owner's bytes.
    pub(crate) fn hello(&self, operation: OperationKey, transfer: TransferId) -> ControlMessage {
        ControlMessage::Hello {
            operation,
            transfer,
            connection: self.connection.clone(),
            process: self.process,
        }
    }
}

/// One lane's state. Whoever holds its lock drives the lane: its thread, or a caller with a small transfer.
#[derive(Debug)]
pub(crate) struct LaneState {
    resources: Resources,
    ledger: Arc<Ledger>,
    transfers: Vec<Transfer>,
    /// Memory under pieces that can never be shown quiet; pinned for the agent's life, or that of the peer's process.
    unquiet: Vec<Unquiet>,
    /// When peers' processes are looked at next.
    next_burial: Instant,
    /// How many bytes of ended transfers with one peer may stay pinned before it gets no new ones.
    quarantine_limit: u64,
    answers: Answers,
    is_closing: bool,
}

impl LaneState {
    pub(crate) fn new(resources: Resources, ledger: Arc<Ledger>, quarantine_limit: u64) -> Self {
        Self {
            resources,
            ledger,
            transfers: Vec::new(),
            unquiet: Vec::new(),
            next_burial: Instant::now(),
            quarantine_limit,
            answers: Answers::default(),
            is_closing: false,
        }
    }

    /// Takes a transfer in; the next [`LaneState::tick`] starts it.
    pub(crate) fn add(&mut self, mut transfer: Transfer) {
        if self.is_closing {
            transfer.abandon(Outcome::Failed(closed()));
        } else if let Some(error) = self.quarantine_full(transfer.peer()) {
            transfer.abandon(Outcome::Failed(error));
        } else {
            transfer.leave_to_lane();
            self.transfers.push(transfer);
        }
    }

    /// Why the peer gets no new transfer, where too much memory is pinned by those of its that have ended.
    fn quarantine_full(&self, peer: &AgentName) -> Option<Error> {
        let draining = self.transfers.iter().filter(|transfer| transfer.peer() == peer);
        let unquiet = self.unquiet.iter().filter(|unquiet| unquiet.peer == *peer);
        let bytes =
            draining.map(Transfer::quarantined_bytes).sum::<u64>() + unquiet.map(|unquiet| unquiet.bytes).sum::<u64>();
        if bytes <= self.quarantine_limit {
            return None;
        }
        let message =
            "transfers with the peer that have ended keep too much memory pinned, since the wire is not done with it";
        Some(
            Error::new(ErrorKind::QuarantineFull, "begin transfer", message)
                .with_context("peer", peer)
                .with_context("bytes", bytes)
                .with_context("quarantine_limit", self.quarantine_limit)
                .with_hint(
                    "the peer may be stopped; wait_quiesced() of those operations tells when their memory is free",
                ),
        )
    }

    /// Whether a transfer may be driven by its caller: small, and nothing to wait for.
    pub(crate) fn takes_inline(&self, transfer: &Transfer) -> bool {
        !self.is_closing && transfer.is_inline(&self.resources) && self.quarantine_full(transfer.peer()).is_none()
    }

    /// Starts a transfer and drives it as long as a step of it takes no longer than `budget`, and all of them no longer than
    /// a few of these. False where the rest of it is now the lane's.
    pub(crate) fn run_inline(&mut self, mut transfer: Transfer, budget: Duration) -> bool {
        let start = Instant::now();
        let (mut now, mut moved) = (start, start);
        loop {
            let step = transfer.step(&mut self.resources, now);
            if step == Step::Over {
                break;
            }
            now = Instant::now();
            if step == Step::Progressed {
                moved = now;
            }
            if now.duration_since(moved) > budget || now.duration_since(start) > MOST_BUDGETS * budget {
                transfer.leave_to_lane();
                self.transfers.push(transfer);
                return false;
            }
            std::hint::spin_loop();
        }
        self.transfers.extend(transfer.last_words());
        self.unquiet.extend(transfer.into_unquiet());
        self.transfers.is_empty()
    }

    /// One look at the wire: notifications in, every transfer one step on.
    pub(crate) fn tick(&mut self) -> Activity {
        self.tick_at(Instant::now)
    }

    /// As [`LaneState::tick`], with the time that is asked for once the notifications are in.
    pub(crate) fn tick_at(&mut self, clock: impl FnOnce() -> Instant) -> Activity {
        let ledger = Arc::clone(&self.ledger);
        ledger.begin_look();
        let mut notices = Vec::new();
        let received = self
            .resources
            .transport
            .poll_notifications(&mut |sender, message| notices.extend(ledger.receive(sender, message)));
        let mut progressed = match received {
            Ok(count) => count > 0,
            Err(error) => {
                tracing::warn!(%error, "notifications could not be polled");
                false
            }
        };
        let now = clock();
        for notice in notices {
            self.hear(&notice, now);
        }
        progressed |= ledger.tick(now);
        // Not through `add`: a lane that closes still says so.
        self.transfers
            .extend(ledger.take_outbox().into_iter().map(Transfer::telling));
        self.resources.peers.begin_round();
        // In the order they came, so that transfers that wait for the same peer get it in that order.
        let mut over = Vec::new();
        for (index, transfer) in self.transfers.iter_mut().enumerate() {
            let step = transfer.step(&mut self.resources, now);
            progressed |= step != Step::Unchanged;
            if step == Step::Over {
                over.push(index);
            }
        }
        for index in over.into_iter().rev() {
            let mut transfer = self.transfers.remove(index);
            if !self.is_closing {
                // A lane that closes does not connect anew to a peer that it has lost: that one may be closing, too.
                self.transfers.extend(transfer.last_words());
            }
            self.unquiet.extend(transfer.into_unquiet());
        }
        if now >= self.next_burial {
            self.next_burial = now + BURIAL_INTERVAL;
            self.unquiet.retain(|unquiet| !unquiet.has_died());
            self.bury(now);
        }
        let pages = self.resources.words.pages();
        Activity {
            progressed,
            transfers: self.transfers.len(),
            delegated: self.transfers.iter().filter(|transfer| transfer.is_delegated()).count(),
            waiting: ledger.waiting(),
            attached: !self.resources.peers.is_empty() || self.resources.regions.len() > pages,
            next_due: ledger.next_due(),
        }
    }

    /// Drops peers whose process is dead where every transfer with them waits for that in vain.
    fn bury(&mut self, now: Instant) {
        let mut stranded: HashMap<AgentName, usize> = HashMap::new();
        for transfer in self.transfers.iter().filter(|transfer| transfer.is_stranded(now)) {
            *stranded.entry(transfer.peer().clone()).or_default() += 1;
        }
        for (peer, count) in stranded {
            if !self.resources.peers.bury(&*self.resources.transport, &peer, count) {
                continue;
            }
            let transfers = self.transfers.iter_mut();
            transfers
                .filter(|transfer| *transfer.peer() == peer && transfer.is_stranded(now))
                .for_each(|transfer| transfer.bury(now));
        }
    }

    fn hear(&mut self, notice: &Notice, now: Instant) {
        let known = self.transfers.iter_mut().find(|transfer| transfer.is_called(notice));
        match (known, &notice.news) {
            (known, News::Ping(nonce)) => {
                let is_known = known.is_some();
                self.answer(notice, Some(*nonce), is_known, now);
            }
            (Some(transfer), _) => transfer.hear(notice),
            // The peer has missed how that ended.
            (None, News::Ended(_)) => self.answer(notice, None, false, now),
            (None, News::Pong(_)) => {}
        }
    }

    /// A peer asks whether a transfer is under way, or takes one for it that is not. Nobody is loaded for an answer.
    fn answer(&mut self, notice: &Notice, nonce: Option<u64>, is_known: bool, now: Instant) {
        let peer = &notice.sender;
        // Pings of what is under way are no more than that; others could come in any number.
        if self.resources.peers.is_lost(peer) || !(is_known || self.answers.admit(peer, now)) {
            return;
        }
        let (operation, transfer) = (&notice.operation, notice.transfer);
        let mut answers = Vec::new();
        answers.extend(nonce.map(|nonce| ControlMessage::Pong {
            operation: operation.clone(),
            transfer,
            nonce,
        }));
        if !is_known {
            let operation = || operation.clone();
            answers.push(ControlMessage::Left {
                operation: operation(),
                transfer,
                reason: EndReason::Failed,
                text: "no such transfer is under way".to_owned(),
            });
            let mut unquiet = self.unquiet.iter();
            answers.push(if unquiet.any(|unquiet| unquiet.is_of(notice)) {
                ControlMessage::Never {
                    operation: operation(),
                    transfer,
                }
            } else {
                ControlMessage::Quiet {
                    operation: operation(),
                    transfer,
                }
            });
        }
        for answer in answers {
            let Ok(message) = answer.encode() else { return };
            if let Err(error) = self.resources.transport.notify(peer, &message) {
                tracing::debug!(%error, "a ping could not be answered");
                return self.resources.peers.mark_lost(peer);
            }
        }
    }

    /// Takes nothing new any more and ends what has no outcome yet; pieces in flight are still driven.
    pub(crate) fn begin_close(&mut self) {
        self.is_closing = true;
        self.ledger.close(&closed());
        for transfer in &mut self.transfers {
            // What is still to be said to a peer goes out before the agent does.
            if !transfer.is_letter() {
                transfer.abandon(Outcome::Failed(closed()));
            }
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

    /// As [`LaneState::transfers`], without the parts of other lanes' transfers.
    pub(crate) fn whole_transfers(&self) -> usize {
        self.transfers.iter().filter(|transfer| !transfer.is_part()).count()
    }

    /// The loaded peers.
    pub(crate) fn peers(&self) -> &PeerTable {
        &self.resources.peers
    }

    /// How many ranges stay pinned because a piece over them can never be shown quiet.
    pub(crate) fn unquiet(&self) -> usize {
        self.unquiet.iter().map(|unquiet| unquiet.regions.len()).sum()
    }

    /// Leaves everything as it is, for ever: what the wire may still touch must outlive the process's sight of it.
    pub(crate) fn leak(self) {
        self.ledger.abandon();
        for transfer in &self.transfers {
            transfer.keep_for_ever();
        }
        std::mem::forget(self);
    }

    /// Whether the agent can be destroyed without the wire touching memory that is no longer pinned.
    pub(crate) fn is_quiet(&self) -> bool {
        self.transfers.is_empty() && self.unquiet.is_empty()
    }
}

pub(crate) fn closed() -> Error {
    Error::new(ErrorKind::Closed, "use connector", "it is closed")
}
