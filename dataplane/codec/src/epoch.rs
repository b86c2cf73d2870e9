//! Sealing and opening epoch objects. Layout: `farshore_proto::epoch`.

use crate::error::CodecError;
use crate::keys::{DataKey, KeyRing};
use crate::object::{no_fields, open, seal};
use farshore_proto::epoch::{EpochBody, place};
use farshore_proto::{DecodeError, KeyNumber, VaultId, VolumeId};

/// Level of zstd: an epoch object is small, and often shorter raw.
const LEVEL: i32 = 1;

/// Builds the epoch object `ordinal` of `volume`.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
///
/// # Panics
/// If the label is over its limit, or the body does not say how the epoch before ended if there was one: bugs in the
/// caller.
pub fn seal_epoch(
    vault: VaultId,
    volume: VolumeId,
    ordinal: u64,
    key: &DataKey,
    number: KeyNumber,
    body: &EpochBody,
) -> Result<Vec<u8>, CodecError> {
    assert_eq!(body.ended.is_some(), ordinal > 1, "says how the epoch before ended");
    seal(place(vault, volume, ordinal), key, number, no_fields, &body.encode(), LEVEL)
}

/// Opens the object found as epoch `ordinal` of `volume`.
///
/// # Errors
/// `Invalid` if a newer version wrote it; `Corrupt` if it is damaged, is that of another place, or was sealed under
/// another key; `NotFound` if `keys` lacks its data key; `Limit` if it is too large.
pub fn open_epoch(
    object: &[u8],
    vault: VaultId,
    volume: VolumeId,
    ordinal: u64,
    keys: &KeyRing,
) -> Result<EpochBody, CodecError> {
    let (_, body) = open(&place(vault, volume, ordinal), object, keys)?;
    let body = EpochBody::decode(&body)?;
    if body.ended.is_some() != (ordinal > 1) {
        let what = "end of the epoch before the first, or none of another";
        return Err(DecodeError::Range { what, value: ordinal }.into());
    }
    Ok(body)
}
