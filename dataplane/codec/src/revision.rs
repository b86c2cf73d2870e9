//! Sealing and opening revisions of a vault. Layout: `farshore_proto::revision`.

use crate::error::CodecError;
use crate::keys::{KeyRing, SealKeys};
use crate::object::{no_fields, open_wholly, seal};
use farshore_proto::object::{Claim, ObjectKind};
use farshore_proto::revision::{RevisionBody, place};
use farshore_proto::{KeyNumber, VaultId};

/// Level of zstd: what is written seldom is written small.
const LEVEL: i32 = 3;

/// Builds revision `number` of a vault.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
///
/// # Panics
/// If there is more of something than its limit: a bug in the caller.
pub fn seal_revision(
    vault: VaultId,
    number: u64,
    keys: SealKeys<'_>,
    body: &RevisionBody,
) -> Result<Vec<u8>, CodecError> {
    seal(place(vault, number), keys, no_fields, &body.encode(), LEVEL)
}

/// The key of the vault's own that the object, found as a revision, goes by: it may be one that only the revision names.
/// Nothing of the object is authenticated by that.
///
/// # Errors
/// `Invalid` if a newer version wrote it; `Corrupt` if it is none.
pub fn key_of_revision(object: &[u8]) -> Result<KeyNumber, CodecError> {
    Ok(Claim::read(ObjectKind::Revision, object)?.own_key)
}

/// Opens the object found as revision `number` of a vault; also whether that is all that the object says: not where a
/// later program wrote what may be ignored.
///
/// # Errors
/// `Invalid` if a newer version wrote it; `Corrupt` if it is damaged, is that of another place, or commits to another
/// key; `NotFound` if `keys` lacks its data key; `Limit` if it is too large.
pub fn open_revision_wholly(
    object: &[u8],
    vault: VaultId,
    number: u64,
    keys: &KeyRing,
) -> Result<(RevisionBody, bool), CodecError> {
    open_wholly(&place(vault, number), object, keys, (RevisionBody::decode, RevisionBody::encode))
}
