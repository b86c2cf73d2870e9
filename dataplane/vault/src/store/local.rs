//! A vault in a directory.

use super::{Access, Reason, Service, Store, StoreError, trial};
use object_store::local::LocalFileSystem;
use rustix::fs::{Access as Mode, AtFlags, OFlags};
use std::fs::{self, DirBuilder, File, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A vault's directory, recognised by device and inode.
#[derive(Debug)]
pub struct LocalRoot {
    path: PathBuf,
    device: u64,
    inode: u64,
}

/// What a look for an object finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Look {
    There,
    Absent,
    /// The directory is not the one that was opened, or does not say.
    Gone,
}

impl LocalRoot {
    fn new(path: PathBuf, metadata: &Metadata) -> Self {
        Self { path, device: metadata.dev(), inode: metadata.ino() }
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_there(&self) -> bool {
        fs::metadata(&self.path)
            .is_ok_and(|now| now.dev() == self.device && now.ino() == self.inode)
    }

    /// Looks for an object in the very directory that was opened: what a read through the path missed may
    /// be there all the same, when the directory was away for that moment.
    pub(super) fn look(&self, object: &str) -> Look {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(root) = rustix::fs::open(&self.path, flags, rustix::fs::Mode::empty()) else {
            return Look::Gone;
        };
        let is_ours = rustix::fs::fstat(&root)
            .is_ok_and(|now| now.st_dev == self.device && now.st_ino == self.inode);
        match rustix::fs::statat(&root, object, AtFlags::empty()) {
            _ if !is_ours => Look::Gone,
            Ok(_) => Look::There,
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => Look::Absent,
            Err(_) => Look::Gone,
        }
    }

    /// Syncs the directories from the object's up to the root.
    pub(super) fn sync_parents(&self, object: &str) -> io::Result<()> {
        let mut at = self.path.join(object);
        while at.pop() && at.starts_with(&self.path) {
            File::open(&at)?.sync_all()?;
        }
        Ok(())
    }
}

impl Store {
    /// Opens the store in the directory `path`, named `url`.
    pub(super) fn in_directory(
        url: &str,
        path: PathBuf,
        access: Access,
    ) -> Result<Self, StoreError> {
        if access == Access::Make {
            make_directory(url, &path)?;
        }
        let error =
            |source| StoreError::Directory { url: url.to_owned(), path: path.clone(), source };
        let metadata = match fs::metadata(&path) {
            Ok(metadata) => metadata,
            Err(source) if source.kind() == io::ErrorKind::NotFound => {
                return Err(StoreError::DirectoryMissing { url: url.to_owned(), path });
            }
            Err(source) => return Err(error(source)),
        };
        if !metadata.is_dir() {
            return Err(StoreError::NotDirectory { url: url.to_owned(), path });
        }
        let mode = match access {
            Access::Read => Mode::READ_OK | Mode::EXEC_OK,
            Access::Write | Access::Make => Mode::READ_OK | Mode::WRITE_OK | Mode::EXEC_OK,
        };
        if let Err(source) = rustix::fs::access(&path, mode) {
            let (url, source) = (url.to_owned(), io::Error::from(source));
            return Err(match access {
                Access::Read => StoreError::Directory { url, path, source },
                Access::Write | Access::Make => StoreError::NotWritable { url, path, source },
            });
        }
        if access != Access::Read {
            let tried = trial::try_out(&path, |from, to| fs::hard_link(from, to));
            tried.map_err(|(what, source)| {
                let (url, file_system) = (url.to_owned(), trial::file_system(&path));
                StoreError::Lacks { url, path: path.clone(), file_system, what, source }
            })?;
        }
        let path = path.canonicalize().map_err(error)?;
        // The library below ends the thread over such a path.
        if path.to_str().is_none() {
            return Err(StoreError::NotText { url: url.to_owned(), path });
        }
        let local = LocalFileSystem::new_with_prefix(&path).map_err(|source| {
            let (url, object) = (url.to_owned(), "/".to_owned());
            let (_, source) = Reason::of(Service::Directory, source);
            StoreError::Request { url, object, verb: "open", source }
        })?;
        Ok(Self {
            inner: Arc::new(local.with_fsync(true)),
            url: url.into(),
            service: Service::Directory,
            local: Some(Arc::new(LocalRoot::new(path, &metadata))),
            answers: Arc::default(),
        })
    }

    /// The directory of a local store.
    #[must_use]
    pub fn local_root(&self) -> Option<&Path> {
        self.local.as_deref().map(LocalRoot::path)
    }
}

fn make_directory(url: &str, path: &Path) -> Result<(), StoreError> {
    if path.exists() {
        return Ok(());
    }
    let mut missing = path;
    while let Some(parent) = missing.parent().filter(|parent| !parent.exists()) {
        missing = parent;
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    let synced = made.and_then(|()| {
        let mut at = path;
        while let Some(parent) = at.parent() {
            File::open(parent)?.sync_all()?;
            if at == missing {
                break;
            }
            at = parent;
        }
        Ok(())
    });
    synced.map_err(|source| StoreError::NotWritable {
        url: url.to_owned(),
        path: path.to_owned(),
        source,
    })
}
