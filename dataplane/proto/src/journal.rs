//! The node's journal: files of sealed groups, each group a run of entries.
//!
//! Layout, keys and order of operations: `docs/formats/journal.md`.

use crate::error::DecodeError;
use crate::frame::FrameHeader;
use crate::hrl::frame_at;
use crate::ids::{Epoch, KeyNumber, LogId, VaultId, VolumeId};
use crate::limits::{
    FRAME_HEADER_BYTES, JOURNAL_ALIGN_BYTES, JOURNAL_ENTRY_PREFIX_BYTES, JOURNAL_GROUP_BYTES_MAX,
    JOURNAL_GROUP_ENTRIES_MAX, JOURNAL_GROUP_HEADER_BYTES, TAG_BYTES,
};
use crate::wire::{Put, Reader, check_crc, put_crc};

const FILE_MAGIC: [u8; 4] = *b"FSJF";
const GROUP_MAGIC: [u8; 4] = *b"FSJG";
const VERSION: u16 = 2;
/// The first block of a file, whatever of it is in use.
const FILE_HEADER_BYTES: u16 = 4096;

const _: () = assert!(FILE_HEADER_BYTES as usize == JOURNAL_ALIGN_BYTES);

/// First block of a journal file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalFileHeader {
    /// The vault the data is for.
    pub vault: VaultId,
    /// The log that the shard appends to.
    pub log: LogId,
    /// Number of the file, increasing.
    pub number: u64,
    /// Data key that the file key is derived from.
    pub key: KeyNumber,
    /// Drawn for this file; makes its key unique.
    pub salt: [u8; 32],
    /// Commitment to the file key.
    pub commitment: [u8; 32],
}

impl JournalFileHeader {
    /// Lays the block out.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(JOURNAL_ALIGN_BYTES);
        out.put_bytes(&FILE_MAGIC);
        out.put_u16(VERSION);
        out.put_u16(FILE_HEADER_BYTES);
        out.put_feature_bits();
        out.put_bytes(&self.vault.0);
        out.put_bytes(&self.log.0);
        out.put_u64(self.number);
        out.put_zeros(12);
        out.put_u32(self.key.0);
        out.put_zeros(16);
        out.put_bytes(&self.salt);
        out.put_bytes(&self.commitment);
        out.put_zeros(JOURNAL_ALIGN_BYTES - 4 - out.len());
        put_crc(&mut out, 0);
        out
    }

    /// Reads the block.
    ///
    /// # Errors
    /// `Newer` for what a later program asks for; by the field that is wrong.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("journal file header", bytes);
        reader.magic(FILE_MAGIC)?;
        reader.version(VERSION)?;
        if bytes.len() != JOURNAL_ALIGN_BYTES {
            return Err(DecodeError::Truncated {
                what: "journal file header",
                needed: JOURNAL_ALIGN_BYTES,
                have: bytes.len(),
            });
        }
        check_crc("journal file header", bytes)?;
        let header_bytes = reader.u16()?;
        if header_bytes != FILE_HEADER_BYTES {
            let value = header_bytes.into();
            return Err(DecodeError::Range { what: "journal file header length", value });
        }
        reader.feature_bits()?;
        let vault = VaultId(reader.array()?);
        let log = LogId(reader.array()?);
        let number = reader.u64()?;
        reader.reserved(12)?;
        let key = KeyNumber(reader.u32()?);
        reader.reserved(16)?;
        let (salt, commitment) = (reader.array()?, reader.array()?);
        Ok(Self { vault, log, number, key, salt, commitment })
    }
}

/// What a group holds before it is sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupSize {
    /// How many entries.
    pub entries: usize,
    /// Their bytes.
    pub bytes: usize,
}

/// In front of each sealed group; the AAD of its sealing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GroupHeader {
    /// Number of the file the group is in: a group of an older file in a reused place is not read.
    pub file: u64,
    /// Number of the group in the file, from 0; also its nonce.
    pub group: u64,
    /// Bytes of the entries before sealing.
    pub plain_bytes: usize,
    /// How many entries there are.
    pub entries: usize,
}

impl GroupHeader {
    /// Bytes of the group on disk: header, sealed entries, tag, padding to the alignment.
    #[must_use]
    pub fn disk_bytes(&self) -> usize {
        (JOURNAL_GROUP_HEADER_BYTES + self.plain_bytes + TAG_BYTES)
            .next_multiple_of(JOURNAL_ALIGN_BYTES)
    }

    /// Lays the header out.
    ///
    /// # Panics
    /// If the group is over its limit: a bug in the caller.
    #[must_use]
    pub fn encode(&self) -> [u8; JOURNAL_GROUP_HEADER_BYTES] {
        assert!(self.plain_bytes <= JOURNAL_GROUP_BYTES_MAX, "a group has a limit");
        assert!(self.entries <= JOURNAL_GROUP_ENTRIES_MAX, "each entry has its bytes");
        let mut out = Vec::with_capacity(JOURNAL_GROUP_HEADER_BYTES);
        out.put_bytes(&GROUP_MAGIC);
        out.put_u16(VERSION);
        out.put_zeros(2);
        out.put_u64(self.file);
        out.put_u64(self.group);
        out.put_u32(u32::try_from(self.plain_bytes).expect("asserted above"));
        out.put_u32(u32::try_from(self.entries).expect("asserted above"));
        out.put_zeros(JOURNAL_GROUP_HEADER_BYTES - 4 - out.len());
        put_crc(&mut out, 0);
        out.try_into().expect("the fields add up to the header")
    }

    /// Reads a header.
    ///
    /// # Errors
    /// By the field that is wrong.
    pub fn decode(bytes: &[u8; JOURNAL_GROUP_HEADER_BYTES]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new("journal group header", bytes);
        reader.magic(GROUP_MAGIC)?;
        reader.version(VERSION)?;
        check_crc("journal group header", bytes)?;
        reader.reserved(2)?;
        let file = reader.u64()?;
        let group = reader.u64()?;
        let plain_bytes = reader.count("journal group bytes", JOURNAL_GROUP_BYTES_MAX)?;
        let entries = reader.count("journal group entries", JOURNAL_GROUP_ENTRIES_MAX)?;
        reader.reserved(reader.left() - 4)?;
        Ok(Self { file, group, plain_bytes, entries })
    }
}

/// Appends an entry to the entries of a group: whose frame, then the frame as it came.
pub fn put_entry(
    out: &mut Vec<u8>,
    volume: VolumeId,
    epoch: Epoch,
    header: &[u8; FRAME_HEADER_BYTES],
    body: &[u8],
) {
    out.put_bytes(&volume.0);
    out.put_u64(epoch.0);
    out.put_bytes(header);
    out.put_bytes(body);
}

/// One entry of an opened group.
#[derive(Debug, Clone, Copy)]
pub struct Entry<'a> {
    /// Whose stream.
    pub volume: VolumeId,
    /// Under which epoch it came.
    pub epoch: Epoch,
    /// The frame's header.
    pub header: FrameHeader,
    /// The frame's body.
    pub body: &'a [u8],
}

/// The entries of an opened group, in order.
///
/// # Errors
/// The first entry that does not decode ends the iteration with its error.
pub fn entries(plain: &[u8]) -> impl Iterator<Item = Result<Entry<'_>, DecodeError>> {
    let mut rest = plain;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let entry = entry_at(rest);
        rest = match &entry {
            Ok(entry) => {
                &rest[JOURNAL_ENTRY_PREFIX_BYTES + FRAME_HEADER_BYTES + entry.body.len()..]
            }
            Err(_) => &[],
        };
        Some(entry)
    })
}

fn entry_at(bytes: &[u8]) -> Result<Entry<'_>, DecodeError> {
    let mut reader = Reader::new("journal entry", bytes);
    let volume = VolumeId(reader.array()?);
    let epoch = Epoch(reader.u64()?);
    if epoch == Epoch(0) {
        return Err(DecodeError::Range { what: "journal entry epoch", value: 0 });
    }
    let (header, body) = frame_at(reader.take(reader.left())?)?;
    Ok(Entry { volume, epoch, header, body })
}
