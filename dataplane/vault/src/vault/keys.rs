//! Reading the keys of a vault for a wrapping key.

use super::{list_keys, unwrap, wrappers_in};
use crate::error::VaultError;
use crate::layout::ObjectName;
use crate::limits::{KEYS_AT_ONCE, KEYS_MAX};
use crate::store::{Store, StoreError};
use bytes::Bytes;
use farshore_codec::{KeyRing, WrappingKey};
use farshore_proto::keys::KeyKind;
use farshore_proto::limits::SMALL_OBJECT_BYTES_MAX;
use farshore_proto::revision::RevisionBody;
use farshore_proto::vault::{DomainKeys, VaultObject};
use farshore_proto::{Domain, KeyNumber, VaultId};
use futures::{StreamExt, TryStreamExt, stream};
use std::collections::{BTreeMap, BTreeSet};

/// The keys of a vault that were asked for so far.
pub(crate) struct Keys<'a> {
    store: &'a Store,
    key: &'a WrappingKey,
    pub(super) ring: KeyRing,
    /// Their objects as they were read.
    pub(super) wrapped: BTreeMap<KeyNumber, (ObjectName, Bytes)>,
    /// Those that are not there for the wrapping key.
    missing: BTreeSet<KeyNumber>,
}

impl<'a> Keys<'a> {
    /// None yet.
    pub(super) fn new(store: &'a Store, vault: VaultId, key: &'a WrappingKey) -> Self {
        let (wrapped, missing) = (BTreeMap::new(), BTreeSet::new());
        Self { store, key, ring: KeyRing::new(vault), wrapped, missing }
    }

    /// The vault they are of.
    pub(crate) fn vault(&self) -> VaultId {
        self.ring.vault()
    }

    /// Those that are there.
    pub(crate) fn ring(&self) -> &KeyRing {
        &self.ring
    }

    /// Reads those that were not asked for before. That one is not there is no error yet: it may have been erased.
    ///
    /// # Errors
    /// `Corrupt` if one is not what it should be; `Invalid`, `Unavailable`; `Limit`.
    pub(crate) async fn read(
        &mut self,
        numbers: impl Iterator<Item = KeyNumber>,
    ) -> Result<(), VaultError> {
        let is_new = |number: &KeyNumber| {
            !self.wrapped.contains_key(number) && !self.missing.contains(number)
        };
        let numbers: Vec<_> = numbers.filter(is_new).take(KEYS_MAX as usize + 1).collect();
        if numbers.len() > KEYS_MAX as usize {
            let (url, max) = (self.store.url().to_owned(), KEYS_MAX.into());
            return Err(VaultError::Limit { url, what: "keys of the vault", max });
        }
        let (store, fingerprint) = (self.store, self.key.wrapper().fingerprint);
        let reads = numbers.into_iter().map(|number| async move {
            let name = ObjectName::key(number, fingerprint);
            match store.get(&name, SMALL_OBJECT_BYTES_MAX as u64).await {
                Ok(bytes) => Ok((number, name, Some(bytes))),
                Err(StoreError::NotFound { .. }) => Ok((number, name, None)),
                Err(error) => Err(error),
            }
        });
        let found: Vec<_> = stream::iter(reads).buffered(KEYS_AT_ONCE).try_collect().await?;
        for (number, name, bytes) in found {
            let Some(bytes) = bytes else {
                self.missing.insert(number);
                continue;
            };
            let (header, opened) = unwrap(self.store, self.vault(), number, self.key, &bytes)?;
            self.ring.insert_key(number, header.domain, opened);
            self.wrapped.insert(number, (name, bytes));
        }
        Ok(())
    }

    /// Has new objects go by the keys that the revision says, and nobody by those that it says were erased, though they may
    /// still be there.
    pub(super) fn go_by(&mut self, revision: Option<&RevisionBody>) {
        let Some(body) = revision else { return };
        let erased: Vec<_> =
            self.wrapped.keys().copied().filter(|number| body.is_erased(*number)).collect();
        for number in erased {
            self.ring.remove(number);
            self.wrapped.remove(&number);
        }
        // Where one is lost nobody writes but who fences or seals: that goes by what there is.
        let is_there = |domain, key| self.ring.get_of(domain, key).is_ok();
        if let Some(keys) = body.domains.first()
            && is_there(Domain::OWN, body.own_key)
            && is_there(keys.domain, keys.data)
        {
            self.ring.go_by(body.own_key, keys.data);
        }
    }

    /// Makes sure that a key that was asked for is there.
    ///
    /// # Errors
    /// `Corrupt` if it is lost; `Invalid` if the wrapping key is none of this vault; `Unavailable`.
    pub(crate) async fn require(&self, number: KeyNumber) -> Result<(), VaultError> {
        if !self.missing.contains(&number) {
            return Ok(());
        }
        let name = ObjectName::key(number, self.key.wrapper().fingerprint);
        Err(no_key(self.store, name, self.key).await?)
    }

    /// Those that a revision says are there and that are not: lost, as is what was sealed under them. The rest reads.
    pub(super) fn lost(&self, revision: Option<&RevisionBody>) -> Vec<ObjectName> {
        let is_lost = |number: &&KeyNumber| {
            revision.is_some_and(|body| **number <= body.last_key && !body.is_erased(**number))
        };
        let fingerprint = self.key.wrapper().fingerprint;
        let lost = self.missing.iter().filter(is_lost);
        lost.map(|number| ObjectName::key(*number, fingerprint)).collect()
    }

    /// Makes sure that those are there that the vault was made with, and that all are what the vault says of them.
    ///
    /// # Errors
    /// As [`require`](Self::require); `Corrupt` if one is another than the vault says.
    pub(super) async fn check(
        &self,
        identity: &VaultObject,
        revision: Option<&RevisionBody>,
    ) -> Result<(), VaultError> {
        let is_erased = |number: KeyNumber| revision.is_some_and(|body| body.is_erased(number));
        let last = identity.last_key();
        let is_lost = |number: &&KeyNumber| **number <= last && !is_erased(**number);
        if let Some(lost) = self.missing.iter().find(is_lost) {
            self.require(*lost).await?;
        }
        let own = revision.map(|body| (body.own_key, (Domain::OWN, KeyKind::Data)));
        let added = revision.iter().flat_map(|body| &body.domains).flat_map(DomainKeys::roles);
        let roles =
            identity.roles().chain(added).chain(own).filter(|(number, _)| !is_erased(*number));
        for (number, role) in roles {
            let found = self.ring.role(number);
            if found.is_none() && number > last {
                continue;
            }
            let is_withheld = role.0 != Domain::OWN && found == Some((role.0, KeyKind::Withheld));
            if found != Some(role) && !is_withheld {
                let object = ObjectName::key(number, self.key.wrapper().fingerprint);
                return Err(VaultError::NotThatKey { url: self.store.url().to_owned(), object });
            }
        }
        Ok(())
    }
}

/// Why a key of a vault is not there for a wrapping key: it is none of this vault, or something is lost.
pub(super) async fn no_key(
    store: &Store,
    object: ObjectName,
    key: &WrappingKey,
) -> Result<VaultError, VaultError> {
    let url = store.url().to_owned();
    let given = key.wrapper();
    let listed = match list_keys(store).await {
        Ok(listed) => listed,
        // A credential that may not list: there is no hint.
        Err(VaultError::Store(StoreError::Denied { .. })) => {
            return Ok(VaultError::WrongKey { url, given, there: Vec::new() });
        }
        Err(error) => return Err(error),
    };
    let is_one = listed.iter().any(|(_, wrapper)| *wrapper == given.fingerprint);
    if is_one || listed.is_empty() {
        return Ok(VaultError::Lost { url, object, user: ObjectName::vault() });
    }
    Ok(VaultError::WrongKey { url, given, there: wrappers_in(&listed) })
}
