//! Opening a vault. Making one is in `init`, the keys that open it are in `wrappers`.

mod init;
mod keys;

use crate::blocking;
use crate::error::VaultError;
use crate::layout::{Folder, ObjectName, key_of};
use crate::limits::{KEY_OBJECTS_MAX, QUIET_SLOTS};
use crate::revision::{self, Revision};
use crate::store::{Put, Store, StoreError};
use bytes::Bytes;
use farshore_codec::{
    ChunkHasher, CodecError, DataKey, KekError, KeyRing, SealKeys, VaultKey, VaultKeys, WrappingKey,
};
use farshore_proto::keys::{Fingerprint, KeyHeader, KeyKind, KeyObject, Wrapper};
use farshore_proto::limits::SMALL_OBJECT_BYTES_MAX;
use farshore_proto::map::FrameAt;
use farshore_proto::object::ObjectKind;
use farshore_proto::vault::{DomainKeys, VaultObject};
use farshore_proto::{KeyNumber, VaultId};
use futures::StreamExt;
pub(crate) use keys::Keys;
use std::collections::BTreeSet;
use std::sync::Arc;

/// An open vault: the store, who it is, and its keys. Clones share it.
#[derive(Debug, Clone)]
pub struct Vault {
    store: Store,
    inner: Arc<Inner>,
    /// Slots of a log that a reader of one volume reads before it looks for a shorter way.
    quiet_slots: u64,
}

#[derive(Debug)]
struct Inner {
    /// As it was when it was read, to find later damage.
    identity: VaultObject,
    identity_bytes: Bytes,
    revision: Revision,
    wrapper: Wrapper,
    ring: KeyRing,
    keys: VaultKeys,
    hasher: ChunkHasher,
    /// The wrapped keys as they were when they opened, to find later damage without the wrapping key.
    wrapped: Vec<(ObjectName, Bytes)>,
    /// Keys that a revision names and that are not there.
    lost_keys: Vec<ObjectName>,
}

impl Vault {
    /// Opens the vault in a store with any of the keys that wrap its keys.
    ///
    /// # Errors
    /// `Invalid`: no vault here, a key that is none of this vault, or written by another version; `Corrupt`
    /// if the vault object or a key is damaged or missing (`NoIdentity` if only the vault object is);
    /// `Unavailable`.
    pub async fn open(store: &Store, key: &WrappingKey) -> Result<Self, VaultError> {
        let wrapper = key.wrapper();
        let (identity, identity_bytes) = read_vault_object(store, wrapper.fingerprint).await?;
        let mut reading = Keys::new(store, identity.vault, key);
        reading.read((1..=identity.last_key().0).map(KeyNumber)).await?;
        reading.require(identity.own_key).await?;
        let revision = revision::read_newest(store, &identity, &mut reading).await?;
        reading.check(&identity, revision.body()).await?;
        let lost_keys = reading.lost(revision.body());
        reading.go_by(revision.body());
        let Keys { ring, wrapped, .. } = reading;
        let keys = ring.sealing().and_then(|_| ring.vault_keys());
        let keys = keys.map_err(|cause| no_key_error(store, wrapper, &revision, cause))?;
        let hasher = ChunkHasher::new(keys.id_key.clone());
        let (store, wrapped) = (store.clone(), wrapped.into_values().collect());
        let inner = Inner {
            identity,
            identity_bytes,
            revision,
            wrapper,
            ring,
            keys,
            hasher,
            wrapped,
            lost_keys,
        };
        Ok(Self { store, inner: Arc::new(inner), quiet_slots: QUIET_SLOTS })
    }

    /// The same vault through another way to its store, such as one with connections of its own.
    #[must_use]
    pub fn through(&self, store: Store) -> Self {
        Self { store, inner: Arc::clone(&self.inner), ..*self }
    }

    /// The same vault, whose readers of one volume look after so many slots of a log whether it has something in few of
    /// them only; for tests, whose logs are short.
    ///
    /// # Panics
    /// If it is none.
    #[must_use]
    pub fn with_quiet_slots(self, quiet_slots: u64) -> Self {
        assert!(quiet_slots > 0, "something is read first");
        Self { quiet_slots, ..self }
    }

    pub(crate) fn quiet_slots(&self) -> u64 {
        self.quiet_slots
    }

    /// Keys that a revision of the vault names and that are not there for what opened it.
    pub(crate) fn lost_keys(&self) -> &[ObjectName] {
        &self.inner.lost_keys
    }

    /// Refuses a store that overwrites, and a vault of which keys were lost, so that nobody goes on with older ones: to be
    /// asked before anything is written. Does no harm there.
    ///
    /// # Errors
    /// `Invalid` if it does, `Corrupt` if a key is lost, `Unavailable`.
    pub async fn check_write_once(&self) -> Result<(), VaultError> {
        if let Some(object) = self.lost_keys().first().cloned() {
            let user = ObjectName::revision(self.revision().number());
            return Err(VaultError::Lost { url: self.url().to_owned(), object, user });
        }
        let bytes = self.inner.identity_bytes.clone();
        check_write_once(self.store(), &ObjectName::vault(), bytes).await
    }

    /// Its store.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// URL of its store.
    #[must_use]
    pub fn url(&self) -> &str {
        self.store.url()
    }

    /// Its identity.
    #[must_use]
    pub fn id(&self) -> VaultId {
        self.inner.identity.vault
    }

    /// What it was made with.
    pub(crate) fn identity(&self) -> &VaultObject {
        &self.inner.identity
    }

    /// The vault object as it was read.
    pub(crate) fn identity_bytes(&self) -> &Bytes {
        &self.inner.identity_bytes
    }

    /// The newest of its revisions, as of when it was opened.
    #[must_use]
    pub fn revision(&self) -> &Revision {
        &self.inner.revision
    }

    /// The key that it was opened with.
    #[must_use]
    pub fn wrapper(&self) -> Wrapper {
        self.inner.wrapper
    }

    /// Its keys.
    #[must_use]
    pub fn ring(&self) -> &KeyRing {
        &self.inner.ring
    }

    /// The data keys that new objects are sealed with.
    ///
    /// # Panics
    /// Never: a vault opens only with its keys.
    #[must_use]
    pub fn seal_keys(&self) -> SealKeys<'_> {
        self.inner.ring.sealing().expect("a vault opens with its keys")
    }

    /// The data key that journals are sealed under.
    ///
    /// # Panics
    /// Never: a vault opens only with its keys.
    #[must_use]
    pub fn newest_key(&self) -> (KeyNumber, &DataKey) {
        self.inner.ring.newest().expect("a vault opens with its keys")
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
    pub(crate) fn wrapped_keys(&self) -> &[(ObjectName, Bytes)] {
        &self.inner.wrapped
    }

    /// The error of an object whose part at `offset` does not open.
    #[must_use]
    pub fn damaged(&self, object: ObjectName, offset: u64, cause: CodecError) -> VaultError {
        // The object may well be whole: what it was sealed under is not there.
        let (key, is_authentic) = match cause {
            CodecError::NoKey { key } => (key, true),
            CodecError::NoOwnKey { key } => (key, false),
            cause => return object_error(self.url(), object, offset, Box::new(cause)),
        };
        let (url, body) = (self.url().to_owned(), self.revision().body());
        let last = body.map_or(self.inner.identity.last_key(), |body| body.last_key);
        let is_erased = body.is_some_and(|body| body.is_erased(key));
        match self.ring().role(key) {
            None if key > last => VaultError::UnknownKey { url, object, key },
            None if is_erased && is_authentic => VaultError::Erased { url, object, key },
            None if !is_erased => {
                let key = ObjectName::key(key, self.wrapper().fingerprint);
                VaultError::Lost { url, object: key, user: object }
            }
            Some((_, KeyKind::Withheld)) if is_authentic => {
                VaultError::Withheld { url, object, key, given: self.wrapper() }
            }
            _ => object_error(&url, object, offset, Box::new(cause)),
        }
    }

    /// The error of an object that `user` refers to and that could not be read. That it is lost is said only if the vault
    /// is what it was when it was opened: a later program may have moved it.
    pub(crate) async fn lost(
        &self,
        error: VaultError,
        object: ObjectName,
        user: &ObjectName,
    ) -> VaultError {
        if !error.is_not_found() {
            return error;
        }
        match revision::check(self).await {
            Err(error) => error,
            Ok(()) => VaultError::Lost { url: self.url().to_owned(), object, user: user.clone() },
        }
    }

    /// The error of a frame of a segment, which `user` refers to, that does not open.
    #[must_use]
    pub fn damaged_frame(&self, at: &FrameAt, cause: CodecError, user: &ObjectName) -> VaultError {
        let object = ObjectName::slot(at.target.log, at.target.slot);
        match cause {
            CodecError::Attempt { .. } => {
                VaultError::Replaced { url: self.url().to_owned(), object, user: user.clone() }
            }
            cause => self.damaged(object, at.offset.into(), cause),
        }
    }

    /// Seals an object with the newest data keys, where that holds nobody up; `name` is for the error.
    pub(crate) async fn seal_aside(
        &self,
        name: &ObjectName,
        seal: impl FnOnce(&Self, SealKeys<'_>) -> Result<Vec<u8>, CodecError> + Send + 'static,
    ) -> Result<Bytes, VaultError> {
        let vault = self.clone();
        let sealing = blocking::run(move || seal(&vault, vault.seal_keys()));
        let sealed = sealing.await.map_err(|source| VaultError::Task { source })?;
        sealed
            .map(Bytes::from)
            .map_err(|cause| VaultError::Seal { object: name.clone(), cause: Box::new(cause) })
    }

    /// Opens an object of a kind that is a header and a sealed body, where that holds nobody up.
    pub(crate) async fn open_aside<T: Send + 'static>(
        &self,
        name: ObjectName,
        kind: ObjectKind,
        open: impl FnOnce(&Self) -> Result<T, CodecError> + Send + 'static,
    ) -> Result<T, VaultError> {
        let vault = self.clone();
        let opening = blocking::run(move || open(&vault));
        let opened = opening.await.map_err(|source| VaultError::Task { source })?;
        opened.map_err(|cause| self.damaged_in(name, kind.header_bytes(), cause))
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

/// Why a vault whose keys are all there has none to work with.
fn no_key_error(
    store: &Store,
    given: Wrapper,
    revision: &Revision,
    cause: CodecError,
) -> VaultError {
    let is_erased = |key| revision.body().is_some_and(|body| body.is_erased(key));
    let (url, object) = (store.url().to_owned(), ObjectName::vault());
    match cause {
        CodecError::NoKey { key } if is_erased(key) => VaultError::Erased { url, object, key },
        CodecError::NoKey { key } => VaultError::Withheld { url, object, key, given },
        cause => object_error(&url, object, 0, Box::new(cause)),
    }
}

/// The error of an object of the vault at `url` whose part at `offset` does not open.
pub(crate) fn object_error(
    url: &str,
    object: ObjectName,
    offset: u64,
    cause: Box<CodecError>,
) -> VaultError {
    let url = url.to_owned();
    match &*cause {
        CodecError::Decode(error) if error.is_foreign() => {
            VaultError::Version { url, object, cause }
        }
        _ => VaultError::Damaged { url, object, offset, cause },
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

/// Reads the vault object of a store, as somebody with a wrapping key of it.
pub(crate) async fn read_vault_object(
    store: &Store,
    wrapper: Fingerprint,
) -> Result<(VaultObject, Bytes), VaultError> {
    let url = || store.url().to_owned();
    let object = ObjectName::vault();
    let bytes = match store.get(&object, SMALL_OBJECT_BYTES_MAX as u64).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => {
            // Advice to make a new vault here would be bad if there was one.
            let key = ObjectName::key(DomainKeys::FIRST.root, wrapper);
            return Err(match store.exists(&key).await? {
                true => VaultError::NoIdentity { url: url(), key },
                false => VaultError::NotAVault { url: url() },
            });
        }
        Err(error) => return Err(error.into()),
    };
    match VaultObject::decode(&bytes) {
        Ok(decoded) => Ok((decoded, bytes)),
        Err(error) => {
            let is_foreign = error.is_foreign();
            let cause = Box::new(CodecError::from(error));
            Err(match is_foreign {
                true => VaultError::Version { url: url(), object, cause },
                false => VaultError::Damaged { url: url(), object, offset: 0, cause },
            })
        }
    }
}

/// Opens the object found as a key of a vault.
pub(crate) fn unwrap(
    store: &Store,
    vault: VaultId,
    number: KeyNumber,
    key: &WrappingKey,
    bytes: &[u8],
) -> Result<(KeyHeader, VaultKey), VaultError> {
    let opened = KeyObject::decode(bytes)
        .map_err(KekError::from)
        .and_then(|found| Ok((found.header, key.unwrap(vault, number, &found)?)));
    let name = ObjectName::key(number, key.wrapper().fingerprint);
    opened.map_err(|source| key_error(store, name, source))
}

/// The wrapping keys that have any of the keys.
pub(crate) fn wrappers_in(listed: &BTreeSet<(KeyNumber, Fingerprint)>) -> Vec<Fingerprint> {
    let wrappers: BTreeSet<_> = listed.iter().map(|(_, wrapper)| *wrapper).collect();
    wrappers.into_iter().collect()
}

/// The wrapped keys that a listing shows.
pub(crate) async fn list_keys(
    store: &Store,
) -> Result<BTreeSet<(KeyNumber, Fingerprint)>, VaultError> {
    let mut keys = BTreeSet::new();
    let mut listing = store.list(Folder::Keys);
    while let Some(listed) = listing.next().await {
        keys.extend(key_of(&listed?.name));
        if keys.len() > KEY_OBJECTS_MAX {
            let max = KEY_OBJECTS_MAX as u64;
            let url = store.url().to_owned();
            return Err(VaultError::Limit { url, what: "wrapped keys", max });
        }
    }
    Ok(keys)
}

/// The error of a wrapped key that does not open.
pub(crate) fn key_error(store: &Store, object: ObjectName, source: KekError) -> VaultError {
    let url = store.url().to_owned();
    match source {
        KekError::Misplaced { expected, found } if found.vault != expected.vault => {
            let (vault, found) = (expected.vault, found.vault);
            VaultError::Mixed { url, vault, key: object, found }
        }
        KekError::Decode(error) if error.is_foreign() => {
            VaultError::Version { url, object, cause: Box::new(CodecError::from(error)) }
        }
        source => VaultError::Key { url, object, cause: Box::new(source) },
    }
}

#[cfg(test)]
mod tests;
