//! Which files a copy of NIXL is made of: those that this process, or the one that it was forked off, has loaded of NIXL and UCX,
//! and the modules that UCX looks for beside them.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::{CStr, OsStr, c_int, c_void};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::elf::Image;
use super::{refused, unreadable};
use crate::error::Result;

/// What the names of NIXL's and UCX's libraries begin with. What else they need, the copies share with everybody.
const PARTS: [&str; 7] = [
    "libnixl",
    "libserdes",
    "libstream",
    "libucm",
    "libucp",
    "libucs",
    "libuct",
];
/// Where UCX looks for its modules, beside its base library.
pub(super) const MODULES: &str = "ucx";
const BASE: &str = "libucs";
/// What the modules' names begin with. There are others, for UCX's own benchmarks.
const MODULE_PARTS: [&str; 3] = ["libucm_", "libucs_", "libuct_"];
/// Where NIXL looks for its plugins, beside its own library.
pub(super) const PLUGINS: &str = "plugins";
/// The one that is used.
pub(super) const PLUGIN: &str = "libplugin_UCX.so";

/// The files that a copy is made of.
#[derive(Debug)]
pub(super) struct Originals {
    /// Those that are loaded together: NIXL's C library and what it needs, then what its plugins need. Each before those
    /// that it needs, in the order in which they look for each other's symbols.
    pub(super) groups: [Vec<PathBuf>; 2],
    /// Those that NIXL loads when it has to.
    pub(super) plugins: Vec<PathBuf>,
    /// Those that UCX loads when it has to.
    pub(super) modules: Vec<PathBuf>,
    /// The names by which they know each other.
    pub(super) names: BTreeSet<String>,
}

/// A library, and what it needs.
struct Part {
    file: PathBuf,
    needed: Vec<String>,
}

impl Originals {
    /// Finds them, given NIXL's C library.
    ///
    /// # Errors
    /// [`crate::error::ErrorKind::Forked`]: one cannot be read, or is no library.
    pub(super) fn find(library: &Path) -> Result<Self> {
        let loaded = loaded_files();
        // By the names that the loader knows them by, of each the one that was loaded first.
        let mut parts: BTreeMap<String, Part> = BTreeMap::new();
        for file in loaded.iter().filter(|file| begins(file, &PARTS)) {
            let image = read(file)?;
            let needed = image.needed().map(str::to_owned).collect();
            let file = file.clone();
            parts.entry(image.known_as(&file)).or_insert(Part { file, needed });
        }
        let folder = loaded
            .iter()
            .find(|file| name(file) == PLUGIN)
            .and_then(|file| file.parent());
        let plugins = loaded.iter().filter(|file| folder.is_some() && file.parent() == folder);
        let plugins: Vec<PathBuf> = plugins.cloned().collect();

        let mut names = BTreeSet::new();
        let image = read(library)?;
        names.insert(image.known_as(library));
        let mut first = vec![library.to_path_buf()];
        first.extend(closure(&image, &parts, &mut names)?);
        let mut second = Vec::new();
        for plugin in &plugins {
            let image = read(plugin)?;
            names.insert(image.known_as(plugin));
            second.extend(closure(&image, &parts, &mut names)?);
        }
        let base = first.iter().chain(&second).find(|file| begins(file, &[BASE]));
        let modules = base.map_or_else(Vec::new, |base| modules_beside(base));
        for module in &modules {
            // The one or the other, as it was found.
            names.extend([name(module), read(module)?.known_as(module)]);
        }
        Ok(Self {
            groups: [first, second],
            plugins,
            modules,
            names,
        })
    }
}

/// All that a library needs of NIXL and UCX and that nobody needed before, the nearer ones first, as the loader goes.
///
/// # Errors
/// [`crate::error::ErrorKind::Forked`]: one is not there. A copy without it would take the inherited one.
fn closure(image: &Image, parts: &BTreeMap<String, Part>, names: &mut BTreeSet<String>) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut open: VecDeque<&str> = image.needed().collect();
    while let Some(needed) = open.pop_front() {
        let Some(part) = parts.get(needed) else {
            if begins(Path::new(needed), &PARTS) {
                let reason = "it was not loaded, or by a relative path".to_owned();
                return Err(refused("a library is missing", reason).with_context("library", needed));
            }
            continue;
        };
        if names.insert(needed.to_owned()) {
            found.push(part.file.clone());
            open.extend(part.needed.iter().map(String::as_str));
        }
    }
    Ok(found)
}

/// # Errors
/// [`crate::error::ErrorKind::Forked`]: it cannot be read, or is no library.
pub(super) fn read(file: &Path) -> Result<Image> {
    let bytes = fs::read(file).map_err(|error| unreadable(file, error))?;
    Image::parse(bytes)
        .map_err(|reason| refused("a library is not what it should be", reason).with_context("path", file.display()))
}

pub(super) fn name(file: &Path) -> String {
    let name = file.file_name().unwrap_or_default();
    name.to_string_lossy().into_owned()
}

fn begins(file: &Path, beginnings: &[&str]) -> bool {
    let name = name(file);
    beginnings.iter().any(|beginning| name.starts_with(beginning))
}

/// UCX's modules, as files: what is not there, UCX does without.
fn modules_beside(base: &Path) -> Vec<PathBuf> {
    let folder = base.parent().unwrap_or(Path::new("/")).join(MODULES);
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut modules: Vec<PathBuf> = entries
        .map(|entry| entry.path())
        .filter(|file| begins(file, &MODULE_PARTS) && name(file).contains(".so"))
        .collect();
    modules.sort();
    modules
}

/// The files of all libraries in this process, in the order in which they came, under the names that they were found by:
/// UCX takes the ending of its modules from its own.
pub(super) fn loaded_files() -> Vec<PathBuf> {
    unsafe extern "C" fn note(info: *mut libc::dl_phdr_info, _: usize, files: *mut c_void) -> c_int {
        // SAFETY: glibc calls it with a description that is whole for as long as it runs, and with what was given below.
        let (info, files) = unsafe { (&*info, &mut *files.cast::<Vec<PathBuf>>()) };
        if !info.dlpi_name.is_null() {
            // SAFETY: a string of the loader's that stays as long as the library.
            let name = unsafe { CStr::from_ptr(info.dlpi_name) };
            files.push(PathBuf::from(OsStr::from_bytes(name.to_bytes())));
        }
        0
    }
    let mut files: Vec<PathBuf> = Vec::new();
    // SAFETY: the function does what glibc expects of it, and does not unwind.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut files).cast()) };
    files.retain(|file| file.is_absolute());
    files
}
