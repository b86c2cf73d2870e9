//! Epoch objects: who may write a volume.
//!
//! Layout and rules: `docs/formats/epoch.md`.

use crate::error::DecodeError;
use crate::ids::{Epoch, LogId, Seq, Slot, Stamp, VaultId, VolumeId};
use crate::limits::{LABEL_BYTES_MAX, VOLUME_BYTES_MAX};
use crate::object::{ObjectKind, ObjectPlace};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::wire::Put;

const HEAD: SectionKind = SectionKind { number: 1, stride: 56, max: 1, what: "epoch head" };
const LABEL: SectionKind =
    SectionKind { number: 2, stride: 1, max: LABEL_BYTES_MAX, what: "epoch label" };

/// The place of an epoch of a volume.
#[must_use]
pub fn place(vault: VaultId, volume: VolumeId, ordinal: u64) -> ObjectPlace {
    ObjectPlace { kind: ObjectKind::Epoch, vault, subject: volume.0, number: ordinal, part: 0 }
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
    /// For people who find the vault: machine and disk.
    pub label: String,
}

impl EpochBody {
    /// Lays the body out.
    ///
    /// # Panics
    /// If the label is over its limit: the caller checks it.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = SectionWriter::with_capacity(256);
        out.put(&HEAD, 1, |out| {
            out.put_u64(self.epoch.0);
            out.put_bytes(&self.log.0);
            out.put_u64(self.first_slot.0);
            out.put_u64(self.first_seq.0);
            out.put_u64(self.size_bytes);
            out.put_stamp(self.stamp);
        });
        out.put(&LABEL, self.label.len(), |out| out.put_bytes(self.label.as_bytes()));
        out.finish()
    }

    /// Reads the body.
    ///
    /// # Errors
    /// `Newer` for what must be understood and is not known here; by the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let sections = Sections::read("epoch body", bytes, &[HEAD, LABEL])?;
        let mut reader = sections.record(&HEAD)?;
        let epoch = Epoch(reader.u64()?);
        let log = LogId(reader.array()?);
        let first_slot = reader.slot("epoch first slot")?;
        let first_seq = reader.seq("epoch first seq")?;
        let size_bytes = reader.u64()?;
        let stamp = reader.stamp("epoch stamp")?;
        let label = String::from_utf8(sections.bytes(&LABEL))
            .map_err(|_| DecodeError::Text { what: "epoch label" })?;
        if epoch == Epoch(0) || first_seq == Seq(0) {
            return Err(DecodeError::Range { what: "epoch body", value: epoch.0 });
        }
        if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX {
            return Err(DecodeError::Range { what: "epoch size", value: size_bytes });
        }
        Ok(Self { epoch, log, first_slot, first_seq, size_bytes, stamp, label })
    }
}
