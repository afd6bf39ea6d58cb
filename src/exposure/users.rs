//! The transfers that are known to be under way on one exposure: active sides of our own kind that have said hello.

use std::sync::Arc;

use super::pulse::{Beat, Pulse};
use crate::operation::Operation;
use crate::peer::RemoteMetadata;
use crate::process::{Liveness, Watch, is_stopped, liveness};
use crate::types::{AgentName, ProcessId, TransferId};

/// So many are kept in mind of one exposure.
const MAX_USERS: usize = 16;

/// Names one of them: an agent may have several at work on one exposure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct UserId {
    pub(super) agent: AgentName,
    pub(super) transfer: TransferId,
}

impl UserId {
    pub(super) fn new(agent: &AgentName, transfer: TransferId) -> Self {
        Self {
            agent: agent.clone(),
            transfer,
        }
    }
}

/// One active side's transfer.
#[derive(Debug)]
pub(super) struct User {
    /// Where to tell it something.
    pub(super) agent: Arc<RemoteMetadata>,
    transfer: TransferId,
    process: ProcessId,
    /// Its transfer has not ended, as far as it has said.
    is_under_way: bool,
    /// Its agent has completed the exposure, most likely by this transfer, which will say that it is quiet.
    has_completed: bool,
    /// It has ended, and does not know itself whether the wire is done with it.
    is_never_quiet: bool,
    /// Nothing can be said to its agent, for a reason that says nothing of its life.
    is_mute: bool,
    /// Notices the death of its process, where that is possible.
    watch: Option<Watch>,
    /// Tells of the life of its agent, where that is to be asked.
    pulse: Option<Pulse>,
    /// The last answer's way to it.
    answer: Option<Arc<Operation>>,
}

impl User {
    fn is(&self, id: &UserId) -> bool {
        self.transfer == id.transfer && *self.agent.agent() == id.agent
    }

    fn id(&self) -> UserId {
        UserId::new(self.agent.agent(), self.transfer)
    }

    fn is_lost(&self) -> bool {
        self.pulse.as_ref().is_some_and(Pulse::is_lost)
    }

    /// Whether it may be at work still: it has not said that it is done, and is not known to be dead. One that does not answer
    /// may be frozen or cut off, and go on one day. Of one that has completed the exposure only the last word is missing, and
    /// that is not waited for where nobody would notice that it does not come.
    fn is_in_sight(&self) -> bool {
        let is_missed = (self.watch.is_some() || self.pulse.is_some()) && !self.is_mute && !self.is_lost();
        is_missed || !self.has_completed
    }
}

/// What an interval has brought.
#[derive(Debug, Default)]
pub(super) struct Beats {
    /// Whom to ask, of which transfer, with the nonce.
    pub(super) questions: Vec<(Arc<RemoteMetadata>, TransferId, u64)>,
    /// Those that do not answer, and whether their processes are known to live.
    pub(super) lost: Vec<(UserId, bool)>,
    /// Those whose processes are dead.
    pub(super) dead: Vec<UserId>,
}

/// Every active side of one exposure.
#[derive(Debug, Default)]
pub(super) struct Users(Vec<User>);

impl Users {
    /// Takes note of one. False where there are too many.
    pub(super) fn add(&mut self, agent: Arc<RemoteMetadata>, transfer: TransferId, process: ProcessId) -> bool {
        self.remove(&UserId::new(agent.agent(), transfer));
        if self.0.len() >= MAX_USERS {
            return false;
        }
        self.0.push(User {
            agent,
            transfer,
            process,
            is_under_way: true,
            has_completed: false,
            is_never_quiet: false,
            is_mute: false,
            watch: None,
            pulse: None,
            answer: None,
        });
        true
    }

    fn get_mut(&mut self, id: &UserId) -> Option<&mut User> {
        self.0.iter_mut().find(|user| user.is(id))
    }

    /// Keeps a watch over the one of that name, where there can be one, and its pulse, if it is to be asked.
    pub(super) fn watch(&mut self, id: &UserId, watch: Option<Watch>, is_asked: bool) {
        if let Some(user) = self.get_mut(id) {
            user.pulse = is_asked.then(Pulse::new);
            user.watch = watch;
        }
    }

    /// An agent has completed the exposure. Where it has one transfer here, that is it; where it has several, nobody knows
    /// which, and each is told of the end.
    pub(super) fn complete(&mut self, agent: &AgentName) {
        let mut theirs = self.0.iter_mut().filter(|user| user.agent.agent() == agent);
        if let (Some(user), None) = (theirs.next(), theirs.next()) {
            user.has_completed = true;
        }
    }

    /// Whether all there are have completed it, and are only to say that they are quiet.
    pub(super) fn have_completed(&self) -> bool {
        self.0.iter().all(|user| user.has_completed)
    }

    /// The one of that name has ended, and does not know itself whether the wire is done with it.
    pub(super) fn note_never_quiet(&mut self, id: &UserId) {
        if let Some(user) = self.get_mut(id) {
            user.is_under_way = false;
            user.is_never_quiet = true;
        }
    }

    /// Whether there are any, and none of them will ever say that it is quiet.
    pub(super) fn are_never_quiet(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|user| user.is_never_quiet)
    }

    /// Whether one is known that will say that it is done, and has not.
    pub(super) fn are_expected(&self) -> bool {
        self.0
            .iter()
            .any(|user| !user.is_lost() && !user.has_completed && !user.is_never_quiet)
    }

    /// Whether one may be at work whose process lives on this host. It may write without asking anybody here, also when the
    /// agent is gone.
    pub(super) fn are_living(&self) -> bool {
        self.0.iter().any(|user| user.watch.is_some() && !user.has_completed)
    }

    /// Whether any is to be asked whether it is there.
    pub(super) fn have_pulse(&self) -> bool {
        self.0.iter().any(|user| user.pulse.is_some())
    }

    /// Another interval has passed.
    pub(super) fn beat(&mut self) -> Beats {
        let mut beats = Beats::default();
        for user in &mut self.0 {
            let id = user.id();
            let Some(pulse) = &mut user.pulse else { continue };
            // Of this host, but nothing can wait for its end.
            if liveness(&user.process) == Liveness::Dead {
                beats.dead.push(id);
                continue;
            }
            if user.watch.is_some() && is_stopped(&user.process) {
                // It cannot answer, and goes on one day.
                pulse.rest();
                continue;
            }
            match pulse.beat() {
                Beat::Ask(nonce) => beats.questions.push((Arc::clone(&user.agent), user.transfer, nonce)),
                Beat::Lost => beats.lost.push((id, user.watch.is_some())),
                Beat::Mute => {
                    user.pulse = None;
                    user.is_mute = true;
                }
                Beat::Rest => {}
            }
        }
        beats
    }

    /// A ping is on its way to the one of that name.
    pub(super) fn note_asked(&mut self, id: &UserId, ping: &Arc<Operation>) {
        if let Some(pulse) = self.get_mut(id).and_then(|user| user.pulse.as_mut()) {
            pulse.note_sent(ping);
        }
    }

    /// The one of that name has answered.
    pub(super) fn hear(&mut self, id: &UserId, nonce: u64) {
        if let Some(pulse) = self.get_mut(id).and_then(|user| user.pulse.as_mut()) {
            pulse.hear(nonce);
        }
    }

    /// Where to answer the one of that name; `None` where it is not known, or an answer is still on its way to it.
    pub(super) fn to_be_answered(&self, id: &UserId) -> Option<Arc<RemoteMetadata>> {
        let user = self.0.iter().find(|user| user.is(id))?;
        let is_on_its_way = user.answer.as_ref().is_some_and(|answer| !answer.is_finished());
        (!is_on_its_way).then(|| Arc::clone(&user.agent))
    }

    /// An answer is on its way to the one of that name.
    pub(super) fn note_answered(&mut self, id: &UserId, answer: &Arc<Operation>) {
        if let Some(user) = self.get_mut(id) {
            user.answer = Some(Arc::clone(answer));
        }
    }

    /// Its transfer has ended. False where it is not known.
    pub(super) fn leave(&mut self, id: &UserId) -> bool {
        self.get_mut(id).map(|user| user.is_under_way = false).is_some()
    }

    /// The wire is done with its transfer. What is returned is to be dropped without a lock: it may hold a watch.
    pub(super) fn remove(&mut self, id: &UserId) -> Option<User> {
        let index = self.0.iter().position(|user| user.is(id))?;
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
        let runs = |user: &User| user.watch.is_some() && !user.is_lost() && !is_stopped(&user.process);
        let answers = |user: &User| user.watch.is_none() && user.pulse.as_ref().is_some_and(Pulse::is_answering);
        self.0
            .iter()
            .any(|user| user.is_under_way && (runs(user) || answers(user)))
    }

    /// Whether the wire may be at work for one of them.
    pub(super) fn may_be_alive(&self) -> bool {
        self.0.iter().any(User::is_in_sight)
    }

    /// Everyone that is not done.
    pub(super) fn to_be_reminded(&self) -> impl Iterator<Item = (Arc<RemoteMetadata>, TransferId)> {
        self.0.iter().map(|user| (Arc::clone(&user.agent), user.transfer))
    }

    /// Those that have to be told of the exposure's end.
    pub(super) fn to_be_told(&self) -> impl Iterator<Item = (Arc<RemoteMetadata>, TransferId)> {
        let at_work = self.0.iter().filter(|user| user.is_under_way && !user.has_completed);
        at_work.map(|user| (Arc::clone(&user.agent), user.transfer))
    }
}

#[cfg(test)]
mod tests;
