//! Epoch objects: who may write a volume.
//!
//! Layout and rules: `docs/formats/epoch.md`.

use crate::error::DecodeError;
use crate::ids::{Epoch, KeyNumber, LogId, Seq, Slot, Stamp, VaultId, VolumeId};
use crate::limits::{LABEL_BYTES_MAX, VOLUME_BYTES_MAX};
use crate::wire::{Put, Reader, check_crc, put_crc};

const EPOCH_MAGIC: [u8; 4] = *b"FSEP";
const VERSION: u16 = 1;
/// Bytes of the plain head of an epoch object.
pub const EPOCH_HEADER_BYTES: usize = 136;

/// Plain head of an epoch object; the AAD of its sealed body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochHeader {
    /// The vault it belongs to.
    pub vault: VaultId,
    /// The volume it is about.
    pub volume: VolumeId,
    /// Its number in the volume's list, from 1, without gaps.
    pub ordinal: u64,
    /// Data key of the sealed body.
    pub key: KeyNumber,
    /// Drawn for this object.
    pub salt: [u8; 32],
    /// Commitment to the derived key.
    pub commitment: [u8; 32],
    /// Bytes of the sealed body with its tag.
    pub body_bytes: usize,
}

impl EpochHeader {
    /// Lays the head out.
    ///
    /// # Panics
    /// If the body is over 4 GiB: a bug in the caller, bodies are small.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(EPOCH_HEADER_BYTES);
        out.put_bytes(&EPOCH_MAGIC);
        out.put_u16(VERSION);
        out.put_zeros(2);
        out.put_bytes(&self.vault.0);
        out.put_bytes(&self.volume.0);
        out.put_u64(self.ordinal);
        out.put_u32(self.key.0);
        out.put_u32(u32::try_from(self.body_bytes).expect("bodies are small"));
        out.put_bytes(&self.salt);
        out.put_bytes(&self.commitment);
        out.put_zeros(EPOCH_HEADER_BYTES - 4 - out.len());
        put_crc(&mut out, 0);
        out
    }

    /// Reads the head at the front of an object; returns it and the sealed body.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(object: &[u8]) -> Result<(Self, &[u8]), DecodeError> {
        let Some(head) = object.get(..EPOCH_HEADER_BYTES) else {
            return Err(DecodeError::Truncated {
                what: "epoch object",
                needed: EPOCH_HEADER_BYTES,
                have: object.len(),
            });
        };
        let mut reader = Reader::new("epoch object", head);
        reader.magic(EPOCH_MAGIC)?;
        reader.version(VERSION)?;
        check_crc("epoch object", head)?;
        reader.reserved(2)?;
        let vault = VaultId(reader.array()?);
        let volume = VolumeId(reader.array()?);
        let ordinal = reader.u64()?;
        if ordinal == 0 {
            return Err(DecodeError::Range { what: "epoch ordinal", value: 0 });
        }
        let key = KeyNumber(reader.u32()?);
        let body_bytes = reader.u32()? as usize;
        let header = Self {
            vault,
            volume,
            ordinal,
            key,
            body_bytes,
            salt: reader.array()?,
            commitment: reader.array()?,
        };
        reader.reserved(reader.left() - 4)?;
        let body = &object[EPOCH_HEADER_BYTES..];
        if body.len() != body_bytes {
            return Err(DecodeError::Truncated {
                what: "epoch body",
                needed: body_bytes,
                have: body.len(),
            });
        }
        Ok((header, body))
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
        assert!(self.label.len() <= LABEL_BYTES_MAX, "a label has a limit");
        let mut out = Vec::with_capacity(256);
        out.put_u64(self.epoch.0);
        out.put_bytes(&self.log.0);
        out.put_u64(self.first_slot.0);
        out.put_u64(self.first_seq.0);
        out.put_u64(self.size_bytes);
        let label_bytes = u32::try_from(self.label.len()).expect("asserted above");
        out.put_stamped_count(label_bytes, self.stamp);
        out.put_bytes(self.label.as_bytes());
        out
    }

    /// Reads the body.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("epoch body", bytes);
        let epoch = Epoch(reader.u64()?);
        let log = LogId(reader.array()?);
        let first_slot = reader.slot("epoch first slot")?;
        let first_seq = reader.seq("epoch first seq")?;
        let size_bytes = reader.u64()?;
        let (label_bytes, stamp) = reader.stamped_count("epoch label", LABEL_BYTES_MAX)?;
        let label = std::str::from_utf8(reader.take(label_bytes)?)
            .map_err(|_| DecodeError::Text { what: "epoch label" })?
            .to_owned();
        reader.finish()?;
        if epoch == Epoch(0) || first_seq == Seq(0) {
            return Err(DecodeError::Range { what: "epoch body", value: epoch.0 });
        }
        if size_bytes == 0 || size_bytes > VOLUME_BYTES_MAX {
            return Err(DecodeError::Range { what: "epoch size", value: size_bytes });
        }
        Ok(Self { epoch, log, first_slot, first_seq, size_bytes, stamp, label })
    }
}
