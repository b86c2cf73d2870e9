//! The hashes file of a scanned disk: for each 64 KiB unit, the hash of what the log or vault holds.
//!
//! Written and read by the agent only. Little-endian.
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `FSHS` |
//! | 4 | 2 | version, 2 |
//! | 6 | 2 | zero |
//! | 8 | 16 | volume |
//! | 24 | 8 | size of the disk in bytes |
//! | 32 | 8 | how often the copy of the disk had begun again when the file was made |
//! | 40 | 32 | key of the hashes, drawn when the file was made; it never leaves the machine |
//! | 72 | 436 | zero |
//! | 508 | 4 | CRC32C of the 508 bytes before |
//! | 512… | 16 each | first 16 bytes of the keyed BLAKE3 of a unit; all zero: unknown; all ones: zeros |
//!
//! Order of operations for units that differ: their entries are made unknown, durably → their blocks
//! go into the log → the log is synced → the new entries are written. A crash leaves an entry
//! unknown at worst, and its unit is sent again.

use crate::durable::sync_dir;
use farshore_proto::VolumeId;
use farshore_proto::wire::{Put, check_crc, put_crc};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// Bytes that share one hash; the last unit of a disk may be shorter.
pub const UNIT_BYTES: usize = 64 << 10;
const HEADER_BYTES: usize = 512;
const ENTRY_BYTES: usize = 16;
/// Entries written at once.
const PUT_BYTES_MAX: usize = 64 << 10;

/// Hash of a unit; all zero for an unknown one.
pub type Hash = [u8; ENTRY_BYTES];

/// Hash of a unit of zeros, whatever its length: nobody computes it.
pub const ZEROS: Hash = [0xff; ENTRY_BYTES];

/// What is known of a disk's content.
#[derive(Debug)]
pub struct Hashes {
    file: File,
    key: [u8; 32],
    restarts: u64,
}

impl Hashes {
    /// Opens the file, or makes one in which every unit is unknown if it is absent, damaged,
    /// another volume's, or older than the last `restarts` of the copy. Blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn open(path: &Path, volume: VolumeId, size_bytes: u64, restarts: u64) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(path)?;
        let length = HEADER_BYTES as u64 + units(size_bytes) * ENTRY_BYTES as u64;
        let mut header = [0; HEADER_BYTES];
        let is_whole = file.metadata()?.len() == length;
        if is_whole {
            file.read_exact_at(&mut header, 0)?;
        }
        let mut key = [0; 32];
        if let Some(old_key) = grow(&file, volume, size_bytes, restarts)? {
            return Ok(Self { file, key: old_key, restarts });
        }
        key.copy_from_slice(&header[40..72]);
        let is_ours = check_crc("hashes header", &header).is_ok()
            && header[..] == encode(volume, size_bytes, restarts, &key)[..];
        if is_whole && is_ours {
            return Ok(Self { file, key, restarts });
        }
        getrandom::fill(&mut key).map_err(io::Error::other)?;
        file.set_len(0)?;
        file.set_len(length)?;
        file.sync_all()?;
        file.write_all_at(&encode(volume, size_bytes, restarts, &key), 0)?;
        file.sync_all()?;
        path.parent().map_or(Ok(()), sync_dir)?;
        Ok(Self { file, key, restarts })
    }

    /// The number of restarts that the file belongs to.
    #[must_use]
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Hash of a unit's content; never that of an unknown one, nor [`ZEROS`].
    #[must_use]
    pub fn of(&self, content: &[u8]) -> Hash {
        let mut hash = [0; ENTRY_BYTES];
        hash.copy_from_slice(&blake3::keyed_hash(&self.key, content).as_bytes()[..ENTRY_BYTES]);
        if hash == [0; ENTRY_BYTES] || hash == ZEROS {
            hash[0] = 1;
        }
        hash
    }

    /// What is known of `count` units from `first` on; blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn read(&self, first: u64, count: usize) -> io::Result<Vec<Hash>> {
        let mut bytes = vec![0; count * ENTRY_BYTES];
        self.file.read_exact_at(&mut bytes, offset_of(first))?;
        let (entries, _) = bytes.as_chunks::<ENTRY_BYTES>();
        Ok(entries.to_vec())
    }

    /// Makes units unknown, durably; blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn forget(&self, units: impl Iterator<Item = u64>) -> io::Result<()> {
        let mut is_any = false;
        self.put(units.map(|unit| (unit, Hash::default())).inspect(|_| is_any = true))?;
        if is_any { self.file.sync_data() } else { Ok(()) }
    }

    /// Notes what the log holds of units; it was synced after they were appended. Blocks.
    ///
    /// # Errors
    /// What the system said.
    pub fn note(&self, units: impl Iterator<Item = (u64, Hash)>) -> io::Result<()> {
        self.put(units)
    }

    /// Writes entries, neighbours together.
    fn put(&self, units: impl Iterator<Item = (u64, Hash)>) -> io::Result<()> {
        let (mut first, mut run) = (0, Vec::new());
        for (unit, hash) in units {
            let is_next = unit == first + (run.len() / ENTRY_BYTES) as u64;
            if !is_next || run.len() >= PUT_BYTES_MAX {
                self.file.write_all_at(&run, offset_of(first))?;
                run.clear();
                first = unit;
            }
            run.extend_from_slice(&hash);
        }
        self.file.write_all_at(&run, offset_of(first))
    }
}

/// Makes the file of a disk that has grown one of its size now, and tells its key; none if it is not one. A
/// crash in between leaves a file that knows nothing. Blocks.
fn grow(
    file: &File,
    volume: VolumeId,
    size_bytes: u64,
    restarts: u64,
) -> io::Result<Option<[u8; 32]>> {
    let length = file.metadata()?.len();
    if length < HEADER_BYTES as u64 {
        return Ok(None);
    }
    let mut header = [0; HEADER_BYTES];
    file.read_exact_at(&mut header, 0)?;
    let (mut old_bytes, mut key) = ([0; 8], [0; 32]);
    old_bytes.copy_from_slice(&header[24..32]);
    key.copy_from_slice(&header[40..72]);
    let old_bytes = u64::from_le_bytes(old_bytes);
    let is_older = old_bytes < size_bytes
        && length == offset_of(units(old_bytes))
        && header[..] == encode(volume, old_bytes, restarts, &key)[..];
    if !is_older {
        return Ok(None);
    }
    // The last unit may have been held in part.
    file.write_all_at(&Hash::default(), offset_of(old_bytes / UNIT_BYTES as u64))?;
    file.set_len(offset_of(units(size_bytes)))?;
    file.sync_all()?;
    file.write_all_at(&encode(volume, size_bytes, restarts, &key), 0)?;
    file.sync_all()?;
    Ok(Some(key))
}

/// Number of units of a disk.
#[must_use]
pub fn units(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(UNIT_BYTES as u64)
}

fn offset_of(unit: u64) -> u64 {
    HEADER_BYTES as u64 + unit * ENTRY_BYTES as u64
}

fn encode(volume: VolumeId, size_bytes: u64, restarts: u64, key: &[u8; 32]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.put_bytes(b"FSHS");
    out.put_u16(2);
    out.put_zeros(2);
    out.put_bytes(volume.as_bytes());
    out.put_u64(size_bytes);
    out.put_u64(restarts);
    out.put_bytes(key);
    out.put_zeros(HEADER_BYTES - 4 - out.len());
    put_crc(&mut out, 0);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: VolumeId = VolumeId([9; 16]);
    const SIZE: u64 = 10 * UNIT_BYTES as u64 + 4096;

    #[test]
    fn keeps_hashes_and_forgets_them_when_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hashes");
        let hashes = Hashes::open(&path, VOLUME, SIZE, 0).unwrap();
        assert_eq!(hashes.read(0, 11).unwrap(), vec![[0; 16]; 11]);
        let hash = hashes.of(b"content");
        hashes.note([(3, hash), (10, hash)].into_iter()).unwrap();
        let again = Hashes::open(&path, VOLUME, SIZE, 0).unwrap();
        assert_eq!(again.of(b"content"), hash, "the key is kept");
        assert_eq!(again.read(3, 1).unwrap(), [hash]);
        again.forget([3].into_iter()).unwrap();
        assert_eq!(again.read(3, 1).unwrap(), [[0; 16]]);
        assert_eq!(again.read(10, 1).unwrap(), [hash]);
        let restarted = Hashes::open(&path, VOLUME, SIZE, 1).unwrap();
        assert_eq!(restarted.read(10, 1).unwrap(), [[0; 16]]);
        assert_ne!(restarted.of(b"content"), hash, "another key");
    }

    /// D35: what was known of the disk stays known, but for the unit in which it ended.
    #[test]
    fn grows_with_its_disk() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hashes");
        let hashes = Hashes::open(&path, VOLUME, SIZE, 5).unwrap();
        let hash = hashes.of(b"content");
        hashes.note([(3, hash), (9, hash), (10, hash)].into_iter()).unwrap();
        let grown = Hashes::open(&path, VOLUME, 2 * SIZE, 5).unwrap();
        assert_eq!(grown.of(b"content"), hash);
        let known = grown.read(0, 21).unwrap();
        assert_eq!((known[3], known[9]), (hash, hash));
        assert_eq!((known[10], known[20]), ([0; 16], [0; 16]));
        let again = Hashes::open(&path, VOLUME, 2 * SIZE, 5).unwrap();
        assert_eq!(again.read(0, 21).unwrap(), known);
        let other = Hashes::open(&path, VOLUME, 3 * SIZE, 6).unwrap();
        assert_eq!(other.read(3, 1).unwrap(), [[0; 16]], "of another run of the copy");
    }

    #[test]
    fn a_damaged_file_knows_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hashes");
        let hashes = Hashes::open(&path, VOLUME, SIZE, 0).unwrap();
        hashes.note([(0, [7; 16])].into_iter()).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        file.write_all_at(&[0xff], 50).unwrap();
        let again = Hashes::open(&path, VOLUME, SIZE, 0).unwrap();
        assert_eq!(again.read(0, 1).unwrap(), [[0; 16]]);
    }

    /// D2: a unit whose hash is damaged is another, or unknown; it is never taken for what it is not.
    #[test]
    fn every_flipped_byte_and_every_length_makes_units_differ() {
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).unwrap();
        let path = dir.path().join("hashes");
        let hashes = Hashes::open(&path, VOLUME, SIZE, 3).unwrap();
        let content = |unit: u64| vec![u8::try_from(unit).unwrap(); 100];
        hashes.note((0..11).map(|unit| (unit, hashes.of(&content(unit))))).unwrap();
        drop(hashes);
        let whole = std::fs::read(&path).unwrap();
        // Units that are not sent again.
        let same = || {
            let hashes = Hashes::open(&path, VOLUME, SIZE, 3).unwrap();
            let known = hashes.read(0, 11).unwrap();
            (0..11)
                .filter(|unit| known[usize::try_from(*unit).unwrap()] == hashes.of(&content(*unit)))
                .collect::<Vec<u64>>()
        };
        assert_eq!(same(), (0..11).collect::<Vec<_>>());
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            std::fs::write(&path, bytes).unwrap();
            let damaged = at.checked_sub(HEADER_BYTES).map(|at| (at / ENTRY_BYTES) as u64);
            let expected: Vec<u64> = match damaged {
                None => Vec::new(),
                Some(damaged) => (0..11).filter(|unit| *unit != damaged).collect(),
            };
            assert_eq!(same(), expected, "flip at {at}");
        }
        for length in 0..whole.len() {
            std::fs::write(&path, &whole[..length]).unwrap();
            assert_eq!(same(), [0; 0], "cut to {length}");
        }
        println!("hashes: {} flips, {} cuts", whole.len(), whole.len());
    }
}
