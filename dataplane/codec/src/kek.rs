//! Wrapping keys: the recovery key and node keys, as lines of text, and the keys of a vault that they
//! wrap.
//!
//! Text: `FSRK2-` (recovery) or `FSNK2-` (node), 64 hex digits of the key, `-`, 8 hex digits of a check.
//! The check is a hash of the key, so that a mistyped key is told from a wrong one. The key itself is
//! never used: what encrypts and a fingerprint are derived from it, for each kind under contexts of its
//! own. The fingerprint stands in the name of what the key wraps, so that a wrong key is told from a
//! damaged object.
//!
//! Layout of a wrapped key: `farshore_proto::keys`.

use crate::keys::{VaultKey, derive};
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use farshore_proto::keys::{
    DATA_KEY_BYTES, Fingerprint, KeyHeader, KeyObject, WRAPPED_BYTES, Wrapper, WrapperKind,
};
use farshore_proto::limits::TAG_BYTES;
use farshore_proto::{DecodeError, Domain, ErrorKind, KeyNumber, VaultId};
use std::fmt;
use zeroize::Zeroizing;

const KEY_BYTES: usize = 32;
const CHECK_BYTES: usize = 4;
const PREFIX_BYTES: usize = 6;
/// Characters of a wrapping key: prefix, key, dash, check.
const TEXT_BYTES: usize = PREFIX_BYTES + 2 * KEY_BYTES + 1 + 2 * CHECK_BYTES;

/// What is different for each kind of wrapping key.
struct Terms {
    prefix: &'static str,
    check: &'static str,
    fingerprint: &'static str,
    wrapping: &'static str,
}

const fn terms(kind: WrapperKind) -> &'static Terms {
    match kind {
        WrapperKind::Recovery => &Terms {
            prefix: "FSRK2-",
            check: "farshore 2026 v2 recovery key check",
            fingerprint: "farshore 2026 v2 recovery key fingerprint",
            wrapping: "farshore 2026 v2 recovery key wrapping key",
        },
        WrapperKind::Node => &Terms {
            prefix: "FSNK2-",
            check: "farshore 2026 v2 node key check",
            fingerprint: "farshore 2026 v2 node key fingerprint",
            wrapping: "farshore 2026 v2 node key wrapping key",
        },
    }
}

/// A wrapping key that cannot be used, or a key of a vault that it does not unwrap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KekError {
    /// The text is something else.
    #[error(
        "this is neither a recovery key nor a node key: one line FSRK2- or FSNK2-, then <64 hex digits>-<8 hex digits>, is expected"
    )]
    NotAKey,
    /// The text has the right shape, but its check does not match.
    #[error("the {kind} is mistyped: its last 8 digits do not match the rest")]
    Mistyped {
        /// What its front says that it is.
        kind: WrapperKind,
    },
    /// A key of one kind where the other is needed.
    #[error("this is a {given}; a {expected} is needed here")]
    WrongKind {
        /// The kind given.
        given: WrapperKind,
        /// The kind needed.
        expected: WrapperKind,
    },
    /// The object is another one than its name says.
    #[error("the object is {found}; {expected} was expected")]
    Misplaced {
        /// What its name says.
        expected: Box<Expected>,
        /// What it says itself.
        found: Box<KeyHeader>,
    },
    /// The right wrapping key, but the wrapped key does not open.
    #[error(
        "key {key} of vault {vault}, wrapped by the {wrapper}, is damaged and cannot be unwrapped"
    )]
    Damaged {
        /// The vault.
        vault: VaultId,
        /// The number.
        key: KeyNumber,
        /// What it was wrapped by.
        wrapper: Wrapper,
    },
    /// The layout of the object is wrong.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes")]
    Entropy,
}

/// The key that a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The vault.
    pub vault: VaultId,
    /// The number.
    pub key: KeyNumber,
    /// What wraps it.
    pub wrapper: Wrapper,
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} of vault {} for the {}", self.key, self.vault, self.wrapper)
    }
}

impl KekError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotAKey | Self::Mistyped { .. } | Self::WrongKind { .. } => ErrorKind::Invalid,
            Self::Misplaced { .. } | Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Decode(error) => error.kind(),
            Self::Entropy => ErrorKind::Unavailable,
        }
    }
}

/// A key that wraps the keys of a vault: the recovery key or that of a node. Wiped when dropped, never
/// printed.
#[derive(Clone)]
pub struct WrappingKey {
    kind: WrapperKind,
    key: Zeroizing<[u8; KEY_BYTES]>,
}

impl fmt::Debug for WrappingKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "WrappingKey({}, ..)", self.kind)
    }
}

impl WrappingKey {
    /// A new random key of a kind.
    ///
    /// # Errors
    /// `Unavailable` if the operating system gives no random bytes.
    pub fn draw(kind: WrapperKind) -> Result<Self, KekError> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut *key).map_err(|_| KekError::Entropy)?;
        Ok(Self { kind, key })
    }

    /// Reads the text of a key of either kind; space around it and the case of its digits do not matter.
    ///
    /// # Errors
    /// `Invalid`: not a key, or mistyped.
    pub fn parse(text: &str) -> Result<Self, KekError> {
        let text = text.trim();
        if text.len() != TEXT_BYTES || !text.is_ascii() {
            return Err(KekError::NotAKey);
        }
        let (prefix, digits) = text.split_at(PREFIX_BYTES);
        let kind = WrapperKind::ALL.into_iter().find(|kind| terms(*kind).prefix == prefix);
        let (Some(kind), Some((key_text, check_text))) = (kind, digits.split_once('-')) else {
            return Err(KekError::NotAKey);
        };
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        let mut check = [0; CHECK_BYTES];
        hex::decode_to_slice(key_text, &mut *key).map_err(|_| KekError::NotAKey)?;
        hex::decode_to_slice(check_text, &mut check).map_err(|_| KekError::NotAKey)?;
        let key = Self { kind, key };
        if key.check() != check {
            return Err(KekError::Mistyped { kind });
        }
        Ok(key)
    }

    /// The text of the key, without a line end. It is the secret: write it to files of mode 0600.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        // Filled without reallocation, which would leave copies of the key behind.
        let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES));
        text.push_str(terms(self.kind).prefix);
        for byte in *self.key {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        text.push('-');
        text.push_str(&hex::encode(self.check()));
        text
    }

    /// What it is for.
    #[must_use]
    pub fn kind(&self) -> WrapperKind {
        self.kind
    }

    /// The key, if it is of this kind.
    ///
    /// # Errors
    /// `WrongKind` if it is of the other.
    pub fn of_kind(self, expected: WrapperKind) -> Result<Self, KekError> {
        match self.kind {
            given if given != expected => Err(KekError::WrongKind { given, expected }),
            _ => Ok(self),
        }
    }

    /// Its name, which wrapped keys carry; says nothing else about the key.
    #[must_use]
    pub fn wrapper(&self) -> Wrapper {
        let fingerprint = Fingerprint(self.derived(terms(self.kind).fingerprint));
        Wrapper { kind: self.kind, fingerprint }
    }

    /// Wraps the key of `vault` that has a number, for a domain.
    ///
    /// # Errors
    /// `Unavailable` if the operating system gives no random bytes.
    ///
    /// # Panics
    /// Never: AES-GCM refuses nothing as short as a key.
    pub fn wrap(
        &self,
        vault: VaultId,
        number: KeyNumber,
        domain: Domain,
        key: &VaultKey,
    ) -> Result<KeyObject, KekError> {
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).map_err(|_| KekError::Entropy)?;
        let kind = key.kind();
        let header = KeyHeader { vault, key: number, domain, kind, wrapper: self.wrapper() };
        let mut object = KeyObject::new(header, nonce, [0; WRAPPED_BYTES]);
        let mut plain = Zeroizing::new(*key.bytes());
        let tag = self
            .cipher()
            .encrypt_inout_detached(&nonce.into(), &object.aad(), plain.as_mut_slice().into())
            .expect("a key is short");
        object.wrapped[..DATA_KEY_BYTES].copy_from_slice(&*plain);
        object.wrapped[DATA_KEY_BYTES..].copy_from_slice(&tag);
        Ok(object)
    }

    /// Unwraps the object found as key `number` of `vault` for this wrapping key; what it is of and for
    /// is what its header says.
    ///
    /// # Errors
    /// `Corrupt` if the object is that of another place or damaged.
    ///
    /// # Panics
    /// Never: the lengths are those of the types.
    pub fn unwrap(
        &self,
        vault: VaultId,
        number: KeyNumber,
        object: &KeyObject,
    ) -> Result<VaultKey, KekError> {
        let (header, wrapper) = (&object.header, self.wrapper());
        if (header.vault, header.key, header.wrapper) != (vault, number, wrapper) {
            return Err(KekError::Misplaced {
                expected: Box::new(Expected { vault, key: number, wrapper }),
                found: Box::new(*header),
            });
        }
        let (wrapped, tag) =
            object.wrapped.split_last_chunk::<TAG_BYTES>().expect("the array holds a tag");
        let mut plain = Zeroizing::new([0; DATA_KEY_BYTES]);
        plain.copy_from_slice(wrapped);
        self.cipher()
            .decrypt_inout_detached(
                &object.nonce.into(),
                &object.aad(),
                plain.as_mut_slice().into(),
                &(*tag).into(),
            )
            .map_err(|_| KekError::Damaged { vault, key: number, wrapper })?;
        Ok(VaultKey::from_bytes(header.kind, *plain))
    }

    fn cipher(&self) -> Aes256Gcm {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        derive(terms(self.kind).wrapping, &[self.key.as_slice()], &mut *key);
        Aes256Gcm::new((&*key).into())
    }

    fn check(&self) -> [u8; CHECK_BYTES] {
        self.derived(terms(self.kind).check)
    }

    fn derived<const N: usize>(&self, context: &str) -> [u8; N] {
        let mut out = [0; N];
        derive(context, &[self.key.as_slice()], &mut out);
        out
    }
}

#[cfg(test)]
mod tests;
