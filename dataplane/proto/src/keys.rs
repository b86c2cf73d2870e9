//! Wrapped keys. Layout and rules: `docs/formats/keys.md`.

use crate::error::DecodeError;
use crate::front::{self, Front};
use crate::ids::{Domain, KeyNumber, VaultId};
use crate::limits::TAG_BYTES;
use crate::wire::{Put, Reader, put_crc};
use std::fmt;
use std::str::FromStr;

const WHAT: &str = "key object";
const MAGIC: [u8; 4] = *b"FSKY";
/// Bytes of a key of a vault.
pub const DATA_KEY_BYTES: usize = 32;
/// Bytes of a wrapped key with its tag.
pub const WRAPPED_BYTES: usize = DATA_KEY_BYTES + TAG_BYTES;
/// Bytes of the header of a key object of this program.
pub const KEY_HEADER_BYTES: usize = 56;
const NONCE_BYTES: usize = 12;
const BODY_BYTES: usize = NONCE_BYTES + WRAPPED_BYTES;
/// Bytes of a key object of this program.
pub const KEY_OBJECT_BYTES: usize = KEY_HEADER_BYTES + BODY_BYTES + 4;

/// What a key of a vault is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyKind {
    /// What is sealed is sealed under keys that come from it.
    Data,
    /// The keys of a domain's chunk ids and cuts come from it.
    Root,
    /// None: the key of this number is not for what wraps it.
    Withheld,
    /// One of a later program, which others may pass over; at least [`OTHER_KINDS`](Self::OTHER_KINDS).
    Other(u8),
}

impl KeyKind {
    /// Codes from here on are passed over by programs that do not know them.
    pub const OTHER_KINDS: u8 = 128;

    /// Its word for people and programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Data => "data",
            Self::Root => "root",
            Self::Withheld => "withheld",
            Self::Other(_) => "other",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Data => 1,
            Self::Root => 2,
            Self::Withheld => 3,
            Self::Other(code) => code,
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u8()? {
            1 => Ok(Self::Data),
            2 => Ok(Self::Root),
            3 => Ok(Self::Withheld),
            code @ Self::OTHER_KINDS.. => Ok(Self::Other(code)),
            code => Err(unknown("key kind", code)),
        }
    }
}

/// What a key that wraps others is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum WrapperKind {
    /// The operator's.
    Recovery,
    /// That of one node.
    Node,
}

impl WrapperKind {
    /// Every kind.
    pub const ALL: [Self; 2] = [Self::Recovery, Self::Node];

    /// Its word for programs.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Recovery => "recovery",
            Self::Node => "node",
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Recovery => 1,
            Self::Node => 2,
        }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self, DecodeError> {
        match reader.u8()? {
            1 => Ok(Self::Recovery),
            2 => Ok(Self::Node),
            code => Err(unknown("wrapper kind", code)),
        }
    }
}

impl fmt::Display for WrapperKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Recovery => "recovery key",
            Self::Node => "node key",
        })
    }
}

/// A kind that is not known: later programs have others; 0 is none.
fn unknown(feature: &'static str, code: u8) -> DecodeError {
    match code {
        0 => DecodeError::Range { what: feature, value: 0 },
        code => DecodeError::Newer { what: WHAT, feature, bit: code.into() },
    }
}

/// Names a key that wraps others, and tells nothing else about it. Its text is 16 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Fingerprint(pub [u8; 8]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fingerprint({self})")
    }
}

/// Text that is no fingerprint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint has 16 hex digits")]
pub struct NotAFingerprint;

impl FromStr for Fingerprint {
    type Err = NotAFingerprint;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.len() != 16 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(NotAFingerprint);
        }
        let value = u64::from_str_radix(text, 16).map_err(|_| NotAFingerprint)?;
        Ok(Self(value.to_be_bytes()))
    }
}

/// Which key wraps a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wrapper {
    /// What it is for.
    pub kind: WrapperKind,
    /// Its name.
    pub fingerprint: Fingerprint,
}

impl fmt::Display for Wrapper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.fingerprint)
    }
}

/// Which key of which vault an object holds, wrapped by which.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KeyHeader {
    /// The vault it belongs to.
    pub vault: VaultId,
    /// Its number.
    pub key: KeyNumber,
    /// The dedup domain it is of; a data key may be of none: the vault's own.
    pub domain: Domain,
    /// What it is for.
    pub kind: KeyKind,
    /// What wraps it.
    pub wrapper: Wrapper,
}

impl fmt::Display for KeyHeader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "key {} of vault {} for the {}", self.key, self.vault, self.wrapper)
    }
}

/// What a later program has put into a header: passed over, and authenticated with the rest.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct More {
    may_ignore: u32,
    fields: Vec<u8>,
}

/// The object `keys/<n>/<wrapper>`: a key of the vault, wrapped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyObject {
    /// Which key it is.
    pub header: KeyHeader,
    /// Nonce of the wrapping.
    pub nonce: [u8; NONCE_BYTES],
    /// The wrapped key and its tag.
    pub wrapped: [u8; WRAPPED_BYTES],
    more: More,
}

impl KeyObject {
    /// An object of this program.
    #[must_use]
    pub fn new(header: KeyHeader, nonce: [u8; NONCE_BYTES], wrapped: [u8; WRAPPED_BYTES]) -> Self {
        Self { header, nonce, wrapped, more: More::default() }
    }

    /// The bytes that the wrapping authenticates besides the key: all of the header.
    ///
    /// # Panics
    /// Never: a header that was read is short.
    #[must_use]
    pub fn aad(&self) -> Vec<u8> {
        let Self { header, more, .. } = self;
        let header_bytes = KEY_HEADER_BYTES + more.fields.len();
        let mut out = Vec::with_capacity(header_bytes + BODY_BYTES + 4);
        front::put(&mut out, MAGIC, header_bytes, more.may_ignore, header.vault, BODY_BYTES);
        out.put_u32(header.key.0);
        out.put_u32(header.domain.0);
        out.put_u8(header.kind.code());
        out.put_u8(header.wrapper.kind.code());
        out.put_zeros(2);
        out.put_bytes(&header.wrapper.fingerprint.0);
        out.put_bytes(&more.fields);
        out
    }

    /// Lays the object out.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.aad();
        out.put_bytes(&self.nonce);
        out.put_bytes(&self.wrapped);
        put_crc(&mut out, 0);
        out
    }

    /// Reads the object.
    ///
    /// # Errors
    /// `Version` and `Newer` for that of a later program; by the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let Front { vault, may_ignore, mut fields, more, body } =
            Front::read(WHAT, MAGIC, KEY_HEADER_BYTES, bytes)?;
        let key = KeyNumber(fields.u32()?);
        let domain = Domain(fields.u32()?);
        let kind = KeyKind::read(&mut fields)?;
        if key.0 == 0 || kind == KeyKind::Root && domain == Domain::OWN {
            return Err(DecodeError::Range { what: "number of a key or a domain", value: 0 });
        }
        let wrapper_kind = WrapperKind::read(&mut fields)?;
        fields.reserved(2)?;
        let wrapper = Wrapper { kind: wrapper_kind, fingerprint: Fingerprint(fields.array()?) };
        let mut body = Reader::new(WHAT, body);
        let (nonce, wrapped) = (body.array()?, body.array()?);
        body.finish()?;
        let header = KeyHeader { vault, key, domain, kind, wrapper };
        Ok(Self { header, nonce, wrapped, more: More { may_ignore, fields: more.to_vec() } })
    }
}
