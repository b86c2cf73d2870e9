//! Sealing and opening bases of volumes. Layout: `farshore_proto::base`.

use crate::error::CodecError;
use crate::keys::{KeyRing, SealKeys};
use crate::object::{no_fields, open_wholly, seal};
use farshore_proto::base::{BaseBody, place};
use farshore_proto::{VaultId, VolumeId};

/// Level of zstd: what is written seldom is written small.
const LEVEL: i32 = 3;

/// Builds the base of `volume` with a number.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
///
/// # Panics
/// If there are more points than the limit: a bug in the caller.
pub fn seal_base(
    vault: VaultId,
    volume: VolumeId,
    base: u64,
    keys: SealKeys<'_>,
    body: &BaseBody,
) -> Result<Vec<u8>, CodecError> {
    seal(place(vault, volume, base), keys, no_fields, &body.encode(), LEVEL)
}

/// Opens the object found as the base of `volume` with a number.
///
/// # Errors
/// `Invalid` if a newer version wrote it; `Corrupt` if it is damaged, is that of another place, or was sealed under
/// another key; `NotFound` if `keys` lacks its data key; `Limit` if it is too large.
pub fn open_base(
    object: &[u8],
    vault: VaultId,
    volume: VolumeId,
    base: u64,
    keys: &KeyRing,
) -> Result<BaseBody, CodecError> {
    Ok(open_base_wholly(object, vault, volume, base, keys)?.0)
}

/// The same; also whether that is all that the object says: not where a later program wrote what may be ignored.
///
/// # Errors
/// As [`open_base`].
pub fn open_base_wholly(
    object: &[u8],
    vault: VaultId,
    volume: VolumeId,
    base: u64,
    keys: &KeyRing,
) -> Result<(BaseBody, bool), CodecError> {
    let layout = (|bytes: &[u8]| BaseBody::decode(bytes, base), BaseBody::encode);
    open_wholly(&place(vault, volume, base), object, keys, layout)
}
