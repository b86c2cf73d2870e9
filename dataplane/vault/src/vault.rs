//! Making and opening a vault.

use crate::error::VaultError;
use crate::layout::{Folder, ObjectName};
use crate::limits::KEYS_MAX;
use crate::store::{Put, Store, StoreError};
use bytes::Bytes;
use farshore_codec::{ChunkHasher, CodecError, DataKey, KekError, KeyRing, RecoveryKey, VaultKeys};
use farshore_proto::epoch::VaultObject;
use farshore_proto::keys::KeyObject;
use farshore_proto::limits::SMALL_OBJECT_BYTES_MAX;
use farshore_proto::{DecodeError, KeyNumber, VaultId};
use futures::StreamExt;
use std::sync::Arc;
use uuid::Uuid;

/// An open vault: the store, who it is, and its keys. Clones share it.
#[derive(Debug, Clone)]
pub struct Vault {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Store,
    /// As it was when it was read, to find later damage.
    identity: VaultObject,
    newest: KeyNumber,
    ring: KeyRing,
    keys: VaultKeys,
    hasher: ChunkHasher,
    /// The wrapped keys as they were when they opened, to find later damage without the recovery key.
    wrapped: Vec<Bytes>,
}

impl Vault {
    /// Makes a vault in an empty store. An attempt that was cut short is finished.
    ///
    /// # Errors
    /// `Conflict` if there is a vault or anything else, `Invalid` if a cut-short attempt used another
    /// recovery key or the store overwrites, `Unavailable` (also when full: `is_no_space`).
    pub async fn init(store: &Store, recovery: &RecoveryKey) -> Result<Self, VaultError> {
        let url = || store.url().to_owned();
        if store.exists(&ObjectName::vault()).await? {
            return Err(VaultError::AlreadyAVault { url: url() });
        }
        let number = VaultKeys::ROOT;
        let name = ObjectName::key(number);
        if !store.exists(&name).await? {
            check_empty(store).await?;
        }
        let mut id = VaultId::from(Uuid::new_v4());
        let wrap = || {
            let key = DataKey::draw().map_err(|_| KekError::Entropy)?;
            recovery.wrap(id, number, &key)
        };
        let object = wrap().map_err(|source| key_error(store, number, source))?;
        // The key comes first: a vault object without its key would lock everybody out.
        let wrapped = Bytes::from(object.encode());
        if store.create(&name, wrapped.clone()).await? == Put::Exists {
            let bytes = store.get(&name, SMALL_OBJECT_BYTES_MAX as u64).await?;
            let found = KeyObject::decode(&bytes).map_err(KekError::from);
            let found = found.map_err(|source| key_error(store, number, source))?;
            id = found.vault;
            recovery
                .unwrap(id, number, &found)
                .map_err(|source| key_error(store, number, source))?;
            store.settle(&name).await?;
        } else {
            check_write_once(store, &name, wrapped).await?;
        }
        let object = VaultObject { vault: id, key: number };
        if store.create(&ObjectName::vault(), Bytes::from(object.encode())).await? == Put::Exists {
            return Err(VaultError::AlreadyAVault { url: url() });
        }
        Self::open(store, recovery).await
    }

    /// Opens the vault in a store.
    ///
    /// # Errors
    /// `Invalid`: no vault here, the wrong recovery key, or written by another version; `Corrupt`
    /// if the vault object or a key is damaged or missing (`NoIdentity` if only the vault object is);
    /// `Unavailable`.
    pub async fn open(store: &Store, recovery: &RecoveryKey) -> Result<Self, VaultError> {
        let object = read_vault_object(store).await?;
        let mut ring = KeyRing::new(object.vault);
        let mut wrapped = Vec::new();
        let mut newest = object.key;
        for number in (1..=KEYS_MAX).map(KeyNumber) {
            let name = ObjectName::key(number);
            let bytes = match store.get(&name, SMALL_OBJECT_BYTES_MAX as u64).await {
                Ok(bytes) => bytes,
                Err(StoreError::NotFound { .. }) if number > object.key => break,
                Err(StoreError::NotFound { url, .. }) => {
                    return Err(VaultError::Lost { url, object: name, user: ObjectName::vault() });
                }
                Err(error) => return Err(error.into()),
            };
            let key = KeyObject::decode(&bytes)
                .map_err(KekError::from)
                .and_then(|found| recovery.unwrap(object.vault, number, &found))
                .map_err(|source| match source {
                    // It opened the first key, so it is the right one.
                    KekError::WrongKey { .. } if number > VaultKeys::ROOT => {
                        damaged_key(store, number, source)
                    }
                    source => key_error(store, number, source),
                })?;
            ring.insert(number, key);
            wrapped.push(bytes);
            newest = number;
        }
        let keys = ring.vault_keys().map_err(|source| VaultError::Damaged {
            url: store.url().to_owned(),
            object: ObjectName::vault(),
            offset: 0,
            cause: Box::new(source),
        })?;
        let hasher = ChunkHasher::new(keys.id_key.clone());
        let store = store.clone();
        let inner = Inner { store, identity: object, newest, ring, keys, hasher, wrapped };
        Ok(Self { inner: Arc::new(inner) })
    }

    /// Refuses a store that overwrites: to be asked before anything is written. Does no harm there.
    ///
    /// # Errors
    /// `Invalid` if it does, `Unavailable`.
    pub async fn check_write_once(&self) -> Result<(), VaultError> {
        let bytes = Bytes::from(self.inner.identity.encode());
        check_write_once(self.store(), &ObjectName::vault(), bytes).await
    }

    /// Opens the vault in a store, or makes one if there is none.
    ///
    /// # Errors
    /// As `open` and `init`.
    pub async fn open_or_init(store: &Store, recovery: &RecoveryKey) -> Result<Self, VaultError> {
        match Self::open(store, recovery).await {
            Err(VaultError::NotAVault { .. } | VaultError::NoIdentity { .. }) => {}
            opened => return opened,
        }
        match Self::init(store, recovery).await {
            // Somebody else was first.
            Err(VaultError::AlreadyAVault { .. }) => Self::open(store, recovery).await,
            made => made,
        }
    }

    /// Its store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.inner.store
    }

    /// URL of its store.
    #[must_use]
    pub fn url(&self) -> &str {
        self.inner.store.url()
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> VaultId {
        self.inner.identity.vault
    }

    /// The vault object as it was read.
    pub(crate) fn identity(&self) -> &VaultObject {
        &self.inner.identity
    }

    /// Its data keys.
    #[must_use]
    pub fn ring(&self) -> &KeyRing {
        &self.inner.ring
    }

    /// The data key that new objects are sealed under.
    ///
    /// # Panics
    /// Never: a vault opens only with its keys.
    #[must_use]
    pub fn newest_key(&self) -> (KeyNumber, &DataKey) {
        let key = self.inner.ring.get(self.inner.newest).expect("a vault opens with its keys");
        (self.inner.newest, key)
    }

    /// The keys of its chunk ids and cuts.
    #[must_use]
    pub fn vault_keys(&self) -> &VaultKeys {
        &self.inner.keys
    }

    /// Computes its chunk ids.
    #[must_use]
    pub fn hasher(&self) -> &ChunkHasher {
        &self.inner.hasher
    }

    /// The wrapped keys as they were read, from key 1 on.
    pub(crate) fn wrapped_keys(&self) -> &[Bytes] {
        &self.inner.wrapped
    }

    /// The error of an object whose part at `offset` does not open.
    #[must_use]
    pub fn damaged(&self, object: ObjectName, offset: u64, cause: CodecError) -> VaultError {
        let (url, cause) = (self.url().to_owned(), Box::new(cause));
        match *cause {
            CodecError::Decode(DecodeError::Version { .. }) => {
                VaultError::Version { url, object, cause }
            }
            // The object may well be whole: what it was sealed under is gone.
            CodecError::NoKey { key } => {
                VaultError::Lost { url, object: ObjectName::key(key), user: object }
            }
            _ => VaultError::Damaged { url, object, offset, cause },
        }
    }

    /// The error of an object that is a header and a sealed body and does not open.
    pub(crate) fn damaged_in(
        &self,
        object: ObjectName,
        header_bytes: usize,
        cause: CodecError,
    ) -> VaultError {
        let is_body = matches!(cause, CodecError::Tampered { .. } | CodecError::Compressed { .. });
        let offset = if is_body { header_bytes as u64 } else { 0 };
        self.damaged(object, offset, cause)
    }
}

/// Writes an object that is there once more, with the same bytes: a good store refuses that.
async fn check_write_once(
    store: &Store,
    name: &ObjectName,
    bytes: Bytes,
) -> Result<(), VaultError> {
    match store.create(name, bytes).await? {
        Put::Exists => Ok(()),
        Put::Created => Err(VaultError::NotWriteOnce { url: store.url().to_owned() }),
    }
}

/// Refuses a store with objects that no validation left.
async fn check_empty(store: &Store) -> Result<(), VaultError> {
    let mut listing = store.list(Folder::Whole);
    while let Some(found) = listing.next().await {
        let name = match found {
            Ok(listed) => listed.name,
            // A new file system has a directory that only root may read.
            Err(StoreError::Denied { .. }) if store.local_root().is_some() => continue,
            Err(error) => return Err(error.into()),
        };
        if !name.starts_with("validate/") {
            return Err(VaultError::NotEmpty { url: store.url().to_owned(), object: name });
        }
    }
    Ok(())
}

/// Reads the vault object of a store.
pub(crate) async fn read_vault_object(store: &Store) -> Result<VaultObject, VaultError> {
    let url = || store.url().to_owned();
    let object = ObjectName::vault();
    let bytes = match store.get(&object, SMALL_OBJECT_BYTES_MAX as u64).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => {
            // Advice to make a new vault here would be bad if there was one.
            let was_one = store.exists(&ObjectName::key(VaultKeys::ROOT)).await?;
            return Err(match was_one {
                true => VaultError::NoIdentity { url: url() },
                false => VaultError::NotAVault { url: url() },
            });
        }
        Err(error) => return Err(error.into()),
    };
    VaultObject::decode(&bytes).map_err(|error| {
        let is_version = matches!(error, DecodeError::Version { .. });
        let cause = Box::new(CodecError::from(error));
        match is_version {
            true => VaultError::Version { url: url(), object, cause },
            false => VaultError::Damaged { url: url(), object, offset: 0, cause },
        }
    })
}

fn key_error(store: &Store, number: KeyNumber, source: KekError) -> VaultError {
    let url = store.url().to_owned();
    match source {
        KekError::WrongKey { .. } => VaultError::WrongKey { url },
        KekError::Misplaced { vault, found_vault: found, .. } if found != vault => {
            VaultError::Mixed { url, vault, key: ObjectName::key(number), found }
        }
        source => damaged_key(store, number, source),
    }
}

fn damaged_key(store: &Store, number: KeyNumber, source: KekError) -> VaultError {
    let url = store.url().to_owned();
    VaultError::Key { url, object: ObjectName::key(number), cause: Box::new(source) }
}

#[cfg(test)]
mod tests;
