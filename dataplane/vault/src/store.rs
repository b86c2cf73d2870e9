//! The object store: write-once puts, reads, and listings that correctness never rests on.
//!
//! On a local directory a put is durable when it returns: file, directory and every new parent are
//! synced. A directory that goes away while it is in use (an unmounted disk) is an error, not
//! an empty vault: the directory is recognised by its device and inode.

mod answer;
mod azure;
mod error;
mod local;
mod open;
mod place;
mod s3;
mod settings;
mod trial;

use crate::blocking;
use crate::layout::{Folder, ObjectName};
use bytes::Bytes;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::{
    Attribute, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload,
};
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

pub use answer::{Answer, Reason};
pub use error::StoreError;
pub use local::LocalRoot;
pub use open::Access;
pub use place::{Service, vault_url, vault_url_of};

use answer::Verdict;
use local::Look;

/// Times a directory is asked for an object that it misses and holds: once for each moment that it was away.
const ASKED_MAX: u32 = 3;

/// What a put that must not overwrite has found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Put {
    /// The object is new and durable.
    Created,
    /// An object of that name is there: perhaps ours, from an attempt whose answer was lost.
    Exists,
}

/// The bytes of an object to be put, in pieces that need not lie together. Clones share them.
#[derive(Debug, Clone)]
pub struct Object(PutPayload);

impl Object {
    /// The first piece; empty if there is none.
    pub(crate) fn head(&self) -> &[u8] {
        self.0.iter().next().map_or(&[], |piece| piece)
    }
}

impl From<Bytes> for Object {
    fn from(bytes: Bytes) -> Self {
        Self(PutPayload::from(bytes))
    }
}

impl From<Vec<u8>> for Object {
    fn from(bytes: Vec<u8>) -> Self {
        Self(PutPayload::from(bytes))
    }
}

impl From<Vec<Vec<u8>>> for Object {
    fn from(pieces: Vec<Vec<u8>>) -> Self {
        Self(pieces.into_iter().map(Bytes::from).collect())
    }
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
    service: Service,
    local: Option<Arc<LocalRoot>>,
    answers: Arc<AtomicU64>,
}

impl Store {
    /// A store over any backend, named `url` in messages. For tests and other backends.
    #[must_use]
    pub fn over(inner: Arc<dyn ObjectStore>, url: &str) -> Self {
        let answers = Arc::default();
        Self { inner, url: url.into(), service: Service::Other, local: None, answers }
    }

    /// How often the store has said something to us, to any clone: whoever waits for something long sees
    /// by it that it gets on.
    #[must_use]
    pub fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    /// Counts what the store says; that it does not answer is nothing that it says.
    fn hear<T>(&self, said: object_store::Result<T>) -> object_store::Result<T> {
        use object_store::Error::{AlreadyExists, NotFound, Precondition};
        if let Ok(_) | Err(NotFound { .. } | AlreadyExists { .. } | Precondition { .. }) = said {
            self.answers.fetch_add(1, Ordering::Relaxed);
        }
        said
    }

    #[cfg(any(test, feature = "testing"))]
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
    pub async fn create(
        &self,
        name: &ObjectName,
        object: impl Into<Object>,
    ) -> Result<Put, StoreError> {
        let Object(payload) = object.into();
        self.check_root().await?;
        let options = PutOptions { mode: PutMode::Create, ..PutOptions::default() };
        let put = match self.hear(self.inner.put_opts(name.path(), payload, options).await) {
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

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// `Unavailable`, `Invalid` if the credential may not.
    pub(crate) async fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        match self.inner.delete(name.path()).await {
            Ok(()) => Ok(()),
            Err(error) => match self.error(name, "delete", error) {
                StoreError::NotFound { .. } => Ok(()),
                error => Err(error),
            },
        }
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
        let said = self.ask(name, GetOptions::default()).await?;
        let result = said.map_err(|error| self.error(name, "read", error))?;
        self.check_kind(name, &result)?;
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
        let error = match self.ask(name, asked).await? {
            Ok(result) => {
                self.check_kind(name, &result)?;
                let object_bytes = result.meta.size;
                let bytes =
                    result.bytes().await.map_err(|error| self.error(name, "read", error))?;
                return Ok(Part { bytes, object_bytes });
            }
            Err(error) => error,
        };
        let is_missed = matches!(error, object_store::Error::NotFound { .. });
        if is_missed || !answer::is_behind_end(self.service, &error) {
            return Err(self.error(name, "read", error));
        }
        let asked = GetOptions { head: true, ..GetOptions::default() };
        match self.inner.get_opts(name.path(), asked).await {
            Ok(found) if found.meta.size <= range.start => {
                self.check_kind(name, &found)?;
                Ok(Part { bytes: Bytes::new(), object_bytes: found.meta.size })
            }
            _ => Err(self.error(name, "read", error)),
        }
    }

    /// What the store says of an object. What a directory misses counts as absent only if that very directory
    /// does not hold it: it may have been away for a moment.
    async fn ask(
        &self,
        name: &ObjectName,
        options: GetOptions,
    ) -> Result<object_store::Result<GetResult>, StoreError> {
        for _ in 0..ASKED_MAX {
            let said = self.hear(self.inner.get_opts(name.path(), options.clone()).await);
            let (Err(error), Some(root)) = (&said, self.local.clone()) else { return Ok(said) };
            let is_missed = matches!(error, object_store::Error::NotFound { .. });
            let object = name.to_string();
            match blocking::run(move || root.look(&object)).await {
                Ok(Look::There) if is_missed => {}
                Ok(Look::There | Look::Absent) => return Ok(said),
                _ => break,
            }
        }
        Err(self.directory_gone())
    }

    /// Size of an object.
    ///
    /// # Errors
    /// `NotFound`, `Unavailable`, `Invalid`.
    pub async fn size(&self, name: &ObjectName) -> Result<u64, StoreError> {
        let asked = GetOptions { head: true, ..GetOptions::default() };
        let error = match self.ask(name, asked).await? {
            Ok(result) => {
                self.check_kind(name, &result)?;
                return Ok(result.meta.size);
            }
            Err(error) => error,
        };
        if self.service.tells_nothing_on_head() {
            // Whether the object or its bucket is missing is said only to who asks for bytes.
            return Ok(self.get_range(name, 0..1).await?.object_bytes);
        }
        Err(self.error(name, "read", error))
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
        self.listed(folder, self.inner.list(folder.path().as_ref()))
    }

    /// As [`Self::list`], but only those whose names are behind that one.
    pub fn list_behind(
        &self,
        folder: Folder,
        name: &ObjectName,
    ) -> BoxStream<'_, Result<Listed, StoreError>> {
        self.listed(folder, self.inner.list_with_offset(folder.path().as_ref(), name.path()))
    }

    fn listed<'a>(
        &'a self,
        folder: Folder,
        listing: BoxStream<'static, object_store::Result<ObjectMeta>>,
    ) -> BoxStream<'a, Result<Listed, StoreError>> {
        let listing = listing.map(move |item| match self.hear(item) {
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
        self.check_root().await?;
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

    /// Refuses what is no object of ours but the page of a proxy or of a login: it comes with good status.
    fn check_kind(&self, name: &ObjectName, result: &GetResult) -> Result<(), StoreError> {
        let kind = result.attributes.get(&Attribute::ContentType);
        if kind.is_some_and(|kind| kind.to_ascii_lowercase().starts_with("text/html")) {
            let (url, object) = (self.url.to_string(), name.to_string());
            return Err(StoreError::WebPage { url, object });
        }
        Ok(())
    }

    /// Refuses to go on when a local directory is not the one that was opened.
    async fn check_root(&self) -> Result<(), StoreError> {
        let Some(root) = self.local.clone() else { return Ok(()) };
        match blocking::run(move || root.is_there()).await {
            Ok(true) => Ok(()),
            _ => Err(self.directory_gone()),
        }
    }

    fn directory_gone(&self) -> StoreError {
        let path = self.local_root().unwrap_or(Path::new("")).to_owned();
        StoreError::DirectoryGone { url: self.url.to_string(), path }
    }

    fn listing_error(&self, folder: Folder, source: object_store::Error) -> StoreError {
        self.told(folder.to_string(), "list", source)
    }

    fn error(
        &self,
        name: &ObjectName,
        verb: &'static str,
        source: object_store::Error,
    ) -> StoreError {
        self.told(name.to_string(), verb, source)
    }

    fn told(&self, object: String, verb: &'static str, source: object_store::Error) -> StoreError {
        let (url, service) = (self.url.to_string(), self.service);
        let (verdict, source) = Reason::of(service, source);
        match verdict {
            Verdict::NotFound if matches!(verb, "read" | "delete") => {
                StoreError::NotFound { url, object }
            }
            // What cannot be made or listed is not an object that is absent.
            Verdict::NotFound => StoreError::Request { url, object, verb, source },
            Verdict::Unworded => StoreError::Unworded { url, service, object, source },
            Verdict::BucketMissing => StoreError::BucketMissing { url, service, source },
            Verdict::NoCredential => StoreError::NoCredential { url, service },
            Verdict::Credential => StoreError::Credential { url, service, source },
            Verdict::Clock => StoreError::Clock { url, source },
            Verdict::Denied if service == Service::S3 && verb == "read" => {
                StoreError::Hidden { url, object, source }
            }
            Verdict::Denied => StoreError::Denied { url, service, verb, object, source },
            Verdict::WebPage => StoreError::WebPage { url, object },
            Verdict::Elsewhere => StoreError::Elsewhere { url, service, source },
            Verdict::Archived => StoreError::Archived { url, object, source },
            Verdict::Unreachable(why) => StoreError::Unreachable { url, why, source },
            Verdict::Full => StoreError::NoSpace { url, object, source },
            Verdict::Other => StoreError::Request { url, object, verb, source },
        }
    }
}

#[cfg(test)]
mod tests;
