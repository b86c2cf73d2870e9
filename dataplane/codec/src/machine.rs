//! Sealing and opening machine objects. Layout: `farshore_proto::machine`.

use crate::error::CodecError;
use crate::keys::{KeyRing, SealKeys};
use crate::object::{no_fields, open_wholly, seal};
use farshore_proto::machine::{MachineBody, place};
use farshore_proto::{MachineId, VaultId};

/// Level of zstd: what is written seldom is written small.
const LEVEL: i32 = 3;

/// Builds the object `revision` of `machine`.
///
/// # Errors
/// `Invalid` or `Limit` if the body does not check; `Unavailable` if the operating system gives no random bytes;
/// `Internal` if sealing fails.
pub fn seal_machine(
    vault: VaultId,
    machine: MachineId,
    revision: u64,
    keys: SealKeys<'_>,
    body: &MachineBody,
) -> Result<Vec<u8>, CodecError> {
    body.check()?;
    seal(place(vault, machine, revision), keys, no_fields, &body.encode(), LEVEL)
}

/// Opens the object found as `revision` of `machine`.
///
/// # Errors
/// `Invalid` if a newer version wrote it; `Corrupt` if it is damaged, is that of another place, or was sealed under
/// another key; `NotFound` if `keys` lacks its data key; `Limit` if it is too large.
pub fn open_machine(
    object: &[u8],
    vault: VaultId,
    machine: MachineId,
    revision: u64,
    keys: &KeyRing,
) -> Result<MachineBody, CodecError> {
    Ok(open_machine_wholly(object, vault, machine, revision, keys)?.0)
}

/// The same; also whether that is all that the object says: not where a later program wrote what may be ignored.
///
/// # Errors
/// As [`open_machine`].
pub fn open_machine_wholly(
    object: &[u8],
    vault: VaultId,
    machine: MachineId,
    revision: u64,
    keys: &KeyRing,
) -> Result<(MachineBody, bool), CodecError> {
    open_wholly(
        &place(vault, machine, revision),
        object,
        keys,
        (MachineBody::decode, MachineBody::encode),
    )
}
