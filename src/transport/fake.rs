//! A scripted, deterministic transport for tests of state machines: agents of one process on a network in memory.
//!
//! A [`FakeNetwork`] makes agents, says when their requests end and which calls fail, and watches the rules that NIXL
//! does not enforce but punishes: whatever breaks one is kept in [`FakeNetwork::violations`], which a test asserts to be
//! empty. It proves nothing about NIXL; the tests in `tests/real_*.rs` do.

mod agent;
mod metadata;
mod network;
mod owner;
mod request;

use std::sync::Arc;

use crate::sync::lock::Mutex;

use self::agent::FakeTransport;
use self::network::{Network, RequestState};
pub use self::owner::FakeOwner;
use super::{AgentFlavor, Transport, TransportFactory};
use crate::error::Result;
use crate::types::{AgentName, MemoryRange};

/// When a posted request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// Inside of the post.
    Inline,
    /// At the n-th poll, counted from 1.
    AfterPolls(usize),
    /// When the test says so, by [`FakeNetwork::release`] or [`FakeNetwork::release_all`].
    Held,
}

/// The calls that can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Call {
    /// Making the agent.
    Create,
    /// [`Transport::connection_info`].
    ConnectionInfo,
    /// [`Transport::partial_metadata`].
    PartialMetadata,
    /// [`Transport::register`].
    Register,
    /// [`Transport::load_peer`].
    Load,
    /// [`Transport::drop_peer`].
    Drop,
    /// [`Transport::prepare`].
    Prepare,
    /// [`super::Request::post`].
    Post,
    /// [`super::Request::poll`].
    Poll,
    /// [`Transport::notify`].
    Notify,
    /// [`Transport::poll_notifications`].
    PollNotifications,
}

/// What happened on the network, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// An agent registered a range.
    Registered(AgentName, MemoryRange),
    /// An agent deregistered a range.
    Deregistered(AgentName, MemoryRange),
    /// The first agent loaded the second one's metadata.
    Loaded(AgentName, AgentName),
    /// The first agent forgot the second one.
    Dropped(AgentName, AgentName),
    /// A request was posted.
    Posted {
        /// Who posted it.
        agent: AgentName,
        /// How many bytes it moves.
        bytes: u64,
        /// In how many descriptors.
        descriptors: usize,
        /// Whether a notification follows the bytes.
        notifies: bool,
    },
    /// A request ended well, and its bytes so many.
    Done(AgentName, u64),
    /// A request was reported as failed, at its post or at a poll.
    Failed(AgentName, u64),
    /// The agent sent a notification behind no transfer.
    Notified(AgentName, Vec<u8>),
}

/// A network in memory. Clones share it.
#[derive(Clone, Debug)]
pub struct FakeNetwork {
    state: Arc<Mutex<Network>>,
}

impl Default for FakeNetwork {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeNetwork {
    /// An empty network whose requests end inside of their post.
    #[must_use]
    pub fn new() -> Self {
        Self {
            state: Arc::new(Mutex::new(Network::new())),
        }
    }

    /// Makes agents on this network, whatever their flavor. A name may be given again: the newer agent answers to it.
    #[must_use]
    pub fn factory(&self) -> TransportFactory {
        let network = self.clone();
        Arc::new(move |name, flavor| network.agent(name, flavor))
    }

    /// One agent on this network.
    ///
    /// # Errors
    /// What the script says for [`Call::Create`].
    pub fn agent(&self, name: &AgentName, flavor: AgentFlavor) -> Result<Arc<dyn Transport>> {
        Ok(Arc::new(FakeTransport::new(name, flavor, Arc::clone(&self.state))?))
    }

    /// When requests end that are posted from now on.
    pub fn set_completion(&self, completion: Completion) {
        self.state.lock().completion = completion;
    }

    /// Ends the oldest `count` held requests: their next poll says so. Returns how many there were.
    pub fn release(&self, count: usize) -> usize {
        self.state.lock().release(count)
    }

    /// Ends every held request, and holds none that is posted from now on.
    pub fn release_all(&self) {
        let mut state = self.state.lock();
        if state.completion == Completion::Held {
            state.completion = Completion::Inline;
        }
        state.release(usize::MAX);
    }

    /// Lets the `nth` call from now (1 is the next one) of `agent` fail, once.
    pub fn fail(&self, agent: &str, call: Call, nth: usize) {
        self.state.lock().failures.push((AgentName::new(agent), call, nth));
    }

    /// The agent's process dies: requests with it fail, now and later, and notifications to it vanish.
    pub fn kill(&self, agent: &str) {
        self.state.lock().kill(&AgentName::new(agent));
    }

    /// The agent's process dies, and nothing tells: requests with it that are in flight stay there for ever, and may be given
    /// up once the agent has been dropped.
    pub fn vanish(&self, agent: &str) {
        self.state.lock().vanish(&AgentName::new(agent));
    }

    /// A notification arrives at `agent`, from nowhere. False where there is no such agent.
    pub fn deliver(&self, agent: &str, message: &[u8]) -> bool {
        self.state.lock().deliver(&AgentName::new(agent), message)
    }

    /// Requests the wire is not done with, over all agents.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.state
            .lock()
            .requests
            .values()
            .filter(|request| request.state == RequestState::InFlight)
            .count()
    }

    /// The flavor of each agent that exists, by name.
    #[must_use]
    pub fn agents(&self) -> Vec<(AgentName, AgentFlavor)> {
        let mut agents: Vec<_> = self
            .state
            .lock()
            .agents
            .values()
            .map(|agent| (agent.name.clone(), agent.flavor))
            .collect();
        agents.sort_by(|left, right| left.0.cmp(&right.0));
        agents
    }

    /// Whether NIXL would find every range of a list among what is registered with `agent`.
    #[must_use]
    pub fn finds(&self, agent: &str, ranges: &[MemoryRange]) -> bool {
        Network::finds(self.registered(agent).iter(), ranges)
    }

    /// Whether NIXL would find every range of a list among what `agent` has loaded of `peer`.
    #[must_use]
    pub fn finds_remote(&self, agent: &str, peer: &str, ranges: &[MemoryRange]) -> bool {
        let state = self.state.lock();
        let loaded = state
            .current(&AgentName::new(agent))
            .and_then(|agent| agent.peers.get(&AgentName::new(peer)));
        loaded.is_some_and(|loaded| Network::finds(loaded.regions.keys(), ranges))
    }

    /// The ranges `agent` has registered now.
    #[must_use]
    pub fn registered(&self, agent: &str) -> Vec<MemoryRange> {
        self.state
            .lock()
            .current(&AgentName::new(agent))
            .map(|agent| agent.registrations.keys().copied().collect())
            .unwrap_or_default()
    }

    /// Everything that happened so far, in order.
    #[must_use]
    pub fn events(&self) -> Vec<Event> {
        self.state.lock().events.clone()
    }

    /// How many events so far satisfy `which`.
    #[must_use]
    pub fn count(&self, which: impl Fn(&Event) -> bool) -> usize {
        self.state.lock().events.iter().filter(|event| which(event)).count()
    }

    /// Each breach of a rule so far. Empty where the code under test is right.
    #[must_use]
    pub fn violations(&self) -> Vec<String> {
        self.state.lock().violations.clone()
    }

    /// From now on, all registrations have the same key, as with UCX over TCP; otherwise each has its own.
    pub fn set_equal_keys(&self) {
        self.state.lock().equal_keys = true;
    }

    /// From now on, requests that end well copy their bytes.
    ///
    /// # Safety
    /// Every range that an agent of this network has registered or will register must lie in memory of this process
    /// that is valid for reads and writes, and not otherwise accessed while a request moves it, until its deregistration.
    pub unsafe fn copy_bytes(&self) {
        self.state.lock().copies = true;
    }
}
