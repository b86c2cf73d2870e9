//! Sealing and opening horizons of logs. Layout: `farshore_proto::horizon`.

use crate::error::CodecError;
use crate::keys::{KeyRing, SealKeys};
use crate::object::{no_fields, open_wholly, seal};
use farshore_proto::horizon::{HorizonBody, place};
use farshore_proto::{LogId, VaultId};

/// Level of zstd: what is written seldom is written small.
const LEVEL: i32 = 3;

/// Builds horizon `number` of `log`.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
///
/// # Panics
/// If there are more volumes than the limit: a bug in the caller.
pub fn seal_horizon(
    vault: VaultId,
    log: LogId,
    number: u64,
    keys: SealKeys<'_>,
    body: &HorizonBody,
) -> Result<Vec<u8>, CodecError> {
    seal(place(vault, log, number), keys, no_fields, &body.encode(), LEVEL)
}

/// Opens the object found as horizon `number` of `log`.
///
/// # Errors
/// `Invalid` if a newer version wrote it; `Corrupt` if it is damaged, is that of another place, or was sealed under
/// another key; `NotFound` if `keys` lacks its data key; `Limit` if it is too large.
pub fn open_horizon(
    object: &[u8],
    vault: VaultId,
    log: LogId,
    number: u64,
    keys: &KeyRing,
) -> Result<HorizonBody, CodecError> {
    Ok(open_horizon_wholly(object, vault, log, number, keys)?.0)
}

/// The same; also whether that is all that the object says: not where a later program wrote what may be ignored.
///
/// # Errors
/// As [`open_horizon`].
pub fn open_horizon_wholly(
    object: &[u8],
    vault: VaultId,
    log: LogId,
    number: u64,
    keys: &KeyRing,
) -> Result<(HorizonBody, bool), CodecError> {
    let layout = (|bytes: &[u8]| HorizonBody::decode(bytes, number), HorizonBody::encode);
    open_wholly(&place(vault, log, number), object, keys, layout)
}
