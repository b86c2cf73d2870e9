//! Keys as types, and what is derived from them. Nothing here can be printed.
//!
//! All derivations are BLAKE3 in its key-derivation mode under a context string of its own, so no
//! two uses can meet. Inputs of variable length are framed with their lengths.

use crate::error::CodecError;
use blake3::Hasher;
use farshore_proto::keys::DATA_KEY_BYTES;
use farshore_proto::{KeyNumber, VaultId};
use std::collections::BTreeMap;
use std::fmt;
use zeroize::Zeroizing;

/// The key material of a hasher in key-derivation mode over `parts`, each framed by its length.
pub(crate) fn derive(context: &str, parts: &[&[u8]], out: &mut [u8]) {
    let mut hasher = Hasher::new_derive_key(context);
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finalize_xof().fill(out);
    zeroize::Zeroize::zeroize(&mut hasher);
}

macro_rules! secret {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub struct $name(Zeroizing<[u8; DATA_KEY_BYTES]>);

        impl $name {
            pub(crate) fn bytes(&self) -> &[u8; DATA_KEY_BYTES] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($name), "(..)"))
            }
        }
    };
}

secret! {
    /// A data key of a vault: what everything sealed in it is derived from. Wiped when dropped.
    DataKey
}
secret! {
    /// Keys the chunk ids of a vault.
    IdKey
}
secret! {
    /// Keys the chunk cuts of a vault.
    ChunkKey
}

impl DataKey {
    /// A new random key.
    ///
    /// # Errors
    /// `Unavailable` if the operating system gives no random bytes.
    pub fn draw() -> Result<Self, CodecError> {
        let mut key = Zeroizing::new([0; DATA_KEY_BYTES]);
        getrandom::fill(&mut *key).map_err(|_| CodecError::Entropy)?;
        Ok(Self(key))
    }

    /// The key of known bytes: of an unwrapped key object, or in a test.
    #[must_use]
    pub fn from_bytes(bytes: [u8; DATA_KEY_BYTES]) -> Self {
        Self(Zeroizing::new(bytes))
    }
}

impl ChunkKey {
    /// A chunk key of an agent's own, for hashes that never leave the machine.
    ///
    /// # Errors
    /// `Unavailable` if the operating system gives no random bytes.
    pub fn draw() -> Result<Self, CodecError> {
        DataKey::draw().map(|key| Self(key.0))
    }

    pub(crate) fn expand(&self, context: &str, out: &mut [u8]) {
        derive(context, &[self.bytes()], out);
    }
}

/// The keys of a vault that must stay the same for as long as its chunks are shared.
///
/// They come from data key 1 whatever the newest data key is: with new ones, no chunk stored
/// before would be found again.
#[derive(Debug, Clone)]
pub struct VaultKeys {
    /// For `ChunkHasher`.
    pub id_key: IdKey,
    /// For `Chunker`.
    pub chunk_key: ChunkKey,
}

impl VaultKeys {
    /// The number of the data key they come from.
    pub const ROOT: KeyNumber = KeyNumber(1);

    /// Derives the keys from the vault's data key 1.
    #[must_use]
    pub fn derive(first: &DataKey, vault: VaultId) -> Self {
        let key = |context: &str| {
            let mut key = Zeroizing::new([0; DATA_KEY_BYTES]);
            derive(context, &[first.bytes(), &vault.0], &mut *key);
            key
        };
        Self {
            id_key: IdKey(key("farshore 2026 v1 chunk id key")),
            chunk_key: ChunkKey(key("farshore 2026 v1 chunk cut key")),
        }
    }
}

/// The data keys of a vault, by number.
#[derive(Debug, Clone)]
pub struct KeyRing {
    vault: VaultId,
    keys: BTreeMap<KeyNumber, DataKey>,
}

impl KeyRing {
    /// A ring without keys.
    #[must_use]
    pub fn new(vault: VaultId) -> Self {
        Self { vault, keys: BTreeMap::new() }
    }

    /// Puts a key in its place.
    pub fn insert(&mut self, number: KeyNumber, key: DataKey) {
        self.keys.insert(number, key);
    }

    /// The vault the keys are of.
    #[must_use]
    pub fn vault(&self) -> VaultId {
        self.vault
    }

    /// The key of a number.
    ///
    /// # Errors
    /// `NotFound` if the ring does not hold it.
    pub fn get(&self, number: KeyNumber) -> Result<&DataKey, CodecError> {
        self.keys.get(&number).ok_or(CodecError::NoKey { key: number })
    }

    /// The newest key, which new objects are sealed under.
    ///
    /// # Errors
    /// `NotFound` if the ring is empty.
    pub fn newest(&self) -> Result<(KeyNumber, &DataKey), CodecError> {
        let newest = self.keys.last_key_value().map(|(number, key)| (*number, key));
        newest.ok_or(CodecError::NoKey { key: VaultKeys::ROOT })
    }

    /// The keys of the vault that never change.
    ///
    /// # Errors
    /// `NotFound` if the ring does not hold data key 1.
    pub fn vault_keys(&self) -> Result<VaultKeys, CodecError> {
        Ok(VaultKeys::derive(self.get(VaultKeys::ROOT)?, self.vault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_printed() {
        let key = DataKey::from_bytes([0xab; 32]);
        let keys = VaultKeys::derive(&key, VaultId([1; 16]));
        let mut ring = KeyRing::new(VaultId([1; 16]));
        ring.insert(KeyNumber(1), key.clone());
        assert_eq!(format!("{key:?}"), "DataKey(..)");
        assert_eq!(format!("{keys:?}"), "VaultKeys { id_key: IdKey(..), chunk_key: ChunkKey(..) }");
        assert!(!format!("{ring:?}").contains("171"), "{ring:?}");
    }

    #[test]
    fn framing_keeps_parts_apart() {
        let out = |parts: &[&[u8]]| {
            let mut out = [0; 32];
            derive("farshore test", parts, &mut out);
            out
        };
        assert_ne!(out(&[b"ab", b"c"]), out(&[b"a", b"bc"]));
        assert_ne!(out(&[b"ab"]), out(&[b"ab", b""]));
    }

    #[test]
    fn a_ring_gives_the_key_asked_for_or_says_which_is_missing() {
        let mut ring = KeyRing::new(VaultId([1; 16]));
        assert_eq!(ring.newest().unwrap_err(), CodecError::NoKey { key: KeyNumber(1) });
        ring.insert(KeyNumber(1), DataKey::from_bytes([1; 32]));
        ring.insert(KeyNumber(2), DataKey::from_bytes([2; 32]));
        assert_eq!(ring.newest().unwrap().0, KeyNumber(2));
        assert_eq!(ring.get(KeyNumber(3)).unwrap_err(), CodecError::NoKey { key: KeyNumber(3) });
    }
}
