//! Sealing and opening entries of a vault's register. Layout: `farshore_proto::register`.

use crate::error::CodecError;
use crate::keys::{KeyRing, SealKeys};
use crate::object::{no_fields, open, open_wholly, seal};
use farshore_proto::VaultId;
use farshore_proto::register::{RegisterBody, State, place};

/// Level of zstd: what is written seldom is written small.
const LEVEL: i32 = 3;

/// Builds entry `number` of the register.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
///
/// # Panics
/// If there is more of something than its limit: a bug in the caller.
pub fn seal_register(
    vault: VaultId,
    number: u64,
    keys: SealKeys<'_>,
    body: &RegisterBody,
) -> Result<Vec<u8>, CodecError> {
    seal(place(vault, number), keys, no_fields, &body.encode(), LEVEL)
}

/// Opens the object found as entry `number` of the register.
///
/// # Errors
/// `Invalid` if a newer version wrote it; `Corrupt` if it is damaged, is that of another place, or was sealed under
/// another key; `NotFound` if `keys` lacks its data key; `Limit` if it is too large.
pub fn open_register(
    object: &[u8],
    vault: VaultId,
    number: u64,
    keys: &KeyRing,
) -> Result<RegisterBody, CodecError> {
    Ok(open_register_wholly(object, vault, number, keys)?.0)
}

/// The same; also whether that is all that the object says: not where a later program wrote what may be ignored.
///
/// # Errors
/// As [`open_register`].
pub fn open_register_wholly(
    object: &[u8],
    vault: VaultId,
    number: u64,
    keys: &KeyRing,
) -> Result<(RegisterBody, bool), CodecError> {
    let layout = (|bytes: &[u8]| RegisterBody::decode(bytes, number), RegisterBody::encode);
    open_wholly(&place(vault, number), object, keys, layout)
}

/// The state that the entry says, whatever it states: a later program's, too.
///
/// # Errors
/// As [`open_register`], but for the statement.
pub fn open_register_state(
    object: &[u8],
    vault: VaultId,
    number: u64,
    keys: &KeyRing,
) -> Result<State, CodecError> {
    let (_, body) = open(&place(vault, number), object, keys)?;
    Ok(State::decode(&body)?)
}
