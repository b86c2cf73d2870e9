//! Keys as types, and what is derived from them. Nothing here can be printed.
//!
//! All derivations are BLAKE3 in its key-derivation mode under a context string of its own, so no
//! two uses can meet. Inputs of variable length are framed with their lengths.

use crate::error::CodecError;
use blake3::Hasher;
use farshore_proto::keys::{DATA_KEY_BYTES, KeyKind};
use farshore_proto::vault::{DomainKeys, OWN_KEY};
use farshore_proto::{Domain, KeyNumber, VaultId};
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
    /// The root key of a dedup domain: what the keys of its chunk ids and cuts are derived from. Nothing is
    /// sealed under it. Wiped when dropped.
    RootKey
}
secret! {
    /// Keys the chunk ids of a vault.
    IdKey
}
secret! {
    /// Keys the chunk cuts of a vault.
    ChunkKey
}

macro_rules! drawn {
    ($name:ident) => {
        impl $name {
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
    };
}

secret! {
    /// A key of a kind that is not known: passed on as it is. Wiped when dropped.
    OtherKey
}
drawn!(DataKey);
drawn!(RootKey);

/// A key of a vault, of whatever kind.
#[derive(Debug, Clone)]
pub enum VaultKey {
    /// Things are sealed under it.
    Data(DataKey),
    /// Chunk ids and cuts come from it.
    Root(RootKey),
    /// None: the key is not for what wraps it.
    Withheld,
    /// One of a later program's kinds: its code, at least [`KeyKind::OTHER_KINDS`].
    Other(u8, OtherKey),
}

/// What stands in the place of a key that is withheld.
const NO_KEY: &[u8; DATA_KEY_BYTES] = &[0; DATA_KEY_BYTES];

impl VaultKey {
    /// One of a kind that is not known.
    ///
    /// # Panics
    /// If the code is below [`KeyKind::OTHER_KINDS`].
    #[must_use]
    pub fn other(code: u8, bytes: [u8; DATA_KEY_BYTES]) -> Self {
        assert!(code >= KeyKind::OTHER_KINDS, "others may be passed over");
        Self::Other(code, OtherKey(Zeroizing::new(bytes)))
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> KeyKind {
        match self {
            Self::Data(_) => KeyKind::Data,
            Self::Root(_) => KeyKind::Root,
            Self::Withheld => KeyKind::Withheld,
            Self::Other(code, _) => KeyKind::Other(*code),
        }
    }

    pub(crate) fn from_bytes(kind: KeyKind, bytes: [u8; DATA_KEY_BYTES]) -> Self {
        match kind {
            KeyKind::Data => Self::Data(DataKey::from_bytes(bytes)),
            KeyKind::Root => Self::Root(RootKey::from_bytes(bytes)),
            KeyKind::Withheld => Self::Withheld,
            KeyKind::Other(code) => Self::other(code, bytes),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8; DATA_KEY_BYTES] {
        match self {
            Self::Data(key) => key.bytes(),
            Self::Root(key) => key.bytes(),
            Self::Withheld => NO_KEY,
            Self::Other(_, key) => key.bytes(),
        }
    }

    /// Whether both are the same key.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        // Compared in one go, so that how long it takes tells nothing.
        let digest = |key: &Self| blake3::hash(key.bytes());
        self.kind() == other.kind() && digest(self) == digest(other)
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

/// The keys of a dedup domain that must stay the same for as long as its chunks are shared.
///
/// They come from the domain's root key whatever the newest data key is: with new ones, no chunk stored
/// before would be found again.
#[derive(Debug, Clone)]
pub struct VaultKeys {
    /// For `ChunkHasher`.
    pub id_key: IdKey,
    /// For `Chunker`.
    pub chunk_key: ChunkKey,
}

impl VaultKeys {
    /// Derives the keys from the root key of a domain.
    #[must_use]
    pub fn derive(root: &RootKey, vault: VaultId) -> Self {
        let key = |context: &str| {
            let mut key = Zeroizing::new([0; DATA_KEY_BYTES]);
            derive(context, &[root.bytes(), &vault.0], &mut *key);
            key
        };
        Self {
            id_key: IdKey(key("farshore 2026 v2 chunk id key")),
            chunk_key: ChunkKey(key("farshore 2026 v2 chunk cut key")),
        }
    }
}

/// The data keys that a new object is sealed with.
#[derive(Debug, Clone, Copy)]
pub struct SealKeys<'a> {
    /// The vault's own: of what is of no domain, and of all commitments.
    pub own: (KeyNumber, &'a DataKey),
    /// The domain's: of what its disks held.
    pub data: (KeyNumber, &'a DataKey),
}

/// The keys of a vault, by number.
#[derive(Debug, Clone)]
pub struct KeyRing {
    vault: VaultId,
    keys: BTreeMap<KeyNumber, (Domain, VaultKey)>,
    /// What new objects go by, the vault's own key and the first domain's, if not by the newest.
    current: Option<(KeyNumber, KeyNumber)>,
}

impl KeyRing {
    /// A ring without keys.
    #[must_use]
    pub fn new(vault: VaultId) -> Self {
        Self { vault, keys: BTreeMap::new(), current: None }
    }

    /// Puts a data key of the first domain in its place.
    pub fn insert(&mut self, number: KeyNumber, key: DataKey) {
        self.insert_key(number, Domain::FIRST, VaultKey::Data(key));
    }

    /// Puts a data key of the vault's own in its place.
    pub fn insert_own(&mut self, number: KeyNumber, key: DataKey) {
        self.insert_key(number, Domain::OWN, VaultKey::Data(key));
    }

    /// Puts the root key of the first domain in its place.
    pub fn insert_root(&mut self, number: KeyNumber, key: RootKey) {
        self.insert_key(number, Domain::FIRST, VaultKey::Root(key));
    }

    /// Puts any key in its place.
    pub fn insert_key(&mut self, number: KeyNumber, domain: Domain, key: VaultKey) {
        self.keys.insert(number, (domain, key));
    }

    /// Takes a key out: it was erased on purpose, and nobody goes by it any more.
    pub fn remove(&mut self, number: KeyNumber) {
        self.keys.remove(&number);
    }

    /// Has new objects go by these data keys, the vault's own and the first domain's, whatever newer ones there are: not
    /// all may have those yet.
    pub fn go_by(&mut self, own: KeyNumber, data: KeyNumber) {
        self.current = Some((own, data));
    }

    /// The vault the keys are of.
    #[must_use]
    pub fn vault(&self) -> VaultId {
        self.vault
    }

    /// All keys, by number, with their domains.
    pub fn keys(&self) -> impl DoubleEndedIterator<Item = (KeyNumber, Domain, &VaultKey)> {
        self.keys.iter().map(|(number, (domain, key))| (*number, *domain, key))
    }

    /// What a key is for and which domain it is of, if the ring holds it.
    #[must_use]
    pub fn role(&self, number: KeyNumber) -> Option<(Domain, KeyKind)> {
        self.keys.get(&number).map(|(domain, key)| (*domain, key.kind()))
    }

    /// The data key of a number.
    ///
    /// # Errors
    /// `NotFound` if the ring does not hold it, or holds a key of another kind there.
    pub fn get(&self, number: KeyNumber) -> Result<&DataKey, CodecError> {
        match self.keys.get(&number) {
            Some((_, VaultKey::Data(key))) => Ok(key),
            _ => Err(CodecError::NoKey { key: number }),
        }
    }

    /// The data key of a number, if it is of this domain.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn get_of(&self, domain: Domain, number: KeyNumber) -> Result<&DataKey, CodecError> {
        match self.keys.get(&number) {
            Some((of, VaultKey::Data(key))) if *of == domain => Ok(key),
            _ => Err(CodecError::NoKey { key: number }),
        }
    }

    /// The data key of the vault's own of a number.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn own(&self, number: KeyNumber) -> Result<&DataKey, CodecError> {
        self.get_of(Domain::OWN, number)
    }

    /// The data key of the first domain that new objects go by.
    ///
    /// # Errors
    /// `NotFound` if the ring has none.
    pub fn newest(&self) -> Result<(KeyNumber, &DataKey), CodecError> {
        match self.current {
            Some((_, data)) => Ok((data, self.get_of(Domain::FIRST, data)?)),
            None => self.newest_of(Domain::FIRST, DomainKeys::FIRST.data),
        }
    }

    /// The data keys that new objects are sealed with.
    ///
    /// # Errors
    /// `NotFound` if the ring lacks one.
    pub fn sealing(&self) -> Result<SealKeys<'_>, CodecError> {
        let own = match self.current {
            Some((own, _)) => (own, self.own(own)?),
            None => self.newest_of(Domain::OWN, OWN_KEY)?,
        };
        Ok(SealKeys { own, data: self.newest()? })
    }

    fn newest_of(
        &self,
        domain: Domain,
        first: KeyNumber,
    ) -> Result<(KeyNumber, &DataKey), CodecError> {
        let newest = self.keys.iter().rev().find_map(|(number, (of, key))| match key {
            VaultKey::Data(key) if *of == domain => Some((*number, key)),
            _ => None,
        });
        newest.ok_or(CodecError::NoKey { key: first })
    }

    /// The keys of the first domain that never change.
    ///
    /// # Errors
    /// `NotFound` if the ring does not hold its root key.
    pub fn vault_keys(&self) -> Result<VaultKeys, CodecError> {
        let root = self.keys.values().find_map(|(domain, key)| match key {
            VaultKey::Root(key) if *domain == Domain::FIRST => Some(key),
            _ => None,
        });
        let root = root.ok_or(CodecError::NoKey { key: DomainKeys::FIRST.root })?;
        Ok(VaultKeys::derive(root, self.vault))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_key_is_printed() {
        let key = DataKey::from_bytes([0xab; 32]);
        let root = RootKey::from_bytes([0xab; 32]);
        let keys = VaultKeys::derive(&root, VaultId([1; 16]));
        let mut ring = KeyRing::new(VaultId([1; 16]));
        ring.insert_root(KeyNumber(1), root.clone());
        ring.insert(KeyNumber(2), key.clone());
        assert_eq!(format!("{root:?}"), "RootKey(..)");
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
        let missing = |number| CodecError::NoKey { key: KeyNumber(number) };
        let mut ring = KeyRing::new(VaultId([1; 16]));
        assert_eq!(ring.newest().unwrap_err(), missing(2));
        assert_eq!(ring.vault_keys().unwrap_err(), missing(1));
        ring.insert_root(KeyNumber(1), RootKey::from_bytes([1; 32]));
        ring.insert(KeyNumber(2), DataKey::from_bytes([2; 32]));
        assert_eq!(ring.newest().unwrap().0, KeyNumber(2));
        assert_eq!(ring.get(KeyNumber(3)).unwrap_err(), missing(3));
        ring.vault_keys().unwrap();
    }

    /// What is sealed is sealed under data keys of the first domain, whatever comes behind them.
    #[test]
    fn a_root_key_seals_nothing_and_a_data_key_names_no_chunk() {
        let mut ring = KeyRing::new(VaultId([1; 16]));
        ring.insert(KeyNumber(1), DataKey::from_bytes([1; 32]));
        assert!(ring.vault_keys().is_err());
        let other = Domain(2);
        ring.insert_key(KeyNumber(2), other, VaultKey::Root(RootKey::from_bytes([2; 32])));
        assert!(ring.vault_keys().is_err(), "of another domain");
        ring.insert_root(KeyNumber(3), RootKey::from_bytes([3; 32]));
        ring.insert_key(KeyNumber(4), other, VaultKey::Data(DataKey::from_bytes([4; 32])));
        assert_eq!(ring.newest().unwrap().0, KeyNumber(1));
        assert_eq!(ring.get(KeyNumber(3)).unwrap_err(), CodecError::NoKey { key: KeyNumber(3) });
        assert_eq!(ring.role(KeyNumber(4)), Some((other, KeyKind::Data)));
        assert_eq!(ring.role(KeyNumber(5)), None);
    }

    /// The keys that chunk ids and cuts are made with are part of the format too.
    #[test]
    fn the_keys_of_a_domain_come_from_its_root_key() {
        let keys = VaultKeys::derive(&RootKey::from_bytes([0x12; 32]), VaultId([1; 16]));
        assert_eq!(
            hex::encode(keys.id_key.bytes()),
            "54b3c877b6aab40c47a2fffce3a161082baae3797faa44a1008e2631376ac76b"
        );
        assert_eq!(
            hex::encode(keys.chunk_key.bytes()),
            "478b45990e64bd466ebd31892f2afae1cd82450915f939e72217e65852c4e856"
        );
    }
}
