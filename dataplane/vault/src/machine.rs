//! Machines and groups: what a machine is made of, which volumes are marked together, and which points of a machine
//! have all of its disks.
//!
//! Both are found by listing. What counts is the newest revision, which is asked for behind the listing's end.

mod describe;
mod gather;
mod history;
mod newest;
mod point;
mod points;
mod revisions;

pub use describe::{Described, OneDisk, describe};
pub use newest::{Newest, find_complete, find_newest};
pub use point::{DiskPoint, Lack, MachinePoint};
pub use points::{MachinePoints, list_points};
pub use revisions::{Found, Revision};
pub(crate) use revisions::{last_number, read};

use crate::error::VaultError;
use crate::layout::{Folder, ObjectName};
use crate::limits::{LISTED_MAX, MACHINES_AT_ONCE};
use crate::store::Put;
use crate::vault::Vault;
use bytes::Bytes;
use farshore_codec::group::{open_group_wholly, seal_group};
use farshore_codec::machine::{open_machine_wholly, seal_machine};
use farshore_codec::{CodecError, KeyRing, SealKeys};
use farshore_proto::group::GroupBody;
use farshore_proto::machine::MachineBody;
use farshore_proto::object::ObjectKind;
use farshore_proto::{GroupId, MachineId, VaultId};
use futures::{StreamExt, TryStreamExt, stream};
use std::fmt;
use std::str::FromStr;

/// A kind of object that is written in revisions.
pub trait Revised: Sized + Send {
    /// Names one of them.
    type Id: Copy + fmt::Display + FromStr + Send + Sync;
    /// The kind of its objects.
    const KIND: ObjectKind;
    /// The folder with one child for each.
    const ALL: Folder;

    /// The name of a revision.
    fn name(id: Self::Id, revision: u64) -> ObjectName;
    /// The folder of all revisions.
    fn folder(id: Self::Id) -> Folder;
    /// Opens a revision; also whether that is all that it says.
    ///
    /// # Errors
    /// As [`open_machine_wholly`].
    fn open(
        object: &[u8],
        vault: VaultId,
        id: Self::Id,
        revision: u64,
        keys: &KeyRing,
    ) -> Result<(Self, bool), CodecError>;
    /// Seals a revision.
    ///
    /// # Errors
    /// As [`seal_machine`].
    fn seal(
        &self,
        vault: VaultId,
        id: Self::Id,
        revision: u64,
        keys: SealKeys<'_>,
    ) -> Result<Vec<u8>, CodecError>;
}

macro_rules! revised {
    ($body:ty, $id:ty, $kind:ident in $all:ident, $name:ident, $open:ident, $seal:ident) => {
        impl Revised for $body {
            type Id = $id;
            const KIND: ObjectKind = ObjectKind::$kind;
            const ALL: Folder = Folder::$all;

            fn name(id: $id, revision: u64) -> ObjectName {
                ObjectName::$name(id, revision)
            }

            fn folder(id: $id) -> Folder {
                Folder::$kind(id)
            }

            fn open(
                object: &[u8],
                vault: VaultId,
                id: $id,
                revision: u64,
                keys: &KeyRing,
            ) -> Result<(Self, bool), CodecError> {
                $open(object, vault, id, revision, keys)
            }

            fn seal(
                &self,
                vault: VaultId,
                id: $id,
                revision: u64,
                keys: SealKeys<'_>,
            ) -> Result<Vec<u8>, CodecError> {
                $seal(vault, id, revision, keys, self)
            }
        }
    };
}

revised!(MachineBody, MachineId, Machine in Machines, machine, open_machine_wholly, seal_machine);
revised!(GroupBody, GroupId, Group in Groups, group, open_group_wholly, seal_group);

/// How a put of a revision ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Revise {
    /// It is there, as it was given.
    Put {
        /// Its number.
        revision: u64,
    },
    /// Another one was there first: read it, and decide again.
    Lost,
}

/// Puts `body` as the revision behind the first `held`, which the caller has read.
///
/// Calling again with the same body after an error or a crash gives the same answer.
///
/// # Errors
/// `Invalid`, `Corrupt` or `Limit` if the body is none that a reader takes; `Corrupt` if what was there first does not
/// open; `Unavailable` (also when full: `is_no_space`).
pub async fn put<K: Revised + PartialEq>(
    vault: &Vault,
    id: K::Id,
    held: u64,
    body: &K,
) -> Result<Revise, VaultError> {
    let revision = held + 1;
    let name = K::name(id, revision);
    let keys = vault.seal_keys();
    let object = body
        .seal(vault.id(), id, revision, keys)
        .map_err(|cause| VaultError::Seal { object: name.clone(), cause: Box::new(cause) })?;
    if vault.store().create(&name, Bytes::from(object)).await? == Put::Created {
        return Ok(Revise::Put { revision });
    }
    match read::<K>(vault, id, revision).await? {
        Some(found) if found.body == *body => {
            vault.store().settle(&name).await?;
            Ok(Revise::Put { revision })
        }
        _ => Ok(Revise::Lost),
    }
}

/// The newest revision of a machine or group; nothing if the vault has none.
///
/// # Errors
/// `Unavailable`; `Limit`.
pub async fn find<K: Revised>(vault: &Vault, id: K::Id) -> Result<Option<Found<K>>, VaultError> {
    revisions::newest::<K>(vault, id).await
}

/// All machines, or all groups, of a vault, in the order of their ids, whatever is damaged. Names that are not ids are
/// passed over.
///
/// # Errors
/// `Unavailable`; `Limit`.
pub async fn find_all<K: Revised>(vault: &Vault) -> Result<Vec<(K::Id, Found<K>)>, VaultError> {
    let mut names = vault.store().children(K::ALL).await?;
    if names.len() > LISTED_MAX {
        let (url, max) = (vault.url().to_owned(), LISTED_MAX as u64);
        return Err(VaultError::Limit { url, what: "machines or groups", max });
    }
    names.sort_unstable();
    let ids: Vec<K::Id> = names.iter().filter_map(|name| name.parse().ok()).collect();
    let found = stream::iter(ids).map(|id| async move {
        Ok::<_, VaultError>(find::<K>(vault, id).await?.map(|found| (id, found)))
    });
    let found: Vec<_> = found.buffered(MACHINES_AT_ONCE).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests;
