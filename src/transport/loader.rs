//! Loads NIXL's C library and proves it complete before the first call.
//!
//! What is called is a table of functions (`table`), and a function that the library lacks aborts the process. So every
//! one that is used is looked for here first, which makes an error of it.
//!
//! A child that was forked off a process with agents gets a copy of its own (`copy`), when it makes its first agent.
//! What it inherited is left as it is: nothing that belongs to it is called any more.

use std::env;
use std::ffi::{CStr, OsStr, c_int, c_void};
use std::fs;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, Ordering};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};

use super::copy::{NixlCopy, PluginFolder};
use super::gate::{self, LOADING};
use super::table;
use crate::error::{Error, ErrorKind, Result};
use crate::process::Origin;

/// The variable that names the library, or the folder it lies in.
pub const LIBRARY_VARIABLE: &str = "DYNAMO_NIXL_LIBRARY";

const BARE_NAME: &str = "libnixl_capi.so";
pub(super) const OPERATION: &str = "load NIXL";
const SUPPORTED: &str = "NIXL 1.4.1 to 1.5.x are supported: pip install 'nixl-cu12>=1.4.1,<1.6' (or nixl-cu13)";

/// Every symbol of the C API that `transport/nixl` reaches.
const SYMBOLS: &[&str] = &[
    "nixl_capi_create_agent",
    "nixl_capi_create_backend",
    "nixl_capi_create_configured_agent",
    "nixl_capi_create_notif_map",
    "nixl_capi_create_opt_args",
    "nixl_capi_create_params",
    "nixl_capi_create_reg_dlist",
    "nixl_capi_create_xfer_dlist",
    "nixl_capi_create_xfer_req",
    "nixl_capi_deregister_mem",
    "nixl_capi_destroy_agent",
    "nixl_capi_destroy_backend",
    "nixl_capi_destroy_notif_map",
    "nixl_capi_destroy_opt_args",
    "nixl_capi_destroy_params",
    "nixl_capi_destroy_reg_dlist",
    "nixl_capi_destroy_xfer_dlist",
    "nixl_capi_destroy_xfer_req",
    "nixl_capi_gen_notif",
    "nixl_capi_get_local_md",
    "nixl_capi_get_local_partial_md",
    "nixl_capi_get_notifs",
    "nixl_capi_get_xfer_status",
    "nixl_capi_invalidate_remote_md",
    "nixl_capi_load_remote_md",
    "nixl_capi_notif_map_clear",
    "nixl_capi_notif_map_get_agent_at",
    "nixl_capi_notif_map_get_notif",
    "nixl_capi_notif_map_get_notifs_size",
    "nixl_capi_notif_map_size",
    "nixl_capi_opt_args_set_has_notif",
    "nixl_capi_opt_args_set_notif_msg",
    "nixl_capi_params_add",
    "nixl_capi_post_xfer_req",
    "nixl_capi_reg_dlist_add_desc",
    "nixl_capi_reg_dlist_clear",
    "nixl_capi_register_mem",
    "nixl_capi_release_xfer_req",
    "nixl_capi_xfer_dlist_add_desc",
    "nixl_capi_xfer_dlist_clear",
];

/// NIXL as this process calls it: what the table is filled from.
#[derive(Debug)]
struct Loaded {
    /// As it was asked for.
    path: PathBuf,
    /// Where that was found.
    file: PathBuf,
    /// Who is to use it.
    origin: Origin,
    /// Whether an agent was made of it, and with it threads, which no child has.
    has_agents: AtomicBool,
    /// Where it is not the first one.
    copy: Option<&'static NixlCopy>,
}

/// What was loaded last, be it by a process that this one was forked off. Never freed, and read without a lock.
static LOADED: AtomicPtr<Loaded> = AtomicPtr::new(ptr::null_mut());

impl Loaded {
    fn last() -> Option<&'static Self> {
        // SAFETY: the pointer is null or comes from `Box::leak` in `publish`, the only place that stores one: what it
        // points to was whole before it was stored (Release, Acquire), is only ever shared, and is never freed.
        unsafe { LOADED.load(Ordering::Acquire).as_ref() }
    }

    fn publish(self) -> &'static Self {
        let loaded: &'static mut Self = Box::leak(Box::new(self));
        LOADED.store(loaded, Ordering::Release);
        loaded
    }
}

/// The path NIXL was loaded from, if it was.
#[must_use]
pub fn loaded_path() -> Option<PathBuf> {
    Loaded::last().map(|loaded| loaded.path.clone())
}

/// Loads NIXL from `path` (a path, or the bare name to search the loader's path). The first load of a process wins, or
/// of one that it was forked off; a later one with another path is an error.
///
/// # Errors
/// [`ErrorKind::Library`]: the file cannot be loaded, or lacks a symbol that is used.
pub fn load(path: &Path) -> Result<()> {
    gate::watch_forks();
    let _turn = LOADING.here().lock();
    if let Some(earlier) = Loaded::last() {
        return if earlier.path == path {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Library,
                OPERATION,
                "this process has loaded NIXL from another place",
            )
            .with_context("loaded", earlier.path.display())
            .with_context("asked", path.display()))
        };
    }
    let library = open(path, RTLD_NOW)?;
    check(&library, path)?;
    // Libraries of one name share what they need by name: parts of one NIXL would call those of another.
    if let Ok(by_name) = open(Path::new(BARE_NAME), RTLD_NOW | libc::RTLD_NOLOAD) {
        if find(&library, SYMBOLS[0]) != find(&by_name, SYMBOLS[0]) {
            return Err(Error::new(
                ErrorKind::Library,
                OPERATION,
                "another libnixl_capi.so was loaded before",
            )
            .with_context("path", path.display())
            .with_hint("load only one NIXL in a process, or point DYNAMO_NIXL_LIBRARY at the one that is loaded"));
        }
    }
    let file = file_of(&library).unwrap_or_else(|| path.to_path_buf());
    // SAFETY: there was no library before it of which anybody could hold an object, and nothing calls NIXL before this
    // function has returned.
    unsafe { table::fill(|symbol| find(&library, symbol)) };
    Loaded {
        path: path.to_path_buf(),
        file,
        origin: Origin::here(),
        has_agents: AtomicBool::new(false),
        copy: None,
    }
    .publish();
    Ok(())
}

/// Makes NIXL ready for an agent of this process, which is made next: loads it, unless it is loaded already. In a
/// child of a process with agents that is a copy of its own.
///
/// # Errors
/// As [`load`], and [`ErrorKind::Forked`] where no copy can be made.
pub(super) fn begin_use() -> Result<Use> {
    ensure_loaded()?;
    let _turn = LOADING.here().lock();
    let Some(mut loaded) = Loaded::last() else {
        return Err(Error::new(ErrorKind::Library, OPERATION, "nothing is loaded"));
    };
    if !loaded.origin.is_here() {
        let mut copy = loaded.copy;
        if loaded.has_agents.load(Ordering::Acquire) {
            let fresh = NixlCopy::load(&loaded.file)?;
            check(fresh.library(), &loaded.file)?;
            // SAFETY: what this process holds of the library before it was inherited, and `transport/nixl` neither uses
            // nor drops that. Its own agents are made behind this, one at a time.
            unsafe { table::fill(|symbol| find(fresh.library(), symbol)) };
            copy = Some(fresh);
        }
        loaded = Loaded {
            path: loaded.path.clone(),
            file: loaded.file.clone(),
            origin: Origin::here(),
            has_agents: AtomicBool::new(false),
            copy,
        }
        .publish();
    }
    // Before the first one is made: a child that is forked off in between has half of it.
    loaded.has_agents.store(true, Ordering::Release);
    Ok(Use {
        plugins: loaded.copy.and_then(NixlCopy::direct_plugins),
        copy: loaded.copy,
    })
}

/// The making of an agent.
#[derive(Debug)]
pub(super) struct Use {
    copy: Option<&'static NixlCopy>,
    plugins: Option<PluginFolder>,
}

impl Use {
    /// Where the first agent of a copy is made: has NIXL load the copy's plugin, by a call that uses nothing of it.
    ///
    /// # Errors
    /// Those of the call, and [`ErrorKind::Forked`]: NIXL took another one.
    pub(super) fn with_plugin(&mut self, load: impl FnOnce() -> Result<()>) -> Result<()> {
        let Some(copy) = self.copy.filter(|copy| copy.has_files()) else {
            return Ok(());
        };
        load()?;
        self.plugins = None;
        copy.check_plugin()
    }

    /// The agent is made.
    pub(super) fn end(self) {
        if let Some(copy) = self.copy {
            copy.forget_files();
        }
    }
}

/// Removes what is left of temporary files. For the process's exit.
pub(crate) fn forget_files() {
    let loaded = Loaded::last().filter(|loaded| loaded.origin.is_here());
    if let Some(copy) = loaded.and_then(|loaded| loaded.copy) {
        copy.forget_files();
    }
}

/// Loads NIXL from where `DYNAMO_NIXL_LIBRARY` says, or from the loader's path, unless it is loaded already.
///
/// # Errors
/// As [`load`].
pub fn ensure_loaded() -> Result<()> {
    if Loaded::last().is_some() {
        return Ok(());
    }
    load(&match env::var_os(LIBRARY_VARIABLE) {
        Some(value) => {
            let path = PathBuf::from(value);
            if path.is_dir() { path.join(BARE_NAME) } else { path }
        }
        None => PathBuf::from(BARE_NAME),
    })
    .map_err(|error| {
        if error.hint().is_some() {
            return error;
        }
        error.with_hint(format!("{SUPPORTED}, or set {LIBRARY_VARIABLE} to its {BARE_NAME}"))
    })
}

/// # Errors
/// [`ErrorKind::Library`]: a symbol is missing.
fn check(library: &Library, path: &Path) -> Result<()> {
    let missing = SYMBOLS.iter().copied();
    let missing: Vec<&str> = missing.filter(|symbol| find(library, symbol).is_none()).collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(
        Error::new(ErrorKind::Library, OPERATION, "the library lacks symbols that are used")
            .with_context("path", path.display())
            .with_context("missing", missing.join(", "))
            .with_hint(SUPPORTED),
    )
}

/// The file that a library was found in.
fn file_of(library: &Library) -> Option<PathBuf> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    let function = find(library, SYMBOLS[0])?;
    // SAFETY: it is only asked where an address lies.
    let found = unsafe { libc::dladdr(function, info.as_mut_ptr()) };
    // SAFETY: all of its values are valid when they are zero.
    let info = unsafe { info.assume_init() };
    if found == 0 || info.dli_fname.is_null() {
        return None;
    }
    // SAFETY: a string that belongs to the library, which is loaded.
    let name = unsafe { CStr::from_ptr(info.dli_fname) };
    // Absolute, because a child may have another directory by then.
    fs::canonicalize(OsStr::from_bytes(name.to_bytes())).ok()
}

fn find(library: &Library, symbol: &str) -> Option<*mut c_void> {
    // SAFETY: the symbol is only looked up, never called or read through this type.
    let found = unsafe { library.get::<*mut c_void>(symbol.as_bytes()) };
    found.ok().map(|symbol| symbol.as_raw_ptr())
}

/// No handle is ever closed, so that nothing is unmapped under running code.
fn open(path: &Path, flags: c_int) -> Result<ManuallyDrop<Library>> {
    // SAFETY: loading runs the library's initialisers; NIXL's and UCX's only set up their own state.
    let library = unsafe { Library::open(Some(path), flags | RTLD_LOCAL) };
    library.map(ManuallyDrop::new).map_err(|source| {
        Error::new(ErrorKind::Library, OPERATION, "the library cannot be loaded")
            .with_context("path", path.display())
            .with_source(source)
    })
}
