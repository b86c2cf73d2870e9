//! The checkpoint of a log: where its volumes stood at a slot, so that nobody reads what is below. Derived.
//!
//! Layout and rules: `docs/formats/checkpoint.md`.

use crate::error::DecodeError;
use crate::ids::{Epoch, Imprint, LogId, PointId, Seq, Slot, Stamp, VaultId, VolumeId};
use crate::limits::{CHECKPOINT_VOLUMES_MAX, SLOT_MAX};
use crate::object::{ObjectKind, ObjectPlace};
use crate::register::At;
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::wire::{Put, Reader};
use std::collections::BTreeMap;

const HEAD: SectionKind = SectionKind { number: 1, stride: 32, max: 1, what: "checkpoint head" };
const TAILS: SectionKind =
    SectionKind { number: 2, stride: 88, max: CHECKPOINT_VOLUMES_MAX, what: "checkpoint volumes" };
/// The sections of a checkpoint.
pub(crate) const SECTIONS: [SectionKind; 2] = [HEAD, TAILS];

/// The volume released that epoch in this log: nothing follows under it.
const RELEASED: u8 = 1;
/// The spans below do not join.
const BROKEN: u8 = 2;

/// The place of the checkpoint of a log that says what stands below a slot.
#[must_use]
pub fn place(vault: VaultId, log: LogId, slot: Slot) -> ObjectPlace {
    let (kind, subject, number) = (ObjectKind::Checkpoint, log.0, slot.0);
    ObjectPlace { kind, vault, subject, number, part: 0 }
}

/// The end of a volume's stream in a log, under the newest epoch of which the log has spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VolumeTail {
    /// The epoch.
    pub epoch: Epoch,
    /// First seq that the log has of it.
    pub first_seq: Seq,
    /// Last seq, as far as the spans join.
    pub last_seq: Seq,
    /// The newest slot with a span of the volume, of whatever epoch.
    pub newest: Slot,
    /// The newest mark under the epoch.
    pub mark: Option<(Seq, PointId)>,
    /// Of the frame at the last seq; nothing if that is not known.
    pub stamp: Stamp,
    /// Which frame that is; nothing if that is not known.
    pub imprint: Imprint,
    /// Whether the log's writer let go of the epoch: nothing follows under it.
    pub is_released: bool,
    /// Whether there are spans that do not join: how far the stream got is for its readers to say.
    pub is_broken: bool,
}

/// What a checkpoint says of all slots below its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckpointBody {
    /// The highest incarnation of the slots below that count; 0 if there are none.
    pub incarnation: u64,
    /// Number of the log's newest horizon that its maker knew of; 0: none.
    pub horizon: u64,
    /// How far the slots below say that the vault's register was applied.
    pub register: At,
    /// The volumes. One that is not here has no span below under its newest epoch.
    pub tails: BTreeMap<VolumeId, VolumeTail>,
}

impl CheckpointBody {
    /// Lays the body out.
    ///
    /// # Panics
    /// If there are more volumes than the limit: the caller asks first.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = SectionWriter::with_capacity(128 + self.tails.len() * TAILS.stride);
        self.put(&mut out);
        out.finish()
    }

    /// Appends the sections.
    ///
    /// # Panics
    /// As `encode`.
    pub(crate) fn put(&self, out: &mut SectionWriter) {
        out.put(&HEAD, 1, |out| {
            out.put_u64(self.incarnation);
            out.put_u64(self.horizon);
            self.register.put(out);
        });
        out.put(&TAILS, self.tails.len(), |out| {
            self.tails.iter().for_each(|(volume, tail)| put_tail(out, *volume, tail));
        });
    }

    /// Reads the body of the checkpoint at `slot`.
    ///
    /// # Errors
    /// `Newer` for what must be understood and is not known here; `Range` for a slot that no log reaches; by the
    /// field that is wrong.
    pub fn decode(bytes: &[u8], slot: Slot) -> Result<Self, DecodeError> {
        Self::take(&Sections::read("checkpoint body", bytes, &SECTIONS)?, slot)
    }

    /// Reads the sections of the checkpoint at `slot`.
    ///
    /// # Errors
    /// As `decode`.
    pub(crate) fn take(sections: &Sections<'_>, slot: Slot) -> Result<Self, DecodeError> {
        if slot > SLOT_MAX {
            return Err(DecodeError::Range { what: "checkpoint slot", value: slot.0 });
        }
        let mut head = sections.record(&HEAD)?;
        let (incarnation, horizon) = (head.u64()?, head.u64()?);
        let register = At::take(&mut head, "checkpoint register")?;
        let mut tails: BTreeMap<VolumeId, VolumeTail> = BTreeMap::new();
        for record in sections.records(&TAILS) {
            let (volume, tail) = take_tail(record, slot)?;
            if tails.last_key_value().is_some_and(|(last, _)| *last >= volume) {
                return Err(DecodeError::Range { what: "checkpoint order", value: 0 });
            }
            tails.insert(volume, tail);
        }
        let is_empty = tails.is_empty() && register == At::NONE;
        if incarnation == 0 && !is_empty || incarnation > 0 && slot == Slot(0) {
            return Err(DecodeError::Range { what: "checkpoint incarnation", value: incarnation });
        }
        Ok(Self { incarnation, horizon, register, tails })
    }
}

fn put_tail(out: &mut Vec<u8>, volume: VolumeId, tail: &VolumeTail) {
    out.put_bytes(&volume.0);
    out.put_u64(tail.epoch.0);
    out.put_u64(tail.first_seq.0);
    out.put_u64(tail.last_seq.0);
    out.put_u64(tail.newest.0);
    let (seq, point) = tail.mark.unwrap_or((Seq(0), PointId([0; 16])));
    out.put_u64(seq.0);
    out.put_bytes(&point.0);
    out.put_stamp(tail.stamp);
    out.put_bytes(&tail.imprint.to_bytes());
    let flag = |is_set: bool, bit: u8| if is_set { bit } else { 0 };
    out.put_u8(flag(tail.is_released, RELEASED) | flag(tail.is_broken, BROKEN));
    out.put_zeros(4);
}

fn take_tail(mut reader: Reader<'_>, slot: Slot) -> Result<(VolumeId, VolumeTail), DecodeError> {
    let volume = VolumeId(reader.array()?);
    let epoch = Epoch(reader.u64()?);
    let first_seq = reader.seq("checkpoint first seq")?;
    let last_seq = reader.seq("checkpoint last seq")?;
    let newest = reader.slot("checkpoint newest slot")?;
    let marked = reader.seq("checkpoint mark")?;
    let point = PointId(reader.array()?);
    let stamp = reader.stamp("checkpoint stamp")?;
    let imprint = Imprint::from_bytes(reader.array()?);
    let flags = reader.flags("checkpoint volume", RELEASED | BROKEN)?;
    reader.reserved(4)?;
    let is_legal = epoch > Epoch(0) && Seq(0) < first_seq && first_seq <= last_seq && newest < slot;
    if !is_legal {
        return Err(DecodeError::Range { what: "checkpoint volume", value: last_seq.0 });
    }
    let mark = (marked > Seq(0)).then_some((marked, point));
    let is_mark_legal = match mark {
        Some(_) => (first_seq..=last_seq).contains(&marked),
        None => point == PointId([0; 16]),
    };
    if !is_mark_legal {
        return Err(DecodeError::Range { what: "checkpoint mark", value: marked.0 });
    }
    let (is_released, is_broken) = (flags & RELEASED != 0, flags & BROKEN != 0);
    let tail = VolumeTail {
        epoch,
        first_seq,
        last_seq,
        newest,
        mark,
        stamp,
        imprint,
        is_released,
        is_broken,
    };
    Ok((volume, tail))
}
