//! One agent on a fake network.

use std::fmt;
use std::sync::Arc;

use crate::sync::lock::Mutex;

use super::metadata;
use super::network::{Agent, Flight, LoadedPeer, Network, RequestState};
use super::request::FakeRequest;
use super::{Call, Completion, Event};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::{AgentFlavor, LOAD_PEER, Registration, Request, Transport};
use crate::types::{AgentName, Direction, MemoryRange};
use crate::wire::AgentBlob;

pub(super) struct FakeTransport {
    name: AgentName,
    instance: u64,
    network: Arc<Mutex<Network>>,
}

impl FakeTransport {
    pub(super) fn new(name: &AgentName, flavor: AgentFlavor, network: Arc<Mutex<Network>>) -> Result<Self> {
        let instance = {
            let mut state = network.lock();
            state.scripted(name, Call::Create, ErrorKind::Backend)?;
            let instance = state.number();
            let agent = Agent {
                name: name.clone(),
                flavor,
                registrations: Default::default(),
                peers: Default::default(),
                unloadable: Default::default(),
                inbox: Default::default(),
            };
            state.agents.insert(instance, agent);
            instance
        };
        Ok(Self {
            name: name.clone(),
            instance,
            network,
        })
    }

    fn refuse(&self, kind: ErrorKind, operation: &'static str, message: &str) -> Error {
        Error::new(kind, operation, message).with_context("agent", &self.name)
    }

    fn metadata(&self, ranges: Option<&[MemoryRange]>, with_connection: bool) -> Result<Vec<u8>> {
        let state = self.network.lock();
        let registrations = &state.agents[&self.instance].registrations;
        let mut regions: Vec<(MemoryRange, u64)> = match ranges {
            None => registrations.iter().map(|(range, serial)| (*range, *serial)).collect(),
            Some(ranges) => ranges
                .iter()
                .map(|range| registrations.get(range).map(|serial| (*range, *serial)))
                .collect::<Option<_>>()
                .ok_or_else(|| self.refuse(ErrorKind::Backend, "export metadata", "a range is not registered"))?,
        };
        regions.sort_unstable();
        Ok(metadata::blob(
            &self.name,
            with_connection.then_some(self.instance),
            &regions,
        ))
    }
}

impl Network {
    /// Loads a parsed blob into an agent, or says which rule of NIXL it breaks.
    fn load(&mut self, instance: u64, blob: &AgentBlob) -> std::result::Result<(), String> {
        let Some(agent) = self.agents.get_mut(&instance) else {
            return Err("the agent is gone".to_owned());
        };
        if agent.name == blob.agent {
            return Err("an agent's own metadata".to_owned());
        }
        if agent.unloadable.contains(&blob.agent) {
            return Err("a load of this name was refused before".to_owned());
        }
        let connection = blob
            .connections
            .first()
            .map(|connection| connection.info.clone())
            .unwrap_or_default();
        if connection.is_empty() && !agent.peers.contains_key(&blob.agent) {
            return Err("no connection information".to_owned());
        }
        let peer = agent.peers.entry(blob.agent.clone()).or_insert_with(|| LoadedPeer {
            instance: metadata::instance_of(&connection),
            connection: connection.clone(),
            regions: Default::default(),
        });
        if !connection.is_empty() && peer.connection != connection {
            return Err("another connection than the loaded one".to_owned());
        }
        for (_, entry) in blob.regions() {
            let earlier = peer.regions.insert(entry.range, entry.key.clone());
            if earlier.is_some_and(|key| key != entry.key) {
                return Err(format!("another key than the loaded one for {:?}", entry.range));
            }
        }
        Ok(())
    }
}

impl fmt::Debug for FakeTransport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FakeTransport")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Transport for FakeTransport {
    fn agent_name(&self) -> &AgentName {
        &self.name
    }

    fn register(&self, range: &MemoryRange) -> Result<Box<dyn Registration>> {
        let mut state = self.network.lock();
        state.scripted(&self.name, Call::Register, ErrorKind::Registration)?;
        let serial = if state.equal_keys { 0 } else { state.number() };
        let earlier = state
            .agents
            .get_mut(&self.instance)
            .and_then(|agent| agent.registrations.insert(*range, serial));
        if earlier.is_some() {
            state.violation(format!("{} registered {range:?} twice", self.name));
        }
        state.events.push(Event::Registered(self.name.clone(), *range));
        Ok(Box::new(FakeRegistration {
            name: self.name.clone(),
            instance: self.instance,
            range: *range,
            network: Arc::clone(&self.network),
        }))
    }

    fn connection_info(&self) -> Result<Vec<u8>> {
        self.network
            .lock()
            .scripted(&self.name, Call::ConnectionInfo, ErrorKind::Backend)?;
        self.metadata(Some(&[]), true)
    }

    fn partial_metadata(&self, ranges: &[MemoryRange]) -> Result<Vec<u8>> {
        self.network
            .lock()
            .scripted(&self.name, Call::PartialMetadata, ErrorKind::Backend)?;
        self.metadata(Some(ranges), false)
    }

    fn full_metadata(&self) -> Result<Vec<u8>> {
        self.metadata(None, true)
    }

    fn load_peer(&self, blob: &[u8]) -> Result<AgentName> {
        let mut state = self.network.lock();
        state.scripted(&self.name, Call::Load, ErrorKind::Metadata)?;
        let blob = AgentBlob::parse(blob)
            .inspect_err(|error| state.violation(format!("{} loaded a malformed blob: {error}", self.name)))?;
        if let Err(reason) = state.load(self.instance, &blob) {
            if let Some(agent) = state.agents.get_mut(&self.instance) {
                agent.unloadable.insert(blob.agent.clone());
            }
            state.violation(format!("{} loaded {}: {reason}", self.name, blob.agent));
            return Err(self.refuse(ErrorKind::Metadata, LOAD_PEER, &reason));
        }
        state.events.push(Event::Loaded(self.name.clone(), blob.agent.clone()));
        Ok(blob.agent)
    }

    fn drop_peer(&self, peer: &AgentName) -> Result<()> {
        let mut state = self.network.lock();
        state.scripted(&self.name, Call::Drop, ErrorKind::Backend)?;
        let busy = state.requests.values().any(|flight| {
            flight.instance == self.instance
                && flight.peer == *peer
                && flight.state == RequestState::InFlight
                && !state.has_vanished(flight.peer_instance)
        });
        if busy {
            state.violation(format!("{} dropped {peer} with a request in flight", self.name));
        }
        let known = state
            .agents
            .get_mut(&self.instance)
            .and_then(|agent| agent.peers.remove(peer))
            .is_some();
        if !known {
            return Err(self.refuse(ErrorKind::Backend, "drop peer", "the peer is not loaded"));
        }
        state.events.push(Event::Dropped(self.name.clone(), peer.clone()));
        Ok(())
    }

    fn prepare(
        &self,
        direction: Direction,
        local: &[MemoryRange],
        remote: &[MemoryRange],
        peer: &AgentName,
        notification: Option<&[u8]>,
    ) -> Result<Box<dyn Request>> {
        let mut state = self.network.lock();
        state.scripted(&self.name, Call::Prepare, ErrorKind::Transfer)?;
        if let Some(range) = local
            .iter()
            .find(|range| !state.is_registered(Some(self.instance), range))
        {
            let what = format!(
                "{} prepared a request over {range:?}, which is not registered",
                self.name
            );
            state.violation(what);
            return Err(self.refuse(ErrorKind::Transfer, "create request", "local memory is not registered"));
        }
        let Some(loaded) = state.agents.get(&self.instance).and_then(|agent| agent.peers.get(peer)) else {
            let what = format!("{} prepared a request to {peer}, which is not loaded", self.name);
            state.violation(what);
            return Err(self.refuse(ErrorKind::Transfer, "create request", "the peer is not loaded"));
        };
        if !Network::finds(loaded.regions.keys(), remote) {
            return Err(self.refuse(
                ErrorKind::Transfer,
                "create request",
                "remote memory is not in the metadata",
            ));
        }
        let peer_instance = loaded.instance;
        let registered = || {
            state
                .agents
                .get(&self.instance)
                .into_iter()
                .flat_map(|agent| agent.registrations.keys())
        };
        if !Network::finds(registered(), local) {
            return Err(self.refuse(
                ErrorKind::Transfer,
                "create request",
                "local memory is hidden by a nested region",
            ));
        }
        let flight = Flight {
            instance: self.instance,
            peer: peer.clone(),
            peer_instance,
            direction,
            local: local.to_vec(),
            remote: remote.to_vec(),
            notification: notification.map(<[u8]>::to_vec),
            state: RequestState::Prepared,
            completion: Completion::Inline,
        };
        let id = state.number();
        state.requests.insert(id, flight);
        Ok(Box::new(FakeRequest {
            name: self.name.clone(),
            id,
            network: Arc::clone(&self.network),
        }))
    }

    fn notify(&self, peer: &AgentName, message: &[u8]) -> Result<()> {
        let mut state = self.network.lock();
        state.scripted(&self.name, Call::Notify, ErrorKind::Transfer)?;
        let loaded = state.agents.get(&self.instance).and_then(|agent| agent.peers.get(peer));
        let Some(instance) = loaded.map(|loaded| loaded.instance) else {
            state.violation(format!("{} notified {peer}, which is not loaded", self.name));
            return Err(self.refuse(ErrorKind::Transfer, "send notification", "the peer is not loaded"));
        };
        if !state.is_alive(instance) {
            return Err(self.refuse(ErrorKind::Transfer, "send notification", "the peer is gone"));
        }
        state.events.push(Event::Notified(self.name.clone(), message.to_vec()));
        state.notify(instance, &self.name, message.to_vec());
        Ok(())
    }

    fn poll_notifications(&self, receive: &mut dyn FnMut(&AgentName, &[u8])) -> Result<usize> {
        let messages = {
            let mut state = self.network.lock();
            state.scripted(&self.name, Call::PollNotifications, ErrorKind::Backend)?;
            state
                .agents
                .get_mut(&self.instance)
                .map(|agent| std::mem::take(&mut agent.inbox))
                .unwrap_or_default()
        };
        for (sender, message) in &messages {
            receive(sender, message);
        }
        Ok(messages.len())
    }
}

impl Drop for FakeTransport {
    fn drop(&mut self) {
        let mut state = self.network.lock();
        if state
            .requests
            .values()
            .any(|flight| flight.instance == self.instance && flight.may_move())
        {
            state.violation(format!(
                "{} was destroyed with memory that the wire may touch",
                self.name
            ));
        }
        let registrations = state
            .agents
            .remove(&self.instance)
            .map_or(0, |agent| agent.registrations.len());
        if registrations > 0 {
            state.violation(format!(
                "{} was destroyed with {registrations} registrations",
                self.name
            ));
        }
    }
}

#[derive(Debug)]
struct FakeRegistration {
    name: AgentName,
    instance: u64,
    range: MemoryRange,
    network: Arc<Mutex<Network>>,
}

impl Registration for FakeRegistration {}

impl Drop for FakeRegistration {
    fn drop(&mut self) {
        let mut state = self.network.lock();
        if let Some(agent) = state.agents.get_mut(&self.instance) {
            agent.registrations.remove(&self.range);
        }
        let uncovered = state
            .requests
            .values()
            .filter(|flight| flight.instance == self.instance && flight.may_move())
            .flat_map(|flight| &flight.local)
            .any(|used| !state.is_registered(Some(self.instance), used));
        if uncovered {
            state.violation(format!("{} deregistered {:?} under a request", self.name, self.range));
        }
        state.events.push(Event::Deregistered(self.name.clone(), self.range));
    }
}
