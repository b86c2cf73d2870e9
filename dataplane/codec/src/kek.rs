//! The recovery key: the key-encryption key as a line of text, and the data keys it wraps.
//!
//! Text: `FSRK1-<64 hex digits of the key>-<8 hex digits of a check>`. The check is a hash of the
//! key, so that a mistyped key is told from a wrong one. The key itself is never used: a wrapping
//! key and a fingerprint are derived from it. The fingerprint stands in each wrapped key, so that a
//! wrong recovery key is told from a damaged object.
//!
//! Layout of a wrapped key: `farshore_proto::keys`.

use crate::keys::{DataKey, derive};
use aes_gcm::Aes256Gcm;
use aes_gcm::aead::{AeadInOut, KeyInit};
use farshore_proto::keys::{DATA_KEY_BYTES, KeyObject};
use farshore_proto::limits::TAG_BYTES;
use farshore_proto::{DecodeError, ErrorKind, KeyNumber, VaultId};
use std::fmt;
use zeroize::Zeroizing;

const PREFIX: &str = "FSRK1-";
const KEY_BYTES: usize = 32;
const CHECK_BYTES: usize = 4;
const CHECK_CONTEXT: &str = "farshore 2026 v1 recovery key check";
const WRAPPER_CONTEXT: &str = "farshore 2026 v1 recovery key fingerprint";
const WRAP_CONTEXT: &str = "farshore 2026 v1 data key wrapping key";
/// Characters of a recovery key: prefix, key, dash, check.
const TEXT_BYTES: usize = PREFIX.len() + 2 * KEY_BYTES + 1 + 2 * CHECK_BYTES;

/// A recovery key that cannot be used, or a data key that it does not unwrap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KekError {
    /// The text is something else.
    #[error(
        "this is not a recovery key: one line FSRK1-<64 hex digits>-<8 hex digits> is expected"
    )]
    NotARecoveryKey,
    /// The text has the right shape, but its check does not match.
    #[error("the recovery key is mistyped: its last 8 digits do not match the rest")]
    Mistyped,
    /// A recovery key, but not the one that wraps this data key.
    #[error(
        "the recovery key is not the one of this vault: data key {key} of vault {vault} is wrapped by the recovery key with fingerprint {expected}, the one given has {given}"
    )]
    WrongKey {
        /// The vault.
        vault: VaultId,
        /// The data key.
        key: KeyNumber,
        /// Fingerprint of the recovery key that wraps it.
        expected: String,
        /// Fingerprint of the one given.
        given: String,
    },
    /// The object is the wrapped key of another vault or number.
    #[error(
        "the object is data key {found_key} of vault {found_vault}, data key {key} of vault {vault} was expected"
    )]
    Misplaced {
        /// The vault asked for.
        vault: VaultId,
        /// The number asked for.
        key: KeyNumber,
        /// The vault found.
        found_vault: VaultId,
        /// The number found.
        found_key: KeyNumber,
    },
    /// The right recovery key, but the wrapped key does not open.
    #[error("data key {key} of vault {vault} is damaged and cannot be unwrapped")]
    Damaged {
        /// The vault.
        vault: VaultId,
        /// The data key.
        key: KeyNumber,
    },
    /// The layout of the object is wrong.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// The operating system gave no random bytes.
    #[error("the operating system gives no random bytes")]
    Entropy,
}

impl KekError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotARecoveryKey | Self::Mistyped | Self::WrongKey { .. } => ErrorKind::Invalid,
            Self::Misplaced { .. } | Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Decode(error) => error.kind(),
            Self::Entropy => ErrorKind::Unavailable,
        }
    }
}

/// The key-encryption key of a vault. Wiped when dropped, never printed.
#[derive(Clone)]
pub struct RecoveryKey(Zeroizing<[u8; KEY_BYTES]>);

impl fmt::Debug for RecoveryKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RecoveryKey(..)")
    }
}

impl RecoveryKey {
    /// A new random recovery key.
    ///
    /// # Errors
    /// `Unavailable` if the operating system gives no random bytes.
    pub fn draw() -> Result<Self, KekError> {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        getrandom::fill(&mut *key).map_err(|_| KekError::Entropy)?;
        Ok(Self(key))
    }

    /// Reads the text of a recovery key; space around it and the case of its digits do not matter.
    ///
    /// # Errors
    /// `Invalid`: not a recovery key, or mistyped.
    pub fn parse(text: &str) -> Result<Self, KekError> {
        let text = text.trim();
        if text.len() != TEXT_BYTES || !text.is_ascii() {
            return Err(KekError::NotARecoveryKey);
        }
        let Some((key_text, check_text)) =
            text.strip_prefix(PREFIX).and_then(|digits| digits.split_once('-'))
        else {
            return Err(KekError::NotARecoveryKey);
        };
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        let mut check = [0; CHECK_BYTES];
        hex::decode_to_slice(key_text, &mut *key).map_err(|_| KekError::NotARecoveryKey)?;
        hex::decode_to_slice(check_text, &mut check).map_err(|_| KekError::NotARecoveryKey)?;
        let key = Self(key);
        if key.derived::<CHECK_BYTES>(CHECK_CONTEXT) != check {
            return Err(KekError::Mistyped);
        }
        Ok(key)
    }

    /// The text of the key, without a line end. It is the secret: write it to files of mode 0600.
    #[must_use]
    pub fn to_text(&self) -> Zeroizing<String> {
        // Filled without reallocation, which would leave copies of the key behind.
        let mut text = Zeroizing::new(String::with_capacity(TEXT_BYTES));
        text.push_str(PREFIX);
        for byte in *self.0 {
            for digit in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(digit)]));
            }
        }
        text.push('-');
        text.push_str(&hex::encode(self.derived::<CHECK_BYTES>(CHECK_CONTEXT)));
        text
    }

    /// The fingerprint that wrapped keys carry; says nothing else about the key.
    #[must_use]
    pub fn wrapper(&self) -> [u8; 8] {
        self.derived(WRAPPER_CONTEXT)
    }

    /// Wraps a data key of `vault` under `number`.
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
        key: &DataKey,
    ) -> Result<KeyObject, KekError> {
        let mut nonce = [0; 12];
        getrandom::fill(&mut nonce).map_err(|_| KekError::Entropy)?;
        let mut plain = Zeroizing::new(*key.bytes());
        let tag = self
            .cipher()
            .encrypt_inout_detached(
                &nonce.into(),
                &KeyObject::aad(vault, number),
                plain.as_mut_slice().into(),
            )
            .expect("a key is short");
        let mut wrapped = [0; DATA_KEY_BYTES + TAG_BYTES];
        wrapped[..DATA_KEY_BYTES].copy_from_slice(&*plain);
        wrapped[DATA_KEY_BYTES..].copy_from_slice(&tag);
        Ok(KeyObject { vault, key: number, wrapper: self.wrapper(), nonce, wrapped })
    }

    /// Unwraps the object found as data key `number` of `vault`.
    ///
    /// # Errors
    /// `Invalid` if another recovery key wraps it (`WrongKey`); `Corrupt` if the object is that of
    /// another place or damaged.
    ///
    /// # Panics
    /// Never: the lengths are those of the types.
    pub fn unwrap(
        &self,
        vault: VaultId,
        number: KeyNumber,
        object: &KeyObject,
    ) -> Result<DataKey, KekError> {
        if object.vault != vault || object.key != number {
            return Err(KekError::Misplaced {
                vault,
                key: number,
                found_vault: object.vault,
                found_key: object.key,
            });
        }
        if object.wrapper != self.wrapper() {
            return Err(KekError::WrongKey {
                vault,
                key: number,
                expected: hex::encode(object.wrapper),
                given: hex::encode(self.wrapper()),
            });
        }
        let (wrapped, tag) =
            object.wrapped.split_last_chunk::<TAG_BYTES>().expect("the array holds a tag");
        let mut plain = Zeroizing::new([0; DATA_KEY_BYTES]);
        plain.copy_from_slice(wrapped);
        self.cipher()
            .decrypt_inout_detached(
                &object.nonce.into(),
                &KeyObject::aad(vault, number),
                plain.as_mut_slice().into(),
                &(*tag).into(),
            )
            .map_err(|_| KekError::Damaged { vault, key: number })?;
        Ok(DataKey::from_bytes(*plain))
    }

    fn cipher(&self) -> Aes256Gcm {
        let mut key = Zeroizing::new([0; KEY_BYTES]);
        derive(WRAP_CONTEXT, &[self.0.as_slice()], &mut *key);
        Aes256Gcm::new((&*key).into())
    }

    fn derived<const N: usize>(&self, context: &str) -> [u8; N] {
        let mut out = [0; N];
        derive(context, &[self.0.as_slice()], &mut out);
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VAULT: VaultId = VaultId([1; 16]);
    const NUMBER: KeyNumber = KeyNumber(1);

    fn key() -> RecoveryKey {
        RecoveryKey(Zeroizing::new([0x42; KEY_BYTES]))
    }

    #[test]
    fn the_text_is_part_of_the_format() {
        let text = key().to_text();
        assert_eq!(text.as_str(), format!("FSRK1-{}-13c555f9", "42".repeat(32)));
        assert_eq!(hex::encode(key().wrapper()), "95ddfe87531516fb");
        assert_eq!(text.len(), TEXT_BYTES);
    }

    #[test]
    fn text_is_read_back_with_any_space_and_case() {
        let key = RecoveryKey::draw().unwrap();
        let text = key.to_text();
        let digits = &text[PREFIX.len()..];
        for variant in [
            text.to_string(),
            format!("\n  {}\r\n", *text),
            format!("{PREFIX}{}", digits.to_uppercase()),
        ] {
            assert_eq!(RecoveryKey::parse(&variant).unwrap().wrapper(), key.wrapper());
        }
    }

    #[test]
    fn other_text_is_not_a_recovery_key() {
        let text = key().to_text().to_string();
        for bad in [
            "",
            "hunter2",
            &text[1..],
            &text[..text.len() - 1],
            &format!("{text}0"),
            &text.replace("FSRK1", "FSRK2"),
            &text.replacen("42", "4g", 1),
            &text.replacen("42", "é", 1),
            &text.replace('-', "_"),
        ] {
            let error = RecoveryKey::parse(bad).unwrap_err();
            assert_eq!(error, KekError::NotARecoveryKey, "{bad:?}");
            assert_eq!(error.kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn any_mistyped_digit_is_noticed() {
        let text = key().to_text().to_string();
        for at in (PREFIX.len()..text.len()).filter(|at| text.as_bytes()[*at] != b'-') {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
            let error = RecoveryKey::parse(std::str::from_utf8(&bytes).unwrap()).unwrap_err();
            assert_eq!(error, KekError::Mistyped, "digit {at}");
        }
    }

    #[test]
    fn a_wrapped_key_unwraps_to_itself() {
        let data = DataKey::draw().unwrap();
        let object = key().wrap(VAULT, NUMBER, &data).unwrap();
        let object = KeyObject::decode(&object.encode()).unwrap();
        assert_eq!(key().unwrap(VAULT, NUMBER, &object).unwrap().bytes(), data.bytes());
        let again = key().wrap(VAULT, NUMBER, &data).unwrap();
        assert_ne!((object.nonce, object.wrapped), (again.nonce, again.wrapped));
    }

    #[test]
    fn a_wrong_key_is_told_from_a_damaged_object() {
        let object = key().wrap(VAULT, NUMBER, &DataKey::from_bytes([3; 32])).unwrap();
        let error = RecoveryKey::draw().unwrap().unwrap(VAULT, NUMBER, &object).unwrap_err();
        assert!(matches!(error, KekError::WrongKey { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let damaged = KekError::Damaged { vault: VAULT, key: NUMBER };
        for at in 0..object.wrapped.len() {
            let mut bad = object;
            bad.wrapped[at] ^= 1;
            assert_eq!(key().unwrap(VAULT, NUMBER, &bad).unwrap_err(), damaged, "byte {at}");
        }
        let mut bad = object;
        bad.nonce[0] ^= 1;
        assert_eq!(key().unwrap(VAULT, NUMBER, &bad).unwrap_err(), damaged);
    }

    #[test]
    fn a_key_of_another_vault_or_number_is_refused_even_if_relabelled() {
        let object = key().wrap(VAULT, NUMBER, &DataKey::from_bytes([3; 32])).unwrap();
        let other = VaultId([2; 16]);
        let error = key().unwrap(other, NUMBER, &object).unwrap_err();
        assert!(matches!(error, KekError::Misplaced { .. }), "{error}");
        let relabelled = KeyObject { vault: other, ..object };
        let error = key().unwrap(other, NUMBER, &relabelled).unwrap_err();
        assert!(matches!(error, KekError::Damaged { .. }), "{error}");
        let relabelled = KeyObject { key: KeyNumber(2), ..object };
        let error = key().unwrap(VAULT, KeyNumber(2), &relabelled).unwrap_err();
        assert!(matches!(error, KekError::Damaged { .. }), "{error}");
    }

    #[test]
    fn every_flipped_bit_of_the_object_is_refused() {
        let object = key().wrap(VAULT, NUMBER, &DataKey::from_bytes([3; 32])).unwrap().encode();
        for at in 0..object.len() {
            for bit in 0..8 {
                let mut bad = object.clone();
                bad[at] ^= 1 << bit;
                let refused = match KeyObject::decode(&bad) {
                    Err(_) => true,
                    Ok(object) => key().unwrap(VAULT, NUMBER, &object).is_err(),
                };
                assert!(refused, "byte {at} bit {bit}");
            }
            assert!(KeyObject::decode(&object[..at]).is_err(), "length {at}");
        }
    }

    #[test]
    fn nothing_secret_is_printed() {
        assert_eq!(format!("{:?}", key()), "RecoveryKey(..)");
    }
}
