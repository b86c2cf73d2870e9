//! The object store: write-once puts, reads, and listings that correctness never rests on.
//!
//! On a local directory a put is durable when it returns: file, directory and every new parent are
//! synced. A directory that goes away while it is in use (an unmounted disk) is an error, not
//! an empty vault: the directory is recognised by its device and inode.

mod open;

use crate::blocking;
use crate::layout::{Folder, ObjectName};
use bytes::Bytes;
use farshore_proto::ErrorKind;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::{
    GetOptions, GetRange, ObjectStore, ObjectStoreExt, PutMode, PutOptions, PutPayload,
};
use std::error::Error;
use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

pub use open::{Access, LocalRoot};

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Neither a URL of a known scheme nor a path.
    #[error("{url}: not a vault URL: give file:///absolute/path or a path")]
    Url {
        /// What was given.
        url: String,
    },
    /// A scheme that this build does not know.
    #[error("{url}: stores of scheme {scheme:?} are not supported: give file:///absolute/path")]
    Scheme {
        /// What was given.
        url: String,
        /// Its scheme.
        scheme: String,
    },
    /// There is no such directory.
    #[error("{url}: the vault directory {} does not exist: mount it, or make a vault with `farshore vault init`", path.display())]
    DirectoryMissing {
        /// What was given.
        url: String,
        /// The directory.
        path: PathBuf,
    },
    /// A directory that was there when the store was opened is another one now, or gone.
    #[error("{url}: the vault directory {} has gone away or was replaced: mount it again", path.display())]
    DirectoryGone {
        /// The store.
        url: String,
        /// The directory.
        path: PathBuf,
    },
    /// The path is not a directory.
    #[error("{url}: {} is not a directory", path.display())]
    NotDirectory {
        /// What was given.
        url: String,
        /// The path.
        path: PathBuf,
    },
    /// The directory cannot be written or made.
    #[error("{url}: the vault directory {} is not writable: change its owner or mode, or name another", path.display())]
    NotWritable {
        /// What was given.
        url: String,
        /// The directory.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The directory cannot be reached.
    #[error("{url}: the vault directory {} cannot be opened", path.display())]
    Directory {
        /// What was given.
        url: String,
        /// The directory.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The object does not exist.
    #[error("{url}: there is no object {object}")]
    NotFound {
        /// The store.
        url: String,
        /// The object.
        object: String,
    },
    /// The object is larger than any legal one of its kind.
    #[error("{url}: object {object} has {bytes} bytes, at most {max} are legal")]
    TooLarge {
        /// The store.
        url: String,
        /// The object.
        object: String,
        /// Its size.
        bytes: u64,
        /// The largest legal size.
        max: u64,
    },
    /// More objects than a listing may return.
    #[error("{url}: more than {max} objects in {object}")]
    TooMany {
        /// The store.
        url: String,
        /// The listed part.
        object: String,
        /// The most that are read.
        max: usize,
    },
    /// The store is full.
    #[error("{url}: no space is left to write object {object}: free space in the vault")]
    NoSpace {
        /// The store.
        url: String,
        /// The object.
        object: String,
        /// What the store says.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The store does not let us.
    #[error("{url}: access to object {object} is denied: check owner, mode or credential")]
    Denied {
        /// The store.
        url: String,
        /// The object.
        object: String,
        /// What the store says.
        #[source]
        source: Box<object_store::Error>,
    },
    /// Anything else: the request may or may not have been carried out.
    #[error("{url}: the store could not {verb} object {object}")]
    Request {
        /// The store.
        url: String,
        /// The object.
        object: String,
        /// What was asked.
        verb: &'static str,
        /// What the store says.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The directory of an object cannot be synced.
    #[error("{url}: the directory of object {object} cannot be synced")]
    Sync {
        /// The store.
        url: String,
        /// The object.
        object: String,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Url { .. }
            | Self::Scheme { .. }
            | Self::DirectoryMissing { .. }
            | Self::NotDirectory { .. }
            | Self::NotWritable { .. }
            | Self::Denied { .. } => ErrorKind::Invalid,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::TooLarge { .. } => ErrorKind::Corrupt,
            Self::TooMany { .. } => ErrorKind::Limit,
            Self::DirectoryGone { .. }
            | Self::Directory { .. }
            | Self::NoSpace { .. }
            | Self::Request { .. }
            | Self::Sync { .. } => ErrorKind::Unavailable,
        }
    }

    /// Whether the store is full: retrying helps only after somebody has made room.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }
}

/// What a put that must not overwrite has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The object is new and durable.
    Created,
    /// An object of that name is there: perhaps ours, from an attempt whose answer was lost.
    Exists,
}

/// Part of an object.
#[derive(Debug, Clone)]
pub struct Part {
    /// The bytes; fewer than asked for if the object ends before.
    pub bytes: Bytes,
    /// Size of the whole object.
    pub object_bytes: u64,
}

/// An object that a listing has found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its name in the vault.
    pub name: String,
    /// Its size.
    pub bytes: u64,
}

/// An open object store. Clones share it.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    url: Arc<str>,
    local: Option<Arc<LocalRoot>>,
}

impl Store {
    /// A store over any backend, named `url` in messages. For tests and other backends.
    #[must_use]
    pub fn over(inner: Arc<dyn ObjectStore>, url: &str) -> Self {
        Self { inner, url: url.into(), local: None }
    }

    #[cfg(test)]
    pub(crate) fn backend(&self) -> &Arc<dyn ObjectStore> {
        &self.inner
    }

    /// The URL of the store, without credentials.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Creates an object, never overwriting one.
    ///
    /// An error may come after the object was created: the caller then reads it and compares.
    ///
    /// # Errors
    /// `Unavailable` (also when full: `is_no_space`) or `Invalid`.
    pub async fn create(&self, name: &ObjectName, bytes: Bytes) -> Result<Put, StoreError> {
        self.check_root().await?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = match self.inner.put_opts(name.path(), PutPayload::from(bytes), options).await {
            Ok(_) => Put::Created,
            Err(
                object_store::Error::AlreadyExists { .. }
                | object_store::Error::Precondition { .. },
            ) => Put::Exists,
            Err(error) => return Err(self.error(name, "create", error)),
        };
        // A directory that went away since the first look was made anew by the put: what lies in
        // there is in no vault.
        self.check_root().await?;
        Ok(put)
    }

    /// Makes sure that an object that was found, not created, survives a power cut.
    ///
    /// Whoever created it may have died before its name was durable. Cheap; does nothing on
    /// stores that are not a directory.
    ///
    /// # Errors
    /// `Unavailable` if its directory cannot be synced.
    pub async fn settle(&self, name: &ObjectName) -> Result<(), StoreError> {
        let Some(root) = self.local.clone() else { return Ok(()) };
        let object = name.to_string();
        let task = {
            let object = object.clone();
            blocking::run(move || root.sync_parents(&object))
        };
        let result = task.await.map_err(io::Error::other).and_then(|synced| synced);
        result.map_err(|source| StoreError::Sync { url: self.url.to_string(), object, source })
    }

    /// Reads a whole object of at most `max` bytes.
    ///
    /// # Errors
    /// `NotFound`, `Corrupt` above `max`, `Unavailable`, `Invalid`.
    pub async fn get(&self, name: &ObjectName, max: u64) -> Result<Bytes, StoreError> {
        let result = match self.inner.get_opts(name.path(), GetOptions::default()).await {
            Ok(result) => result,
            Err(error) => return Err(self.read_error(name, error).await),
        };
        let bytes = result.meta.size;
        if bytes > max {
            let (url, object) = (self.url.to_string(), name.to_string());
            return Err(StoreError::TooLarge { url, object, bytes, max });
        }
        result.bytes().await.map_err(|error| self.error(name, "read", error))
    }

    /// Reads the bytes of `range`, or as many of them as the object has.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Invalid`.
    pub async fn get_range(
        &self,
        name: &ObjectName,
        range: Range<u64>,
    ) -> Result<Part, StoreError> {
        let asked =
            GetOptions { range: Some(GetRange::Bounded(range.clone())), ..GetOptions::default() };
        let error = match self.inner.get_opts(name.path(), asked).await {
            Ok(result) => {
                let object_bytes = result.meta.size;
                let bytes =
                    result.bytes().await.map_err(|error| self.error(name, "read", error))?;
                return Ok(Part { bytes, object_bytes });
            }
            Err(error @ object_store::Error::NotFound { .. }) => {
                return Err(self.read_error(name, error).await);
            }
            Err(error) => error,
        };
        // A range behind the end is refused by every store, each in its own words.
        match self.size(name).await {
            Ok(object_bytes) if object_bytes <= range.start => {
                Ok(Part { bytes: Bytes::new(), object_bytes })
            }
            _ => Err(self.error(name, "read", error)),
        }
    }

    /// Size of an object.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Invalid`.
    pub async fn size(&self, name: &ObjectName) -> Result<u64, StoreError> {
        match self.inner.head(name.path()).await {
            Ok(meta) => Ok(meta.size),
            Err(error) => Err(self.read_error(name, error).await),
        }
    }

    /// Whether an object exists.
    ///
    /// # Errors
    /// `Unavailable`, `Invalid`.
    pub async fn exists(&self, name: &ObjectName) -> Result<bool, StoreError> {
        match self.size(name).await {
            Ok(_) => Ok(true),
            Err(StoreError::NotFound { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// All objects of a folder, in no order. What was written meanwhile may be missing.
    pub fn list(&self, folder: Folder) -> BoxStream<'_, Result<Listed, StoreError>> {
        let path = folder.path();
        let listing = self.inner.list(path.as_ref()).map(move |item| match item {
            Ok(meta) => Ok(Listed { name: meta.location.to_string(), bytes: meta.size }),
            Err(error) => Err(self.listing_error(folder, error)),
        });
        listing.boxed()
    }

    /// The names directly below a folder, in order.
    ///
    /// # Errors
    /// `Limit` above `LISTED_MAX`, `Unavailable`, `Invalid`.
    pub async fn children(&self, folder: Folder) -> Result<Vec<String>, StoreError> {
        let path = folder.path();
        let found = self.inner.list_with_delimiter(path.as_ref()).await;
        let found = found.map_err(|error| self.listing_error(folder, error))?;
        let max = crate::limits::LISTED_MAX;
        if found.common_prefixes.len() > max {
            let (url, object) = (self.url.to_string(), folder.to_string());
            return Err(StoreError::TooMany { url, object, max });
        }
        let names = found.common_prefixes.iter();
        let mut names: Vec<String> =
            names.filter_map(|prefix| prefix.filename().map(str::to_owned)).collect();
        names.sort_unstable();
        Ok(names)
    }

    /// Refuses to go on when a local directory is not the one that was opened.
    async fn check_root(&self) -> Result<(), StoreError> {
        let Some(root) = self.local.clone() else { return Ok(()) };
        let path = root.path().to_owned();
        match blocking::run(move || root.is_there()).await {
            Ok(true) => Ok(()),
            _ => Err(StoreError::DirectoryGone { url: self.url.to_string(), path }),
        }
    }

    /// The error of a read; an object missing from a directory that is gone is not "not found".
    async fn read_error(&self, name: &ObjectName, error: object_store::Error) -> StoreError {
        match self.check_root().await {
            Ok(()) => self.error(name, "read", error),
            Err(gone) => gone,
        }
    }

    fn listing_error(&self, folder: Folder, source: object_store::Error) -> StoreError {
        let (url, object) = (self.url.to_string(), folder.to_string());
        StoreError::Request { url, object, verb: "list", source: Box::new(source) }
    }

    fn error(
        &self,
        name: &ObjectName,
        verb: &'static str,
        source: object_store::Error,
    ) -> StoreError {
        use object_store::Error as Store;
        let (url, object) = (self.url.to_string(), name.to_string());
        if matches!(source, Store::NotFound { .. }) {
            return StoreError::NotFound { url, object };
        }
        let io_kind = io_kind_of(&source);
        let is_full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        let is_denied = [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem];
        let is_refused =
            matches!(source, Store::PermissionDenied { .. } | Store::Unauthenticated { .. });
        let source = Box::new(source);
        match io_kind {
            Some(kind) if is_full.contains(&kind) => StoreError::NoSpace { url, object, source },
            Some(kind) if is_denied.contains(&kind) => StoreError::Denied { url, object, source },
            _ if is_refused => StoreError::Denied { url, object, source },
            _ => StoreError::Request { url, object, verb, source },
        }
    }
}

/// The kind of the operating system's error behind an error of a local store.
fn io_kind_of(error: &object_store::Error) -> Option<io::ErrorKind> {
    let mut at: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = at {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        at = error.source();
    }
    None
}

#[cfg(test)]
mod tests;
