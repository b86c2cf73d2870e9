//! Sealing and opening group objects. Layout: `farshore_proto::group`.

use crate::error::CodecError;
use crate::keys::{KeyRing, SealKeys};
use crate::object::{no_fields, open_wholly, seal};
use farshore_proto::group::{GroupBody, place};
use farshore_proto::{GroupId, VaultId};

/// Level of zstd: what is written seldom is written small.
const LEVEL: i32 = 3;

/// Builds the object `revision` of `group`.
///
/// # Errors
/// `Invalid` or `Limit` if the body does not check; `Unavailable` if the operating system gives no random bytes;
/// `Internal` if sealing fails.
pub fn seal_group(
    vault: VaultId,
    group: GroupId,
    revision: u64,
    keys: SealKeys<'_>,
    body: &GroupBody,
) -> Result<Vec<u8>, CodecError> {
    body.check()?;
    seal(place(vault, group, revision), keys, no_fields, &body.encode(), LEVEL)
}

/// Opens the object found as `revision` of `group`.
///
/// # Errors
/// `Invalid` if a newer version wrote it; `Corrupt` if it is damaged, is that of another place, or was sealed under
/// another key; `NotFound` if `keys` lacks its data key; `Limit` if it is too large.
pub fn open_group(
    object: &[u8],
    vault: VaultId,
    group: GroupId,
    revision: u64,
    keys: &KeyRing,
) -> Result<GroupBody, CodecError> {
    Ok(open_group_wholly(object, vault, group, revision, keys)?.0)
}

/// The same; also whether that is all that the object says: not where a later program wrote what may be ignored.
///
/// # Errors
/// As [`open_group`].
pub fn open_group_wholly(
    object: &[u8],
    vault: VaultId,
    group: GroupId,
    revision: u64,
    keys: &KeyRing,
) -> Result<(GroupBody, bool), CodecError> {
    open_wholly(
        &place(vault, group, revision),
        object,
        keys,
        (GroupBody::decode, GroupBody::encode),
    )
}
