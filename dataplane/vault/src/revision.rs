//! Revisions of the vault: which keys and domains there are since it was made, and which keys were erased on purpose.
//!
//! Whoever opens a vault reads the newest, and asks again before it says that something is lost: a later program that puts
//! things elsewhere says so there first, with a bit that must be understood.

use crate::error::VaultError;
use crate::gapless;
use crate::layout::ObjectName;
use crate::limits::{KEYS_MAX, SMALL_SEALED_OBJECT_BYTES_MAX, VAULT_REVISIONS_MAX};
use crate::store::{Put, Store, StoreError};
use crate::vault::{Keys, Vault, list_keys, object_error, wrappers_in};
use farshore_codec::revision::{key_of_revision, open_revision_wholly, seal_revision};
use farshore_codec::{CodecError, KeyRing};
use farshore_proto::revision::RevisionBody;
use farshore_proto::vault::VaultObject;
use farshore_proto::{Domain, KeyNumber};
use std::iter;

/// The newest revision of a vault.
#[derive(Debug, Clone, Default)]
pub struct Revision {
    number: u64,
    body: Option<RevisionBody>,
    /// It says what this program does not know: none may be put behind it.
    is_outgrown: bool,
}

impl Revision {
    /// Its number; 0 if the vault is what it was made.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What it says, if there is any.
    #[must_use]
    pub fn body(&self) -> Option<&RevisionBody> {
        self.body.as_ref()
    }
}

/// Reads the newest revision, with the keys that it goes by, and then all keys that it says there are.
pub(crate) async fn read_newest(
    store: &Store,
    identity: &VaultObject,
    keys: &mut Keys<'_>,
) -> Result<Revision, VaultError> {
    let number = gapless::newest(store, 0, VAULT_REVISIONS_MAX, ObjectName::revision).await?;
    if number == 0 {
        return Ok(Revision::default());
    }
    let name = ObjectName::revision(number);
    let object = get(store, number).await?;
    let broken = |cause| object_error(store.url(), name.clone(), 0, Box::new(cause));
    let own_key = key_of_revision(&object).map_err(broken)?;
    keys.read(iter::once(own_key)).await?;
    keys.require(own_key).await?;
    let (body, is_all) =
        open_revision_wholly(&object, keys.vault(), number, keys.ring()).map_err(broken)?;
    // Else whoever has a key that was replaced could make the vault go back to it.
    let expected = own_key_before(store, keys, identity, number).await?;
    if expected.is_some_and(|expected| expected != own_key) {
        let (url, object) = (store.url().to_owned(), name);
        return Err(VaultError::NotThatKey { url, object });
    }
    // What is sealed under keys that it names must not outlive it.
    store.settle(&name).await?;
    keys.read(body.keys()).await?;
    Ok(Revision { number, body: Some(body), is_outgrown: !is_all })
}

/// The key that revision `number` is to go by, as the one before says; `None` if that one cannot be read, or not understood:
/// the newest stands for all in front of it.
async fn own_key_before(
    store: &Store,
    keys: &mut Keys<'_>,
    identity: &VaultObject,
    number: u64,
) -> Result<Option<KeyNumber>, VaultError> {
    if number == 1 {
        return Ok(Some(identity.own_key));
    }
    let name = ObjectName::revision(number - 1);
    let object = match store.get(&name, SMALL_SEALED_OBJECT_BYTES_MAX).await {
        Err(StoreError::NotFound { .. }) => return Ok(None),
        object => object?,
    };
    let Ok(own_key) = key_of_revision(&object) else { return Ok(None) };
    keys.read(iter::once(own_key)).await?;
    let opened = open_revision_wholly(&object, keys.vault(), number - 1, keys.ring());
    Ok(opened.ok().map(|(body, _)| body.own_key))
}

async fn get(store: &Store, number: u64) -> Result<bytes::Bytes, VaultError> {
    let name = ObjectName::revision(number);
    match store.get(&name, SMALL_SEALED_OBJECT_BYTES_MAX).await {
        Err(StoreError::NotFound { .. }) => {
            Err(VaultError::LostEnd { url: store.url().to_owned(), object: name })
        }
        object => Ok(object?),
    }
}

/// Opens what is there as a revision.
pub(crate) async fn open(
    store: &Store,
    number: u64,
    ring: &KeyRing,
) -> Result<RevisionBody, VaultError> {
    let object = get(store, number).await?;
    let opened: Result<_, CodecError> = open_revision_wholly(&object, ring.vault(), number, ring);
    let (body, _) = opened.map_err(|cause| {
        object_error(store.url(), ObjectName::revision(number), 0, Box::new(cause))
    })?;
    Ok(body)
}

/// Whether the vault is still what it was when it was opened.
///
/// # Errors
/// `Invalid` if a newer version revised it; `Conflict` if it was revised otherwise: opened again, it is read as it is now;
/// `Corrupt`, `Unavailable`.
pub(crate) async fn check(vault: &Vault) -> Result<(), VaultError> {
    let (store, known) = (vault.store(), vault.revision().number);
    let number = gapless::newest(store, known, VAULT_REVISIONS_MAX, ObjectName::revision).await?;
    if number == known {
        return Ok(());
    }
    match open(store, number, vault.ring()).await {
        Err(error @ VaultError::Version { .. }) => Err(error),
        Err(error) if error.is_unavailable() => Err(error),
        _ => Err(VaultError::Revised { url: vault.url().to_owned(), number }),
    }
}

/// Puts the revision behind the one that the vault was opened with; gives its number. Whoever opens the vault from then on
/// goes by it; who has it open goes on with what was.
///
/// # Errors
/// `Corrupt` if a key that it says is there is not, for one of the keys that open the vault; `Conflict` if another one was
/// put first; `Invalid` if a newer version put the one before; `Unavailable`.
///
/// # Panics
/// If it is none that a reader takes: a bug in the caller.
pub async fn put(vault: &Vault, body: &RevisionBody) -> Result<u64, VaultError> {
    let laid_out = body.encode();
    assert_eq!(RevisionBody::decode(&laid_out).as_ref(), Ok(body), "a reader takes it");
    let (url, held) = (vault.url().to_owned(), vault.revision());
    let number = held.number + 1;
    let name = ObjectName::revision(number);
    if held.is_outgrown {
        return Err(VaultError::Outgrown { url, object: ObjectName::revision(held.number) });
    }
    check_follows(vault, number, body)?;
    check_wrapped(vault, body).await?;
    let object = seal_revision(vault.id(), number, vault.seal_keys(), body)
        .map_err(|cause| VaultError::Seal { object: name.clone(), cause: Box::new(cause) })?;
    match vault.store().create(&name, object).await? {
        Put::Created => Ok(number),
        Put::Exists => match open(vault.store(), number, vault.ring()).await {
            // The answer to our own put was lost.
            Ok(found) if found == *body => {
                vault.store().settle(&name).await?;
                Ok(number)
            }
            Err(error) if error.is_unavailable() => Err(error),
            _ => Err(VaultError::Revised { url, number }),
        },
    }
}

/// What came once stays: keys and domains become more, and what was erased is so for ever; nothing is taken that opens the vault.
fn check_follows(vault: &Vault, number: u64, body: &RevisionBody) -> Result<(), VaultError> {
    let url = || vault.url().to_owned();
    if number > VAULT_REVISIONS_MAX {
        let (what, max) = ("revisions of the vault", VAULT_REVISIONS_MAX);
        return Err(VaultError::Limit { url: url(), what, max });
    }
    let (last, domains) = match vault.revision().body() {
        Some(before) => (before.last_key, &before.domains),
        None => (vault.identity().last_key(), &vault.identity().domains),
    };
    let stays_erased = vault.revision().body().is_none_or(|before| {
        before.erased.iter().all(|range| range.clone().all(|key| body.is_erased(KeyNumber(key))))
    });
    let has_domains = domains.iter().all(|keys| {
        body.domains.iter().any(|now| (now.domain, now.root) == (keys.domain, keys.root))
    });
    let takes_own =
        vault.ring().keys().any(|(key, domain, _)| domain == Domain::OWN && body.is_erased(key));
    let is_usable =
        body.domains.iter().all(|keys| body.is_erased(keys.root) || !body.is_erased(keys.data));
    if body.last_key < last || !stays_erased || !has_domains || takes_own || !is_usable {
        return Err(VaultError::BadRevision { url: url(), number });
    }
    Ok(())
}

/// Whatever opens the vault has to have all keys before the first thing is sealed under them.
async fn check_wrapped(vault: &Vault, body: &RevisionBody) -> Result<(), VaultError> {
    let listed = list_keys(vault.store()).await?;
    let keys: Vec<_> = body.keys().take(KEYS_MAX as usize + 1).collect();
    if keys.len() > KEYS_MAX as usize {
        let (url, max) = (vault.url().to_owned(), KEYS_MAX.into());
        return Err(VaultError::Limit { url, what: "keys of the vault", max });
    }
    for wrapper in wrappers_in(&listed) {
        let lacks = |key: &&KeyNumber| !listed.contains(&(**key, wrapper));
        if let Some(key) = keys.iter().find(lacks).copied() {
            let (url, user) = (vault.url().to_owned(), ObjectName::vault());
            return Err(VaultError::Lost { url, object: ObjectName::key(key, wrapper), user });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
