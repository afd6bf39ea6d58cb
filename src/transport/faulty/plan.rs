//! What goes wrong and how often, and what has gone wrong so far. Knows no wire: a decorator asks it about each event.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::sync::lock::Mutex;

use super::random::Random;
use crate::types::AgentName;
use crate::wire::{ControlMessage, Incoming};

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// A notification that arrives is never handed over.
    Drop(Notifications),
    /// One is handed over so much later, or when it is released; others may overtake it.
    Delay(Notifications, Option<Duration>),
    /// One is handed over twice.
    Duplicate(Notifications),
    /// A piece is not reported as ended for so long, or until it is released, whatever the wire does with it.
    Stall(Option<Duration>),
    /// As `Stall`, and counted apart: what makes every piece slow.
    Slow(Duration),
    /// A piece fails as NIXL would say it: without being posted, or once all of it has moved.
    Fail {
        /// Whether it moves its bytes before.
        after_moving: bool,
    },
    /// The owner's word is not read, and so does not say that the exposure is open. The owner hears nothing of it.
    Stale,
    /// Everything with the peer fails. What is on its way is driven to its end before that is said.
    Lost {
        /// As though its process were known to have ended.
        is_dead: bool,
    },
}

impl Effect {
    /// What it is counted under.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Drop(_) => "drop",
            Self::Delay(..) => "delay",
            Self::Duplicate(_) => "duplicate",
            Self::Stall(_) => "stall",
            Self::Slow(_) => "slow",
            Self::Fail { .. } => "fail",
            Self::Stale => "stale",
            Self::Lost { .. } => "lost",
        }
    }

    fn is_about(self, event: &Event<'_>) -> bool {
        match (self, event) {
            (Self::Drop(which) | Self::Delay(which, _) | Self::Duplicate(which), Event::Notification(message)) => {
                which.include(message)
            }
            (Self::Stall(_) | Self::Slow(_) | Self::Fail { .. }, Event::Piece)
            | (Self::Stale, Event::Question)
            | (Self::Lost { .. }, Event::Contact) => true,
            _ => false,
        }
    }
}

/// Which notifications.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notifications {
    /// Keys, which complete exposures.
    Keys,
    /// What peers of our own kind tell each other beside.
    Messages,
    /// Both.
    All,
}

impl Notifications {
    fn include(self, message: &[u8]) -> bool {
        let is_key = || matches!(ControlMessage::decode(message), Ok(Incoming::Other));
        match self {
            Self::Keys => is_key(),
            Self::Messages => !is_key(),
            Self::All => true,
        }
    }
}

/// To which of the events that it is about a fault happens.
#[derive(Clone, Debug, PartialEq)]
pub struct When {
    /// The first one, counted from 1 from the moment the fault is added.
    pub at: u64,
    /// How many, `None` for all from there on.
    pub count: Option<u64>,
    /// How likely each of them is struck.
    pub probability: f64,
    /// Only with this peer: a worker's id or an agent's name.
    pub peer: Option<String>,
}

impl Default for When {
    fn default() -> Self {
        Self {
            at: 1,
            count: Some(1),
            probability: 1.0,
            peer: None,
        }
    }
}

/// What may be struck.
#[derive(Debug)]
enum Event<'message> {
    Notification(&'message [u8]),
    Piece,
    /// A word of the peer is about to be read.
    Question,
    /// Anything at all with the peer.
    Contact,
}

/// A set of faults that any number of agents share; clones are the same set.
///
/// Deterministic: the same seed, the same faults and the same events in the same order have the same ones struck.
#[derive(Clone)]
pub struct Faults {
    plan: Arc<Mutex<Plan>>,
}

struct Plan {
    seed: u64,
    /// How many rules there ever were: each has a sequence of its own, so that one does not disturb the others'.
    made: u64,
    rules: Vec<Arc<Rule>>,
    injected: BTreeMap<&'static str, u64>,
}

/// One fault of a set.
#[derive(Clone, Debug)]
pub struct Fault {
    faults: Faults,
    rule: Arc<Rule>,
}

#[derive(Debug)]
struct Rule {
    effect: Effect,
    when: When,
    state: Mutex<RuleState>,
}

#[derive(Debug)]
struct RuleState {
    seen: u64,
    injected: u64,
    /// What was held before the last release is not held any more.
    releases: u64,
    random: Random,
}

impl Rule {
    /// Whether this event is struck.
    fn strikes(&self, peer: &AgentName) -> bool {
        if !self
            .when
            .peer
            .as_ref()
            .is_none_or(|named| is_agent_of(peer.as_str(), named))
        {
            return false;
        }
        let mut state = self.state.lock();
        state.seen += 1;
        if state.seen < self.when.at || self.when.count.is_some_and(|count| state.injected >= count) {
            return false;
        }
        let strikes = self.when.probability >= 1.0 || state.random.fraction() < self.when.probability;
        state.injected += u64::from(strikes);
        strikes
    }

    fn hold(self: &Arc<Self>, duration: Option<Duration>, now: Instant) -> Hold {
        Hold {
            rule: Arc::clone(self),
            // One that is too long to be told is until the release.
            until: duration.and_then(|duration| now.checked_add(duration)),
            releases: self.state.lock().releases,
        }
    }

    fn release(&self) {
        self.state.lock().releases += 1;
    }
}

/// Keeps back what a fault struck, until then or until it is released.
#[derive(Debug)]
pub(super) struct Hold {
    rule: Arc<Rule>,
    until: Option<Instant>,
    releases: u64,
}

impl Hold {
    pub(super) fn is_over(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until <= now) || self.rule.state.lock().releases != self.releases
    }
}

/// What becomes of a notification that has arrived.
#[derive(Debug)]
pub(super) struct Arrival {
    /// How often it is handed over.
    pub(super) copies: usize,
    pub(super) holds: Vec<Hold>,
}

/// What becomes of a piece that is posted.
#[derive(Debug)]
pub(super) enum Fate {
    /// It fails at once.
    Refused,
    Posted {
        holds: Vec<Hold>,
        /// Once it has moved, it fails.
        fails: bool,
    },
}

impl Faults {
    /// A set without faults.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let plan = Plan {
            seed,
            made: 0,
            rules: Vec::new(),
            injected: BTreeMap::new(),
        };
        Self {
            plan: Arc::new(Mutex::new(plan)),
        }
    }

    /// Adds a fault, which counts events from now.
    #[must_use = "a fault is cleared through what this returns, or with all others"]
    pub fn add(&self, effect: Effect, when: When) -> Fault {
        let mut plan = self.plan.lock();
        let state = RuleState {
            seen: 0,
            injected: 0,
            releases: 0,
            random: Random::new(plan.seed, plan.made),
        };
        plan.made += 1;
        let rule = Arc::new(Rule {
            effect,
            when,
            state: Mutex::new(state),
        });
        plan.rules.push(Arc::clone(&rule));
        Fault {
            faults: self.clone(),
            rule,
        }
    }

    /// Takes every fault out, and lets go of what they hold.
    pub fn clear(&self) {
        let rules = std::mem::take(&mut self.plan.lock().rules);
        for rule in rules {
            rule.release();
        }
    }

    /// Lets go of what is held now. The faults stay.
    pub fn release(&self) {
        for rule in &self.plan.lock().rules {
            rule.release();
        }
    }

    /// How often each kind of fault has struck so far, by [`Effect::name`]; those that have not are left out.
    #[must_use]
    pub fn injected(&self) -> BTreeMap<&'static str, u64> {
        self.plan.lock().injected.clone()
    }

    /// Each rule that strikes this event, in the order they were added; none behind one that ends it.
    fn strike(&self, event: &Event<'_>, peer: &AgentName, ends: impl Fn(Effect) -> bool) -> Vec<Arc<Rule>> {
        let mut plan = self.plan.lock();
        let mut struck = Vec::new();
        for rule in &plan.rules {
            if rule.effect.is_about(event) && rule.strikes(peer) {
                struck.push(Arc::clone(rule));
                if ends(rule.effect) {
                    break;
                }
            }
        }
        for rule in &struck {
            *plan.injected.entry(rule.effect.name()).or_default() += 1;
        }
        struck
    }

    /// A notification has arrived.
    pub(super) fn arrival(&self, sender: &AgentName, message: &[u8], now: Instant) -> Arrival {
        let mut arrival = Arrival {
            copies: 1,
            holds: Vec::new(),
        };
        let event = Event::Notification(message);
        for rule in self.strike(&event, sender, |effect| matches!(effect, Effect::Drop(_))) {
            match rule.effect {
                Effect::Drop(_) => arrival.copies = 0,
                Effect::Duplicate(_) => arrival.copies += 1,
                Effect::Delay(_, duration) => arrival.holds.push(rule.hold(duration, now)),
                _ => {}
            }
        }
        arrival
    }

    /// A piece is about to be posted.
    pub(super) fn piece(&self, peer: &AgentName, now: Instant) -> Fate {
        let (mut holds, mut fails) = (Vec::new(), false);
        for rule in self.strike(&Event::Piece, peer, |effect| {
            effect == Effect::Fail { after_moving: false }
        }) {
            match rule.effect {
                Effect::Fail { after_moving: false } => return Fate::Refused,
                Effect::Fail { after_moving: true } => fails = true,
                Effect::Stall(duration) => holds.push(rule.hold(duration, now)),
                Effect::Slow(duration) => holds.push(rule.hold(Some(duration), now)),
                _ => {}
            }
        }
        Fate::Posted { holds, fails }
    }

    /// A word of the peer is about to be read: whether it is to say nothing.
    pub(super) fn is_stale(&self, peer: &AgentName) -> bool {
        !self.strike(&Event::Question, peer, |_| true).is_empty()
    }

    /// Something is about to be done with the peer: whether it is lost, and then whether it is known to be dead.
    pub(super) fn lost(&self, peer: &AgentName) -> Option<bool> {
        let struck = self.strike(&Event::Contact, peer, |_| true);
        struck.first().map(|rule| rule.effect == Effect::Lost { is_dead: true })
    }
}

impl fmt::Debug for Faults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plan = self.plan.lock();
        formatter
            .debug_struct("Faults")
            .field("seed", &plan.seed)
            .field("rules", &plan.rules.len())
            .field("injected", &plan.injected)
            .finish_non_exhaustive()
    }
}

impl Fault {
    /// What goes wrong.
    #[must_use]
    pub fn effect(&self) -> Effect {
        self.rule.effect
    }

    /// How often it has struck so far.
    #[must_use]
    pub fn injected(&self) -> u64 {
        self.rule.state.lock().injected
    }

    /// Lets go of what it holds now. It stays.
    pub fn release(&self) {
        self.rule.release();
    }

    /// Takes it out, and lets go of what it holds.
    pub fn clear(&self) {
        self.faults
            .plan
            .lock()
            .rules
            .retain(|rule| !Arc::ptr_eq(rule, &self.rule));
        self.rule.release();
    }
}

/// Whether an agent is `named`, or one of the worker's of that name: a connector calls its agents `<worker>-<number>`, with
/// `-plain` or `-spare-<number>` behind it for those beside the first.
fn is_agent_of(agent: &str, named: &str) -> bool {
    let Some(rest) = agent.strip_prefix(named) else {
        return false;
    };
    let is_number = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match rest.split('-').collect::<Vec<_>>()[..] {
        [""] | ["", "plain"] => true,
        ["", "spare", number] | ["", number] | ["", number, "plain"] => is_number(number),
        ["", number, "spare", spare] => is_number(number) && is_number(spare),
        _ => false,
    }
}

#[cfg(test)]
mod tests;
