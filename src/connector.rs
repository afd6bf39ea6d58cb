//! The façade: what Python, the Rust tests and the benches use. It knows no Python.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::sync::lock::Mutex;

use crate::descriptor::{Pair, TransferPlan, check_side};
use crate::error::{Error, ErrorKind, Result};
use crate::exposure::{Exposure, Terms};
use crate::handle::{OperationHandle, Side};
use crate::operation::Operation;
use crate::peer::RemoteMetadata;
use crate::process::{self, Origin, PerProcess};
use crate::reactor::closing::{Closing, ClosingOrder};
use crate::reactor::copies::{CopyLanes, Material};
use crate::reactor::crew::{CREW_BYTES, Hands};
use crate::reactor::lane::{Lane, Role};
use crate::reactor::state::closed;
use crate::reactor::transfer::{Limits, Transfer};
use crate::region::{KeepAlive, LocalMemory, Region};
use crate::settings::{LONGEST, Settings};
use crate::thread;
use crate::transport::{AgentFlavor, TransportFactory, loader, nixl};
use crate::types::{AgentName, Direction, MemoryKind, MemoryRange, OperationKey};
use crate::wire::limits;

/// How long lanes that nobody holds any more may still take beyond the deadline of a shutdown.
const ORPHAN_GRACE: Duration = Duration::from_secs(10);

/// Every connector of this process that still exists, for [`shutdown`].
static CONNECTORS: PerProcess<Mutex<Vec<Weak<Inner>>>> = PerProcess::new();

/// A connector: exposes memory, and moves bytes to and from memory that others expose.
///
/// Cheap to clone; clones share everything. When the last clone and the last operation are gone, its lanes drive what is
/// in flight to its end and then destroy their agents, on their own threads.
#[derive(Clone)]
pub struct Connector {
    inner: Arc<Inner>,
}

struct Inner {
    name: AgentName,
    origin: Origin,
    factory: TransportFactory,
    settings: Settings,
    lanes: Mutex<Lanes>,
    generation: AtomicU64,
    unknown_fields: AtomicU64,
}

#[derive(Default)]
struct Lanes {
    /// Exposures, and transfers with peers of our own kind.
    control: Option<Arc<Lane>>,
    /// Transfers with foreign owners, which an agent with `MM_ERROR_HANDLING` would hang on.
    plain: Option<Arc<Lane>>,
    /// Transfers with peers that the agent above them cannot load any more, one for each flavor.
    control_spare: Option<Arc<Lane>>,
    plain_spare: Option<Arc<Lane>>,
    /// Spares that were replaced, as long as something of theirs is under way or held; looked at with the next one.
    retired: Vec<Arc<Lane>>,
    /// For the bytes of big transfers.
    copies: CopyLanes,
    spares_made: u64,
    is_closed: bool,
}

impl Lanes {
    fn all(&self) -> Vec<Arc<Lane>> {
        let current = [&self.control, &self.plain, &self.control_spare, &self.plain_spare];
        let current = current.into_iter().flatten();
        current
            .chain(self.copies.iter())
            .chain(&self.retired)
            .cloned()
            .collect()
    }
}

/// Counters of a connector, for people and tests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Ranges registered now, over all agents.
    pub regions: usize,
    /// Remote agents loaded now, over all agents.
    pub peers: usize,
    /// Remote agents that were dropped to be loaded anew, over all agents.
    pub reloads: u64,
    /// Transfers the wire is not done with.
    pub transfers: usize,
    /// Exposures nobody has completed yet.
    pub exposures: usize,
    /// Exposures that have ended and keep their memory for a while, because a peer may still be at work on it.
    pub exposures_in_grace: usize,
    /// How many bytes they have.
    pub bytes_in_grace: u64,
    /// Ranges that stay pinned because a failed piece over them can never be shown quiet.
    pub unquiet_regions: usize,
    /// Agents that are ready to move the bytes of big transfers.
    pub copy_lanes: usize,
    /// Notifications that completed an exposure.
    pub notifications_matched: u64,
    /// Notifications that matched nothing.
    pub notifications_unknown: u64,
    /// Notifications that matched nothing and are not UTF-8.
    pub notifications_malformed: u64,
    /// Messages of peers of our own kind that were understood.
    pub messages_received: u64,
    /// Fields in peers' trailers that this version does not know and has ignored.
    pub trailer_fields_unknown: u64,
}

/// What a transfer is held to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BeginOptions {
    /// How long it may take, counted from its start; `None` is no limit.
    pub timeout: Option<Duration>,
    /// Whether what was read is checked against the owner's checksum before the operation is complete.
    pub verify: bool,
}

impl Connector {
    /// A connector on real NIXL, named `name` among its peers. Makes no agent until it is opened or used.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::with_settings(name, Settings::default())
    }

    /// As [`Connector::new`], with other defaults for its operations.
    #[must_use]
    pub fn with_settings(name: &str, settings: Settings) -> Self {
        Self::with_factory(name, settings, nixl::factory())
    }

    /// A connector whose agents `factory` makes.
    #[must_use]
    pub fn with_factory(name: &str, settings: Settings, factory: TransportFactory) -> Self {
        let inner = Arc::new(Inner {
            name: AgentName::new(name),
            origin: Origin::here(),
            factory,
            settings,
            lanes: Mutex::new(Lanes::default()),
            // Not from one: a word of a connector that was closed may lie where one of another is.
            generation: AtomicU64::new(uuid::Uuid::new_v4().as_u64_pair().0),
            unknown_fields: AtomicU64::new(0),
        });
        let mut connectors = CONNECTORS.here().lock();
        connectors.retain(|connector| connector.strong_count() > 0);
        connectors.push(Arc::downgrade(&inner));
        Self { inner }
    }

    /// The defaults of its operations.
    #[must_use]
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// The name of the control agent.
    #[must_use]
    pub fn name(&self) -> &AgentName {
        &self.inner.name
    }

    /// Whether this process may use the connector.
    ///
    /// # Errors
    /// [`ErrorKind::Forked`] in a child that inherited the connector.
    pub fn check_process(&self) -> Result<()> {
        self.inner.refuse_forked()
    }

    /// Makes the control agent, if need be, and waits for it: half a second the first time. From any thread, any number
    /// of times.
    ///
    /// # Errors
    /// Why the agent could not be made ([`ErrorKind::Library`], [`ErrorKind::Backend`]), or [`ErrorKind::Closed`].
    pub fn open(&self) -> Result<()> {
        self.inner.control()?.wait_open().map(drop)
    }

    /// As [`Connector::open`], for a runtime: any number may wait, on no thread.
    ///
    /// # Errors
    /// As [`Connector::open`].
    #[cfg(feature = "python")]
    pub async fn opening(&self) -> Result<()> {
        let lane = self.inner.control()?;
        lane.opening().await
    }

    /// Whether the control agent exists.
    #[must_use]
    pub fn is_open(&self) -> bool {
        if !self.inner.origin.is_here() {
            return false;
        }
        let lanes = self.inner.lanes.lock();
        !lanes.is_closed
            && lanes
                .control
                .as_ref()
                .is_some_and(|lane| matches!(lane.opened(), Some(Ok(_))))
    }

    /// Starts to move `remote[i]` into `local[i]`, or the other way round. Never waits for the wire.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where the lists do not pair, [`ErrorKind::Metadata`] where the metadata is
    /// malformed, this connector's own, or does not cover `remote`, [`ErrorKind::Closed`]. Whatever fails later is the
    /// operation's outcome.
    pub fn begin(
        &self,
        direction: Direction,
        metadata: &str,
        key: OperationKey,
        remote: &[MemoryRange],
        local: Vec<LocalMemory>,
        options: BeginOptions,
    ) -> Result<OperationHandle> {
        let metadata = RemoteMetadata::decode(metadata)?;
        if key.as_bytes().is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "begin transfer",
                "the notification key is empty",
            ));
        }
        if key.as_bytes().len() > limits::MAX_NOTIFICATION_KEY {
            return Err(Error::new(
                ErrorKind::Metadata,
                "begin transfer",
                "the notification key is too long",
            )
            .with_context("bytes", key.as_bytes().len())
            .with_context("limit", limits::MAX_NOTIFICATION_KEY));
        }
        let local_ranges: Vec<MemoryRange> = local.iter().map(|memory| memory.range).collect();
        let plan = TransferPlan::new(&local_ranges, remote)?;
        metadata.check_covers(remote)?;
        let lane = self.lane_for(&metadata)?;
        let hands = self.hands_for(&metadata, &plan, &lane);
        let operation = Operation::new(direction, key, Some(metadata.agent().clone()), plan.total_bytes());
        let limits = Limits {
            timeout: options.timeout,
            stall: self.inner.settings.stall_timeout,
        };
        let transfer = Transfer::new(Arc::clone(&operation), Arc::new(metadata), plan, local, limits).with_hands(hands);
        lane.start(if options.verify { transfer.verified()? } else { transfer });
        Ok(OperationHandle::new(
            operation,
            Side::Active(Arc::clone(&lane)),
            self.keep_alive(),
        ))
    }

    /// Loads a peer, as the first transfer with it would. The operation moves nothing, and ends once the peer is loaded.
    ///
    /// # Errors
    /// [`ErrorKind::Metadata`] where the metadata is this connector's own, [`ErrorKind::Closed`]. Whatever fails later is
    /// the operation's outcome.
    pub fn connect(&self, metadata: RemoteMetadata) -> Result<OperationHandle> {
        let lane = self.lane_for(&metadata)?;
        let nobody = OperationKey::new(Vec::new());
        let operation = Operation::new(Direction::Read, nobody, Some(metadata.agent().clone()), 0);
        let limits = Limits {
            timeout: None,
            stall: self.inner.settings.stall_timeout,
        };
        lane.start(Transfer::connecting(Arc::clone(&operation), Arc::new(metadata), limits));
        Ok(OperationHandle::new(operation, Side::Active(lane), self.keep_alive()))
    }

    fn keep_alive(&self) -> KeepAlive {
        Arc::clone(&self.inner) as KeepAlive
    }

    /// The lane for transfers with the peer of this metadata.
    fn lane_for(&self, metadata: &RemoteMetadata) -> Result<Arc<Lane>> {
        self.inner
            .unknown_fields
            .fetch_add(metadata.unknown_fields() as u64, Ordering::Relaxed);
        if metadata.agent() == &self.inner.name {
            return Err(Error::new(
                ErrorKind::Metadata,
                "begin transfer",
                "the metadata is this connector's own: NIXL cannot connect an agent with itself",
            )
            .with_context("agent", metadata.agent())
            .with_hint("use a second Connector for the other side, or another worker id if that is another process"));
        }
        self.inner.transfer_lane(flavor_for(metadata), metadata.agent())
    }

    /// Who helps a transfer with its bytes: nobody where it is small, where it is not a processor of this host that copies
    /// them, as far as the owner's metadata tells, or where the notification has to go out with the last of them.
    fn hands_for(&self, metadata: &RemoteMetadata, plan: &TransferPlan, lane: &Arc<Lane>) -> Option<Hands> {
        let is_host_memory = |pair: &Pair| pair.local.kind == MemoryKind::Dram && pair.remote.kind == MemoryKind::Dram;
        let owner = metadata.trailer().and_then(|trailer| trailer.process)?;
        let is_here = process::here().is_some_and(|here| here.host == owner.host);
        if !is_here
            || flavor_for(metadata) != AgentFlavor::SharedMemoryErrors
            || metadata.validity().is_none()
            || plan.total_bytes() < CREW_BYTES
            || !plan.pairs().first().is_some_and(is_host_memory)
        {
            return None;
        }
        Hands::new(self.inner.copy_lanes(metadata.agent()), lane)
    }

    /// Lets one peer read (`Direction::Read`) or write (`Direction::Write`) `local`, once, for as long as `lease`; `None`
    /// is no limit. With `verify` the peer gets a checksum of the bytes as they are now, which it may ask for.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] for no or mixed ranges, and for a checksum of memory of a device, what [`Connector::open`] reports, [`ErrorKind::Closed`].
    /// A failure to register is the operation's outcome.
    pub fn expose(
        &self,
        direction: Direction,
        local: Vec<LocalMemory>,
        lease: Option<Duration>,
        verify: bool,
    ) -> Result<OperationHandle> {
        let ranges: Vec<MemoryRange> = local.iter().map(|memory| memory.range).collect();
        if ranges.is_empty() {
            return Err(Error::new(
                ErrorKind::InvalidArgument,
                "expose memory",
                "there is no descriptor to expose",
            ));
        }
        check_side("local", &ranges)?;
        let total = ranges
            .iter()
            .fold(0_u64, |total, range| total.saturating_add(range.len.0));
        let lane = self.inner.control()?;
        let operation = Operation::new(direction, OperationKey::random(), None, total);
        let generation = self.inner.generation.fetch_add(1, Ordering::Relaxed);
        let terms = Terms {
            generation,
            lease,
            verify,
        };
        let exposure = Exposure::start(&operation, lane, local, terms)?;
        Ok(OperationHandle::new(
            operation,
            Side::Passive(exposure),
            self.keep_alive(),
        ))
    }

    /// Registers memory with the control agent for as long as the region returned lives, so that operations on it or on
    /// parts of it need not. What a peer is shown of a part is the whole of it.
    ///
    /// # Errors
    /// [`ErrorKind::Registration`], what [`Connector::open`] reports, [`ErrorKind::Closed`].
    pub fn register(&self, memory: &LocalMemory) -> Result<Region> {
        self.inner.control()?.wait_open()?.regions.offer(memory)
    }

    /// All that the control agent has to say of itself and of every registration, in NIXL's own form. Grows with them.
    ///
    /// # Errors
    /// What [`Connector::open`] reports, [`ErrorKind::Backend`], [`ErrorKind::Closed`].
    pub fn agent_metadata(&self) -> Result<Vec<u8>> {
        let lane = self.inner.control()?;
        lane.wait_open()?.regions.transport()?.full_metadata()
    }

    /// The remote agents that are loaded now.
    #[must_use]
    pub fn peers(&self) -> Vec<AgentName> {
        self.inner.lanes().iter().flat_map(|lane| lane.peers()).collect()
    }

    /// The counters now.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut stats = Stats {
            trailer_fields_unknown: self.inner.unknown_fields.load(Ordering::Relaxed),
            ..Stats::default()
        };
        for lane in self.inner.lanes() {
            stats.copy_lanes += usize::from(lane.is_ready_to_copy());
            stats.peers += lane.peers().len();
            stats.reloads += lane.reloads();
            let (transfers, unquiet) = lane.pending();
            stats.transfers += transfers;
            stats.unquiet_regions += unquiet;
            if let Some(Ok(opened)) = lane.opened() {
                let (matched, unknown, malformed) = opened.ledger.counts();
                let (in_grace, bytes_in_grace) = opened.ledger.in_grace();
                // The pages of words are the agent's own, and stay as long as it does.
                stats.regions += opened.regions.len().saturating_sub(opened.words.pages());
                stats.exposures += opened.ledger.waiting();
                stats.exposures_in_grace += in_grace;
                stats.bytes_in_grace += bytes_in_grace;
                stats.messages_received += opened.ledger.messages();
                stats.notifications_matched += matched;
                stats.notifications_unknown += unknown;
                stats.notifications_malformed += malformed;
            }
        }
        stats
    }

    /// As [`Connector::close`], without waiting for it.
    pub fn begin_close(&self, timeout: Duration) {
        begin_close(&self.inner.refuse_more(), deadline(timeout));
    }

    /// Closes the connector: takes nothing new, fails what is unfinished with [`ErrorKind::Closed`], drives pieces in
    /// flight to their end for at most `timeout`, destroys the agents. Idempotent.
    ///
    /// True where everything was quiet. What was not stays pinned for the life of the process, its agent alive.
    pub fn close(&self, timeout: Duration) -> bool {
        close_lanes(&self.inner.refuse_more(), deadline(timeout))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Connector")
            .field("name", &self.inner.name)
            .finish_non_exhaustive()
    }
}

impl Inner {
    fn control(&self) -> Result<Arc<Lane>> {
        self.refuse_forked()?;
        self.lane(&mut self.lanes.lock(), AgentFlavor::SharedMemoryErrors)
    }

    /// The lane for transfers with `peer`: the flavor's own, or its spare where that one's agent cannot load the peer any
    /// more (NIXL forgets a peer whose load it refused, its back end does not).
    fn transfer_lane(&self, flavor: AgentFlavor, peer: &AgentName) -> Result<Arc<Lane>> {
        self.refuse_forked()?;
        let mut lanes = self.lanes.lock();
        let lane = self.lane(&mut lanes, flavor)?;
        if !lane.refuses(peer) {
            return Ok(lane);
        }
        let number = lanes.spares_made;
        let spare = match flavor {
            AgentFlavor::SharedMemoryErrors => &mut lanes.control_spare,
            AgentFlavor::Plain => &mut lanes.plain_spare,
        };
        // A spare that refuses the peer as well is left to the operations that hold it, and ends with them.
        let replaced = spare.take_if(|lane| lane.refuses(peer) || lane.has_failed());
        if let Some(spare) = spare {
            return Ok(Arc::clone(spare));
        }
        let name = AgentName::new(&format!("{}-spare-{number}", self.name));
        let lane = self.spawn("nixl-spare", name, flavor)?;
        *spare = Some(Arc::clone(&lane));
        lanes.spares_made += 1;
        lanes
            .retired
            .retain(|lane| Arc::strong_count(lane) > 1 || lane.pending().0 > 0);
        lanes.retired.extend(replaced);
        Ok(lane)
    }

    fn spawn(&self, thread: &str, name: AgentName, flavor: AgentFlavor) -> Result<Arc<Lane>> {
        let factory = Arc::clone(&self.factory);
        Lane::spawn(thread, name, flavor, factory, self.settings, Role::Whole)
    }

    fn copy_lanes(&self, peer: &AgentName) -> Vec<Arc<Lane>> {
        let mut lanes = self.lanes.lock();
        if lanes.is_closed {
            return Vec::new();
        }
        let material = Material {
            connector: &self.name,
            factory: &self.factory,
            settings: self.settings,
        };
        lanes.copies.ready(&material, peer)
    }

    /// The lane of a flavor, started if need be. One whose agent failed is replaced, so that a later call tries again.
    fn lane(&self, lanes: &mut Lanes, flavor: AgentFlavor) -> Result<Arc<Lane>> {
        if lanes.is_closed {
            return Err(closed());
        }
        let (slot, thread, name) = match flavor {
            AgentFlavor::SharedMemoryErrors => (&mut lanes.control, "nixl-control", self.name.clone()),
            AgentFlavor::Plain => {
                let name = AgentName::new(&format!("{}-plain", self.name));
                (&mut lanes.plain, "nixl-plain", name)
            }
        };
        slot.take_if(|lane| lane.has_failed());
        if let Some(lane) = slot {
            return Ok(Arc::clone(lane));
        }
        let lane = self.spawn(thread, name, flavor)?;
        *slot = Some(Arc::clone(&lane));
        Ok(lane)
    }

    /// # Errors
    /// [`ErrorKind::Forked`] in a child that inherited the connector.
    fn refuse_forked(&self) -> Result<()> {
        process::refuse_forked(self.origin)
    }

    fn lanes(&self) -> Vec<Arc<Lane>> {
        if self.origin.is_here() {
            self.lanes.lock().all()
        } else {
            Vec::new()
        }
    }

    /// Refuses everything new. The lanes stay where they are: whoever closes once more, or at the same time, waits for
    /// them, too.
    fn refuse_more(&self) -> Vec<Arc<Lane>> {
        if !self.origin.is_here() {
            return Vec::new();
        }
        let mut lanes = self.lanes.lock();
        lanes.is_closed = true;
        lanes.all()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            std::mem::forget(std::mem::take(self.lanes.get_mut()));
        }
    }
}

/// An owner without the trailer, or without `MM_ERROR_HANDLING`, needs a reader without it.
fn flavor_for(metadata: &RemoteMetadata) -> AgentFlavor {
    let is_own = metadata
        .trailer()
        .is_some_and(|trailer| trailer.shared_memory_notifications);
    if is_own {
        AgentFlavor::SharedMemoryErrors
    } else {
        AgentFlavor::Plain
    }
}

/// Tells lanes to end, together.
fn begin_close(lanes: &[Arc<Lane>], deadline: Instant) {
    let closing = Closing::by(deadline);
    let orders: Vec<ClosingOrder> = lanes.iter().map(|_| closing.order()).collect();
    for (lane, order) in lanes.iter().zip(orders) {
        lane.begin_close(order);
    }
}

fn deadline(timeout: Duration) -> Instant {
    Instant::now() + timeout.min(LONGEST)
}

/// Closes lanes together. True where everything was quiet.
fn close_lanes(lanes: &[Arc<Lane>], deadline: Instant) -> bool {
    begin_close(lanes, deadline);
    let mut quiet = true;
    for lane in lanes {
        quiet &= lane.join(deadline);
    }
    quiet
}

/// Closes every connector of this process, waits for every lane that outlived its connector, and forgets every
/// [`process::watch`]. For the process's exit: afterwards no thread of ours runs NIXL. True where everything was quiet.
pub fn shutdown(timeout: Duration) -> bool {
    let connectors = std::mem::take(&mut *CONNECTORS.here().lock());
    let connectors = connectors.iter().filter_map(Weak::upgrade);
    let lanes: Vec<Arc<Lane>> = connectors.flat_map(|connector| connector.refuse_more()).collect();
    let deadline = deadline(timeout);
    let quiet = close_lanes(&lanes, deadline);
    // Behind the lanes, whose last operations may still want to know whether a peer lives.
    process::end_watches();
    thread::join_orphans(deadline + ORPHAN_GRACE);
    loader::forget_files();
    quiet
}
