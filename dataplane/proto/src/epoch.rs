//! Epoch objects: who may write a volume.
//!
//! Layout and rules: `docs/formats/epoch.md`.

use crate::error::DecodeError;
use crate::ids::{
    Domain, Epoch, KeyNumber, LogId, Place, PointId, Seq, Slot, Stamp, VaultId, VolumeId,
};
use crate::limits::{LABEL_BYTES_MAX, SALT_BYTES, TAG_BYTES, VOLUME_BYTES_MAX};
use crate::object::{ObjectKind, ObjectPlace};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::wire::{Put, Reader};

const HEAD: SectionKind = SectionKind { number: 1, stride: 64, max: 1, what: "epoch head" };
const LABEL: SectionKind =
    SectionKind { number: 2, stride: 1, max: SEALED_LABEL_BYTES_MAX, what: "epoch label" };
/// Bytes of a sealed label in front of what is sealed: number of its key, reserved, salt.
const LABEL_HEAD_BYTES: usize = 8 + SALT_BYTES;
const SEALED_LABEL_BYTES_MAX: usize = LABEL_HEAD_BYTES + LABEL_BYTES_MAX + TAG_BYTES;
const ENDED: SectionKind =
    SectionKind { number: 3, stride: 16, max: 1, what: "end of the epoch before" };
const BASE: SectionKind = SectionKind { number: 4, stride: 48, max: 1, what: "epoch base" };

/// The place of an epoch of a volume.
#[must_use]
pub fn place(vault: VaultId, volume: VolumeId, ordinal: u64) -> ObjectPlace {
    ObjectPlace { kind: ObjectKind::Epoch, vault, subject: volume.0, number: ordinal, part: 0 }
}

/// Why nothing more of an epoch counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndKind {
    /// Its log was sealed.
    Seal,
    /// A segment of its log released the volume.
    Release,
    /// Its writer said that it puts no more of it; or it is the one who begins the next.
    Word,
    /// Nobody ever writes its log.
    Unwritten,
}

impl EndKind {
    fn code(self) -> u8 {
        match self {
            Self::Seal => 1,
            Self::Release => 2,
            Self::Word => 3,
            Self::Unwritten => 4,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Seal, Self::Release, Self::Word, Self::Unwritten]
            .into_iter()
            .find(|kind| kind.code() == code)
    }
}

/// How the epoch before ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Why nothing more of it counts.
    pub kind: EndKind,
    /// All slots of its log in front of this one are filled, and hold all of it that counts. The slot of the seal, the one
    /// behind the release, or the one behind what was found; 0 if nobody writes the log.
    pub slot: Slot,
}

impl Ended {
    /// The first slot of its log that may hold nothing.
    #[must_use]
    pub fn filled(self) -> Slot {
        match self.kind {
            EndKind::Seal => self.slot.next(),
            EndKind::Release | EndKind::Word | EndKind::Unwritten => self.slot,
        }
    }
}

/// A recovery point that a volume goes on from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochBase {
    /// Of which volume; may be another one.
    pub volume: VolumeId,
    /// Where the point is in its stream.
    pub at: Place,
    /// The point: another one may have come to its place after a loss.
    pub point: PointId,
}

/// The label of a volume as its epochs hold it: under a key of the volume's domain, as it may name a customer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedLabel {
    /// The data key that it goes by.
    pub key: KeyNumber,
    /// Drawn for each.
    pub salt: [u8; SALT_BYTES],
    /// The label, sealed, with its tag.
    pub sealed: Vec<u8>,
}

impl SealedLabel {
    fn put(&self, out: &mut Vec<u8>) {
        out.put_u32(self.key.0);
        out.put_zeros(4);
        out.put_bytes(&self.salt);
        out.put_bytes(&self.sealed);
    }

    fn take(bytes: &[u8]) -> Result<Option<Self>, DecodeError> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let mut reader = Reader::new(LABEL.what, bytes);
        let key = KeyNumber(reader.u32()?);
        reader.reserved(4)?;
        let (salt, sealed) = (reader.array()?, reader.take(reader.left())?.to_vec());
        // One that says nothing is left out.
        if key.0 == 0 || sealed.len() <= TAG_BYTES {
            return Err(DecodeError::Range { what: LABEL.what, value: sealed.len() as u64 });
        }
        Ok(Some(Self { key, salt, sealed }))
    }
}

/// Sealed body of an epoch object: who writes, from where on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochBody {
    /// The epoch that the control plane issued; greater than that of the ordinal before.
    pub epoch: Epoch,
    /// The log that holds the volume's spans of this epoch.
    pub log: LogId,
    /// No slot of the log before this one holds a span of this epoch.
    pub first_slot: Slot,
    /// Seq of the first write of this epoch; spans of the epoch before count only below it.
    pub first_seq: Seq,
    /// Size of the volume in bytes, of any number.
    pub size_bytes: u64,
    /// Of the frame before `first_seq`: whose it is. Nothing if that is not known.
    pub stamp: Stamp,
    /// For people who find the vault: machine and disk. It is sealed by itself; empty where it cannot be opened.
    pub label: String,
    /// How the epoch before ended; nothing of the first one.
    pub ended: Option<Ended>,
    /// What the volume held when the epoch began, if that is not what the epoch before ended with.
    pub base: Option<EpochBase>,
}

impl EpochBody {
    /// Lays the body out, with the label as it was sealed.
    ///
    /// # Panics
    /// If the label is over its limit: the caller checks it.
    #[must_use]
    pub fn encode(&self, label: Option<&SealedLabel>) -> Vec<u8> {
        let mut out = SectionWriter::with_capacity(256);
        out.put(&HEAD, 1, |out| {
            out.put_u64(self.epoch.0);
            out.put_bytes(&self.log.0);
            out.put_u64(self.first_slot.0);
            out.put_u64(self.first_seq.0);
            out.put_u64(self.size_bytes);
            out.put_stamp(self.stamp);
            out.put_u32(Domain::FIRST.0);
            out.put_zeros(4);
        });
        let label_bytes = label.map_or(0, |label| LABEL_HEAD_BYTES + label.sealed.len());
        out.put(&LABEL, label_bytes, |out| label.iter().for_each(|label| label.put(out)));
        out.put(&ENDED, self.ended.iter().len(), |out| {
            if let Some(ended) = self.ended {
                out.put_u64(ended.slot.0);
                out.put_u8(ended.kind.code());
                out.put_zeros(7);
            }
        });
        out.put(&BASE, self.base.iter().len(), |out| {
            if let Some(base) = self.base {
                out.put_bytes(&base.volume.0);
                out.put_u64(base.at.ordinal);
                out.put_u64(base.at.seq.0);
                out.put_bytes(&base.point.0);
            }
        });
        out.finish()
    }

    /// Reads the body, without the label; that as it was sealed.
    ///
    /// # Errors
    /// `Newer` for what must be understood and is not known here; by the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<(Self, Option<SealedLabel>), DecodeError> {
        let sections = Sections::read("epoch body", bytes, &[HEAD, LABEL, ENDED, BASE])?;
        let mut reader = sections.record(&HEAD)?;
        let epoch = Epoch(reader.u64()?);
        let log = LogId(reader.array()?);
        let first_slot = reader.slot("epoch first slot")?;
        let first_seq = reader.seq("epoch first seq")?;
        let size_bytes = reader.u64()?;
        let stamp = reader.stamp("epoch stamp")?;
        let domain = reader.u32()?;
        reader.reserved(4)?;
        let label = SealedLabel::take(&sections.bytes(&LABEL))?;
        if epoch == Epoch(0) || first_seq == Seq(0) {
            return Err(DecodeError::Range { what: "epoch body", value: epoch.0 });
        }
        if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX {
            return Err(DecodeError::Range { what: "epoch size", value: size_bytes });
        }
        match Domain(domain) {
            Domain::FIRST => {}
            Domain::OWN => return Err(DecodeError::Range { what: "epoch domain", value: 0 }),
            Domain(bit) => {
                return Err(DecodeError::Newer { what: "epoch", feature: "domain", bit });
            }
        }
        let ended = sections.records(&ENDED).next().map(read_ended).transpose()?;
        let base = sections.records(&BASE).next().map(read_base).transpose()?;
        let none = String::new();
        let body =
            Self { epoch, log, first_slot, first_seq, size_bytes, stamp, label: none, ended, base };
        Ok((body, label))
    }
}

fn read_ended(mut reader: Reader<'_>) -> Result<Ended, DecodeError> {
    let slot = reader.slot("end of the epoch before")?;
    let code = reader.u8()?;
    reader.reserved(7)?;
    let kind = EndKind::from_code(code).ok_or(DecodeError::Newer {
        what: "epoch",
        feature: "end",
        bit: code.into(),
    })?;
    let is_in_range = match kind {
        EndKind::Release => slot > Slot(0),
        EndKind::Unwritten => slot == Slot(0),
        EndKind::Seal | EndKind::Word => true,
    };
    if !is_in_range {
        return Err(DecodeError::Range { what: "slot of an epoch's end", value: slot.0 });
    }
    Ok(Ended { kind, slot })
}

fn read_base(mut reader: Reader<'_>) -> Result<EpochBase, DecodeError> {
    let volume = VolumeId(reader.array()?);
    let ordinal = reader.u64()?;
    let seq = reader.seq("seq of an epoch's base")?;
    if ordinal == 0 || seq == Seq(0) {
        return Err(DecodeError::Range { what: "epoch base", value: ordinal });
    }
    let point = PointId(reader.array()?);
    Ok(EpochBase { volume, at: Place { ordinal, seq }, point })
}
