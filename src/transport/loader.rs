//! Loads NIXL's C library by its full path and proves it complete before the first call.
//!
//! The stubs of `nixl_sys` open `libnixl_capi.so` by its bare name at their first call and abort the process where the
//! library or a symbol is missing. A library that is already mapped answers to its bare name, so loading it here first,
//! and checking every symbol, turns those aborts into errors.

use std::env;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW};
use parking_lot::Mutex;

use crate::error::{Error, ErrorKind, Result};

/// The variable that names the library, or the folder it lies in.
pub const LIBRARY_VARIABLE: &str = "DYNAMO_NIXL_LIBRARY";

const BARE_NAME: &str = "libnixl_capi.so";
const OPERATION: &str = "load NIXL";
const SUPPORTED: &str = "NIXL 1.4.1 to 1.5.x are supported: pip install 'nixl-cu12>=1.4.1,<1.6' (or nixl-cu13)";

/// Every symbol of the C API that `transport/nixl` reaches. The stubs abort the process at the first use
/// of a missing one, so all are checked before the first call.
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

static LOADED: Mutex<Option<PathBuf>> = Mutex::new(None);

/// The path NIXL was loaded from, if it was.
#[must_use]
pub fn loaded_path() -> Option<PathBuf> {
    LOADED.lock().clone()
}

/// Loads NIXL from `path` (a path, or the bare name to search the loader's path). The first load of a process wins;
/// a later one with another path is an error.
///
/// # Errors
/// [`ErrorKind::Library`]: the file cannot be loaded, or lacks a symbol that is used.
pub fn load(path: &Path) -> Result<()> {
    let mut loaded = LOADED.lock();
    if let Some(earlier) = loaded.as_deref() {
        return if earlier == path {
            Ok(())
        } else {
            Err(Error::new(
                ErrorKind::Library,
                OPERATION,
                "this process has loaded NIXL from another place",
            )
            .with_context("loaded", earlier.display())
            .with_context("asked", path.display()))
        };
    }
    let library = ManuallyDrop::new(open(path)?);
    let missing: Vec<&str> = SYMBOLS
        .iter()
        .copied()
        .filter(|symbol| {
            // SAFETY: the symbol is only looked up, never called or read through this type.
            unsafe { library.get::<*const ()>(symbol.as_bytes()) }.is_err()
        })
        .collect();
    if !missing.is_empty() {
        return Err(
            Error::new(ErrorKind::Library, OPERATION, "the library lacks symbols that are used")
                .with_context("path", path.display())
                .with_context("missing", missing.join(", "))
                .with_hint(SUPPORTED),
        );
    }
    // The stubs will ask for the bare name: make sure that they get this very library.
    let by_name = open(Path::new(BARE_NAME))?;
    let (handle, handle_by_name) = (ManuallyDrop::into_inner(library).into_raw(), by_name.into_raw());
    if handle != handle_by_name {
        return Err(Error::new(
            ErrorKind::Library,
            OPERATION,
            "another libnixl_capi.so was loaded before",
        )
        .with_context("path", path.display())
        .with_hint("load only one NIXL in a process, or point DYNAMO_NIXL_LIBRARY at the one that is loaded"));
    }
    *loaded = Some(path.to_path_buf());
    Ok(())
}

/// Loads NIXL from where `DYNAMO_NIXL_LIBRARY` says, or from the loader's path, unless it is loaded already.
///
/// # Errors
/// As [`load`].
pub fn ensure_loaded() -> Result<()> {
    if LOADED.lock().is_some() {
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

fn open(path: &Path) -> Result<Library> {
    // SAFETY: loading runs the library's initialisers; NIXL's and UCX's only set up their own state. No handle
    // is ever closed, so nothing is unmapped under running code.
    unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }.map_err(|source| {
        Error::new(ErrorKind::Library, OPERATION, "the library cannot be loaded")
            .with_context("path", path.display())
            .with_source(source)
    })
}
