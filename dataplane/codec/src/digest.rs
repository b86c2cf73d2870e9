//! The digest by which an object of the vault names another one, as it is stored.

/// BLAKE3-256 of the bytes of an object.
#[must_use]
pub fn digest(object: &[u8]) -> [u8; 32] {
    *blake3::hash(object).as_bytes()
}
