//! Sealing and opening the parts of maps. Layout: `farshore_proto::map`.

use crate::error::CodecError;
use crate::keys::{DataKey, KeyRing};
use crate::object::{OpenObject, seal};
use crate::seal::Implementation;
use farshore_proto::map::{MapBody, MapFields, MapHeader};
use farshore_proto::object::ObjectPlace;
use farshore_proto::{KeyNumber, Seq, VaultId, VolumeId};

/// The place of a part in the vault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MapPlace {
    /// The vault.
    pub vault: VaultId,
    /// The volume.
    pub volume: VolumeId,
    /// The seq of the map.
    pub seq: Seq,
    /// The number of the part.
    pub part: u32,
}

impl MapPlace {
    fn place(self) -> ObjectPlace {
        let Self { vault, volume, seq, part } = self;
        MapHeader::place(vault, volume, seq, part)
    }
}

/// Builds a part of a map, compressed with zstd at `level`.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if sealing fails.
///
/// # Panics
/// If something is over its limit: a bug in the caller.
pub fn seal_map(
    at: MapPlace,
    fields: &MapFields,
    key: &DataKey,
    number: KeyNumber,
    body: &MapBody,
    level: i32,
) -> Result<Vec<u8>, CodecError> {
    seal(at.place(), key, number, |out| fields.put(out), &body.encode(), level)
}

/// Opens the object found as the part `at` of a map.
///
/// # Errors
/// `Invalid` if a newer version wrote it; `Corrupt` if it is damaged, is that of another place, or was sealed under
/// another key; `NotFound` if `keys` lacks its data key; `Limit` if it claims more than a part may be.
pub fn open_map(
    object: &[u8],
    at: MapPlace,
    keys: &KeyRing,
) -> Result<(MapHeader, MapBody), CodecError> {
    let opened = OpenObject::read(Implementation::AwsLc, &at.place(), object, keys)?;
    let header = MapHeader::of(opened.header, opened.own_fields())?;
    let body = opened.open_body(&object[opened.header.header_bytes..])?;
    Ok((header, MapBody::decode(&body)?))
}

/// Reads the head of the part `at`, of which `front` holds at least the header: it serves to choose what to open.
///
/// # Errors
/// As [`open_map`].
pub fn peek_map(front: &[u8], at: MapPlace, keys: &KeyRing) -> Result<MapHeader, CodecError> {
    let opened = OpenObject::read(Implementation::AwsLc, &at.place(), front, keys)?;
    Ok(MapHeader::of(opened.header, opened.own_fields())?)
}
