//! Which keys open a vault: each wraps all keys of the vault, in objects of its own.
//!
//! Key 1 is wrapped last and removed first: a wrapping key whose key 1 is there has all of them, and one
//! that was cut short opens nothing.

use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::revision;
use crate::store::{Put, StoreError};
use crate::vault::{Vault, key_error, list_keys, unwrap, wrappers_in};
use farshore_codec::{KekError, VaultKey, WrappingKey};
use farshore_proto::keys::{Fingerprint, KeyHeader, KeyKind, KeyObject, Wrapper, WrapperKind};
use farshore_proto::limits::SMALL_OBJECT_BYTES_MAX;
use farshore_proto::{Domain, KeyNumber};
use std::collections::{BTreeMap, BTreeSet};

/// A key of a vault, and what wraps it.
#[derive(Debug)]
pub struct ListedKey {
    /// Its number.
    pub number: KeyNumber,
    /// The dedup domain it is of and what it is for, if anything here tells.
    pub role: Option<(Domain, KeyKind)>,
    /// What wraps it.
    pub wrappers: Vec<ListedWrapper>,
}

/// An object that holds a wrapped key.
#[derive(Debug)]
pub struct ListedWrapper {
    /// The key that wraps it.
    pub fingerprint: Fingerprint,
    /// What that is for, or why the object does not tell.
    pub kind: Result<WrapperKind, VaultError>,
}

/// Lists the keys of a vault.
///
/// # Errors
/// `Unavailable`, `Invalid`: the store; `Limit` if there are too many.
pub async fn list(vault: &Vault) -> Result<Vec<ListedKey>, VaultError> {
    let mut keys: BTreeMap<KeyNumber, ListedKey> = BTreeMap::new();
    for (number, domain, key) in vault.ring().keys() {
        let role = Some((domain, key.kind()));
        keys.insert(number, ListedKey { number, role, wrappers: Vec::new() });
    }
    for (number, fingerprint) in list_keys(vault.store()).await? {
        let found = match look(vault, number, fingerprint).await {
            Ok(header) => Ok(header),
            Err(VaultError::Store(StoreError::NotFound { .. })) => continue,
            Err(error) if error.is_unavailable() => return Err(error),
            Err(error) => Err(error),
        };
        let none = || ListedKey { number, role: None, wrappers: Vec::new() };
        let key = keys.entry(number).or_insert_with(none);
        let said = found.as_ref().ok().map(|header| (header.domain, header.kind));
        key.role = key.role.or(said);
        let kind = found.map(|header| header.wrapper.kind);
        key.wrappers.push(ListedWrapper { fingerprint, kind });
    }
    Ok(keys.into_values().collect())
}

/// What the object of a name says, if it is of this vault and of its name. Whether it opens is not known.
pub(crate) async fn look(
    vault: &Vault,
    number: KeyNumber,
    fingerprint: Fingerprint,
) -> Result<KeyHeader, VaultError> {
    let name = ObjectName::key(number, fingerprint);
    let url = vault.url().to_owned();
    let bytes = vault.store().get(&name, SMALL_OBJECT_BYTES_MAX as u64).await?;
    let object = KeyObject::decode(&bytes).map_err(KekError::from);
    let header = object.map_err(|source| key_error(vault.store(), name.clone(), source))?.header;
    if header.vault != vault.id() {
        let (vault, found) = (vault.id(), header.vault);
        return Err(VaultError::Mixed { url, vault, key: name, found });
    }
    if (header.key, header.wrapper.fingerprint) != (number, fingerprint) {
        return Err(VaultError::NotThatKey { url, object: name });
    }
    Ok(header)
}

/// Wraps all keys of a vault for another wrapping key, as far as that was not done. Returns how many it
/// wrapped. What a later program's keys are for is not known: a recovery key gets them, a node does not.
///
/// # Errors
/// `Corrupt` if something is there that is not what it should be; `Conflict` if the vault was revised meanwhile: done again
/// on the vault as it is then, the rest is wrapped; `Unavailable`, `Invalid`.
pub async fn add(vault: &Vault, key: &WrappingKey) -> Result<usize, VaultError> {
    let mut made = 0;
    for (number, domain, plain) in vault.ring().keys().rev() {
        let is_for_all = !matches!(plain, VaultKey::Other(..));
        let is_given = is_for_all || key.kind() == WrapperKind::Recovery;
        let plain = if is_given { plain } else { &VaultKey::Withheld };
        if !has(vault, key, (number, domain, plain)).await? {
            let name = ObjectName::key(number, key.wrapper().fingerprint);
            let object = key.wrap(vault.id(), number, domain, plain);
            let object = object.map_err(|source| key_error(vault.store(), name.clone(), source))?;
            match vault.store().create(&name, object.encode()).await? {
                Put::Created => made += 1,
                // Somebody else adds it too, or the answer to our own put was lost.
                Put::Exists => match has(vault, key, (number, domain, plain)).await? {
                    true => made += 1,
                    false => {
                        let url = vault.url().to_owned();
                        return Err(VaultError::NotThatKey { url, object: name });
                    }
                },
            }
        }
    }
    // A key that came meanwhile is not among them: opened again, the vault has it.
    revision::check(vault).await?;
    Ok(made)
}

/// Whether a key is wrapped for a wrapping key already.
async fn has(
    vault: &Vault,
    key: &WrappingKey,
    (number, domain, plain): (KeyNumber, Domain, &VaultKey),
) -> Result<bool, VaultError> {
    let name = ObjectName::key(number, key.wrapper().fingerprint);
    let bytes = match vault.store().get(&name, SMALL_OBJECT_BYTES_MAX as u64).await {
        Ok(bytes) => bytes,
        Err(StoreError::NotFound { .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let (header, found) = unwrap(vault.store(), vault.id(), number, key, &bytes)?;
    if header.domain != domain || !found.is(plain) {
        return Err(VaultError::NotThatKey { url: vault.url().to_owned(), object: name });
    }
    // Whoever wrote it may have died before its name was durable.
    vault.store().settle(&name).await?;
    Ok(true)
}

/// What is removed with a wrapping key.
#[derive(Debug)]
pub struct Removal {
    /// Its fingerprint.
    pub fingerprint: Fingerprint,
    /// What it is for, if its objects tell.
    pub kind: Option<WrapperKind>,
    /// The objects, in the order in which they are removed.
    pub objects: Vec<ObjectName>,
}

/// Looks up what is removed with a wrapping key.
///
/// # Errors
/// `NotFound` if it wraps nothing here, `Conflict` if no recovery key would be left, `Unavailable`.
pub async fn removal(vault: &Vault, fingerprint: Fingerprint) -> Result<Removal, VaultError> {
    // Another one may have become the last that has them all.
    revision::check(vault).await?;
    let listed = list_keys(vault.store()).await?;
    let numbers = listed.iter().filter(|(_, wrapper)| *wrapper == fingerprint);
    let numbers: Vec<_> = numbers.map(|(number, _)| *number).collect();
    if numbers.is_empty() {
        let (url, there) = (vault.url().to_owned(), wrappers_in(&listed));
        return Err(VaultError::NoWrapper { url, fingerprint, there });
    }
    if !stays_readable(vault, fingerprint, &listed).await? {
        return Err(VaultError::LastRecoveryKey { url: vault.url().to_owned(), fingerprint });
    }
    let mut kind = None;
    for number in &numbers {
        match look(vault, *number, fingerprint).await {
            Ok(header) => kind = kind.or(Some(header.wrapper.kind)),
            Err(error) if error.is_unavailable() => return Err(error),
            // Damaged or of another vault: it is removed all the same.
            Err(_) => {}
        }
    }
    let objects = numbers.iter().map(|number| ObjectName::key(*number, fingerprint)).collect();
    Ok(Removal { fingerprint, kind, objects })
}

/// Whether a recovery key is left without this wrapping key: the one that the vault was opened with, or one
/// whose objects are all there.
async fn stays_readable(
    vault: &Vault,
    without: Fingerprint,
    listed: &BTreeSet<(KeyNumber, Fingerprint)>,
) -> Result<bool, VaultError> {
    let Wrapper { kind, fingerprint } = vault.wrapper();
    let withheld = |(_, _, key): (_, _, &VaultKey)| matches!(key, VaultKey::Withheld);
    let has_all = vault.lost_keys().is_empty() && !vault.ring().keys().any(withheld);
    if kind == WrapperKind::Recovery && fingerprint != without && has_all {
        return Ok(true);
    }
    let numbers: Vec<_> = match vault.revision().body() {
        Some(body) => body.keys().collect(),
        None => vault.ring().keys().map(|(number, ..)| number).collect(),
    };
    for other in wrappers_in(listed).into_iter().filter(|other| *other != without) {
        let mut is_whole = true;
        for number in &numbers {
            is_whole &= match look(vault, *number, other).await {
                Ok(header) => {
                    header.wrapper.kind == WrapperKind::Recovery && header.kind != KeyKind::Withheld
                }
                Err(error) if error.is_unavailable() => return Err(error),
                Err(_) => false,
            };
        }
        if is_whole {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes what was looked up. Done again after it was cut short, it removes the rest.
///
/// # Errors
/// `Unavailable`, `Invalid` if the credential may not.
pub async fn remove(vault: &Vault, removal: &Removal) -> Result<(), VaultError> {
    for object in &removal.objects {
        vault.store().delete(object).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
