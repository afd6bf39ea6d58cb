//! The transfers that are known to be under way on one exposure: active sides of our own kind that have said hello.

use std::sync::Arc;

use crate::peer::RemoteMetadata;
use crate::process::{Watch, is_stopped};
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
        });
        true
    }

    /// Keeps a watch over the one of that name.
    pub(super) fn watch(&mut self, agent: &AgentName, watch: Option<Watch>) {
        if let Some(user) = self.0.iter_mut().find(|user| user.agent.agent() == agent) {
            user.watch = watch;
        }
    }

    /// Its transfer has ended. False where it is not known.
    pub(super) fn leave(&mut self, agent: &AgentName) -> bool {
        let user = self.0.iter_mut().find(|user| user.agent.agent() == agent);
        user.map(|user| user.is_under_way = false).is_some()
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
        self.0.iter().any(|user| user.is_under_way)
    }

    /// Whether a transfer is under way whose end will be noticed: its process is watched, and it runs.
    pub(super) fn are_at_work(&self) -> bool {
        let at_work = |user: &User| user.is_under_way && user.watch.is_some() && !is_stopped(&user.process);
        self.0.iter().any(at_work)
    }

    /// Whether the wire may be at work for one whose process is watched, and would be missed if it were dead.
    pub(super) fn may_be_alive(&self) -> bool {
        self.0.iter().any(|user| user.watch.is_some())
    }

    /// Those that have to be told of the exposure's end.
    pub(super) fn to_be_told(&self) -> impl Iterator<Item = Arc<RemoteMetadata>> {
        let under_way = self.0.iter().filter(|user| user.is_under_way);
        under_way.map(|user| Arc::clone(&user.agent))
    }
}
