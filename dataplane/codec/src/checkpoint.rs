//! Sealing and opening checkpoints of logs. Layout: `farshore_proto::checkpoint`.

use crate::error::CodecError;
use crate::keys::{KeyRing, SealKeys};
use crate::object::{no_fields, open, seal};
use farshore_proto::checkpoint::{CheckpointBody, place};
use farshore_proto::{LogId, Slot, VaultId};

/// Level of zstd: what is written seldom is written small.
const LEVEL: i32 = 3;

/// Builds the checkpoint of `log` that says what stands below `slot`.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
///
/// # Panics
/// If there are more volumes than the limit: a bug in the caller.
pub fn seal_checkpoint(
    vault: VaultId,
    log: LogId,
    slot: Slot,
    keys: SealKeys<'_>,
    body: &CheckpointBody,
) -> Result<Vec<u8>, CodecError> {
    seal(place(vault, log, slot), keys, no_fields, &body.encode(), LEVEL)
}

/// Opens the object found as the checkpoint of `log` at `slot`.
///
/// # Errors
/// `Invalid` if a newer version wrote it; `Corrupt` if it is damaged, is that of another place, or was sealed under
/// another key; `NotFound` if `keys` lacks its data key; `Limit` if it is too large.
pub fn open_checkpoint(
    object: &[u8],
    vault: VaultId,
    log: LogId,
    slot: Slot,
    keys: &KeyRing,
) -> Result<CheckpointBody, CodecError> {
    let (_, body) = open(&place(vault, log, slot), object, keys)?;
    Ok(CheckpointBody::decode(&body, slot)?)
}
