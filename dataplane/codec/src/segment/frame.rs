//! Sealed frames: what is bound to one, and how one is opened, with the segment's header at hand or without.

use crate::compress::decompress;
use crate::error::CodecError;
use crate::keys::KeyRing;
use crate::object::key_at;
use crate::seal::{Domain, Implementation, OpenKey, SALT_BYTES};
use farshore_proto::limits::SEGMENT_FRAME_BYTES_MAX;
use farshore_proto::map::FrameAt;
use farshore_proto::object::{Compression, ObjectPlace};
use farshore_proto::segment::{SegmentFrame, SegmentHeader};
use farshore_proto::wire::Put;
use farshore_proto::{Attempt, VaultId};

pub(super) const FRAME: &str = "segment frame";
const FRAME_AAD_BYTES: usize = 56;

pub(super) fn frame_aad(place: &ObjectPlace, number: u32, frame: &SegmentFrame) -> Vec<u8> {
    aad(place, number, frame.raw_bytes, frame.compression)
}

/// What is bound to a part of an object behind its body: its place and shape.
pub(crate) fn aad(
    place: &ObjectPlace,
    number: u32,
    raw_bytes: u32,
    compression: Compression,
) -> Vec<u8> {
    let mut aad = Vec::with_capacity(FRAME_AAD_BYTES);
    aad.put_bytes(&place.vault.0);
    aad.put_bytes(&place.subject);
    aad.put_u64(place.number);
    aad.put_u32(number);
    aad.put_u32(raw_bytes);
    aad.put_u8(compression.code());
    aad.put_zeros(FRAME_AAD_BYTES - aad.len());
    aad
}

/// Opens `sealed`, which is to have the segment's salt at its end, appending the bytes to `out`.
pub(super) fn open_frame(
    key: &OpenKey,
    place: &ObjectPlace,
    salt: &[u8; SALT_BYTES],
    number: u32,
    frame: &SegmentFrame,
    sealed: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let (sealed, found) = split(sealed, frame)?;
    if found != salt {
        return Err(CodecError::Tampered { what: FRAME });
    }
    let aad = frame_aad(place, number, frame);
    let mut copy = sealed.to_vec();
    let stored = key.open_in_place(Domain::Frame, number.into(), &aad, &mut copy)?;
    let raw_bytes = frame.raw_bytes as usize;
    decompress(FRAME, frame.compression, stored, raw_bytes, SEGMENT_FRAME_BYTES_MAX, out)
}

fn split<'a>(
    sealed: &'a [u8],
    frame: &SegmentFrame,
) -> Result<(&'a [u8], &'a [u8; SALT_BYTES]), CodecError> {
    let (expected, found) = (u64::from(frame.stored_bytes), sealed.len() as u64);
    match sealed.split_last_chunk() {
        Some(parts) if expected == found => Ok(parts),
        _ => Err(CodecError::Length { what: FRAME, expected, found }),
    }
}

/// Opens the frame `at`, found where it says, without the segment's header and table; appends the bytes to `out`.
///
/// What vouches for `at` is whoever wrote it: an authentic page of a map.
///
/// # Errors
/// `Corrupt` if the bytes are not those that were sealed there, or of another attempt at the slot (then
/// [`CodecError::Attempt`]); `NotFound` if `keys` lacks the data key. `out` is as before then.
pub fn open_frame_at(
    vault: VaultId,
    at: &FrameAt,
    sealed: &[u8],
    keys: &KeyRing,
    out: &mut Vec<u8>,
) -> Result<(), CodecError> {
    let (_, salt) = split(sealed, &at.frame)?;
    if Attempt::of(salt) != at.target.attempt {
        return Err(CodecError::Attempt { what: FRAME });
    }
    let place = SegmentHeader::place(vault, at.target.log, at.target.slot);
    let key = key_at(Implementation::AwsLc, &place, keys.get(at.key)?, salt);
    open_frame(&key, &place, salt, at.number, &at.frame, sealed, out)
}

#[cfg(test)]
mod tests;
