//! One request on a fake network.

use std::fmt;
use std::sync::Arc;

use crate::sync::lock::Mutex;

use super::network::{Network, RequestState};
use super::{Call, Completion, Event};
use crate::error::{Error, ErrorKind, Result};
use crate::transport::{Progress, Request};
use crate::types::AgentName;

pub(super) struct FakeRequest {
    pub(super) name: AgentName,
    pub(super) id: u64,
    pub(super) network: Arc<Mutex<Network>>,
}

impl FakeRequest {
    /// The call fails, because the script says so or because the peer is gone.
    fn check(&self, state: &mut Network, call: Call) -> Result<()> {
        let scripted = state.scripted(&self.name, call, ErrorKind::Transfer);
        let Some(flight) = state.requests.get(&self.id) else {
            return scripted;
        };
        let result = scripted.and_then(|()| {
            if state.is_alive(flight.peer_instance) || state.has_vanished(flight.peer_instance) {
                return Ok(());
            }
            Err(Error::new(ErrorKind::Transfer, "fake call", "the peer is gone").with_context("agent", &self.name))
        });
        if result.is_err() {
            if let Some(flight) = state.requests.get_mut(&self.id) {
                flight.state = if flight.local.len() > 1 {
                    RequestState::Unknown
                } else {
                    RequestState::Over
                };
                let bytes = flight.bytes();
                state.events.push(Event::Failed(self.name.clone(), bytes));
            }
        }
        result
    }
}

impl Request for FakeRequest {
    fn post(&mut self) -> Result<Progress> {
        let mut state = self.network.lock();
        let completion = state.completion;
        let Some(flight) = state.requests.get_mut(&self.id) else {
            return Ok(Progress::Done);
        };
        let posted = Event::Posted {
            agent: self.name.clone(),
            bytes: flight.bytes(),
            descriptors: flight.local.len(),
            notifies: flight.notification.is_some(),
        };
        if flight.state != RequestState::Prepared {
            state.violation(format!("{} posted a request twice", self.name));
            return Ok(Progress::Pending);
        }
        flight.state = RequestState::InFlight;
        flight.completion = completion;
        state.events.push(posted);
        self.check(&mut state, Call::Post)?;
        if completion == Completion::Inline {
            state.complete(self.id);
            return Ok(Progress::Done);
        }
        Ok(Progress::Pending)
    }

    fn poll(&mut self) -> Result<Progress> {
        let mut state = self.network.lock();
        let Some(flight) = state.requests.get(&self.id) else {
            return Ok(Progress::Done);
        };
        if flight.state != RequestState::InFlight {
            return Ok(Progress::Done);
        }
        self.check(&mut state, Call::Poll)?;
        let Some(flight) = state.requests.get_mut(&self.id) else {
            return Ok(Progress::Done);
        };
        match &mut flight.completion {
            Completion::Held => Ok(Progress::Pending),
            Completion::AfterPolls(left) if *left > 1 => {
                *left -= 1;
                Ok(Progress::Pending)
            }
            Completion::AfterPolls(_) | Completion::Inline => {
                state.complete(self.id);
                Ok(Progress::Done)
            }
        }
    }

    fn give_up(&mut self) {
        let mut state = self.network.lock();
        let Some(flight) = state.requests.get(&self.id) else {
            return;
        };
        let is_loaded = state
            .agents
            .get(&flight.instance)
            .is_some_and(|agent| agent.peers.contains_key(&flight.peer));
        if is_loaded || !state.has_vanished(flight.peer_instance) {
            state.violation(format!("{} gave a request up that may still move", self.name));
        }
        if let Some(flight) = state.requests.get_mut(&self.id) {
            flight.state = RequestState::Over;
        }
    }
}

impl fmt::Debug for FakeRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("FakeRequest")
            .field("name", &self.name)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Drop for FakeRequest {
    fn drop(&mut self) {
        let mut state = self.network.lock();
        match state.requests.get(&self.id).map(|flight| flight.state) {
            Some(RequestState::InFlight) => state.violation(format!("{} released a request in flight", self.name)),
            // Kept: its memory may be touched for ever.
            Some(RequestState::Unknown) | None => {}
            Some(RequestState::Prepared | RequestState::Over) => {
                state.requests.remove(&self.id);
            }
        }
    }
}
