//! Chunk ids: keyed BLAKE3-256.

use crate::keys::IdKey;
use farshore_proto::ChunkId;
use farshore_proto::bugs::{Bug, is_on};

/// Computes the ids of one vault's chunks.
///
/// The key makes ids of the same bytes differ between vaults, so that an id tells nobody without
/// the key whether a vault holds a known file.
#[derive(Debug, Clone)]
pub struct ChunkHasher {
    key: IdKey,
}

impl ChunkHasher {
    /// A hasher for the vault of `key`.
    #[must_use]
    pub fn new(key: IdKey) -> Self {
        Self { key }
    }

    /// The id of a chunk's bytes.
    #[must_use]
    pub fn id(&self, bytes: &[u8]) -> ChunkId {
        let mut id = *blake3::keyed_hash(self.key.bytes(), bytes).as_bytes();
        if is_on(Bug::IdTruncated) {
            id[1..].fill(0);
        }
        ChunkId(id)
    }

    /// Whether `bytes` are those of the chunk `id`.
    #[must_use]
    pub fn is_of(&self, id: &ChunkId, bytes: &[u8]) -> bool {
        self.id(bytes) == *id
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::{RootKey, VaultKeys};
    use farshore_proto::VaultId;

    #[test]
    fn an_id_depends_on_every_byte_and_on_the_vault() {
        let key = RootKey::from_bytes([7; 32]);
        let hasher = ChunkHasher::new(VaultKeys::derive(&key, VaultId([1; 16])).id_key);
        let other = ChunkHasher::new(VaultKeys::derive(&key, VaultId([2; 16])).id_key);
        let mut bytes = vec![3_u8; 8192];
        let id = hasher.id(&bytes);
        assert!(hasher.is_of(&id, &bytes));
        assert_ne!(id, other.id(&bytes));
        for at in [0, 1, 4095, 4096, 8191] {
            bytes[at] ^= 1;
            assert!(!hasher.is_of(&id, &bytes), "byte {at}");
            bytes[at] ^= 1;
        }
    }
}
