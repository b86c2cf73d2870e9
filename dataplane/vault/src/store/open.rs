//! From what a person writes to an open store.

use super::place::Place;
use super::{Service, Store, StoreError, azure, s3};
use object_store::prefix::PrefixStore;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use std::sync::Arc;

use crate::limits::{STORE_BACKOFF_MAX, STORE_BACKOFF_MIN, STORE_RETRIES_MAX, STORE_RETRY_TIME};

/// What a store is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Restore, verify, list: works on a read-only mount.
    Read,
    /// Replicate into it.
    Write,
    /// Make a vault in it: a directory that is missing is made, a bucket is not.
    Make,
}

impl Store {
    /// Opens the store at `url`: `s3://BUCKET[/FOLDER]`, `az://CONTAINER[/FOLDER]`,
    /// `file:///absolute/path`, or a plain path.
    ///
    /// A store on the network is not asked anything yet. Its credential and endpoint come from the
    /// usual environment variables and files (`docs/stores.md`).
    ///
    /// # Errors
    /// `Invalid` for what is not a URL or path, for settings or credentials that are missing or
    /// wrong in themselves, for a directory that does not exist, is none or may not be written;
    /// `Unavailable` if the directory cannot be reached.
    pub fn open(url: &str, access: Access) -> Result<Self, StoreError> {
        match Place::parse(url)? {
            Place::Directory(path) => Self::in_directory(url, path, access),
            Place::S3 { bucket, folder } => {
                let inner = s3::open(url, &bucket)?;
                Ok(Self::remote(inner, url, Service::S3, &folder))
            }
            Place::Azure { container, folder } => {
                let inner = azure::open(url, &container)?;
                Ok(Self::remote(inner, url, Service::Azure, &folder))
            }
        }
    }

    fn remote(inner: impl ObjectStore, url: &str, service: Service, folder: &str) -> Self {
        let inner: Arc<dyn ObjectStore> = match folder {
            "" => Arc::new(inner),
            folder => Arc::new(PrefixStore::new(inner, folder)),
        };
        Self { service, ..Self::over(inner, url) }
    }
}

/// What is tried again below: short troubles of the network and of the store. Who waits for longer ones
/// decides that for himself, and says so.
pub(super) fn retries() -> RetryConfig {
    RetryConfig {
        backoff: BackoffConfig {
            init_backoff: STORE_BACKOFF_MIN,
            max_backoff: STORE_BACKOFF_MAX,
            base: 2.0,
        },
        max_retries: STORE_RETRIES_MAX,
        retry_timeout: STORE_RETRY_TIME,
    }
}
