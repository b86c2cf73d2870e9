//! Sealing and opening the groups of a journal file. Layout: `farshore_proto::journal`.
//!
//! Each file has a key of its own: data key, salt of the file, and as context vault, log and the
//! file's number. The AAD of a group is its header; its nonce is `Group` and its number.
//!
//! A file is only ever written by the [`JournalSealer`] that was made with it. After a restart the
//! old files are read and a new file is begun: going on in an old one would need a sealer for an
//! old salt, which cannot be had (I9).

use crate::error::{CodecError, Place};
use crate::keys::{DataKey, KeyRing};
use crate::seal::{COMMITMENT_BYTES, CommitKey, Domain, OpenKey, Purpose, Sealer};
use farshore_proto::bugs::{Bug, is_on};
use farshore_proto::journal::{Entry, GroupHeader, GroupSize, JournalFileHeader, entries};
use farshore_proto::limits::{JOURNAL_ALIGN_BYTES, JOURNAL_GROUP_HEADER_BYTES, TAG_BYTES};
use farshore_proto::object::committed;
use farshore_proto::{DecodeError, KeyNumber, LogId, VaultId};

fn with_context<T>(vault: VaultId, log: LogId, file: u64, with: impl FnOnce(&[&[u8]]) -> T) -> T {
    with(&[&vault.0, &log.0, &file.to_le_bytes()])
}

/// Seals the groups of one journal file, in order.
#[derive(Debug)]
pub struct JournalSealer {
    header: JournalFileHeader,
    sealer: Sealer,
}

impl JournalSealer {
    /// A sealer for the new file `file`, with a salt of its own.
    ///
    /// # Errors
    /// `Unavailable` if the operating system gives no random bytes.
    pub fn create(
        vault: VaultId,
        log: LogId,
        file: u64,
        key: &DataKey,
        number: KeyNumber,
    ) -> Result<Self, CodecError> {
        let (sealer, committing) = with_context(vault, log, file, |context| {
            let sealer = Sealer::draw(key, Purpose::Journal, context)?;
            let committing = CommitKey::derive(key, Purpose::Journal, context, sealer.salt());
            Ok::<_, CodecError>((sealer, committing))
        })?;
        let salt = *sealer.salt();
        let mut header = JournalFileHeader {
            vault,
            log,
            number: file,
            key: number,
            salt,
            commitment: [0; COMMITMENT_BYTES],
        };
        // It is where that of an object is.
        header.commitment = committing.commit(&committed(&header.encode()));
        Ok(Self { header, sealer })
    }

    /// The file's first block, to be written before any group.
    #[must_use]
    pub fn header(&self) -> &JournalFileHeader {
        &self.header
    }

    /// The number that the next group gets.
    #[must_use]
    pub fn next_group(&self) -> u64 {
        self.sealer.next_counter(Domain::Group)
    }

    /// Bytes that a group with `plain_bytes` of entries takes on disk.
    #[must_use]
    pub fn disk_bytes(plain_bytes: usize) -> usize {
        GroupHeader { file: 0, group: 0, plain_bytes, entries: 0 }.disk_bytes()
    }

    /// Seals a group where it is: `disk` is `disk_bytes(size.bytes)` long and holds the entries from
    /// `JOURNAL_GROUP_HEADER_BYTES` on. Header, tag and padding are filled in.
    ///
    /// A group whose write failed is not sealed again: the file is given up (I8).
    ///
    /// # Errors
    /// `Internal` if the cipher refuses.
    ///
    /// # Panics
    /// If `disk` has another length or the group is over its limit: bugs in the caller.
    pub fn seal_group(
        &mut self,
        size: GroupSize,
        disk: &mut [u8],
    ) -> Result<GroupHeader, CodecError> {
        let (file, group) = (self.header.number, self.next_group());
        let GroupSize { entries, bytes: plain_bytes } = size;
        let header = GroupHeader { file, group, plain_bytes, entries };
        assert_eq!(disk.len(), header.disk_bytes(), "a group has its length on disk");
        let head = header.encode();
        let (front, rest) = disk.split_at_mut(JOURNAL_GROUP_HEADER_BYTES);
        let (plain, rest) = rest.split_at_mut(plain_bytes);
        let (tag, padding) = rest.split_at_mut(TAG_BYTES);
        front.copy_from_slice(&head);
        tag.copy_from_slice(&self.sealer.seal_slice(Domain::Group, &head, plain)?);
        padding.fill(0);
        Ok(header)
    }
}

/// Why the reading of a file's groups ended.
#[derive(Debug, PartialEq, Eq)]
pub enum GroupsEnd {
    /// The file ends behind a whole group.
    Whole,
    /// What follows is no whole group, as a crash leaves it: nothing acknowledged was there.
    Torn {
        /// Number of the group that is not there.
        group: u64,
        /// What is wrong with what is.
        cause: CodecError,
    },
    /// A group is damaged, and groups follow behind it.
    Damaged {
        /// Its number.
        group: u64,
        /// Where it begins in the file.
        offset: usize,
        /// What is wrong.
        cause: CodecError,
    },
}

/// Opens the groups of one journal file.
#[derive(Debug)]
pub struct JournalOpener {
    header: JournalFileHeader,
    key: OpenKey,
}

impl JournalOpener {
    /// Reads the first block of a file of the journal of `log`.
    ///
    /// # Errors
    /// `Corrupt` if the block is damaged, is of another vault or log, or commits to another key;
    /// `NotFound` if `keys` lacks its data key.
    pub fn open(
        block: &[u8],
        vault: VaultId,
        log: LogId,
        keys: &KeyRing,
    ) -> Result<Self, CodecError> {
        let header = JournalFileHeader::decode(block)?;
        let expected = Place::Journal { vault, log };
        let found = Place::Journal { vault: header.vault, log: header.log };
        if found != expected {
            return Err(CodecError::Misplaced { expected, found });
        }
        let data_key = keys.get(header.key)?;
        let (key, committing) = with_context(vault, log, header.number, |context| {
            let purpose = Purpose::Journal;
            let committing = CommitKey::derive(data_key, purpose, context, &header.salt);
            (OpenKey::derive(data_key, purpose, context, &header.salt), committing)
        });
        let what = "journal file header";
        committing.check(&committed(block), &header.commitment, what, header.key)?;
        Ok(Self { header, key })
    }

    /// The file's header.
    #[must_use]
    pub fn header(&self) -> &JournalFileHeader {
        &self.header
    }

    /// Reads the header at the front of group `group`, so that the caller knows how much to read
    /// (`GroupHeader::disk_bytes`).
    ///
    /// # Errors
    /// `Corrupt` if it is damaged or that of another file or group: at the end of what was written
    /// this is how a file looks, and the journal's driver decides which of the two it is.
    pub fn group_header(&self, group: u64, disk: &[u8]) -> Result<GroupHeader, CodecError> {
        const WHAT: &str = "journal group header";
        let Some(head) = disk.first_chunk::<JOURNAL_GROUP_HEADER_BYTES>() else {
            return Err(CodecError::Length {
                what: WHAT,
                expected: JOURNAL_GROUP_HEADER_BYTES as u64,
                found: disk.len() as u64,
            });
        };
        let header = GroupHeader::decode(head)?;
        if header.file != self.header.number || header.group != group {
            return Err(CodecError::MisplacedGroup {
                file: self.header.number,
                group,
                found_file: header.file,
                found_group: header.group,
            });
        }
        Ok(header)
    }

    /// Opens group `group` where it is; returns its entries. `disk` holds at least the group and
    /// may go on behind it.
    ///
    /// # Errors
    /// `Corrupt` if the group is not whole, is another, or is not as it was sealed.
    pub fn open_group<'a>(
        &self,
        group: u64,
        disk: &'a mut [u8],
    ) -> Result<&'a mut [u8], CodecError> {
        let header = self.group_header(group, disk)?;
        let (head, rest) = disk.split_at_mut(JOURNAL_GROUP_HEADER_BYTES);
        let found = rest.len() as u64;
        let sealed_bytes = header.plain_bytes + TAG_BYTES;
        let Some(sealed) = rest.get_mut(..sealed_bytes) else {
            let expected = sealed_bytes as u64;
            return Err(CodecError::Length { what: "journal group", expected, found });
        };
        self.key.open_in_place(Domain::Group, group, head, sealed)
    }

    /// Opens all groups of the file whose bytes, header block included, are `file`; `each` gets one entry
    /// after the other.
    ///
    /// Ends before the first group that is not whole or not as it was sealed, or inside one at which `each`
    /// fails or whose entries are not those of its header. `file` is opened in place: it is of no use afterwards.
    pub fn read_groups(
        &self,
        file: &mut [u8],
        mut each: impl FnMut(Entry<'_>) -> Result<(), CodecError>,
    ) -> GroupsEnd {
        let (mut offset, mut group) = (JOURNAL_ALIGN_BYTES, 0);
        while offset < file.len() {
            let header = match self.group_header(group, &file[offset..]) {
                Ok(header) => header,
                Err(cause) => return self.end_of_groups(file, (group, offset), offset, cause),
            };
            let next = offset + header.disk_bytes();
            let is_skipped = is_on(Bug::ReplaySkipsTail) && next >= file.len();
            let opened = self.open_group(group, &mut file[offset..]);
            let read = |plain: &mut [u8]| match is_skipped {
                true => Ok(()),
                false => each_entry(&header, plain, &mut each),
            };
            match opened.map(read) {
                Ok(Ok(())) => {}
                Ok(Err(cause)) => return GroupsEnd::Damaged { group, offset, cause },
                Err(cause) => return self.end_of_groups(file, (group, offset), next, cause),
            }
            (offset, group) = (next, group + 1);
        }
        GroupsEnd::Whole
    }

    /// Tells a torn end from damage: damage has a later group of this file behind it.
    fn end_of_groups(
        &self,
        file: &[u8],
        (group, offset): (u64, usize),
        behind: usize,
        cause: CodecError,
    ) -> GroupsEnd {
        let mut blocks = file[behind.min(file.len())..].chunks(JOURNAL_ALIGN_BYTES);
        let is_followed = blocks.any(|block| {
            let header = block.first_chunk().and_then(|head| GroupHeader::decode(head).ok());
            header.is_some_and(|header| header.file == self.header.number && header.group > group)
        });
        match is_followed {
            true => GroupsEnd::Damaged { group, offset, cause },
            false => GroupsEnd::Torn { group, cause },
        }
    }
}

/// Gives `each` the entries of an opened group, as many as its header says.
fn each_entry(
    header: &GroupHeader,
    plain: &[u8],
    each: &mut impl FnMut(Entry<'_>) -> Result<(), CodecError>,
) -> Result<(), CodecError> {
    let mut count = 0;
    for entry in entries(plain) {
        each(entry?)?;
        count += 1;
    }
    if count != header.entries {
        let (what, value) = ("journal group entries", header.entries as u64);
        return Err(DecodeError::Range { what, value }.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::frame::FrameHeader;
    use farshore_proto::journal::put_entry;
    use farshore_proto::{BlockRange, Epoch, Seq, VolumeId};

    const VAULT: VaultId = VaultId([1; 16]);
    const LOG: LogId = LogId([2; 16]);
    const KEY: KeyNumber = KeyNumber(1);

    fn ring() -> KeyRing {
        let mut ring = KeyRing::new(VAULT);
        ring.insert(KEY, DataKey::from_bytes([5; 32]));
        ring
    }

    fn create(file: u64) -> JournalSealer {
        JournalSealer::create(VAULT, LOG, file, ring().get(KEY).unwrap(), KEY).unwrap()
    }

    fn group(sealer: &mut JournalSealer, plain: &[u8]) -> Vec<u8> {
        // What was in the buffer before must not reach the disk.
        let mut disk = vec![0xee; JournalSealer::disk_bytes(plain.len())];
        disk[JOURNAL_GROUP_HEADER_BYTES..][..plain.len()].copy_from_slice(plain);
        sealer.seal_group(GroupSize { entries: 1, bytes: plain.len() }, &mut disk).unwrap();
        disk
    }

    fn opener(sealer: &JournalSealer) -> JournalOpener {
        JournalOpener::open(&sealer.header().encode(), VAULT, LOG, &ring()).unwrap()
    }

    #[test]
    fn groups_open_in_order_and_only_there() {
        let mut sealer = create(4);
        let plains: Vec<Vec<u8>> =
            [0_usize, 1, 4000, 4016, 4017, 70_000].iter().map(|len| vec![7; *len]).collect();
        let groups: Vec<_> = plains.iter().map(|plain| group(&mut sealer, plain)).collect();
        let opener = opener(&sealer);
        for (number, disk) in groups.iter().enumerate() {
            assert!(disk.len().is_multiple_of(JOURNAL_ALIGN_BYTES));
            let number = number as u64;
            let mut copy = disk.clone();
            let plain = opener.open_group(number, &mut copy).unwrap();
            assert_eq!(*plain, plains[usize::try_from(number).unwrap()]);
            let error = opener.open_group(number + 1, &mut disk.clone()).unwrap_err();
            assert!(matches!(error, CodecError::MisplacedGroup { .. }), "{error}");
        }
    }

    #[test]
    fn a_group_of_an_older_file_is_not_read() {
        let mut old = create(4);
        let disk = group(&mut old, b"old");
        let error = opener(&create(5)).open_group(0, &mut disk.clone()).unwrap_err();
        assert!(matches!(error, CodecError::MisplacedGroup { found_file: 4, .. }), "{error}");
        // The same number written anew (after a lost directory): the salt tells them apart.
        let error = opener(&create(4)).open_group(0, &mut disk.clone()).unwrap_err();
        assert_eq!(error, CodecError::Tampered { what: "journal group" });
    }

    #[test]
    fn a_file_of_another_log_or_vault_is_refused() {
        let block = create(1).header().encode();
        for (vault, log) in [(VaultId([9; 16]), LOG), (VAULT, LogId([9; 16]))] {
            let error = JournalOpener::open(&block, vault, log, &ring()).unwrap_err();
            assert!(matches!(error, CodecError::Misplaced { .. }), "{error}");
        }
        let header = *create(1).header();
        let forgeries = [
            JournalFileHeader { log: LogId([9; 16]), ..header },
            JournalFileHeader { number: 2, ..header },
            JournalFileHeader { salt: [0; 32], ..header },
        ];
        for forged in forgeries {
            let error =
                JournalOpener::open(&forged.encode(), VAULT, forged.log, &ring()).unwrap_err();
            assert!(matches!(error, CodecError::KeyMismatch { .. }), "{error}");
        }
    }

    #[test]
    fn a_group_of_more_or_fewer_entries_than_it_says_is_damaged() {
        let mut plain = Vec::new();
        for seq in [1, 2] {
            let header = FrameHeader::zero(Seq(seq), BlockRange { block: 0, count: 1 }).encode();
            put_entry(&mut plain, VolumeId([3; 16]), Epoch(1), &header, &[]);
        }
        for entries in 0..4 {
            let mut sealer = create(4);
            let mut disk = vec![0; JournalSealer::disk_bytes(plain.len())];
            disk[JOURNAL_GROUP_HEADER_BYTES..][..plain.len()].copy_from_slice(&plain);
            sealer.seal_group(GroupSize { entries, bytes: plain.len() }, &mut disk).unwrap();
            let mut file = [sealer.header().encode(), disk].concat();
            let mut seqs = Vec::new();
            let end = opener(&sealer).read_groups(&mut file, |entry| {
                seqs.push(entry.header.seq.0);
                Ok(())
            });
            assert_eq!(seqs, [1, 2]);
            match entries {
                2 => assert_eq!(end, GroupsEnd::Whole),
                _ => assert!(matches!(end, GroupsEnd::Damaged { group: 0, .. }), "{end:?}"),
            }
        }
    }

    #[test]
    fn a_file_of_a_newer_version_is_refused_by_name() {
        let mut block = create(4).header().encode();
        block[10] = 1;
        block.truncate(JOURNAL_ALIGN_BYTES - 4);
        farshore_proto::wire::put_crc(&mut block, 0);
        let error = JournalOpener::open(&block, VAULT, LOG, &ring()).unwrap_err();
        assert!(error.to_string().contains("newer version of Farshore (feature 16"), "{error}");
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_refused() {
        let mut sealer = create(4);
        let plain = b"a write that was acknowledged";
        let disk = group(&mut sealer, plain);
        let opener = opener(&sealer);
        let used = JOURNAL_GROUP_HEADER_BYTES + plain.len() + TAG_BYTES;
        for at in 0..used {
            for bit in 0..8 {
                let mut bad = disk.clone();
                bad[at] ^= 1 << bit;
                assert!(opener.open_group(0, &mut bad).is_err(), "byte {at} bit {bit}");
            }
            assert!(opener.open_group(0, &mut disk[..at].to_vec()).is_err(), "length {at}");
        }
        assert!(disk[used..].iter().all(|byte| *byte == 0), "padding carries nothing");
    }
}
