//! Making a vault.

use super::{Vault, check_write_once, key_error, unwrap};
use crate::error::VaultError;
use crate::layout::{Folder, ObjectName, key_of};
use crate::limits::KEY_OBJECTS_MAX;
use crate::store::{Put, Store, StoreError};
use bytes::Bytes;
use farshore_codec::{CodecError, DataKey, KekError, RootKey, VaultKey, WrappingKey};
use farshore_proto::keys::{KeyKind, KeyObject, WrapperKind};
use farshore_proto::limits::SMALL_OBJECT_BYTES_MAX;
use farshore_proto::vault::{DomainKeys, OWN_KEY, VaultObject};
use farshore_proto::{Domain, KeyNumber, VaultId};
use futures::StreamExt;
use uuid::Uuid;

impl Vault {
    /// Makes a vault in an empty store. An attempt that was cut short is finished.
    ///
    /// # Errors
    /// `Conflict` if there is a vault or anything else, `Invalid` if the key is no recovery key, a cut-short
    /// attempt used another one, or the store overwrites, `Unavailable` (also when full: `is_no_space`).
    pub async fn init(store: &Store, recovery: &WrappingKey) -> Result<Self, VaultError> {
        let url = || store.url().to_owned();
        let given = recovery.wrapper();
        if given.kind != WrapperKind::Recovery {
            return Err(VaultError::NotRecovery { url: url(), given });
        }
        if store.exists(&ObjectName::vault()).await? {
            return Err(VaultError::AlreadyAVault { url: url() });
        }
        let first = ObjectName::key(DomainKeys::FIRST.root, given.fingerprint);
        if !store.exists(&first).await? {
            check_empty(store, recovery).await?;
        }
        // The keys come first: a vault object without its keys would lock everybody out.
        let id = make_root_key(store, recovery).await?;
        make_data_key(store, recovery, id, (DomainKeys::FIRST.data, Domain::FIRST)).await?;
        make_data_key(store, recovery, id, (OWN_KEY, Domain::OWN)).await?;
        let object = VaultObject::new(id);
        if store.create(&ObjectName::vault(), object.encode()).await? == Put::Exists {
            return Err(VaultError::AlreadyAVault { url: url() });
        }
        Self::open(store, recovery).await
    }

    /// Opens the vault in a store, or makes one if there is none.
    ///
    /// # Errors
    /// As `open` and `init`.
    pub async fn open_or_init(store: &Store, recovery: &WrappingKey) -> Result<Self, VaultError> {
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
}

/// Makes the root key of the first domain. It says which vault is being made: the one of an attempt that was
/// cut short, if there was one.
async fn make_root_key(store: &Store, recovery: &WrappingKey) -> Result<VaultId, VaultError> {
    let number = DomainKeys::FIRST.root;
    let id = VaultId::from(Uuid::new_v4());
    let key = RootKey::draw().map(VaultKey::Root);
    let role = (Domain::FIRST, KeyKind::Root);
    let Some(bytes) = put_key(store, recovery, id, (number, role.0), key).await? else {
        return Ok(id);
    };
    let name = ObjectName::key(number, recovery.wrapper().fingerprint);
    let found = KeyObject::decode(&bytes);
    let found = found.map_err(|error| key_error(store, name, error.into()))?;
    check_key(store, recovery, found.header.vault, (number, role), &bytes).await?;
    Ok(found.header.vault)
}

/// Makes the first data key of a domain, or of the vault's own.
async fn make_data_key(
    store: &Store,
    recovery: &WrappingKey,
    id: VaultId,
    (number, domain): (KeyNumber, Domain),
) -> Result<(), VaultError> {
    let key = DataKey::draw().map(VaultKey::Data);
    let role = (domain, KeyKind::Data);
    match put_key(store, recovery, id, (number, domain), key).await? {
        Some(bytes) => check_key(store, recovery, id, (number, role), &bytes).await,
        None => Ok(()),
    }
}

/// Creates a key of a domain; what is there if it is there already.
async fn put_key(
    store: &Store,
    recovery: &WrappingKey,
    id: VaultId,
    (number, domain): (KeyNumber, Domain),
    key: Result<VaultKey, CodecError>,
) -> Result<Option<Bytes>, VaultError> {
    let name = ObjectName::key(number, recovery.wrapper().fingerprint);
    let wrapped =
        key.map_err(|_| KekError::Entropy).and_then(|key| recovery.wrap(id, number, domain, &key));
    let object = wrapped.map_err(|source| key_error(store, name.clone(), source))?;
    let bytes = Bytes::from(object.encode());
    if store.create(&name, bytes.clone()).await? == Put::Exists {
        return Ok(Some(store.get(&name, SMALL_OBJECT_BYTES_MAX as u64).await?));
    }
    check_write_once(store, &name, bytes).await?;
    Ok(None)
}

/// Checks a key that an attempt before has left, and makes it durable.
async fn check_key(
    store: &Store,
    recovery: &WrappingKey,
    id: VaultId,
    (number, role): (KeyNumber, (Domain, KeyKind)),
    bytes: &[u8],
) -> Result<(), VaultError> {
    let name = ObjectName::key(number, recovery.wrapper().fingerprint);
    let (header, _) = unwrap(store, id, number, recovery, bytes)?;
    if (header.domain, header.kind) != role {
        return Err(VaultError::NotThatKey { url: store.url().to_owned(), object: name });
    }
    Ok(store.settle(&name).await?)
}

/// Refuses a store with objects that no validation left.
async fn check_empty(store: &Store, recovery: &WrappingKey) -> Result<(), VaultError> {
    let given = recovery.wrapper();
    let mut there = Vec::new();
    let mut listing = store.list(Folder::Whole);
    while let Some(found) = listing.next().await {
        let name = match found {
            Ok(listed) => listed.name,
            // A new file system has a directory that only root may read.
            Err(StoreError::Denied { .. }) if store.local_root().is_some() => continue,
            Err(error) => return Err(error.into()),
        };
        match key_of(&name).filter(|_| name.starts_with("keys/")) {
            Some((_, wrapper)) if wrapper != given.fingerprint => there.push(wrapper),
            None if name.starts_with("validate/") => {}
            _ => {
                let url = store.url().to_owned();
                return Err(VaultError::NotEmpty { url, object: name });
            }
        }
        if there.len() >= KEY_OBJECTS_MAX {
            break;
        }
    }
    if there.is_empty() {
        return Ok(());
    }
    // An attempt with another recovery key was cut short, or the vault object was deleted.
    there.sort_unstable();
    there.dedup();
    Err(VaultError::WrongKey { url: store.url().to_owned(), given, there })
}
