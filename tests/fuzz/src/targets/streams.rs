//! The logs that frames are kept in: the agent's `.hrl` file, the node's journal.

use crate::{checksum, taken};
use farshore_proto::hrl::{HrlHeader, frame_at};
use farshore_proto::journal::{GroupHeader, JournalFileHeader, entries, put_entry};
use farshore_proto::limits::{
    FRAME_HEADER_BYTES, HRL_HEADER_BYTES, JOURNAL_ALIGN_BYTES, JOURNAL_ENTRY_PREFIX_BYTES,
    JOURNAL_GROUP_BYTES_MAX, JOURNAL_GROUP_HEADER_BYTES,
};

pub(super) fn hrl_header(bytes: &[u8]) {
    checksum::both(bytes, HRL_HEADER_BYTES, |bytes| {
        let Some(head) = bytes.first_chunk() else { return };
        if let Ok(header) = HrlHeader::decode(head) {
            assert_eq!(header.encode(), *head);
            let _ = header.first_seq.next();
            taken();
        }
    });
}

pub(super) fn hrl_header_samples() -> Vec<Vec<u8>> {
    vec![hrl_file()[..HRL_HEADER_BYTES].to_vec()]
}

fn hrl_file() -> &'static [u8] {
    include_bytes!("../../../../dataplane/proto/testdata/v2/hrl-file.bin")
}

/// Frames one after the other, as after a crash: what is read is what lies there, to the first bad
/// frame and not beyond.
pub(super) fn hrl_frames(bytes: &[u8]) {
    walk(bytes);
    walk(&frames_put_right(bytes));
}

fn walk(bytes: &[u8]) {
    let mut rest = bytes;
    while let Ok((header, body)) = frame_at(rest) {
        let length = FRAME_HEADER_BYTES + body.len();
        assert_eq!([&header.encode()[..], body].concat(), rest[..length]);
        assert_eq!(crc32c::crc32c(body).to_le_bytes(), rest[36..40], "another body");
        // A frame does not depend on what lies behind it, and is none without its last byte.
        assert!(frame_at(&rest[..length]).is_ok() && frame_at(&rest[..length - 1]).is_err());
        rest = &rest[length..];
        taken();
    }
}

/// The bytes with the checksums of each frame put right, as far as their lengths lead to the next.
fn frames_put_right(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let mut at = 0;
    while bytes.len() - at >= FRAME_HEADER_BYTES {
        let frame = &mut bytes[at..];
        let field: [u8; 4] = frame[32..36].try_into().unwrap_or_default();
        let end = FRAME_HEADER_BYTES.saturating_add(u32::from_le_bytes(field) as usize);
        if let Some(body) = frame.get(FRAME_HEADER_BYTES..end) {
            let crc = crc32c::crc32c(body);
            frame[36..40].copy_from_slice(&crc.to_le_bytes());
        }
        checksum::put_right(frame, FRAME_HEADER_BYTES);
        if end > frame.len() {
            break;
        }
        at += end;
    }
    bytes
}

pub(super) fn hrl_frames_samples() -> Vec<Vec<u8>> {
    let write = include_bytes!("../../../../dataplane/proto/testdata/v1/frame-write.bin");
    vec![hrl_file()[HRL_HEADER_BYTES..].to_vec(), write.repeat(2)]
}

pub(super) fn journal_file(bytes: &[u8]) {
    checksum::both(bytes, JOURNAL_ALIGN_BYTES, |bytes| {
        if let Ok(header) = JournalFileHeader::decode(bytes) {
            assert_eq!(header.encode(), bytes);
            taken();
        }
    });
}

pub(super) fn journal_file_samples() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../../../dataplane/proto/testdata/v1/journal-file-header.bin").to_vec()]
}

pub(super) fn journal_group(bytes: &[u8]) {
    checksum::both(bytes, JOURNAL_GROUP_HEADER_BYTES, |bytes| {
        let Some(head) = bytes.first_chunk() else { return };
        if let Ok(header) = GroupHeader::decode(head) {
            assert_eq!(header.encode(), *head);
            assert!(header.plain_bytes <= JOURNAL_GROUP_BYTES_MAX);
            assert!(header.disk_bytes().is_multiple_of(JOURNAL_ALIGN_BYTES));
            taken();
        }
    });
}

pub(super) fn journal_group_samples() -> Vec<Vec<u8>> {
    vec![
        include_bytes!("../../../../dataplane/proto/testdata/v2/journal-group-header.bin").to_vec(),
    ]
}

/// Entries of an opened group: all of them, and the iteration ends.
pub(super) fn journal_entries(bytes: &[u8]) {
    let mut again = Vec::new();
    let mut is_whole = true;
    for entry in entries(bytes) {
        assert!(is_whole, "nothing comes behind a bad entry");
        match entry {
            Ok(entry) => {
                put_entry(
                    &mut again,
                    entry.volume,
                    entry.epoch,
                    &entry.header.encode(),
                    entry.body,
                );
            }
            Err(_) => is_whole = false,
        }
    }
    assert!(bytes.starts_with(&again), "entries are what lies there");
    assert_eq!(is_whole, again.len() == bytes.len());
    // The entry at the front with its checksums right, so that what is in it is reached.
    if bytes.len() >= JOURNAL_ENTRY_PREFIX_BYTES {
        let (prefix, frames) = bytes.split_at(JOURNAL_ENTRY_PREFIX_BYTES);
        let right = [prefix, &frames_put_right(frames)].concat();
        if let Some(Ok(entry)) = entries(&right).next() {
            assert!(entry.epoch.0 > 0 && entry.header.seq.0 > 0);
            taken();
        }
    }
}

pub(super) fn journal_entries_samples() -> Vec<Vec<u8>> {
    vec![include_bytes!("../../../../dataplane/proto/testdata/v2/journal-entries.bin").to_vec()]
}
