//! The real transport: one NIXL agent with its UCX back end. The only file that names `nixl_sys`.
//!
//! `nixl_sys` folds NIXL's statuses into twelve variants and takes its own lock for reading around
//! `create_xfer_req`; an agent made without NIXL's thread synchronisation must not be entered twice at a time, so a
//! lock of our own serialises every call on one agent.
//!
//! In a forked child nothing here is let go that the child inherited: the locks may be held for ever, and the functions may
//! be those of another copy of NIXL ([`loader`]), for which the objects are no objects. Nor is anything used: whoever holds
//! an inherited lane or operation is refused before he gets here.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::sync::lock::{Mutex, MutexGuard};
use nixl_sys::{
    Agent, AgentConfig, MemType, MemoryRegion, NixlDescriptor, NixlError, NotificationMap, OptArgs, Params,
    RegDescList, RegistrationHandle, ThreadSync, XferDescList, XferOp, XferRequest, XferStatus,
};

use super::{AgentFlavor, LOAD_PEER, Progress, Registration, Request, Transport, TransportFactory, gate, loader};
use crate::error::{Error, ErrorKind, Result};
use crate::hints::Facts;
use crate::process::Origin;
use crate::types::{AgentName, Direction, MemoryKind, MemoryRange};

/// Requests that were dropped while NIXL may still have been moving their bytes, over the life of the process.
static LEAKED_REQUESTS: AtomicU64 = AtomicU64::new(0);

/// UCX's default is to connect over TCP within the call, which a host that is cut off holds up for two minutes, and with it
/// everything else that the agent does. What the environment says goes first.
const CONNECTS_IN_BACKGROUND: &str = "TCP_CONN_NB=y";

/// How many requests were leaked because they were dropped in flight. Zero in a correct program.
#[must_use]
pub fn leaked_requests() -> u64 {
    LEAKED_REQUESTS.load(Ordering::Relaxed)
}

/// Makes real agents.
#[must_use]
pub fn factory() -> TransportFactory {
    Arc::new(|name, flavor| Ok(Arc::new(NixlTransport::new(name, flavor)?)))
}

/// One NIXL agent on UCX, without a progress thread: it moves when it is polled.
pub struct NixlTransport {
    name: AgentName,
    origin: Origin,
    agent: ManuallyDrop<Agent>,
    /// Held across every call into NIXL on this agent; owns the map that notifications are collected in.
    entry: Arc<Mutex<Inbox>>,
}

/// NIXL's notification map, kept between polls because making one allocates.
struct Inbox {
    origin: Origin,
    map: ManuallyDrop<NotificationMap>,
}

// SAFETY: the map is a heap object of the C++ side with no tie to the thread that made it, and it is only reached
// through the mutex that holds it.
unsafe impl Send for Inbox {}

impl Inbox {
    fn new(map: NotificationMap) -> Self {
        Self {
            origin: Origin::here(),
            map: ManuallyDrop::new(map),
        }
    }
}

impl Drop for Inbox {
    fn drop(&mut self) {
        if self.origin.is_here() {
            // SAFETY: this is the drop, so the map is not used again.
            unsafe { ManuallyDrop::drop(&mut self.map) };
        }
    }
}

impl NixlTransport {
    /// Makes an agent and its UCX back end: 0.1 to 0.5 s.
    ///
    /// # Errors
    /// [`ErrorKind::Library`] where NIXL cannot be loaded, [`ErrorKind::Backend`] where it refuses.
    pub fn new(name: &AgentName, flavor: AgentFlavor) -> Result<Self> {
        let config = AgentConfig {
            // NIXL's thread spins a core with delay 0; the reactor polls instead.
            enable_prog_thread: false,
            thread_sync: ThreadSync::None,
            ..AgentConfig::default()
        };
        let fail = |operation: &'static str, status: NixlError| {
            Error::new(ErrorKind::Backend, operation, "NIXL refused")
                .with_context("agent", name)
                .with_context("status", status_name(&status))
                .with_hint(Facts::here().on_opening(says_nothing(&status)))
                .with_source(status)
        };
        let _turn = gate::MAKING.here().lock();
        let mut begun = loader::begin_use()?;
        if let Some(hint) = Facts::here().against_opening() {
            let message = "too few files can be opened; UCX may abort a process that runs out of them";
            return Err(Error::new(ErrorKind::Backend, "create agent", message)
                .with_context("agent", name)
                .with_hint(hint));
        }
        let agent = Agent::new_configured(name.as_str(), &config).map_err(|status| fail("create agent", status))?;
        let configuration = match flavor {
            AgentFlavor::SharedMemoryErrors => ["MM_ERROR_HANDLING=y", CONNECTS_IN_BACKGROUND].join(","),
            AgentFlavor::Plain => CONNECTS_IN_BACKGROUND.to_owned(),
        };
        let parameters = Params::from([("engine_config", configuration.as_str())])
            .map_err(|status| fail("set parameters", status))?;
        begun.with_plugin(|| {
            let parameters = agent.get_plugin_params("UCX");
            parameters.map(drop).map_err(|status| fail("load plugin", status))
        })?;
        agent
            .create_backend("UCX", &parameters)
            .map_err(|status| fail("create back end", status))?;
        let inbox = Inbox::new(NotificationMap::new().map_err(|status| fail("create notification map", status))?);
        begun.end();
        let entry = Arc::new(Mutex::new(inbox));
        gate::add(&entry);
        Ok(Self {
            name: name.clone(),
            origin: Origin::here(),
            agent: ManuallyDrop::new(agent),
            entry,
        })
    }

    fn backend_error(&self, operation: &'static str, status: NixlError) -> Error {
        Error::new(ErrorKind::Backend, operation, "NIXL refused")
            .with_context("agent", &self.name)
            .with_context("status", status_name(&status))
            .with_source(status)
    }

    fn registration_list(&self, ranges: &[MemoryRange]) -> Result<RegDescList<'static>> {
        let kind = ranges.first().map_or(MemType::Dram, |range| memory_type(range.kind));
        let mut list = RegDescList::new(kind).map_err(|status| self.backend_error("list regions", status))?;
        for range in ranges {
            list.add_desc(as_usize(range.addr.0), as_usize(range.len.0), range.device);
        }
        Ok(list)
    }

    fn transfer_list(&self, ranges: &[MemoryRange]) -> Result<XferDescList<'static>> {
        let kind = ranges.first().map_or(MemType::Dram, |range| memory_type(range.kind));
        let mut list = XferDescList::new(kind).map_err(|status| self.backend_error("list ranges", status))?;
        for range in ranges {
            list.add_desc(as_usize(range.addr.0), as_usize(range.len.0), range.device);
        }
        Ok(list)
    }

    fn transfer_error(operation: &'static str, peer: &AgentName, status: NixlError) -> Error {
        let hint = Facts::here().on_transfer(says_nothing(&status));
        let error = Error::new(ErrorKind::Transfer, operation, "NIXL reported a failure")
            .with_context("peer", peer)
            .with_context("status", status_name(&status))
            .with_source(status);
        hint.into_iter().fold(error, Error::with_hint)
    }
}

impl Drop for NixlTransport {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            return;
        }
        let _turn = gate::MAKING.here().lock();
        // SAFETY: this is the drop, so the agent is not used again.
        unsafe { ManuallyDrop::drop(&mut self.agent) };
    }
}

impl fmt::Debug for NixlTransport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NixlTransport")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Transport for NixlTransport {
    fn agent_name(&self) -> &AgentName {
        &self.name
    }

    fn register(&self, range: &MemoryRange) -> Result<Box<dyn Registration>> {
        let _entry = self.entry.lock();
        let handle = self
            .agent
            .register_memory(&RegisteredRange(*range), None)
            .map_err(|status| {
                Error::new(ErrorKind::Registration, "register memory", "NIXL refused the range")
                    .with_context("agent", &self.name)
                    .with_context("address", format_args!("{:?}", range.addr))
                    .with_context("bytes", range.len.0)
                    .with_context("memory", format_args!("{:?}:{}", range.kind, range.device))
                    .with_context("status", status_name(&status))
                    .with_hint(Facts::here().on_registration(range.kind, range.len.0, says_nothing(&status)))
                    .with_source(status)
            })?;
        Ok(Box::new(NixlRegistration {
            origin: self.origin,
            handle: ManuallyDrop::new(handle),
            entry: Arc::clone(&self.entry),
        }))
    }

    fn connection_info(&self) -> Result<Vec<u8>> {
        self.partial(&[], "export connection information")
    }

    fn partial_metadata(&self, ranges: &[MemoryRange]) -> Result<Vec<u8>> {
        self.partial(ranges, "export partial metadata")
    }

    fn full_metadata(&self) -> Result<Vec<u8>> {
        let _entry = self.entry.lock();
        self.agent
            .get_local_md()
            .map_err(|status| self.backend_error("export metadata", status))
    }

    fn load_peer(&self, blob: &[u8]) -> Result<AgentName> {
        let _entry = self.entry.lock();
        let name = self.agent.load_remote_md(blob).map_err(|status| {
            // The blob was found well formed before it came here: a failure of the back end is one to connect.
            let (kind, message) = match status {
                NixlError::BackendError => (ErrorKind::Transfer, "the peer cannot be reached"),
                _ => (ErrorKind::Metadata, "NIXL refused the peer's metadata"),
            };
            let advice = "check that the peer still runs, and that both ends have compatible versions of NIXL and UCX and a \
                          common transport";
            let hint = match Facts::here().on_transfer(says_nothing(&status)) {
                Some(further) => format!("{advice}; {further}"),
                None => advice.to_owned(),
            };
            Error::new(kind, LOAD_PEER, message)
                .with_context("agent", &self.name)
                .with_context("status", status_name(&status))
                .with_source(status)
                .with_hint(hint)
        })?;
        Ok(AgentName::new(&name))
    }

    fn drop_peer(&self, peer: &AgentName) -> Result<()> {
        let _entry = self.entry.lock();
        self.agent
            .invalidate_remote_md(peer.as_str())
            .map_err(|status| self.backend_error("drop peer", status).with_context("peer", peer))
    }

    fn prepare(
        &self,
        direction: Direction,
        local: &[MemoryRange],
        remote: &[MemoryRange],
        peer: &AgentName,
        notification: Option<&[u8]>,
    ) -> Result<Box<dyn Request>> {
        let fail = |status: NixlError| Self::transfer_error("create request", peer, status);
        let local_list = self.transfer_list(local)?;
        let remote_list = self.transfer_list(remote)?;
        let options = notification.map(notification_options).transpose().map_err(fail)?;
        let operation = match direction {
            Direction::Read => XferOp::Read,
            Direction::Write => XferOp::Write,
        };
        let _entry = self.entry.lock();
        let request = self
            .agent
            .create_xfer_req(operation, &local_list, &remote_list, peer.as_str(), options.as_ref())
            .map_err(fail)?;
        Ok(Box::new(NixlRequest {
            origin: self.origin,
            native: ManuallyDrop::new(Native {
                request,
                agent: Agent::clone(&self.agent),
                options,
            }),
            entry: Arc::clone(&self.entry),
            peer: peer.clone(),
            descriptors: local.len(),
            state: RequestState::Prepared,
        }))
    }

    fn notify(&self, peer: &AgentName, message: &[u8]) -> Result<()> {
        let _entry = self.entry.lock();
        self.agent
            .send_notification(peer.as_str(), message, None)
            .map_err(|status| Self::transfer_error("send notification", peer, status))
    }

    fn poll_notifications(&self, receive: &mut dyn FnMut(&AgentName, &[u8])) -> Result<usize> {
        let mut messages = Vec::new();
        {
            let mut inbox = self.entry.lock();
            let poll = |status: NixlError| self.backend_error("poll notifications", status);
            self.agent.get_notifications(&mut inbox.map, None).map_err(poll)?;
            if inbox.map.is_empty().map_err(poll)? {
                return Ok(0);
            }
            // Always a new map: one that a peer managed to spoil must not stay.
            let arrived = std::mem::replace(&mut *inbox.map, NotificationMap::new().map_err(poll)?);
            MutexGuard::unlock_fair(inbox);
            // A sender's name is asked for by a C string. One that is not UTF-8 or holds a NUL cannot be, and what it
            // sent ends with the map; the others lose nothing by it.
            for sender in arrived.agents().flatten() {
                let Ok(count) = arrived.get_notifications_size(sender) else {
                    tracing::warn!(sender, "notifications of a peer with an impossible name were dropped");
                    continue;
                };
                let name = AgentName::new(sender);
                let bytes = (0..count).filter_map(|index| arrived.get_notification_bytes(sender, index).ok());
                messages.extend(bytes.map(|message| (name.clone(), message)));
            }
        }
        for (sender, message) in &messages {
            receive(sender, message);
        }
        Ok(messages.len())
    }
}

impl NixlTransport {
    fn partial(&self, ranges: &[MemoryRange], operation: &'static str) -> Result<Vec<u8>> {
        let list = self.registration_list(ranges)?;
        let _entry = self.entry.lock();
        self.agent
            .get_local_partial_md(&list, None)
            .map_err(|status| self.backend_error(operation, status))
    }
}

/// A range in the form `nixl_sys` registers.
#[derive(Debug)]
struct RegisteredRange(MemoryRange);

impl MemoryRegion for RegisteredRange {
    // SAFETY: nothing is dereferenced; the address was exposed by its owner, whom the caller of `register` keeps alive.
    unsafe fn as_ptr(&self) -> *const u8 {
        std::ptr::with_exposed_provenance(as_usize(self.0.addr.0))
    }

    fn size(&self) -> usize {
        as_usize(self.0.len.0)
    }
}

impl NixlDescriptor for RegisteredRange {
    fn mem_type(&self) -> MemType {
        memory_type(self.0.kind)
    }

    fn device_id(&self) -> u64 {
        self.0.device
    }
}

#[derive(Debug)]
struct NixlRegistration {
    origin: Origin,
    handle: ManuallyDrop<RegistrationHandle>,
    entry: Arc<Mutex<Inbox>>,
}

impl Registration for NixlRegistration {}

impl fmt::Debug for Inbox {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Inbox")
    }
}

impl Drop for NixlRegistration {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            return;
        }
        let _entry = self.entry.lock();
        if let Err(status) = self.handle.deregister() {
            tracing::warn!(handle = ?self.handle, %status, "deregistration failed");
        }
        // SAFETY: this is the drop, so the handle is not used again.
        unsafe { ManuallyDrop::drop(&mut self.handle) };
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestState {
    Prepared,
    InFlight,
    /// The wire is done with it, or never saw it.
    Over,
    /// It failed, and another descriptor of it may still be moving.
    Unknown,
}

struct NixlRequest {
    origin: Origin,
    native: ManuallyDrop<Native>,
    entry: Arc<Mutex<Inbox>>,
    peer: AgentName,
    descriptors: usize,
    state: RequestState,
}

/// NIXL's part of a request.
struct Native {
    request: XferRequest,
    agent: Agent,
    /// Given again at the post, as upstream does.
    options: Option<OptArgs>,
}

// SAFETY: `OptArgs` is a heap object of the C++ side with no tie to a thread; it is only read by `post`, behind
// `&mut self` and the agent's lock.
unsafe impl Send for NixlRequest {}

impl NixlRequest {
    fn settle(&mut self, operation: &'static str, result: Result<Progress, NixlError>) -> Result<Progress> {
        match result {
            Ok(Progress::Pending) => {
                self.state = RequestState::InFlight;
                Ok(Progress::Pending)
            }
            Ok(Progress::Done) => {
                self.state = RequestState::Over;
                Ok(Progress::Done)
            }
            Err(status) => {
                // NIXL stops at the first descriptor that fails; those before it may be on their way.
                self.state = if self.descriptors > 1 {
                    RequestState::Unknown
                } else {
                    RequestState::Over
                };
                Err(NixlTransport::transfer_error(operation, &self.peer, status))
            }
        }
    }
}

impl Request for NixlRequest {
    fn post(&mut self) -> Result<Progress> {
        debug_assert_eq!(self.state, RequestState::Prepared);
        let result = {
            let entry = self.entry.lock();
            let native = &*self.native;
            let posted = native.agent.post_xfer_req(&native.request, native.options.as_ref());
            // A post may have copied for a millisecond, and the next one is close: let those go first who wait.
            MutexGuard::unlock_fair(entry);
            posted
        };
        let result = result.map(|in_progress| if in_progress { Progress::Pending } else { Progress::Done });
        self.settle("post transfer", result)
    }

    fn poll(&mut self) -> Result<Progress> {
        if self.state != RequestState::InFlight {
            return Ok(Progress::Done);
        }
        let result = {
            let _entry = self.entry.lock();
            self.native.agent.get_xfer_status(&self.native.request)
        };
        let result = result.map(|status| match status {
            XferStatus::Success => Progress::Done,
            XferStatus::InProgress => Progress::Pending,
        });
        self.settle("transfer", result)
    }

    fn give_up(&mut self) {
        if self.state == RequestState::InFlight {
            self.state = RequestState::Over;
        }
    }
}

impl fmt::Debug for NixlRequest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("NixlRequest")
            .field("peer", &self.peer)
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl Drop for NixlRequest {
    fn drop(&mut self) {
        if !self.origin.is_here() {
            return;
        }
        match self.state {
            RequestState::Prepared | RequestState::Over => {
                let _entry = self.entry.lock();
                // SAFETY: this is the drop, so nothing of it is used again.
                unsafe { ManuallyDrop::drop(&mut self.native) };
            }
            RequestState::InFlight | RequestState::Unknown => {
                // Releasing would not stop the bytes, only our sight of them. It leaks its agent, too.
                if self.state == RequestState::InFlight {
                    LEAKED_REQUESTS.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(peer = %self.peer, "a request was dropped in flight and is leaked");
                }
            }
        }
    }
}

fn notification_options(message: &[u8]) -> Result<OptArgs, NixlError> {
    let mut options = OptArgs::new()?;
    options.set_notification_message(message)?;
    options.set_has_notification(true)?;
    Ok(options)
}

fn memory_type(kind: MemoryKind) -> MemType {
    match kind {
        MemoryKind::Dram => MemType::Dram,
        MemoryKind::Vram => MemType::Vram,
    }
}

/// The C API's name of a status, as far as `nixl_sys` lets it through.
fn status_name(status: &NixlError) -> &'static str {
    match status {
        NixlError::InvalidParam => "NIXL_CAPI_ERROR_INVALID_PARAM",
        NixlError::BackendError => "NIXL_CAPI_ERROR_BACKEND",
        NixlError::NotFound => "NIXL_CAPI_ERROR_NOT_FOUND",
        NixlError::NoTelemetry => "NIXL_CAPI_ERROR_NO_TELEMETRY",
        NixlError::FailedToCreateXferRequest => "request creation failed",
        NixlError::FailedToCreateBackend => "back-end creation failed",
        NixlError::StringConversionError(_) => "a name holds a NUL byte",
        NixlError::IndexOutOfBounds => "index out of bounds",
        NixlError::InvalidDataPointer => "NIXL returned no data",
        NixlError::RegDescListCreationFailed | NixlError::RegDescAddFailed => "registration list refused",
        NixlError::FailedToCreateXferDlistHandle => "transfer list refused",
    }
}

/// Whether a status leaves open what went wrong.
fn says_nothing(status: &NixlError) -> bool {
    matches!(
        status,
        NixlError::BackendError | NixlError::FailedToCreateXferRequest | NixlError::FailedToCreateBackend
    )
}

/// Addresses and lengths are 64 bits on the wire and on every platform NIXL runs on.
#[allow(clippy::cast_possible_truncation)]
fn as_usize(value: u64) -> usize {
    const _: () = assert!(usize::BITS == 64);
    value as usize
}
