//! How long things may take, and how much memory may stay pinned.

use std::time::Duration;

/// Longer than anybody waits: no clock counts on for ever.
pub(crate) const LONGEST: Duration = Duration::from_secs(60 * 60 * 24 * 365);

/// No peer is asked more often, however short `keepalive` is.
const SHORTEST_KEEPALIVE: Duration = Duration::from_millis(100);

/// A connector's defaults for its operations. `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long an exposure waits for its peer.
    pub lease: Option<Duration>,
    /// How long the memory of an exposure that ended without being complete stays registered and alive, since a peer may
    /// still be at work on it.
    pub grace: Duration,
    /// How long a transfer may stand still.
    pub stall_timeout: Option<Duration>,
    /// How often a peer whose process cannot be watched is asked whether it is there, while a transfer with it is under way;
    /// 0.1 s at the least. `None`: it is never asked.
    pub keepalive: Option<Duration>,
    /// How long a transfer may take, from its start.
    pub timeout: Option<Duration>,
    /// How many bytes may stay pinned after their operations have ended: a peer, for transfers; in all, for exposures.
    pub quarantine_limit: u64,
    /// How many agents move the bytes of big transfers; with none, a transfer's own agent does.
    pub copy_lanes: usize,
}

impl Settings {
    /// How often peers are asked.
    pub(crate) fn keepalive_interval(&self) -> Option<Duration> {
        self.keepalive.map(|keepalive| keepalive.max(SHORTEST_KEEPALIVE))
    }
}

/// One a core, as long as they do not get in each other's way at the memory.
fn default_copy_lanes() -> usize {
    const MOST: usize = 4;
    match std::thread::available_parallelism().map_or(1, usize::from) {
        1 => 0,
        cores => cores.min(MOST),
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease: Some(Duration::from_secs(600)),
            grace: Duration::from_secs(30),
            stall_timeout: Some(Duration::from_secs(30)),
            keepalive: Some(Duration::from_secs(5)),
            timeout: None,
            quarantine_limit: 1 << 30,
            copy_lanes: default_copy_lanes(),
        }
    }
}
