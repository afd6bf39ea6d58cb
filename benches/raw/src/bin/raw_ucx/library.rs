//! Which UCX is measured: the one that NIXL uses, so that nothing but NIXL lies between them.

use std::env;
use std::path::{Path, PathBuf};

use dynamo_nixl::transport::loader::LIBRARY_VARIABLE;

/// Names another one.
const VARIABLE: &str = "DYNAMO_NIXL_BENCH_UCX";
const BARE_NAME: &str = "libucp.so.0";

/// Its path; the bare name where the dynamic loader is to look for it, as it does for a NIXL that no wheel brought.
pub(crate) fn find() -> PathBuf {
    if let Some(named) = env::var_os(VARIABLE) {
        return named.into();
    }
    let nixl = env::var_os(LIBRARY_VARIABLE).map(PathBuf::from);
    nixl.and_then(|nixl| in_wheel(&nixl))
        .unwrap_or_else(|| BARE_NAME.into())
}

/// In a wheel NIXL lies in `.nixl_cu12.mesonpy.libs`, and what it needs, under names with a hash, in `nixl_cu12.libs`.
fn in_wheel(nixl: &Path) -> Option<PathBuf> {
    let folder = nixl.ancestors().find_map(|each| {
        let name = each.file_name()?.to_str()?;
        let distribution = name.strip_prefix('.')?.strip_suffix(".mesonpy.libs")?;
        Some(each.with_file_name(format!("{distribution}.libs")))
    })?;
    let files = folder.read_dir().ok()?.flatten();
    files.map(|file| file.path()).find(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libucp-") && name.contains(".so")
    })
}
