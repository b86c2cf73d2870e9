//! Sealing and opening the objects of a vault: one way for all kinds. Layout: `farshore_proto::object`.
//!
//! The key comes from data key, salt and place. The commitment is a MAC of the header under a key that comes from the
//! vault's own in the same way, and is compared before anything in the header is acted on. The body's AAD is the whole
//! header.

use crate::compress::{Compressor, decompress};
use crate::error::{CodecError, Place};
use crate::keys::{DataKey, KeyRing, SealKeys};
use crate::seal::{CommitKey, Domain, Implementation, OpenKey, Purpose, SALT_BYTES, Sealer};
use farshore_proto::limits::TAG_BYTES;
use farshore_proto::object::{Claim, ObjectHeader, ObjectPlace, commit, committed};
use farshore_proto::wire::Reader;
use farshore_proto::{DecodeError, Domain as DedupDomain, KeyNumber};

/// Calls `with` with the context that the key of an object at `place` is derived in.
pub(crate) fn with_context<T>(place: &ObjectPlace, with: impl FnOnce(&[&[u8]]) -> T) -> T {
    let ObjectPlace { kind, vault, subject, number, part } = place;
    with(&[&kind.magic(), &vault.0, subject, &number.to_le_bytes(), &part.to_le_bytes()])
}

/// The key of the object at `place` that has this salt.
pub(crate) fn key_at(
    implementation: Implementation,
    place: &ObjectPlace,
    key: &DataKey,
    salt: &[u8; SALT_BYTES],
) -> OpenKey {
    with_context(place, |context| {
        OpenKey::derive_for(implementation, key, Purpose::Object, context, salt)
    })
}

fn commit_key_at(place: &ObjectPlace, key: &DataKey, salt: &[u8; SALT_BYTES]) -> CommitKey {
    with_context(place, |context| CommitKey::derive(key, Purpose::Object, context, salt))
}

/// Seals one object under a salt of its own.
///
/// A failed attempt is dropped, never resumed: the next one is a new sealer with a new salt.
#[derive(Debug)]
pub(crate) struct ObjectSealer {
    pub(crate) place: ObjectPlace,
    variant: u8,
    /// What its body goes by.
    under: (DedupDomain, KeyNumber),
    /// What its commitment goes by.
    own_key: KeyNumber,
    committing: CommitKey,
    pub(crate) sealer: Sealer,
    /// The same key in the other implementation: it opens what was sealed before anything rests on it.
    pub(crate) cross: OpenKey,
}

impl ObjectSealer {
    /// For an object at `place` that its kind says is a `variant`.
    pub(crate) fn draw(
        place: ObjectPlace,
        variant: u8,
        keys: SealKeys<'_>,
    ) -> Result<Self, CodecError> {
        let (own_key, committing) = keys.own;
        let (domain, number, key) = match place.kind.is_own(variant) {
            Some(true) => (DedupDomain::OWN, own_key, committing),
            _ => (DedupDomain::FIRST, keys.data.0, keys.data.1),
        };
        let (sealer, cross) = with_context(&place, |context| {
            let sealer = Sealer::draw(key, Purpose::Object, context)?;
            let other = Implementation::RustCrypto;
            let cross = OpenKey::derive_for(other, key, Purpose::Object, context, sealer.salt());
            Ok::<_, CodecError>((sealer, cross))
        })?;
        let committing = commit_key_at(&place, committing, sealer.salt());
        let under = (domain, number);
        Ok(Self { place, variant, under, own_key, committing, sealer, cross })
    }

    /// Compresses and seals the body; gives the header, and header and body laid out.
    pub(crate) fn seal_body(
        &mut self,
        compressor: &mut Compressor,
        own: impl FnOnce(&mut Vec<u8>),
        raw: &[u8],
    ) -> Result<(ObjectHeader, Vec<u8>), CodecError> {
        let mut stored = Vec::new();
        let compression = compressor.compress(raw, &mut stored)?;
        let mut header = ObjectHeader {
            place: self.place,
            domain: self.under.0,
            key: self.under.1,
            own_key: self.own_key,
            variant: self.variant,
            compression,
            body_bytes: stored.len() + TAG_BYTES,
            body_raw_bytes: raw.len(),
            salt: *self.sealer.salt(),
            commitment: [0; 32],
            header_bytes: self.place.kind.header_bytes(),
        };
        let mut object = header.encode(own);
        header.commitment = self.committing.commit(&committed(&object));
        commit(&mut object, &header.commitment);
        self.sealer.seal(Domain::Body, &object, &mut stored)?;
        check_body(&self.cross, &header, &object, &stored, raw)?;
        object.reserve_exact(stored.len());
        object.extend_from_slice(&stored);
        Ok((header, object))
    }
}

/// Opens the body just sealed with the other implementation: a lost body loses the object, and it is small.
fn check_body(
    cross: &OpenKey,
    header: &ObjectHeader,
    head: &[u8],
    sealed: &[u8],
    raw: &[u8],
) -> Result<(), CodecError> {
    let opened = open_body(cross, header, head, sealed);
    if opened.is_ok_and(|opened| opened == raw) {
        return Ok(());
    }
    Err(CodecError::Unverified { what: header.place.kind.what() })
}

fn open_body(
    key: &OpenKey,
    header: &ObjectHeader,
    head: &[u8],
    sealed: &[u8],
) -> Result<Vec<u8>, CodecError> {
    let kind = header.place.kind;
    let mut copy = sealed.to_vec();
    let stored = key.open_in_place(Domain::Body, 0, head, &mut copy)?;
    let mut raw = Vec::new();
    let (raw_bytes, max) = (header.body_raw_bytes, kind.body_bytes_max());
    decompress(kind.what(), header.compression, stored, raw_bytes, max, &mut raw)?;
    Ok(raw)
}

/// Builds a whole object that is header and body, nothing else; `own` appends the kind's own fields of the header.
///
/// # Errors
/// `Unavailable` if the operating system gives no random bytes; `Internal` if compressing or sealing fails.
///
/// # Panics
/// If the body is over its limit: a bug in the caller.
pub(crate) fn seal(
    place: ObjectPlace,
    keys: SealKeys<'_>,
    own: impl FnOnce(&mut Vec<u8>),
    body: &[u8],
    level: i32,
) -> Result<Vec<u8>, CodecError> {
    let mut sealer = ObjectSealer::draw(place, 0, keys)?;
    let (_, object) = sealer.seal_body(&mut Compressor::new(level), own, body)?;
    Ok(object)
}

/// Builds a whole object of a body that is laid out: also one that a later program laid out.
///
/// # Errors
/// As sealing an object of the kind.
pub fn seal_bytes(
    place: ObjectPlace,
    keys: SealKeys<'_>,
    body: &[u8],
) -> Result<Vec<u8>, CodecError> {
    seal(place, keys, no_fields, body, 1)
}

/// Fields of a kind that has none of its own: what is left of its header.
pub(crate) fn no_fields(out: &mut Vec<u8>) {
    out.extend_from_slice(&[0; 4]);
}

/// An object whose header is authenticated, to open its body with.
#[derive(Debug)]
pub(crate) struct OpenObject {
    pub(crate) header: ObjectHeader,
    /// Of what is sealed; `None` if the data key is not there.
    key: Option<OpenKey>,
    head: Vec<u8>,
}

impl OpenObject {
    /// Reads the header at the front of the object found at `place`. That serves without the data key of the body.
    ///
    /// # Errors
    /// `Invalid` if a newer version wrote it; `Corrupt` if it is damaged, is that of another place, or commits to
    /// another key; `NotFound` if `keys` lacks the key that it commits to; `Limit` if it claims more than an object may
    /// be.
    pub(crate) fn read(
        implementation: Implementation,
        place: &ObjectPlace,
        object: &[u8],
        keys: &KeyRing,
    ) -> Result<Self, CodecError> {
        let claim = Claim::read(place.kind, object)?;
        if claim.place != *place {
            let (expected, found) = (Place::Object(*place), Place::Object(claim.place));
            return Err(CodecError::Misplaced { expected, found });
        }
        // Its number is nothing that is authentic: that it is not there says nothing but that.
        let own_key = keys.own(claim.own_key);
        let own_key = own_key.map_err(|_| CodecError::NoOwnKey { key: claim.own_key })?;
        let committing = commit_key_at(place, own_key, &claim.salt);
        let parts = committed(claim.head);
        committing.check(&parts, &claim.commitment, place.kind.what(), claim.own_key)?;
        let (header, _) = ObjectHeader::decode(place.kind, object)?;
        if header.domain > DedupDomain::FIRST {
            let (what, bit) = (place.kind.what(), header.domain.0);
            return Err(DecodeError::Newer { what, feature: "domain", bit }.into());
        }
        let key = keys.get_of(header.domain, header.key).ok();
        let key = key.map(|key| key_at(implementation, place, key, &header.salt));
        Ok(Self { header, key, head: claim.head.to_vec() })
    }

    /// The key of what is sealed.
    ///
    /// # Errors
    /// `NotFound` if the data key was not there.
    pub(crate) fn key(&self) -> Result<&OpenKey, CodecError> {
        self.key.as_ref().ok_or(CodecError::NoKey { key: self.header.key })
    }

    /// The same, for who needs no more of it.
    pub(crate) fn into_key(self) -> Result<OpenKey, CodecError> {
        self.key.ok_or(CodecError::NoKey { key: self.header.key })
    }

    /// A reader of the fields that only its kind has.
    pub(crate) fn own_fields(&self) -> Reader<'_> {
        self.header.own_fields(&self.head)
    }

    /// Opens the body out of its bytes in the object.
    ///
    /// # Errors
    /// `Corrupt` if they are not what was sealed; `NotFound` if the data key was not there.
    pub(crate) fn open_body(&self, sealed: &[u8]) -> Result<Vec<u8>, CodecError> {
        let expected = self.header.body_bytes as u64;
        if sealed.len() as u64 != expected {
            let (what, found) = (self.header.place.kind.what(), sealed.len() as u64);
            return Err(CodecError::Length { what, expected, found });
        }
        open_body(self.key()?, &self.header, &self.head, sealed)
    }
}

/// Opens an object that is header and body, nothing else.
///
/// # Errors
/// As `OpenObject::read` and `OpenObject::open_body`.
pub(crate) fn open(
    place: &ObjectPlace,
    object: &[u8],
    keys: &KeyRing,
) -> Result<(ObjectHeader, Vec<u8>), CodecError> {
    let opened = OpenObject::read(Implementation::AwsLc, place, object, keys)?;
    let body = opened.open_body(&object[opened.header.header_bytes..])?;
    Ok((opened.header, body))
}

/// Opens an object that is header and body, nothing else, whose body is decoded and encoded so; also tells whether that is all that it says:
/// not where a later program wrote what may be ignored.
///
/// # Errors
/// As [`open`], and as decoding.
pub(crate) fn open_wholly<B>(
    place: &ObjectPlace,
    object: &[u8],
    keys: &KeyRing,
    (decode, encode): (impl FnOnce(&[u8]) -> Result<B, DecodeError>, impl FnOnce(&B) -> Vec<u8>),
) -> Result<(B, bool), CodecError> {
    let (header, bytes) = open(place, object, keys)?;
    let body = decode(&bytes)?;
    let is_all = header.is_all_known(object) && encode(&body) == bytes;
    Ok((body, is_all))
}

#[cfg(test)]
mod tests;
