//! Wrapped data keys. Layout and rules: `docs/formats/keys.md`.

use crate::error::DecodeError;
use crate::ids::{KeyNumber, VaultId};
use crate::limits::TAG_BYTES;
use crate::wire::{Put, Reader, check_crc, put_crc};

const MAGIC: [u8; 4] = *b"FSKY";
const VERSION: u16 = 1;
/// Bytes of a data key.
pub const DATA_KEY_BYTES: usize = 32;
/// Bytes of a wrapped key object.
pub const KEY_OBJECT_BYTES: usize = 128;

/// The object `keys/<n>`: a data key wrapped by the key-encryption key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyObject {
    /// The vault it belongs to.
    pub vault: VaultId,
    /// Its number.
    pub key: KeyNumber,
    /// Tells which key-encryption key wraps it, without telling anything else about it.
    pub wrapper: [u8; 8],
    /// Nonce of the wrapping.
    pub nonce: [u8; 12],
    /// The wrapped key and its tag.
    pub wrapped: [u8; DATA_KEY_BYTES + TAG_BYTES],
}

impl KeyObject {
    /// The bytes that the wrapping authenticates besides the key.
    #[must_use]
    pub fn aad(vault: VaultId, key: KeyNumber) -> Vec<u8> {
        let mut out = Vec::with_capacity(28);
        out.put_bytes(&MAGIC);
        out.put_u16(VERSION);
        out.put_bytes(&vault.0);
        out.put_u32(key.0);
        out
    }

    /// Lays the object out.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(KEY_OBJECT_BYTES);
        out.put_bytes(&MAGIC);
        out.put_u16(VERSION);
        out.put_zeros(2);
        out.put_bytes(&self.vault.0);
        out.put_u32(self.key.0);
        out.put_bytes(&self.wrapper);
        out.put_bytes(&self.nonce);
        out.put_bytes(&self.wrapped);
        out.put_zeros(KEY_OBJECT_BYTES - 4 - out.len());
        put_crc(&mut out, 0);
        out
    }

    /// Reads the object.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("key object", bytes);
        reader.magic(MAGIC)?;
        reader.version(VERSION)?;
        if bytes.len() != KEY_OBJECT_BYTES {
            return Err(DecodeError::Truncated {
                what: "key object",
                needed: KEY_OBJECT_BYTES,
                have: bytes.len(),
            });
        }
        check_crc("key object", bytes)?;
        reader.reserved(2)?;
        let object = Self {
            vault: VaultId(reader.array()?),
            key: KeyNumber(reader.u32()?),
            wrapper: reader.array()?,
            nonce: reader.array()?,
            wrapped: reader.array()?,
        };
        reader.reserved(reader.left() - 4)?;
        Ok(object)
    }
}
