//! The horizon of a log: what says that slots are absent on purpose, and what stood below them.
//!
//! Layout and rules: `docs/formats/horizon.md`.

use crate::checkpoint::{self, CheckpointBody};
use crate::error::DecodeError;
use crate::ids::{LogId, Slot, VaultId};
use crate::limits::HORIZON_MAX;
use crate::object::{ObjectKind, ObjectPlace};
use crate::sections::{SectionKind, SectionWriter, Sections};
use crate::wire::Put;

const HEAD: SectionKind = SectionKind { number: 3, stride: 48, max: 1, what: "horizon head" };

/// The place of a log's horizon with a number, from 1.
#[must_use]
pub fn place(vault: VaultId, log: LogId, number: u64) -> ObjectPlace {
    let (kind, subject) = (ObjectKind::Horizon, log.0);
    ObjectPlace { kind, vault, subject, number, part: 0 }
}

/// What a horizon says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HorizonBody {
    /// Slots of the log below may be absent on purpose.
    pub slot: Slot,
    /// BLAKE3-256 of the object of the horizon before; zeros for the first.
    pub before: [u8; 32],
    /// What the checkpoint at that slot says.
    pub below: CheckpointBody,
}

impl HorizonBody {
    /// Lays the body out.
    ///
    /// # Panics
    /// If there are more volumes than a checkpoint may have: the caller asks first.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = SectionWriter::with_capacity(256);
        self.below.put(&mut out);
        out.put(&HEAD, 1, |out| {
            out.put_u64(self.slot.0);
            out.put_bytes(&self.before);
            out.put_zeros(8);
        });
        out.finish()
    }

    /// Reads the body of horizon `number`.
    ///
    /// # Errors
    /// `Newer` for what must be understood and is not known here; `Range` for slot 0, which nothing is below, for a
    /// number that no log reaches and for a first one that names another before it; by the field that is wrong.
    pub fn decode(bytes: &[u8], number: u64) -> Result<Self, DecodeError> {
        if number == 0 || number > HORIZON_MAX {
            return Err(DecodeError::Range { what: "horizon number", value: number });
        }
        let [head, tails] = checkpoint::SECTIONS;
        let sections = Sections::read("horizon body", bytes, &[head, tails, HEAD])?;
        let mut head = sections.record(&HEAD)?;
        let slot = head.slot("horizon slot")?;
        let before: [u8; 32] = head.array()?;
        head.reserved(8)?;
        if slot == Slot(0) {
            return Err(DecodeError::Range { what: "horizon slot", value: 0 });
        }
        if (number == 1) != (before == [0; 32]) {
            return Err(DecodeError::Range { what: "horizon before", value: number });
        }
        let below = CheckpointBody::take(&sections, slot)?;
        if below.horizon >= number || below.incarnation == 0 {
            return Err(DecodeError::Range { what: "horizon checkpoint", value: below.horizon });
        }
        Ok(Self { slot, before, below })
    }
}
