//! Who showed a certificate, and which.

use farshore_api::identity::{Role, Serial};
use uuid::Uuid;
use x509_parser::extensions::GeneralName;

/// What a certificate says of its holder. It is worth as much as the verification before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shown {
    /// The role that it names.
    pub role: Role,
    /// The identity that it names.
    pub id: Uuid,
    /// Its place in the row of the identity's certificates; 0 if it does not say.
    pub generation: u64,
    /// When it begins, in Unix time.
    pub begins_s: u64,
    /// When it ends, in Unix time.
    pub ends_s: u64,
    /// Its serial number, if it is one of ours.
    pub serial: Option<Serial>,
    /// BLAKE3 of the public key that it is for.
    pub key: blake3::Hash,
}

/// The role and id that a peer's certificate names: its only URI, in exactly our form.
#[must_use]
pub fn peer_of(certificate_der: &[u8]) -> Option<(Role, Uuid)> {
    shown_by(certificate_der).map(|shown| (shown.role, shown.id))
}

/// What a peer's certificate says.
#[must_use]
pub fn shown_by(certificate_der: &[u8]) -> Option<Shown> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate_der).ok()?;
    let names = certificate.subject_alternative_name().ok()??;
    let mut uris = names.value.general_names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some(*uri),
        _ => None,
    });
    let (uri, None) = (uris.next()?, uris.next()) else { return None };
    let (role, id) = Role::from_uri(uri)?;
    let serial = Serial::from_bytes(certificate.raw_serial());
    Some(Shown {
        role,
        id,
        generation: serial.map_or(0, |serial| serial.generation()),
        // One that begins before 1970 has begun.
        begins_s: u64::try_from(certificate.validity().not_before.timestamp()).unwrap_or(0),
        ends_s: u64::try_from(certificate.validity().not_after.timestamp()).ok()?,
        serial,
        key: blake3::hash(certificate.public_key().raw),
    })
}
