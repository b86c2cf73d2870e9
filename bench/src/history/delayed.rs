//! A directory that answers as late as a store on the network does, and counts what it is asked.

use std::fmt;
use std::ops::Range;
use std::path::Path as FilePath;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farshore_codec::WrappingKey;
use farshore_vault::Vault;
use farshore_vault::store::Store;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, Result,
};
use serde::{Deserialize, Serialize};

/// The folder of what is kept of volumes.
const VOLUMES: &str = "volumes/";
/// The folder of segments.
const LOGS: &str = "logs/";

/// Requests of a store so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Requests {
    /// Of all kinds.
    pub(super) count: u64,
    /// Of those, for what is kept of volumes: their epochs.
    pub(super) of_volumes: u64,
    /// That had no answer yet at the same time, at most.
    pub(super) in_flight_max: u64,
    /// Bytes of the answers.
    pub(super) bytes: u64,
}

/// What was read of an object of a log.
pub(super) type Fetched = (String, Range<u64>);

/// The way to the store.
#[derive(Debug, Default)]
struct Way {
    delay: Duration,
    count: AtomicU64,
    of_volumes: AtomicU64,
    in_flight: AtomicU64,
    in_flight_max: AtomicU64,
    bytes: AtomicU64,
    /// What was read of logs, where that is noted.
    fetched: Option<Mutex<Vec<Fetched>>>,
}

/// A request without an answer.
struct Request(Arc<Way>);

impl Way {
    /// A request sets out, and arrives when the delay is over.
    async fn go(self: Arc<Self>, object: Option<Path>) -> Request {
        self.count.fetch_add(1, Ordering::Relaxed);
        if object.is_some_and(|object| object.as_ref().starts_with(VOLUMES)) {
            self.of_volumes.fetch_add(1, Ordering::Relaxed);
        }
        let in_flight = self.in_flight.fetch_add(1, Ordering::Relaxed) + 1;
        self.in_flight_max.fetch_max(in_flight, Ordering::Relaxed);
        let request = Request(Arc::clone(&self));
        if !self.delay.is_zero() {
            tokio::time::sleep(self.delay).await;
        }
        request
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The directory behind the delay.
#[derive(Debug)]
pub(super) struct Delayed {
    inner: Arc<LocalFileSystem>,
    way: Arc<Way>,
}

impl Delayed {
    /// Each request for an object of the directory takes `delay` longer than there.
    ///
    /// # Errors
    /// If there is no directory.
    pub(super) fn over(directory: &FilePath, delay: Duration) -> Result<Self> {
        let inner = Arc::new(LocalFileSystem::new_with_prefix(directory)?.with_fsync(true));
        Ok(Self { inner, way: Arc::new(Way { delay, ..Way::default() }) })
    }

    /// Notes what is read of logs.
    ///
    /// # Errors
    /// If there is no directory.
    pub(super) fn noting(directory: &FilePath) -> Result<Self> {
        let inner = Arc::new(LocalFileSystem::new_with_prefix(directory)?.with_fsync(true));
        let fetched = Some(Mutex::default());
        Ok(Self { inner, way: Arc::new(Way { fetched, ..Way::default() }) })
    }

    /// Opens the vault that is there. What that asked is not counted.
    ///
    /// # Errors
    /// If it cannot be opened.
    pub(super) async fn open(self, key: &WrappingKey) -> anyhow::Result<(Vault, Arc<Self>)> {
        let delayed = Arc::new(self);
        let vault = Vault::open(&Self::store(&delayed), key).await?;
        delayed.take_requests();
        delayed.take_fetched();
        Ok((vault, delayed))
    }

    /// What was read of logs since this was called the last time; nothing where it is not noted.
    pub(super) fn take_fetched(&self) -> Vec<Fetched> {
        let Some(fetched) = &self.way.fetched else { return Vec::new() };
        std::mem::take(&mut *fetched.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn heard(&self, location: &Path, range: &Range<u64>) {
        self.way.bytes.fetch_add(range.end - range.start, Ordering::Relaxed);
        if let Some(fetched) = &self.way.fetched
            && location.as_ref().starts_with(LOGS)
        {
            let mut fetched = fetched.lock().unwrap_or_else(PoisonError::into_inner);
            fetched.push((location.to_string(), range.clone()));
        }
    }

    /// A store over it.
    pub(super) fn store(delayed: &Arc<Self>) -> Store {
        Store::over(Arc::clone(delayed) as Arc<dyn ObjectStore>, "delayed")
    }

    /// What it was asked since this was called the last time.
    pub(super) fn take_requests(&self) -> Requests {
        Requests {
            count: self.way.count.swap(0, Ordering::Relaxed),
            of_volumes: self.way.of_volumes.swap(0, Ordering::Relaxed),
            in_flight_max: self.way.in_flight_max.swap(0, Ordering::Relaxed),
            bytes: self.way.bytes.swap(0, Ordering::Relaxed),
        }
    }

    fn go(&self, object: Option<&Path>) -> impl Future<Output = Request> + Send + 'static {
        Arc::clone(&self.way).go(object.cloned())
    }
}

impl fmt::Display for Delayed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("delayed")
    }
}

impl ObjectStore for Delayed {
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
        Box::pin(async move {
            let _request = self.go(Some(location)).await;
            self.inner.put_opts(location, payload, options).await
        })
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
        Box::pin(async move {
            let _request = self.go(Some(location)).await;
            self.inner.put_multipart_opts(location, options).await
        })
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
        Box::pin(async move {
            let _request = self.go(Some(location)).await;
            let found = self.inner.get_opts(location, options).await?;
            self.heard(location, &found.range);
            Ok(found)
        })
    }

    fn delete_stream(
        &self,
        locations: BoxStream<'static, Result<Path>>,
    ) -> BoxStream<'static, Result<Path>> {
        let way = Arc::clone(&self.way);
        let delayed = locations.then(move |location| {
            let request = Arc::clone(&way).go(location.as_ref().ok().cloned());
            async move {
                request.await;
                location
            }
        });
        self.inner.delete_stream(delayed.boxed())
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let (inner, request) = (Arc::clone(&self.inner), self.go(prefix));
        let prefix = prefix.cloned();
        futures::stream::once(request).flat_map(move |_| inner.list(prefix.as_ref())).boxed()
    }

    fn list_with_delimiter<'a, 'b, 'c>(
        &'a self,
        prefix: Option<&'b Path>,
    ) -> BoxFuture<'c, Result<ListResult>>
    where
        'a: 'c,
        'b: 'c,
    {
        Box::pin(async move {
            let _request = self.go(prefix).await;
            self.inner.list_with_delimiter(prefix).await
        })
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
        Box::pin(async move {
            let _request = self.go(Some(from)).await;
            self.inner.copy_opts(from, to, options).await
        })
    }
}
