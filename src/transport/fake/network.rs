//! The state behind a fake network, and the rules it watches.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use bytes::Bytes;

use super::{Call, Completion, Event};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::AgentFlavor;
use crate::types::{AgentName, Direction, MemoryRange};

/// Everything on one network, behind one lock: agents call each other.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) completion: Completion,
    pub(super) copies: bool,
    pub(super) equal_keys: bool,
    /// Calls that are to fail, with how many more calls it takes.
    pub(super) failures: Vec<(AgentName, Call, usize)>,
    pub(super) events: Vec<Event>,
    pub(super) violations: Vec<String>,
    /// By instance: a name may be used again by a later agent.
    pub(super) agents: BTreeMap<u64, Agent>,
    /// By age.
    pub(super) requests: BTreeMap<u64, Flight>,
    dead: HashSet<u64>,
    /// Dead, and the network does not notice.
    vanished: HashSet<u64>,
    next_number: u64,
}

/// One agent.
#[derive(Debug)]
pub(super) struct Agent {
    pub(super) name: AgentName,
    pub(super) flavor: AgentFlavor,
    /// Each with the serial number that makes its key.
    pub(super) registrations: HashMap<MemoryRange, u64>,
    pub(super) peers: HashMap<AgentName, LoadedPeer>,
    /// A refused load makes a name unloadable for good, as with NIXL.
    pub(super) unloadable: HashSet<AgentName>,
    pub(super) inbox: VecDeque<(AgentName, Vec<u8>)>,
}

/// What one agent knows of another.
#[derive(Debug)]
pub(super) struct LoadedPeer {
    pub(super) connection: Bytes,
    /// `None` where the connection information is not a fake's.
    pub(super) instance: Option<u64>,
    pub(super) regions: HashMap<MemoryRange, Bytes>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RequestState {
    Prepared,
    InFlight,
    /// It failed with several descriptors: some of it may still move, for ever unseen.
    Unknown,
    Over,
}

/// One request.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) instance: u64,
    pub(super) peer: AgentName,
    pub(super) peer_instance: Option<u64>,
    pub(super) direction: Direction,
    pub(super) local: Vec<MemoryRange>,
    pub(super) remote: Vec<MemoryRange>,
    pub(super) notification: Option<Vec<u8>>,
    pub(super) state: RequestState,
    pub(super) completion: Completion,
}

impl Flight {
    pub(super) fn bytes(&self) -> u64 {
        self.local.iter().map(|range| range.len.0).sum()
    }

    /// Whether the wire may still touch its memory.
    pub(super) fn may_move(&self) -> bool {
        matches!(self.state, RequestState::InFlight | RequestState::Unknown)
    }
}

impl Network {
    pub(super) fn new() -> Self {
        Self {
            completion: Completion::Inline,
            copies: false,
            equal_keys: false,
            failures: Vec::new(),
            events: Vec::new(),
            violations: Vec::new(),
            agents: BTreeMap::new(),
            requests: BTreeMap::new(),
            dead: HashSet::new(),
            vanished: HashSet::new(),
            next_number: 1,
        }
    }

    /// A number that nothing else on this network has.
    pub(super) fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// The newest agent of a name.
    pub(super) fn current(&self, name: &AgentName) -> Option<&Agent> {
        self.agents.values().rev().find(|agent| agent.name == *name)
    }

    pub(super) fn violation(&mut self, what: String) {
        self.violations.push(what);
    }

    /// Fails this call where the script says so.
    pub(super) fn scripted(&mut self, name: &AgentName, call: Call, kind: ErrorKind) -> Result<()> {
        let mut is_due = false;
        self.failures.retain_mut(|(agent, failing, left)| {
            if agent == name && *failing == call {
                *left = left.saturating_sub(1);
                is_due |= *left == 0;
                *left > 0
            } else {
                true
            }
        });
        if is_due {
            return Err(Error::new(kind, "fake call", "scripted failure")
                .with_context("agent", name)
                .with_context("call", format_args!("{call:?}")));
        }
        Ok(())
    }

    pub(super) fn release(&mut self, count: usize) -> usize {
        let held = self
            .requests
            .values_mut()
            .filter(|request| request.state == RequestState::InFlight && request.completion == Completion::Held)
            .take(count);
        let mut released = 0;
        for request in held {
            request.completion = Completion::AfterPolls(1);
            released += 1;
        }
        released
    }

    pub(super) fn kill(&mut self, name: &AgentName) {
        self.dead.extend(
            self.agents
                .iter()
                .filter(|(_, agent)| agent.name == *name)
                .map(|(instance, _)| *instance),
        );
    }

    pub(super) fn vanish(&mut self, name: &AgentName) {
        let agents = self.agents.iter().filter(|(_, agent)| agent.name == *name);
        let instances: Vec<u64> = agents.map(|(instance, _)| *instance).collect();
        self.dead.extend(&instances);
        self.vanished.extend(&instances);
        for flight in self.requests.values_mut() {
            if flight
                .peer_instance
                .is_some_and(|instance| instances.contains(&instance))
            {
                flight.completion = Completion::Held;
            }
        }
    }

    pub(super) fn has_vanished(&self, instance: Option<u64>) -> bool {
        instance.is_some_and(|instance| self.vanished.contains(&instance))
    }

    /// Whether an instance can be reached.
    pub(super) fn is_alive(&self, instance: Option<u64>) -> bool {
        instance.is_some_and(|instance| self.agents.contains_key(&instance) && !self.dead.contains(&instance))
    }

    pub(super) fn deliver(&mut self, name: &AgentName, message: &[u8]) -> bool {
        let newest = self.agents.values_mut().rev().find(|agent| agent.name == *name);
        newest
            .map(|agent| agent.inbox.push_back((AgentName::new("somebody"), message.to_vec())))
            .is_some()
    }

    /// A notification for an instance; it vanishes where that is gone.
    pub(super) fn notify(&mut self, instance: Option<u64>, sender: &AgentName, message: Vec<u8>) {
        if self.is_alive(instance) {
            if let Some(agent) = instance.and_then(|instance| self.agents.get_mut(&instance)) {
                agent.inbox.push_back((sender.clone(), message));
            }
        }
    }

    /// Whether a registration of `instance` holds the whole range.
    pub(super) fn is_registered(&self, instance: Option<u64>, range: &MemoryRange) -> bool {
        instance
            .and_then(|instance| self.agents.get(&instance))
            .is_some_and(|agent| agent.registrations.keys().any(|registered| registered.covers(range)))
    }

    /// Whether NIXL would find every range of a list among `known`.
    ///
    /// For the first, and for one before its predecessor, it looks only at the two neighbours in the order of addresses,
    /// so a range hides behind another one that lies strictly inside of the same region. From any other it walks forward.
    pub(super) fn finds<'ranges>(
        known: impl Iterator<Item = &'ranges MemoryRange>,
        ranges: &'ranges [MemoryRange],
    ) -> bool {
        let order = |range: &MemoryRange| (range.device, range.addr, range.len);
        let kind = ranges.first().map(|range| range.kind);
        let mut known: Vec<&MemoryRange> = known.filter(|known| Some(known.kind) == kind).collect();
        known.sort_unstable_by_key(|known| order(known));
        let mut last: Option<(&MemoryRange, usize)> = None;
        ranges.iter().all(|range| {
            let found = match last {
                Some((previous, at)) if order(range) >= order(previous) => {
                    (at..known.len()).find(|at| known[*at].covers(range))
                }
                _ => {
                    let at = known.partition_point(|known| order(known) < order(range));
                    let near = [Some(at), at.checked_sub(1)];
                    near.into_iter()
                        .flatten()
                        .find(|at| known.get(*at).is_some_and(|known| known.covers(range)))
                }
            };
            last = found.map(|at| (range, at));
            found.is_some()
        })
    }

    /// A request has ended well: its bytes have moved, its notification is on the way.
    pub(super) fn complete(&mut self, id: u64) {
        let Some(flight) = self.requests.get_mut(&id) else {
            return;
        };
        flight.state = RequestState::Over;
        let bytes = flight.bytes();
        let (instance, peer_instance) = (flight.instance, flight.peer_instance);
        let sender = self.agents.get(&instance).map(|agent| agent.name.clone());
        let notification = flight.notification.take();
        if self.copies {
            self.copy(id);
        }
        if let Some(agent) = self.agents.get(&instance) {
            self.events.push(Event::Done(agent.name.clone(), bytes));
        }
        if let (Some(message), Some(sender)) = (notification, sender) {
            self.notify(peer_instance, &sender, message);
        }
    }

    fn copy(&self, id: u64) {
        let Some(flight) = self.requests.get(&id) else { return };
        for (local, remote) in flight.local.iter().zip(&flight.remote) {
            let both =
                self.is_registered(Some(flight.instance), local) && self.is_registered(flight.peer_instance, remote);
            let (Ok(length), true) = (usize::try_from(local.len.0), both) else {
                continue;
            };
            let [local, remote] = [local, remote]
                .map(|range| std::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(range.addr.0).unwrap_or(0)));
            let (from, to) = match flight.direction {
                Direction::Read => (remote, local),
                Direction::Write => (local, remote),
            };
            // SAFETY: both ranges lie in a registration that stands now, and whoever turned copying on vouched that
            // registered memory is valid and untouched by others. `copy` allows the two to overlap.
            unsafe { std::ptr::copy(from, to, length) };
        }
    }
}
