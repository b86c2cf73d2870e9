//! Sealing and opening index runs. Layout: `farshore_proto::index_run`.

use crate::error::CodecError;
use crate::keys::{KeyRing, SealKeys};
use crate::object::{no_fields, open, seal};
use farshore_proto::index_run::{IndexRun, place};
use farshore_proto::{RunId, VaultId};

/// Builds the run `run`, compressed with zstd at `level`.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
///
/// # Panics
/// If something is over its limit or out of order: a bug in the caller.
pub fn seal_index_run(
    vault: VaultId,
    run: RunId,
    keys: SealKeys<'_>,
    body: &IndexRun,
    level: i32,
) -> Result<Vec<u8>, CodecError> {
    seal(place(vault, run), keys, no_fields, &body.encode(), level)
}

/// Opens the object found as the run `run`.
///
/// # Errors
/// `Invalid` if a newer version wrote it; `Corrupt` if it is damaged, is another run, or was sealed under another
/// key; `NotFound` if `keys` lacks its data key; `Limit` if it claims more than a run may be.
pub fn open_index_run(
    object: &[u8],
    vault: VaultId,
    run: RunId,
    keys: &KeyRing,
) -> Result<IndexRun, CodecError> {
    let (_, body) = open(&place(vault, run), object, keys)?;
    Ok(IndexRun::decode(&body)?)
}
