//! The shape that all sealed objects of a vault have: a plain header in front of a sealed body.
//!
//! Layout and rules: `docs/formats/object.md`.

use crate::error::DecodeError;
use crate::ids::{Attempt, Domain, KeyNumber, VaultId};
use crate::limits::{
    OBJECT_BODY_BYTES_MAX, OBJECT_HEADER_BYTES_MAX, SMALL_BODY_BYTES_MAX, TAG_BYTES,
};
use crate::wire::{Put, Reader, check_crc, put_crc};

const VERSION: u16 = 2;
/// Where the bits of what later programs add are in a header.
const FEATURES: std::ops::Range<usize> = 8..16;
/// Where the number of the key that the commitment goes by is in a header; the salt follows, and the commitment.
const OWN_KEY: usize = 84;
/// Where the commitment is in a header.
const COMMITMENT: std::ops::Range<usize> = 120..152;
/// Bytes of a header in front of its own fields.
const COMMON_BYTES: usize = COMMITMENT.end;
const CRC_BYTES: usize = 4;

/// What kind of object it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKind {
    /// A slot of a log: segment, fill or seal.
    Slot,
    /// An epoch of a volume.
    Epoch,
    /// A map of a volume: its manifest.
    Map,
    /// A part of a layer of a map.
    Pages,
    /// A run of the dedup index.
    IndexRun,
    /// A checkpoint of a log.
    Checkpoint,
    /// A horizon of a log.
    Horizon,
    /// An entry of the register.
    Register,
    /// A revision of a machine.
    Machine,
    /// A revision of a group.
    Group,
    /// A base of a volume.
    Base,
    /// A revision of a vault.
    Revision,
}

impl ObjectKind {
    /// Every kind.
    pub const ALL: [Self; 12] = [
        Self::Slot,
        Self::Epoch,
        Self::Map,
        Self::Pages,
        Self::IndexRun,
        Self::Checkpoint,
        Self::Horizon,
        Self::Register,
        Self::Machine,
        Self::Group,
        Self::Base,
        Self::Revision,
    ];

    /// Its first four bytes.
    #[must_use]
    pub fn magic(self) -> [u8; 4] {
        match self {
            Self::Slot => *b"FSSG",
            Self::Epoch => *b"FSEP",
            Self::Map => *b"FSMP",
            Self::Pages => *b"FSPG",
            Self::IndexRun => *b"FSIR",
            Self::Checkpoint => *b"FSCP",
            Self::Horizon => *b"FSHZ",
            Self::Register => *b"FSRG",
            Self::Machine => *b"FSMC",
            Self::Group => *b"FSGP",
            Self::Base => *b"FSBS",
            Self::Revision => *b"FSVR",
        }
    }

    /// Its name, for people.
    #[must_use]
    pub fn what(self) -> &'static str {
        match self {
            Self::Slot => "segment",
            Self::Epoch => "epoch object",
            Self::Map => "map",
            Self::Pages => "map part",
            Self::IndexRun => "index run",
            Self::Checkpoint => "checkpoint",
            Self::Horizon => "horizon",
            Self::Register => "register entry",
            Self::Machine => "machine",
            Self::Group => "group",
            Self::Base => "base",
            Self::Revision => "revision",
        }
    }

    /// Bytes of its own fields in the header.
    #[must_use]
    pub fn own_bytes(self) -> usize {
        match self {
            Self::Slot => crate::segment::OWN_BYTES,
            Self::Map => crate::map::OWN_BYTES,
            Self::Pages => crate::map::PART_OWN_BYTES,
            Self::Epoch
            | Self::IndexRun
            | Self::Checkpoint
            | Self::Horizon
            | Self::Register
            | Self::Machine
            | Self::Group
            | Self::Base
            | Self::Revision => 4,
        }
    }

    /// Whether the body of one with this variant is sealed under a key of the vault's own: it holds nothing of what the
    /// disks of a domain held, and must be readable when the domain's keys are gone. `None` for a variant that is not
    /// known.
    #[must_use]
    pub fn is_own(self, variant: u8) -> Option<bool> {
        match self {
            Self::Slot => crate::segment::is_own(variant),
            Self::Epoch
            | Self::Checkpoint
            | Self::Horizon
            | Self::Register
            | Self::Base
            | Self::Revision => Some(true),
            Self::Map | Self::Pages | Self::IndexRun | Self::Machine | Self::Group => Some(false),
        }
    }

    /// Bytes of its header, as this program writes it.
    #[must_use]
    pub fn header_bytes(self) -> usize {
        COMMON_BYTES + self.own_bytes() + CRC_BYTES
    }

    /// Most bytes of its body before compression.
    #[must_use]
    pub fn body_bytes_max(self) -> usize {
        match self {
            Self::Slot
            | Self::Map
            | Self::Pages
            | Self::IndexRun
            | Self::Checkpoint
            | Self::Horizon
            | Self::Register
            | Self::Base => OBJECT_BODY_BYTES_MAX,
            Self::Epoch | Self::Machine | Self::Group | Self::Revision => SMALL_BODY_BYTES_MAX,
        }
    }
}

/// How a body or a frame is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Compression {
    /// Not at all.
    Raw,
    /// zstd.
    Zstd,
}

impl Compression {
    /// Its byte in every format.
    #[must_use]
    pub fn code(self) -> u8 {
        match self {
            Self::Raw => 0,
            Self::Zstd => 1,
        }
    }

    pub(crate) fn from_code(code: u8) -> Result<Self, DecodeError> {
        match code {
            0 => Ok(Self::Raw),
            1 => Ok(Self::Zstd),
            _ => {
                Err(DecodeError::Newer { what: "object", feature: "compression", bit: code.into() })
            }
        }
    }
}

/// Which object it is: what its name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectPlace {
    /// Its kind.
    pub kind: ObjectKind,
    /// The vault it belongs to.
    pub vault: VaultId,
    /// The log, volume, run, machine or group that it is of; the vault, if of none.
    pub subject: [u8; 16],
    /// Its number there; 0 if there is only one.
    pub number: u64,
    /// Its part; 0 if there is only one.
    pub part: u32,
}

/// The plain head of an object; the AAD of its body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObjectHeader {
    /// Which object it is.
    pub place: ObjectPlace,
    /// Whose chunk ids and keys it goes by.
    pub domain: Domain,
    /// Data key that what is sealed of it goes by: one of its domain.
    pub key: KeyNumber,
    /// Data key of the vault's own that its commitment goes by; the same, if the object is the vault's own.
    pub own_key: KeyNumber,
    /// What the kind says.
    pub variant: u8,
    /// How the body is compressed.
    pub compression: Compression,
    /// Bytes of the sealed body with its tag.
    pub body_bytes: usize,
    /// Bytes of the body before compression.
    pub body_raw_bytes: usize,
    /// Drawn anew at each attempt to build the object, so that no nonce ever repeats.
    pub salt: [u8; 32],
    /// Commitment to the derived key and to the header.
    pub commitment: [u8; 32],
    /// Bytes of the whole header, those of later programs included.
    pub header_bytes: usize,
}

impl ObjectHeader {
    /// Which attempt at its name it is.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        Attempt::of(&self.salt)
    }

    /// Bytes of header and body.
    #[must_use]
    pub fn whole_bytes(&self) -> usize {
        self.header_bytes + self.body_bytes
    }

    /// Lays the header out with the kind's own fields, which `own` appends. The commitment is that of this
    /// value: see [`committed`] for what it is made of.
    ///
    /// # Panics
    /// If a length is over its limit, or `own` gives other than the kind's bytes: bugs in the caller.
    #[must_use]
    pub fn encode(&self, own: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let kind = self.place.kind;
        assert!(self.body_raw_bytes <= kind.body_bytes_max(), "a body has a limit");
        assert!(self.body_bytes <= self.body_raw_bytes + TAG_BYTES, "compression saves bytes");
        assert_eq!(self.header_bytes, kind.header_bytes(), "headers are written as they are known");
        let narrow = |value: usize| u32::try_from(value).expect("limits fit 32 bits");
        let mut out = Vec::with_capacity(self.header_bytes);
        out.put_bytes(&kind.magic());
        out.put_u16(VERSION);
        out.put_u16(u16::try_from(self.header_bytes).expect("a header has a limit"));
        out.put_feature_bits();
        out.put_bytes(&self.place.vault.0);
        out.put_bytes(&self.place.subject);
        out.put_u64(self.place.number);
        out.put_u32(self.place.part);
        out.put_zeros(4);
        out.put_u32(self.domain.0);
        out.put_u32(self.key.0);
        out.put_u8(self.variant);
        out.put_u8(self.compression.code());
        out.put_zeros(2);
        out.put_u32(narrow(self.body_bytes));
        out.put_u32(narrow(self.body_raw_bytes));
        out.put_u32(self.own_key.0);
        out.put_bytes(&self.salt);
        out.put_bytes(&self.commitment);
        own(&mut out);
        assert_eq!(out.len() + CRC_BYTES, self.header_bytes, "the fields add up to the header");
        put_crc(&mut out, 0);
        out
    }

    /// Reads the header at the front of an object of `kind`; also gives a reader of the kind's own fields.
    ///
    /// # Errors
    /// `Newer` if a later program wrote what this one must understand; by the field that is wrong.
    pub fn decode(kind: ObjectKind, object: &[u8]) -> Result<(Self, Reader<'_>), DecodeError> {
        let (head, mut reader) = front(kind, object)?;
        let header_bytes = head.len();
        reader.feature_bits()?;
        let header = Self::fields(kind, header_bytes, &mut reader)?;
        let own = header.own_fields(head);
        if !matches!(kind, ObjectKind::Slot | ObjectKind::Map | ObjectKind::Pages) {
            header.check_without_fields(header.own_fields(head))?;
        }
        Ok((header, own))
    }

    /// Whether the header, at the front of `object`, has nothing that this program ignores.
    #[must_use]
    pub fn is_all_known(&self, object: &[u8]) -> bool {
        let is_known = |bits: &[u8]| bits.iter().all(|bits| *bits == 0);
        self.header_bytes == self.place.kind.header_bytes()
            && object.get(FEATURES).is_some_and(is_known)
    }

    /// A reader of the kind's own fields in the header's bytes.
    ///
    /// # Panics
    /// If `head` is shorter than the header that this was read from: a bug in the caller.
    #[must_use]
    pub fn own_fields<'a>(&self, head: &'a [u8]) -> Reader<'a> {
        let kind = self.place.kind;
        Reader::new(kind.what(), &head[COMMON_BYTES..][..kind.own_bytes()])
    }

    /// Of a kind that has neither variants nor fields of its own.
    fn check_without_fields(&self, mut own: Reader<'_>) -> Result<(), DecodeError> {
        self.check_without_variants()?;
        own.reserved(own.left())
    }

    /// Of a kind that has no variants.
    pub(crate) fn check_without_variants(&self) -> Result<(), DecodeError> {
        if self.variant != 0 {
            return Err(DecodeError::Range { what: "object variant", value: self.variant.into() });
        }
        Ok(())
    }

    fn fields(
        kind: ObjectKind,
        header_bytes: usize,
        reader: &mut Reader<'_>,
    ) -> Result<Self, DecodeError> {
        let place = take_place(kind, reader)?;
        reader.reserved(4)?;
        let domain = Domain(reader.u32()?);
        let key = KeyNumber(reader.u32()?);
        let variant = reader.u8()?;
        let compression = Compression::from_code(reader.u8()?)?;
        reader.reserved(2)?;
        let body_bytes = reader.count(kind.what(), kind.body_bytes_max() + TAG_BYTES)?;
        let body_raw_bytes = reader.count(kind.what(), kind.body_bytes_max())?;
        let is_sealed = (TAG_BYTES..=body_raw_bytes + TAG_BYTES).contains(&body_bytes);
        if !is_sealed || compression == Compression::Raw && body_bytes != body_raw_bytes + TAG_BYTES
        {
            return Err(DecodeError::Range { what: "body length", value: body_bytes as u64 });
        }
        let own_key = KeyNumber(reader.u32()?);
        check_keys(kind, variant, (domain, key), own_key)?;
        let salt = reader.array()?;
        let commitment = reader.array()?;
        Ok(Self {
            place,
            domain,
            key,
            own_key,
            variant,
            compression,
            body_bytes,
            body_raw_bytes,
            salt,
            commitment,
            header_bytes,
        })
    }
}

/// Reads the place that a header says.
fn take_place(kind: ObjectKind, reader: &mut Reader<'_>) -> Result<ObjectPlace, DecodeError> {
    Ok(ObjectPlace {
        kind,
        vault: VaultId(reader.array()?),
        subject: reader.array()?,
        number: reader.u64()?,
        part: reader.u32()?,
    })
}

/// Checks that an object of a kind is under keys that it may be under.
fn check_keys(
    kind: ObjectKind,
    variant: u8,
    (domain, key): (Domain, KeyNumber),
    own_key: KeyNumber,
) -> Result<(), DecodeError> {
    if key.0 == 0 || own_key.0 == 0 {
        return Err(DecodeError::Range { what: "key of an object", value: 0 });
    }
    let is_legal = match kind.is_own(variant) {
        Some(true) => domain == Domain::OWN && key == own_key,
        Some(false) => domain != Domain::OWN && key != own_key,
        None => true,
    };
    if !is_legal {
        return Err(DecodeError::Range { what: "domain of an object", value: domain.0.into() });
    }
    Ok(())
}

/// The bytes of the header at the front of an object of `kind`, and a reader behind its length: as much as must be
/// so before it can be told whether it is authentic.
fn front(kind: ObjectKind, object: &[u8]) -> Result<(&[u8], Reader<'_>), DecodeError> {
    let what = kind.what();
    let mut reader = Reader::new(what, object);
    reader.magic(kind.magic())?;
    reader.version(VERSION)?;
    let header_bytes = usize::from(reader.u16()?);
    let is_legal = (kind.header_bytes()..=OBJECT_HEADER_BYTES_MAX).contains(&header_bytes);
    if !is_legal || !header_bytes.is_multiple_of(8) {
        return Err(DecodeError::Range { what: "header length", value: header_bytes as u64 });
    }
    let Some(head) = object.get(..header_bytes) else {
        return Err(DecodeError::Truncated { what, needed: header_bytes, have: object.len() });
    };
    check_crc(what, head)?;
    Ok((head, reader))
}

/// What tells whether a header is authentic. Nothing else of it is to be believed before.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// The header.
    pub head: &'a [u8],
    /// The place that it says.
    pub place: ObjectPlace,
    /// Data key of the vault's own that its commitment goes by.
    pub own_key: KeyNumber,
    /// Its salt.
    pub salt: [u8; 32],
    /// Its commitment.
    pub commitment: [u8; 32],
}

impl<'a> Claim<'a> {
    /// Reads it off the front of an object of `kind`.
    ///
    /// # Errors
    /// `Version` if a later program wrote it; by what keeps the header from being one.
    pub fn read(kind: ObjectKind, object: &'a [u8]) -> Result<Self, DecodeError> {
        let (head, mut reader) = front(kind, object)?;
        reader.array::<{ FEATURES.end - FEATURES.start }>()?;
        let place = take_place(kind, &mut reader)?;
        let mut reader = Reader::new(kind.what(), &head[OWN_KEY..]);
        let (own_key, salt) = (KeyNumber(reader.u32()?), reader.array()?);
        Ok(Self { head, place, own_key, salt, commitment: reader.array()? })
    }
}

/// What a commitment is made of: all of the header but itself and the checksum, in two parts.
///
/// # Panics
/// If `head` is shorter than any header: a bug in the caller.
#[must_use]
pub fn committed(head: &[u8]) -> [&[u8]; 2] {
    [&head[..COMMITMENT.start], &head[COMMITMENT.end..head.len() - CRC_BYTES]]
}

/// Puts the commitment into a header that was laid out without it.
///
/// # Panics
/// If `head` is shorter than any header: a bug in the caller.
pub fn commit(head: &mut Vec<u8>, commitment: &[u8; 32]) {
    head[COMMITMENT].copy_from_slice(commitment);
    head.truncate(head.len() - CRC_BYTES);
    put_crc(head, 0);
}
