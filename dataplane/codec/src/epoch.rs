//! Sealing and opening epoch objects. Layout: `farshore_proto::epoch`.

use crate::error::CodecError;
use crate::keys::{KeyRing, SealKeys};
use crate::object::{key_at, no_fields, open, seal, with_context};
use crate::seal::{Domain, Implementation, Purpose, Sealer};
use farshore_proto::epoch::{EpochBody, SealedLabel, place};
use farshore_proto::object::ObjectPlace;
use farshore_proto::{DecodeError, Domain as Domains, VaultId, VolumeId};

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
    keys: SealKeys<'_>,
    body: &EpochBody,
) -> Result<Vec<u8>, CodecError> {
    assert_eq!(body.ended.is_some(), ordinal > 1, "says how the epoch before ended");
    let place = place(vault, volume, ordinal);
    let label = seal_label(&place, keys, &body.label)?;
    seal(place, keys, no_fields, &body.encode(label.as_ref()), LEVEL)
}

/// Nothing, if there is no label. Its key is another than that of the epoch, of a salt of its own.
fn seal_label(
    place: &ObjectPlace,
    keys: SealKeys<'_>,
    label: &str,
) -> Result<Option<SealedLabel>, CodecError> {
    if label.is_empty() {
        return Ok(None);
    }
    let (key, data) = keys.data;
    let mut sealer = with_context(place, |context| Sealer::draw(data, Purpose::Object, context))?;
    let mut sealed = label.as_bytes().to_vec();
    sealer.seal(Domain::Label, &[], &mut sealed)?;
    Ok(Some(SealedLabel { key, salt: *sealer.salt(), sealed }))
}

/// Empty if its data key is not there: an epoch serves without, as who seals the log of an erased domain must.
fn open_label(
    place: &ObjectPlace,
    keys: &KeyRing,
    label: &SealedLabel,
) -> Result<String, CodecError> {
    let Ok(data) = keys.get_of(Domains::FIRST, label.key) else { return Ok(String::new()) };
    let key = key_at(Implementation::AwsLc, place, data, &label.salt);
    let mut sealed = label.sealed.clone();
    let bytes = key.open_in_place(Domain::Label, 0, &[], &mut sealed)?;
    let text = String::from_utf8(bytes.to_vec());
    Ok(text.map_err(|_| DecodeError::Text { what: "epoch label" })?)
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
    let place = place(vault, volume, ordinal);
    let (_, body) = open(&place, object, keys)?;
    let (mut body, label) = EpochBody::decode(&body)?;
    if let Some(label) = label {
        body.label = open_label(&place, keys, &label)?;
    }
    if body.ended.is_some() != (ordinal > 1) {
        let what = "end of the epoch before the first, or none of another";
        return Err(DecodeError::Range { what, value: ordinal }.into());
    }
    Ok(body)
}
