//! The agents of a connector that move the bytes of big transfers, made when the first one comes.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::lane::{Lane, Role};
use crate::error::Result;
use crate::settings::Settings;
use crate::transport::{AgentFlavor, TransportFactory};
use crate::types::AgentName;

/// How long nothing is made after one could not be: each attempt takes up to half a second, in which no other agent of the
/// process is made.
const BACK_OFF: Duration = Duration::from_secs(30);

/// The copy lanes of one connector.
#[derive(Debug, Default)]
pub(crate) struct CopyLanes {
    lanes: Vec<Arc<Lane>>,
    /// How many were made, so that none gets the name of another one.
    made: u64,
    last_failure: Option<Instant>,
}

/// What a copy lane is made of.
pub(crate) struct Material<'a> {
    pub(crate) connector: &'a AgentName,
    pub(crate) factory: &'a TransportFactory,
    pub(crate) settings: Settings,
}

impl CopyLanes {
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Lane>> {
        self.lanes.iter()
    }

    /// Those that are open and can load `peer`. The first call starts them, which takes a while: what is begun meanwhile goes
    /// without them.
    pub(crate) fn ready(&mut self, material: &Material<'_>, peer: &AgentName) -> Vec<Arc<Lane>> {
        let before = self.lanes.len();
        self.lanes.retain(|lane| !lane.has_failed());
        if self.lanes.len() < before {
            self.last_failure = Some(Instant::now());
        }
        if self.last_failure.is_none_or(|failure| failure.elapsed() >= BACK_OFF) {
            self.complete(material);
        }
        let is_ready = |lane: &&Arc<Lane>| lane.is_ready_to_copy() && !lane.refuses(peer);
        self.lanes.iter().filter(is_ready).cloned().collect()
    }

    fn complete(&mut self, material: &Material<'_>) {
        while self.lanes.len() < material.settings.copy_lanes {
            match self.make(material) {
                Ok(lane) => self.lanes.push(lane),
                Err(error) => {
                    tracing::warn!(%error, "a copy lane could not be started");
                    self.last_failure = Some(Instant::now());
                    return;
                }
            }
        }
    }

    fn make(&mut self, material: &Material<'_>) -> Result<Arc<Lane>> {
        let name = AgentName::new(&format!("{}-copy-{}", material.connector, self.made));
        self.made += 1;
        // Owners of our own kind have this flavor, too, and others get no crew.
        let flavor = AgentFlavor::SharedMemoryErrors;
        let factory = Arc::clone(material.factory);
        Lane::spawn("nixl-copy", name, flavor, factory, material.settings, Role::Copy)
    }
}
