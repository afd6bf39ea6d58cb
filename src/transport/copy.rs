//! A further copy of NIXL and UCX, for a forked child.
//!
//! In the one that the child inherited UCX believes that its threads run, and holds locks of threads that do not exist. So
//! their files are copied to a folder of the child's, under names that the dynamic loader has not met yet ([`elf`]), and
//! loaded from there: with variables of their own, but with the process's one C library and whatever else they need.
//! Nothing is loaded from it once the first agent was made, and so the folder goes then.

mod bundle;
mod elf;
mod folder;
mod originals;

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_int, c_void};
use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use libloading::os::unix::Library;

use self::elf::Tag;
use self::folder::Folder;
use self::originals::{MODULES, Originals, PLUGIN, PLUGINS};
use super::loader::OPERATION;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::lock::Mutex;

/// What names NIXL's folder of plugins, where it is set.
const PLUGINS_VARIABLE: &CStr = c"NIXL_PLUGIN_DIR";
/// How many copies one line of ancestors may have made.
const MOST_COPIES: u32 = 36 * 36;
/// A function of each library that must not be found by whoever asks for it, or the copies would find the first ones'.
const GLOBAL: [&CStr; 5] = [
    c"nixl_capi_destroy_agent",
    c"ucp_cleanup",
    c"uct_md_close",
    c"ucs_status_string",
    c"ucm_set_event_handler",
];

/// The files of the first copy's originals, which its children copy as well.
static ORIGINALS: OnceLock<Originals> = OnceLock::new();
/// How many copies this process has begun, with those that it was forked off.
static COPIES: AtomicU32 = AtomicU32::new(0);

/// A copy. Never unloaded.
#[derive(Debug)]
pub(super) struct NixlCopy {
    library: ManuallyDrop<Library>,
    /// Until an agent was made.
    files: Mutex<Option<Folder>>,
}

impl NixlCopy {
    /// Makes and loads a copy of the library in `file`. One at a time.
    ///
    /// # Errors
    /// [`ErrorKind::Forked`]: why not.
    pub(super) fn load(file: &Path) -> Result<&'static Self> {
        refuse_global()?;
        let originals = match ORIGINALS.get() {
            Some(originals) => originals,
            None => {
                let found = Originals::find(file)?;
                ORIGINALS.get_or_init(|| found)
            }
        };
        let tag = next_tag()?;
        let folder = Folder::make().map_err(|error| unwritable(&std::env::temp_dir(), error))?;
        let bundles = write(originals, tag, &folder).map_err(|error| match error {
            Failure::Read(error) => error,
            Failure::Write(error) => unwritable(folder.path(), error),
        })?;
        for bundle in bundles {
            open(&folder, &bundle)?;
        }
        let library = open(&folder, &named(file))?;
        Ok(Box::leak(Box::new(Self {
            library,
            files: Mutex::new(Some(folder)),
        })))
    }

    /// The library.
    pub(super) fn library(&self) -> &Library {
        &self.library
    }

    /// Whether no agent was made of it yet.
    pub(super) fn has_files(&self) -> bool {
        self.files.lock().is_some()
    }

    /// Has NIXL look for its plugins among the copy's files, as long as no agent was made.
    pub(super) fn direct_plugins(&self) -> Option<PluginFolder> {
        let files = self.files.lock();
        files
            .as_ref()
            .map(|folder| PluginFolder::set(&folder.path().join(PLUGINS)))
    }

    /// Looks whether the plugin that NIXL has loaded is the copy's.
    ///
    /// # Errors
    /// [`ErrorKind::Forked`]: it is not.
    pub(super) fn check_plugin(&self) -> Result<()> {
        let files = self.files.lock();
        let Some(folder) = files.as_ref() else { return Ok(()) };
        let plugin = folder.path().join(PLUGINS).join(PLUGIN);
        if plugin.exists() && load(&plugin, libc::RTLD_NOLOAD).is_err() {
            let error = refused("NIXL took its plugin from elsewhere", String::new());
            return Err(error.with_hint("remove NIXL_PLUGIN_DIR from NIXL's configuration file"));
        }
        Ok(())
    }

    /// An agent was made: all is loaded.
    pub(super) fn forget_files(&self) {
        drop(self.files.lock().take());
    }
}

/// NIXL's variable for the folder of its plugins, pointing elsewhere as long as this exists.
#[derive(Debug)]
pub(super) struct PluginFolder {
    before: Option<CString>,
}

impl PluginFolder {
    /// Where the variable is not set, NIXL looks beside its own library.
    fn set(folder: &Path) -> Self {
        // SAFETY: glibc answers with a string that stays, even where somebody sets the variable anew.
        let before = unsafe {
            let value = libc::getenv(PLUGINS_VARIABLE.as_ptr());
            (!value.is_null()).then(|| CStr::from_ptr(value).to_owned())
        };
        if before.is_some() {
            set_plugins_variable(&CString::new(folder.as_os_str().as_bytes()).unwrap_or_default());
        }
        Self { before }
    }
}

impl Drop for PluginFolder {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            set_plugins_variable(before);
        }
    }
}

/// Gives another value to a variable that is set.
fn set_plugins_variable(value: &CStr) {
    // SAFETY: glibc replaces the value of a variable that exists by one store, and frees neither the list nor the old
    // string: whoever reads the environment meanwhile finds one of the two.
    unsafe { libc::setenv(PLUGINS_VARIABLE.as_ptr(), value.as_ptr(), 1) };
}

/// The names of a further copy differ from those of every other one in this process, those that failed included.
fn next_tag() -> Result<Tag> {
    const DIGITS: &[u8; 36] = b"0123456789abcdefghijklmnopqrstuvwxyz";
    let number = COPIES.fetch_add(1, Ordering::Relaxed);
    if number >= MOST_COPIES {
        return Err(refused("there were too many before", String::new()));
    }
    let digit = |value: u32| DIGITS[(value % 36) as usize];
    Ok([b'x', digit(number / 36), digit(number)])
}

enum Failure {
    Read(Error),
    Write(io::Error),
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Read(error)
    }
}

/// Copies the files, and returns the names of those that load them.
fn write(originals: &Originals, tag: Tag, folder: &Folder) -> std::result::Result<Vec<PathBuf>, Failure> {
    let copy = |file: &Path, name: &Path| {
        let image = originals::read(file)?;
        let header = image.header();
        let bytes = image.patched(tag, |name| originals.names.contains(name));
        folder.write(name, &bytes)?;
        Ok::<_, Failure>(header)
    };
    let mut bundles = Vec::new();
    for files in originals.groups.iter().filter(|files| !files.is_empty()) {
        let names: Vec<PathBuf> = files.iter().map(|file| named(file)).collect();
        let headers = files.iter().zip(&names).map(|(file, name)| copy(file, name));
        let headers = headers.collect::<std::result::Result<Vec<_>, _>>()?;
        let paths: Vec<PathBuf> = names.iter().map(|name| folder.path().join(name)).collect();
        let bundle = PathBuf::from(format!("bundle{}.so", bundles.len()));
        folder.write(&bundle, &bundle::bundle(&headers[0], &paths))?;
        bundles.push(bundle);
    }
    for file in &originals.plugins {
        copy(file, &Path::new(PLUGINS).join(named(file)))?;
    }
    // Several of their names may stand for one file. They need each other by names that their files then have, too.
    let mut modules: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    for file in &originals.modules {
        let name = Path::new(MODULES).join(named(file));
        let target = fs::canonicalize(file).unwrap_or_else(|_| file.clone());
        let first = modules.entry(target).or_insert_with(|| name.clone());
        if *first == name {
            copy(file, &name)?;
        } else {
            folder.link(first, &originals::name(file))?;
        }
        folder.link(&name, &elf::tagged(&originals::name(file), tag))?;
    }
    Ok(bundles)
}

/// The file's name in the copy.
fn named(file: &Path) -> PathBuf {
    PathBuf::from(file.file_name().unwrap_or_default())
}

fn open(folder: &Folder, name: &Path) -> Result<ManuallyDrop<Library>> {
    load(&folder.path().join(name), 0).map_err(|reason| {
        let error = refused("a copied library cannot be loaded", reason).with_context("library", name.display());
        if folder.refuses_programs() {
            return error.with_hint("no program may be run from there: set TMPDIR to a folder where one may");
        }
        error
    })
}

/// Loads a library, never to be closed.
fn load(file: &Path, flags: c_int) -> std::result::Result<ManuallyDrop<Library>, String> {
    let path = CString::new(file.as_os_str().as_bytes()).map_err(|error| error.to_string())?;
    // By this name `dlopen` is not what the inherited UCX has put in its place, with a lock that may be held for ever.
    // SAFETY: as for any library: its initialisers set up its own state.
    let handle = unsafe {
        libc::dlmopen(
            libc::LM_ID_BASE,
            path.as_ptr(),
            libc::RTLD_NOW | libc::RTLD_LOCAL | flags,
        )
    };
    if handle.is_null() {
        return Err(last_error());
    }
    // SAFETY: it was just opened, and nobody else has this hold on it.
    Ok(ManuallyDrop::new(unsafe { Library::from_raw(handle) }))
}

/// # Errors
/// [`ErrorKind::Forked`]: NIXL or UCX was loaded for everybody to find, the copies included.
fn refuse_global() -> Result<()> {
    for symbol in GLOBAL {
        // SAFETY: the symbol is only looked up.
        let found: *mut c_void = unsafe { libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()) };
        if !found.is_null() {
            return Err(refused(
                "NIXL or UCX was loaded for the whole process to use",
                symbol.to_string_lossy().into_owned(),
            )
            .with_hint(
                "load them without RTLD_GLOBAL and LD_PRELOAD, or start processes with multiprocessing's `spawn`",
            ));
        }
    }
    Ok(())
}

fn refused(message: &str, reason: String) -> Error {
    let message = format!("a forked child needs a copy of NIXL to itself, and cannot get it: {message}");
    let error = Error::new(ErrorKind::Forked, OPERATION, message)
        .with_hint("start processes with multiprocessing's `spawn`, or fork from one that has not used NIXL");
    if reason.is_empty() {
        error
    } else {
        error.with_context("reason", reason)
    }
}

fn unreadable(file: &Path, error: io::Error) -> Error {
    refused("a library cannot be read", String::new())
        .with_context("path", file.display())
        .with_source(error)
}

fn unwritable(folder: &Path, error: io::Error) -> Error {
    refused("its files cannot be written", String::new())
        .with_context("path", folder.display())
        .with_hint("set TMPDIR to a folder that this process may write to, with 10 MB left")
        .with_source(error)
}

fn last_error() -> String {
    // SAFETY: it has no conditions.
    let error = unsafe { libc::dlerror() };
    if error.is_null() {
        return String::new();
    }
    // SAFETY: a string of the C library's that stands until the next call by this thread.
    let error = unsafe { CStr::from_ptr(error) };
    error.to_string_lossy().into_owned()
}
