//! Where the files of a copy lie until they are loaded.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{StatVfsMountFlags, statvfs};

use crate::process::Origin;

/// A folder of this process's own, which goes with this, and which nobody else may look into. What is loaded from it by
/// then stays.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    origin: Origin,
}

impl Folder {
    /// Makes one where temporary files belong (`TMPDIR`).
    pub(super) fn make() -> io::Result<Self> {
        // The name is taken by nobody: making it is refused where it exists, be it as a link.
        let name = format!("dynamo_nixl-{}-{}", std::process::id(), uuid::Uuid::new_v4().simple());
        let path = std::path::absolute(std::env::temp_dir())?.join(name);
        DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self {
            path,
            origin: Origin::here(),
        })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes a file of that name, with the folders on the way to it.
    pub(super) fn write(&self, name: &Path, bytes: &[u8]) -> io::Result<()> {
        let path = self.path.join(name);
        fs::create_dir_all(path.parent().unwrap_or(&self.path))?;
        fs::write(path, bytes)
    }

    /// Has a file answer to another name, in the same folder.
    pub(super) fn link(&self, name: &Path, other: &str) -> io::Result<()> {
        symlink(
            name.file_name().unwrap_or_default(),
            self.path.join(name).with_file_name(other),
        )
    }

    /// Whether nothing can be loaded from here.
    pub(super) fn refuses_programs(&self) -> bool {
        statvfs(&self.path).is_ok_and(|system| system.f_flag.contains(StatVfsMountFlags::NOEXEC))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // A child that was forked off in between has the path, but not the folder.
        if self.origin.is_here() {
            if let Err(error) = fs::remove_dir_all(&self.path) {
                tracing::warn!(path = %self.path.display(), %error, "a temporary folder stays");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::process::samples::in_child;

    #[test]
    fn it_goes_with_its_owner_and_not_with_a_child() {
        let folder = Folder::make().unwrap();
        let path = folder.path().to_path_buf();
        folder.write(Path::new("below/a"), b"1").unwrap();
        folder.link(Path::new("below/a"), "b").unwrap();
        assert_eq!(fs::read(path.join("below/b")).unwrap(), b"1");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let mut folder = Some(folder);
        assert!(in_child(|| drop(folder.take())));
        assert!(path.join("below/a").exists());
        drop(folder);
        assert!(!path.exists());
    }
}
