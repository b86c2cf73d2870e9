//! Stores that break what a vault rests on, each in one way.

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, Error, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta,
    ObjectStore, ObjectStoreExt, PutMode, PutMultipartOptions, PutOptions, PutPayload, PutResult,
    Result,
};
use std::collections::BTreeSet;
use std::fmt;
use std::sync::Mutex;

/// What is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// What is there is overwritten.
    Overwrites,
    /// Looks whether an object is there, and writes it a moment later.
    LooksThenWrites,
    /// Says "created" and keeps what was there.
    SaysCreated,
    /// An object that was looked for once is not there for a while.
    Remembers,
    /// The whole object whatever was asked for.
    NoRanges,
    /// The first page of a listing is all of it.
    OnePage,
    /// Nothing larger than a few MiB.
    Small,
    /// Nothing can be removed.
    NoDelete,
}

/// A store in memory with a fault.
#[derive(Debug)]
pub(crate) struct Faulty {
    inner: InMemory,
    fault: Fault,
    missed: Mutex<BTreeSet<Path>>,
}

impl Faulty {
    pub(crate) fn new(fault: Fault) -> Self {
        Self { inner: InMemory::new(), fault, missed: Mutex::default() }
    }

    fn error(text: &'static str) -> Error {
        Error::Generic { store: "faulty", source: text.into() }
    }

    async fn put(
        &self,
        location: &Path,
        payload: PutPayload,
        mut options: PutOptions,
    ) -> Result<PutResult> {
        let is_there = self.inner.head(location).await.is_ok();
        match self.fault {
            Fault::Overwrites => options.mode = PutMode::Overwrite,
            Fault::LooksThenWrites if !is_there => {
                tokio::task::yield_now().await;
                options.mode = PutMode::Overwrite;
            }
            Fault::SaysCreated if is_there => {
                return Ok(PutResult {
                    e_tag: None,
                    version: None,
                    extensions: Default::default(),
                });
            }
            Fault::Small if payload.content_length() > 8 << 20 => {
                return Err(Self::error("EntityTooLarge"));
            }
            _ => {}
        }
        self.inner.put_opts(location, payload, options).await
    }

    async fn get(&self, location: &Path, mut options: GetOptions) -> Result<GetResult> {
        if self.fault == Fault::NoRanges {
            options.range = None;
        }
        let is_forgotten =
            self.fault == Fault::Remembers && self.missed.lock().unwrap().contains(location);
        let found = match is_forgotten {
            true => self.inner.get_opts(&Path::from("nowhere"), options).await,
            false => self.inner.get_opts(location, options).await,
        };
        if found.is_err() {
            self.missed.lock().unwrap().insert(location.clone());
        }
        found
    }
}

impl fmt::Display for Faulty {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("faulty")
    }
}

impl ObjectStore for Faulty {
    fn put_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        payload: PutPayload,
        options: PutOptions,
    ) -> BoxFuture<'c, Result<PutResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(self.put(location, payload, options))
    }

    fn put_multipart_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: PutMultipartOptions,
    ) -> BoxFuture<'c, Result<Box<dyn MultipartUpload>>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.inner.put_multipart_opts(location, options)
    }

    fn get_opts<'a, 'b, 'c>(
        &'a self,
        location: &'b Path,
        options: GetOptions,
    ) -> BoxFuture<'c, Result<GetResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(self.get(location, options))
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        match self.fault {
            Fault::NoDelete => locations.map(|_| Err(Self::error("AccessDenied"))).boxed(),
            _ => self.inner.delete_stream(locations),
        }
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let pages = if self.fault == Fault::OnePage { 1 } else { usize::MAX / 1000 };
        self.inner.list(prefix).take(pages * 1000).boxed()
    }

    fn list_with_delimiter<'a, 'b, 'c>(
        &'a self,
        prefix: Option<&'b Path>,
    ) -> BoxFuture<'c, Result<ListResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        self.inner.list_with_delimiter(prefix)
    }

    fn copy_opts<'a, 'b, 'd, 'c>(
        &'a self,
        from: &'b Path,
        to: &'d Path,
        options: CopyOptions,
    ) -> BoxFuture<'c, Result<()>>
    where
        'a: 'c,
        'b: 'c,
        'd: 'c,
    {
        self.inner.copy_opts(from, to, options)
    }
}
