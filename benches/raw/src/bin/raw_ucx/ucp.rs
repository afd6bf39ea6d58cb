//! UCX's functions and what is needed of its structures, and safe objects on top of them. Single-threaded.
//!
//! Written down here rather than generated: the headers are in none of the packages that a build needs, and what a
//! transfer takes is a dozen functions. Each structure says by a mask which of its fields are filled, and new fields
//! come at the end; so those declared are a beginning, and room for the rest (`Rest`) keeps UCX within them.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::Path;
use std::ptr::{self, NonNull};
use std::slice;

use dynamo_nixl_raw::arena::Range;
use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

type Status = i8;
const IN_PROGRESS: Status = 1;
/// The API that the structures are of; a newer library serves an older one.
const API: (c_uint, c_uint) = (1, 15);

/// Room for fields that are not named in a mask.
type Rest = [u64; 32];
const REST: Rest = [0; 32];

const PARAM_FEATURES: u64 = 1;
const FEATURE_RMA: u64 = 1 << 1;

#[repr(C)]
struct Params {
    mask: u64,
    features: u64,
    rest: Rest,
}

const WORKER_THREAD_MODE: u64 = 1;
const THREAD_MODE_SINGLE: c_int = 0;

#[repr(C)]
struct WorkerParams {
    mask: u64,
    thread_mode: c_int,
    rest: Rest,
}

const ENDPOINT_ADDRESS: u64 = 1;

#[repr(C)]
struct EndpointParams {
    mask: u64,
    address: *const c_void,
    rest: Rest,
}

const MAP_ADDRESS_AND_LENGTH: u64 = 0b11;

#[repr(C)]
struct MapParams {
    mask: u64,
    address: *mut c_void,
    length: usize,
    rest: Rest,
}

const GET_MEMORY_HANDLE: u32 = 1 << 8;

#[repr(C)]
struct GetParams {
    mask: u32,
    flags: u32,
    request: *mut c_void,
    callback: *const c_void,
    datatype: u64,
    user_data: *mut c_void,
    reply_buffer: *mut c_void,
    memory_type: c_int,
    received: *mut c_void,
    memory: *mut c_void,
    rest: Rest,
}

macro_rules! functions {
    ($($name:ident: fn($($argument:ty),*) $(-> $result:ty)?;)*) => {
        /// The functions of a library that is never unloaded.
        pub(crate) struct Functions {
            $($name: unsafe extern "C" fn($($argument),*) $(-> $result)?,)*
        }

        impl Functions {
            /// Loads UCX.
            pub(crate) fn load(path: &Path) -> &'static Self {
                // SAFETY: UCX's initialisers only set up its own state.
                let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
                let library: &'static Library = Box::leak(Box::new(library.unwrap()));
                Box::leak(Box::new(Self {
                    // SAFETY: the types are those of UCX's headers.
                    $($name: unsafe { *library.get(concat!(stringify!($name), "\0").as_bytes()).unwrap() },)*
                }))
            }
        }
    };
}

functions! {
    ucp_get_version_string: fn() -> *const c_char;
    ucs_status_string: fn(Status) -> *const c_char;
    ucp_init_version: fn(c_uint, c_uint, *const Params, *const c_void, *mut *mut c_void) -> Status;
    ucp_worker_create: fn(*mut c_void, *const WorkerParams, *mut *mut c_void) -> Status;
    ucp_worker_get_address: fn(*mut c_void, *mut *mut c_void, *mut usize) -> Status;
    ucp_worker_release_address: fn(*mut c_void, *mut c_void);
    ucp_worker_progress: fn(*mut c_void) -> c_uint;
    ucp_ep_create: fn(*mut c_void, *const EndpointParams, *mut *mut c_void) -> Status;
    ucp_mem_map: fn(*mut c_void, *const MapParams, *mut *mut c_void) -> Status;
    ucp_rkey_pack: fn(*mut c_void, *mut c_void, *mut *mut c_void, *mut usize) -> Status;
    ucp_rkey_buffer_release: fn(*mut c_void);
    ucp_ep_rkey_unpack: fn(*mut c_void, *const c_void, *mut *mut c_void) -> Status;
    ucp_get_nbx: fn(*mut c_void, *mut c_void, usize, u64, *mut c_void, *const GetParams) -> *mut c_void;
    ucp_request_check_status: fn(*mut c_void) -> Status;
    ucp_request_free: fn(*mut c_void);
}

impl Functions {
    /// UCX's.
    pub(crate) fn version(&self) -> String {
        // SAFETY: a string that is never freed.
        let version = unsafe { CStr::from_ptr((self.ucp_get_version_string)()) };
        version.to_string_lossy().into_owned()
    }

    fn check(&self, what: &str, status: Status) {
        if status != 0 {
            // SAFETY: a string that is never freed, also for a status that UCX does not know.
            let reason = unsafe { CStr::from_ptr((self.ucs_status_string)(status)) };
            panic!("{what}: {}", reason.to_string_lossy());
        }
    }

    /// Has a function make something.
    fn make(&self, what: &str, make: impl FnOnce(*mut *mut c_void) -> Status) -> *mut c_void {
        let mut made = ptr::null_mut();
        self.check(what, make(&raw mut made));
        made
    }
}

/// A context and its one worker. Neither is ever destroyed, nor is what is made of them: it lasts as long as the process,
/// and so every handle below is valid.
pub(crate) struct Worker {
    functions: &'static Functions,
    context: *mut c_void,
    worker: *mut c_void,
}

/// Memory that is registered.
pub(crate) struct Memory(*mut c_void);

/// What opens the owner's memory to the endpoint that has unpacked it.
pub(crate) struct RemoteKey(*mut c_void);

impl Worker {
    pub(crate) fn new(functions: &'static Functions) -> Self {
        let params = Params {
            mask: PARAM_FEATURES,
            features: FEATURE_RMA,
            rest: REST,
        };
        let (major, minor) = API;
        // SAFETY: UCX reads what the mask names, and the environment for lack of a configuration.
        let init = |out| unsafe { (functions.ucp_init_version)(major, minor, &raw const params, ptr::null(), out) };
        let context = functions.make("ucp_init", init);
        let params = WorkerParams {
            mask: WORKER_THREAD_MODE,
            thread_mode: THREAD_MODE_SINGLE,
            rest: REST,
        };
        // SAFETY: as above, with a context of its making.
        let create = |out| unsafe { (functions.ucp_worker_create)(context, &raw const params, out) };
        Self {
            functions,
            context,
            worker: functions.make("ucp_worker_create", create),
        }
    }

    pub(crate) fn progress(&mut self) {
        // SAFETY: the worker is valid, and its only thread is this one: no reference to it leaves one.
        unsafe { (self.functions.ucp_worker_progress)(self.worker) };
    }

    /// What a peer connects to.
    pub(crate) fn address(&self) -> Vec<u8> {
        let mut length = 0;
        // SAFETY: the worker is valid, and both places are to be written to.
        let get = |out| unsafe { (self.functions.ucp_worker_get_address)(self.worker, out, &raw mut length) };
        let address = self.functions.make("ucp_worker_get_address", get);
        // SAFETY: UCX has made so many bytes, which are released once and only afterwards.
        unsafe {
            let copy = slice::from_raw_parts(address.cast::<u8>(), length).to_vec();
            (self.functions.ucp_worker_release_address)(self.worker, address);
            copy
        }
    }

    /// Registers memory.
    pub(crate) fn map(&self, block: Range) -> Memory {
        let params = MapParams {
            mask: MAP_ADDRESS_AND_LENGTH,
            address: block.as_ptr().cast(),
            length: block.len,
            rest: REST,
        };
        // SAFETY: the context is valid, and the memory an arena's, which is never freed.
        let map = |out| unsafe { (self.functions.ucp_mem_map)(self.context, &raw const params, out) };
        Memory(self.functions.make("ucp_mem_map", map))
    }

    /// What a peer unpacks to read from memory of this worker.
    pub(crate) fn pack(&self, memory: &Memory) -> Vec<u8> {
        let mut length = 0;
        // SAFETY: context and memory are valid, and both places are to be written to.
        let pack = |out| unsafe { (self.functions.ucp_rkey_pack)(self.context, memory.0, out, &raw mut length) };
        let key = self.functions.make("ucp_rkey_pack", pack);
        // SAFETY: UCX has made so many bytes, which are released once and only afterwards.
        unsafe {
            let copy = slice::from_raw_parts(key.cast::<u8>(), length).to_vec();
            (self.functions.ucp_rkey_buffer_release)(key);
            copy
        }
    }

    /// Makes an endpoint to the worker with this address.
    pub(crate) fn connect(&self, address: &[u8]) -> Endpoint {
        let params = EndpointParams {
            mask: ENDPOINT_ADDRESS,
            address: address.as_ptr().cast(),
            rest: REST,
        };
        // SAFETY: the worker is valid, the address was made by `address`, and UCX copies of it what it needs.
        let create = |out| unsafe { (self.functions.ucp_ep_create)(self.worker, &raw const params, out) };
        Endpoint {
            functions: self.functions,
            endpoint: self.functions.make("ucp_ep_create", create),
        }
    }
}

/// The way to one peer.
pub(crate) struct Endpoint {
    functions: &'static Functions,
    endpoint: *mut c_void,
}

impl Endpoint {
    pub(crate) fn unpack(&self, key: &[u8]) -> RemoteKey {
        // SAFETY: the endpoint is valid, and the key was made by `pack` of its peer.
        let unpack = |out| unsafe { (self.functions.ucp_ep_rkey_unpack)(self.endpoint, key.as_ptr().cast(), out) };
        RemoteKey(self.functions.make("ucp_ep_rkey_unpack", unpack))
    }

    /// Begins to read from `there` on into a range of this memory.
    pub(crate) fn get(&self, here: Range, memory: &Memory, there: usize, key: &RemoteKey) -> Get {
        let params = GetParams {
            mask: GET_MEMORY_HANDLE,
            flags: 0,
            request: ptr::null_mut(),
            callback: ptr::null(),
            datatype: 0,
            user_data: ptr::null_mut(),
            reply_buffer: ptr::null_mut(),
            memory_type: 0,
            received: ptr::null_mut(),
            memory: memory.0,
            rest: REST,
        };
        // SAFETY: the handles are valid; the range is registered memory of an arena, which is never freed, and which
        // nobody looks at before this has ended.
        let request = unsafe {
            (self.functions.ucp_get_nbx)(
                self.endpoint,
                here.as_ptr().cast(),
                here.len,
                there as u64,
                key.0,
                &raw const params,
            )
        };
        // The last hundred addresses are errors, null is an end already.
        let as_status = request.addr() as isize;
        if (-100..0).contains(&as_status) {
            self.functions.check("ucp_get_nbx", as_status as Status);
        }
        Get {
            functions: self.functions,
            request: NonNull::new(request),
        }
    }
}

/// A read under way.
pub(crate) struct Get {
    functions: &'static Functions,
    /// None once it has ended.
    request: Option<NonNull<c_void>>,
}

impl Get {
    /// Whether it has ended, as far as the worker has progressed.
    pub(crate) fn has_ended(&mut self) -> bool {
        let Some(request) = self.request else { return true };
        // SAFETY: a request of UCX's that was not freed yet.
        let status = unsafe { (self.functions.ucp_request_check_status)(request.as_ptr()) };
        if status == IN_PROGRESS {
            return false;
        }
        self.request = None;
        // SAFETY: it is freed once, and not looked at again.
        unsafe { (self.functions.ucp_request_free)(request.as_ptr()) };
        self.functions.check("ucp_get_nbx", status);
        true
    }
}
