//! AES-256-GCM behind one seam, and the rule that makes nonces safe.
//!
//! Two implementations stand behind the seam: `aws-lc-rs` seals and opens in production, `aes-gcm`
//! wraps data keys and opens a sample of what was sealed (`segment`), so that a broken
//! implementation is noticed before anything rests on it.
//!
//! **Derivation.** Each object has a key of its own:
//! `key = BLAKE3-derive-key("farshore 2026 v2 <purpose> seal key", data key ‖ salt ‖ context…)`, each
//! part preceded by its length (8 bytes, little-endian). The context names the place: kind, vault,
//! whose and which number. The salt is 32 random bytes drawn for each attempt.
//!
//! **Commitment.** Salt and context under "… commitment key", with a key of the vault's own in place of the data key,
//! give the key of a MAC over the object's header, which the header carries. It tells a header that was made up from
//! one that was sealed before anything in it is believed, also when the key of the data is gone: the vault's own keys
//! are never erased. In a journal both come from one key.
//!
//! **Nonces (I9).** 12 bytes: domain (4, little-endian) ‖ counter (8, little-endian). A [`Sealer`]
//! counts each domain from 0. Since its key is new with each salt, and only a sealer seals, a pair
//! of key and nonce seals once.
//!
//! Source: NIST SP 800-38D §8.2.1 (deterministic nonces).

use crate::error::CodecError;
use crate::keys::{DataKey, derive};
use aes_gcm::aead::{AeadInOut, KeyInit};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use farshore_proto::KeyNumber;
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::limits::TAG_BYTES;
use std::fmt;
use zeroize::Zeroizing;

/// Bytes of a salt.
pub use farshore_proto::limits::SALT_BYTES;
/// Bytes of a key commitment.
pub const COMMITMENT_BYTES: usize = 32;
const KEY_BYTES: usize = 32;
const NONCE_BYTES: usize = 12;

/// What a derived key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// An object of a vault.
    Object,
    /// A file of a node's journal.
    Journal,
}

impl Purpose {
    /// Context strings of the key and of the key of its commitment. They are part of the format: a change
    /// makes everything sealed before unreadable.
    fn contexts(self) -> (&'static str, &'static str) {
        match self {
            Self::Object => {
                ("farshore 2026 v2 object seal key", "farshore 2026 v2 object commitment key")
            }
            Self::Journal => {
                ("farshore 2026 v2 journal seal key", "farshore 2026 v2 journal commitment key")
            }
        }
    }
}

/// The part of an object that a nonce is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// Frames of a segment; the counter is the frame's number.
    Frame,
    /// The body of an object; the counter is 0.
    Body,
    /// Groups of a journal file; the counter is the group's number.
    Group,
    /// Pages of a map; the counter is the page's number in its part.
    Page,
    /// The label of a volume in an epoch; the counter is 0.
    Label,
}

impl Domain {
    const COUNT: usize = 5;

    fn index(self) -> usize {
        match self {
            Self::Frame => 0,
            Self::Body => 1,
            Self::Group => 2,
            Self::Page => 3,
            Self::Label => 4,
        }
    }

    /// The number in the nonce.
    fn code(self) -> u32 {
        match self {
            Self::Frame => 1,
            Self::Body => 2,
            Self::Group => 3,
            Self::Page => 4,
            Self::Label => 5,
        }
    }

    fn what(self) -> &'static str {
        match self {
            Self::Frame => "segment frame",
            Self::Body => "body of an object",
            Self::Group => "journal group",
            Self::Page => "page of a map",
            Self::Label => "label of a volume",
        }
    }

    fn nonce(self, counter: u64) -> [u8; NONCE_BYTES] {
        let mut nonce = [0; NONCE_BYTES];
        nonce[..4].copy_from_slice(&self.code().to_le_bytes());
        nonce[4..].copy_from_slice(&counter.to_le_bytes());
        nonce
    }
}

/// Whose AES-256-GCM does the work. Both open what the other sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Implementation {
    /// The `aws-lc-rs` crate: for all bulk work.
    AwsLc,
    /// The `aes-gcm` crate: for key wrapping and for checking the other.
    RustCrypto,
}

enum Cipher {
    AwsLc(LessSafeKey),
    RustCrypto(Box<aes_gcm::Aes256Gcm>),
}

/// The cipher refused; says nothing about why, on purpose.
#[derive(Debug)]
struct Refused;

impl Cipher {
    fn new(implementation: Implementation, key: &[u8; KEY_BYTES]) -> Self {
        match implementation {
            Implementation::AwsLc => {
                let key = UnboundKey::new(&AES_256_GCM, key).expect("the key has the right length");
                Self::AwsLc(LessSafeKey::new(key))
            }
            Implementation::RustCrypto => {
                Self::RustCrypto(Box::new(aes_gcm::Aes256Gcm::new(key.into())))
            }
        }
    }

    fn seal(
        &self,
        nonce: [u8; NONCE_BYTES],
        aad: &[u8],
        plain: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], Refused> {
        match self {
            Self::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                let tag = key
                    .seal_in_place_separate_tag(nonce, Aad::from(aad), plain)
                    .map_err(|_| Refused)?;
                tag.as_ref().try_into().map_err(|_| Refused)
            }
            Self::RustCrypto(key) => {
                let tag = key
                    .encrypt_inout_detached(&nonce.into(), aad, plain.into())
                    .map_err(|_| Refused)?;
                Ok(tag.into())
            }
        }
    }

    fn open(
        &self,
        nonce: [u8; NONCE_BYTES],
        aad: &[u8],
        sealed: &mut [u8],
        tag: &[u8; TAG_BYTES],
    ) -> Result<(), Refused> {
        match self {
            Self::AwsLc(key) => {
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place_separate_tag(nonce, Aad::from(aad), tag, sealed)
                    .map(drop)
                    .map_err(|_| Refused)
            }
            Self::RustCrypto(key) => key
                .decrypt_inout_detached(&nonce.into(), aad, sealed.into(), &(*tag).into())
                .map_err(|_| Refused),
        }
    }
}

/// What a context string gives over data key, salt and context.
fn derived(
    name: &str,
    key: &DataKey,
    context: &[&[u8]],
    salt: &[u8; SALT_BYTES],
) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut parts: Vec<&[u8]> = Vec::with_capacity(2 + context.len());
    parts.extend([key.bytes().as_slice(), salt]);
    parts.extend(context);
    let mut derived = Zeroizing::new([0; KEY_BYTES]);
    derive(name, &parts, &mut *derived);
    derived
}

/// Tells whether the header of one object is authentic: keys the MAC of it.
pub struct CommitKey(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for CommitKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CommitKey(..)")
    }
}

impl CommitKey {
    /// Derives the key of the object whose salt is `salt` at the place `context`.
    #[must_use]
    pub fn derive(
        key: &DataKey,
        purpose: Purpose,
        context: &[&[u8]],
        salt: &[u8; SALT_BYTES],
    ) -> Self {
        Self(derived(purpose.contexts().1, key, context, salt))
    }

    /// What a header made of these parts, but for the commitment, carries to say that it was sealed with the
    /// key.
    #[must_use]
    pub fn commit(&self, head: &[&[u8]]) -> [u8; COMMITMENT_BYTES] {
        let mut hasher = blake3::Hasher::new_keyed(&self.0);
        head.iter().for_each(|part| {
            hasher.update(part);
        });
        *hasher.finalize().as_bytes()
    }

    /// Compares, in constant time, what a header made of these parts should commit to with what it does.
    ///
    /// # Errors
    /// `Corrupt`: the data key `number` is not the one that it commits to, or the header is damaged.
    pub fn check(
        &self,
        head: &[&[u8]],
        found: &[u8; COMMITMENT_BYTES],
        what: &'static str,
        number: KeyNumber,
    ) -> Result<(), CodecError> {
        // The equality of blake3::Hash takes the same time wherever the two differ.
        if blake3::Hash::from_bytes(self.commit(head)) != blake3::Hash::from_bytes(*found) {
            return Err(CodecError::KeyMismatch { what, key: number });
        }
        Ok(())
    }
}

/// A key derived for one object. It opens; it cannot seal.
pub struct OpenKey {
    cipher: Cipher,
}

impl fmt::Debug for OpenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OpenKey(..)")
    }
}

impl OpenKey {
    /// Derives the key of the object whose salt is `salt` at the place `context`.
    #[must_use]
    pub fn derive(
        key: &DataKey,
        purpose: Purpose,
        context: &[&[u8]],
        salt: &[u8; SALT_BYTES],
    ) -> Self {
        Self::derive_for(Implementation::AwsLc, key, purpose, context, salt)
    }

    /// `derive`, with the implementation chosen.
    #[must_use]
    pub fn derive_for(
        implementation: Implementation,
        key: &DataKey,
        purpose: Purpose,
        context: &[&[u8]],
        salt: &[u8; SALT_BYTES],
    ) -> Self {
        let key = derived(purpose.contexts().0, key, context, salt);
        Self { cipher: Cipher::new(implementation, &key) }
    }

    /// Opens `sealed` (with its tag at the end) where it is; returns the plain bytes in it.
    ///
    /// # Errors
    /// `Corrupt` if anything, `aad` included, differs from what was sealed. The buffer's content
    /// is of no use then.
    pub fn open_in_place<'a>(
        &self,
        domain: Domain,
        counter: u64,
        aad: &[u8],
        sealed: &'a mut [u8],
    ) -> Result<&'a mut [u8], CodecError> {
        let tampered = CodecError::Tampered { what: domain.what() };
        let Some((body, tag)) = sealed.split_last_chunk_mut::<TAG_BYTES>() else {
            return Err(tampered);
        };
        match self.cipher.open(domain.nonce(counter), aad, body, tag) {
            Ok(()) => Ok(body),
            Err(Refused) => Err(tampered),
        }
    }
}

/// Seals the parts of one object, each under a nonce of its own.
///
/// There is no way to make two sealers with one key: each draws its salt.
pub struct Sealer {
    key: OpenKey,
    salt: [u8; SALT_BYTES],
    next: [u64; Domain::COUNT],
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("next", &self.next).finish_non_exhaustive()
    }
}

impl Sealer {
    /// A sealer with a new salt, for an object at the place `context`.
    ///
    /// # Errors
    /// `Unavailable` if the operating system gives no random bytes.
    pub fn draw(key: &DataKey, purpose: Purpose, context: &[&[u8]]) -> Result<Self, CodecError> {
        Self::draw_for(Implementation::AwsLc, key, purpose, context)
    }

    /// `draw`, with the implementation chosen.
    ///
    /// # Errors
    /// As `draw`.
    pub fn draw_for(
        implementation: Implementation,
        key: &DataKey,
        purpose: Purpose,
        context: &[&[u8]],
    ) -> Result<Self, CodecError> {
        let mut salt = [0; SALT_BYTES];
        getrandom::fill(&mut salt).map_err(|_| CodecError::Entropy)?;
        if is_on(Bug::SaltReused) {
            derive("farshore seeded bug", context, &mut salt);
        }
        let key = OpenKey::derive_for(implementation, key, purpose, context, &salt);
        Ok(Self { key, salt, next: [0; Domain::COUNT] })
    }

    /// The salt, for the object's header.
    #[must_use]
    pub fn salt(&self) -> &[u8; SALT_BYTES] {
        &self.salt
    }

    /// The key, to open what was sealed.
    #[must_use]
    pub fn key(&self) -> &OpenKey {
        &self.key
    }

    /// The counter that the next sealing in `domain` will use.
    #[must_use]
    pub fn next_counter(&self, domain: Domain) -> u64 {
        self.next[domain.index()]
    }

    /// Seals `plain` where it is and returns the tag, which belongs right behind it.
    ///
    /// The counter is used up even if sealing fails.
    ///
    /// # Errors
    /// `Internal` if the cipher refuses; it refuses nothing below 64 GiB.
    ///
    /// # Panics
    /// After 2^64 sealings.
    pub fn seal_slice(
        &mut self,
        domain: Domain,
        aad: &[u8],
        plain: &mut [u8],
    ) -> Result<[u8; TAG_BYTES], CodecError> {
        let next = &mut self.next[domain.index()];
        let counter = *next;
        *next = counter.checked_add(1).expect("a 64-bit counter does not run out");
        let bytes = plain.len();
        self.key
            .cipher
            .seal(domain.nonce(counter), aad, plain)
            .map_err(|Refused| CodecError::Cipher { what: domain.what(), bytes })
    }

    /// Seals all of `plain` where it is and appends the tag.
    ///
    /// # Errors
    /// As `seal_slice`.
    pub fn seal(
        &mut self,
        domain: Domain,
        aad: &[u8],
        plain: &mut Vec<u8>,
    ) -> Result<(), CodecError> {
        let tag = self.seal_slice(domain, aad, plain)?;
        plain.extend_from_slice(&tag);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
