//! The transfers that are known to be under way on one exposure: active sides of our own kind that have said hello.

use std::sync::Arc;

use super::pulse::{Beat, Pulse};
use crate::operation::Operation;
use crate::peer::RemoteMetadata;
use crate::process::{Liveness, Watch, is_stopped, liveness};
use crate::types::{AgentName, ProcessId};

/// So many are kept in mind of one exposure.
const MAX_USERS: usize = 16;

/// One active side.
#[derive(Debug)]
pub(super) struct User {
    /// Where to tell it something.
    pub(super) agent: Arc<RemoteMetadata>,
    process: ProcessId,
    /// Its transfer has not ended, as far as it has said.
    is_under_way: bool,
    /// Notices the death of its process, where that is possible.
    watch: Option<Watch>,
    /// Tells of its life where that is not possible.
    pulse: Option<Pulse>,
    /// The last answer's way to it.
    answer: Option<Arc<Operation>>,
}

impl User {
    fn is_lost(&self) -> bool {
        self.pulse.as_ref().is_some_and(Pulse::is_lost)
    }
}

/// What an interval without a watch has brought.
#[derive(Debug, Default)]
pub(super) struct Beats {
    /// Whom to ask, with the nonce.
    pub(super) questions: Vec<(Arc<RemoteMetadata>, u64)>,
    pub(super) lost: Vec<AgentName>,
    /// Those whose processes are dead.
    pub(super) dead: Vec<AgentName>,
}

/// Every active side of one exposure.
#[derive(Debug, Default)]
pub(super) struct Users(Vec<User>);

impl Users {
    /// Takes note of one. False where there are too many.
    pub(super) fn add(&mut self, agent: Arc<RemoteMetadata>, process: ProcessId) -> bool {
        self.remove(agent.agent());
        if self.0.len() >= MAX_USERS {
            return false;
        }
        self.0.push(User {
            agent,
            process,
            is_under_way: true,
            watch: None,
            pulse: None,
            answer: None,
        });
        true
    }

    fn get_mut(&mut self, agent: &AgentName) -> Option<&mut User> {
        self.0.iter_mut().find(|user| user.agent.agent() == agent)
    }

    /// Keeps a watch over the one of that name; where there can be none, its pulse, if it is to be asked.
    pub(super) fn watch(&mut self, agent: &AgentName, watch: Option<Watch>, is_asked: bool) {
        if let Some(user) = self.get_mut(agent) {
            user.pulse = (watch.is_none() && is_asked).then(Pulse::new);
            user.watch = watch;
        }
    }

    /// Whether one is known that is not done, and not lost.
    pub(super) fn are_expected(&self) -> bool {
        self.0.iter().any(|user| !user.is_lost())
    }

    /// Whether any is to be asked whether it is there.
    pub(super) fn have_pulse(&self) -> bool {
        self.0.iter().any(|user| user.pulse.is_some())
    }

    /// Another interval has passed.
    pub(super) fn beat(&mut self) -> Beats {
        let mut beats = Beats::default();
        for user in &mut self.0 {
            let Some(pulse) = &mut user.pulse else { continue };
            // Of this host, but nothing can wait for its end.
            if liveness(&user.process) == Liveness::Dead {
                beats.dead.push(user.agent.agent().clone());
                continue;
            }
            match pulse.beat() {
                Beat::Ask(nonce) => beats.questions.push((Arc::clone(&user.agent), nonce)),
                Beat::Lost => beats.lost.push(user.agent.agent().clone()),
                Beat::Mute => user.pulse = None,
                Beat::Rest => {}
            }
        }
        beats
    }

    /// A ping is on its way to the one of that name.
    pub(super) fn note_asked(&mut self, agent: &AgentName, ping: &Arc<Operation>) {
        if let Some(pulse) = self.get_mut(agent).and_then(|user| user.pulse.as_mut()) {
            pulse.note_sent(ping);
        }
    }

    /// The one of that name has answered.
    pub(super) fn hear(&mut self, agent: &AgentName, nonce: u64) {
        if let Some(pulse) = self.get_mut(agent).and_then(|user| user.pulse.as_mut()) {
            pulse.hear(nonce);
        }
    }

    /// Where to answer the one of that name; `None` where it is not known, or an answer is still on its way to it.
    pub(super) fn to_be_answered(&self, agent: &AgentName) -> Option<Arc<RemoteMetadata>> {
        let user = self.0.iter().find(|user| user.agent.agent() == agent)?;
        let is_on_its_way = user.answer.as_ref().is_some_and(|answer| !answer.is_finished());
        (!is_on_its_way).then(|| Arc::clone(&user.agent))
    }

    /// An answer is on its way to the one of that name.
    pub(super) fn note_answered(&mut self, agent: &AgentName, answer: &Arc<Operation>) {
        if let Some(user) = self.get_mut(agent) {
            user.answer = Some(Arc::clone(answer));
        }
    }

    /// Its transfer has ended. False where it is not known.
    pub(super) fn leave(&mut self, agent: &AgentName) -> bool {
        self.get_mut(agent).map(|user| user.is_under_way = false).is_some()
    }

    /// The wire is done with its transfer. What is returned is to be dropped without a lock: it may hold a watch.
    pub(super) fn remove(&mut self, agent: &AgentName) -> Option<User> {
        let index = self.0.iter().position(|user| user.agent.agent() == agent)?;
        Some(self.0.swap_remove(index))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether a transfer is under way, as far as is known.
    pub(super) fn are_under_way(&self) -> bool {
        self.0.iter().any(|user| user.is_under_way && !user.is_lost())
    }

    /// Whether a transfer is under way whose end will be noticed: its process is watched, and it runs; or it answers.
    pub(super) fn are_at_work(&self) -> bool {
        let runs = |user: &User| user.watch.is_some() && !is_stopped(&user.process);
        let answers = |user: &User| user.pulse.as_ref().is_some_and(Pulse::is_answering);
        self.0
            .iter()
            .any(|user| user.is_under_way && (runs(user) || answers(user)))
    }

    /// Whether the wire may be at work for one that would be missed if it were dead: its process is watched, or it has
    /// answered.
    pub(super) fn may_be_alive(&self) -> bool {
        let has_answered = |user: &User| user.pulse.as_ref().is_some_and(Pulse::may_be_alive);
        self.0.iter().any(|user| user.watch.is_some() || has_answered(user))
    }

    /// Those that have to be told of the exposure's end.
    pub(super) fn to_be_told(&self) -> impl Iterator<Item = Arc<RemoteMetadata>> {
        let under_way = self.0.iter().filter(|user| user.is_under_way);
        under_way.map(|user| Arc::clone(&user.agent))
    }
}
