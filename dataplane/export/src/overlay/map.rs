//! The map file of an overlay.

use super::bits::{BadSector, Bits, Kind, Sectors, bitmap_bytes};
use super::{OverlayBase, OverlayError};
use farshore_proto::wire::{Put, Reader, check_crc, put_crc};
use farshore_proto::{DecodeError, Seq, VolumeId};
use farshore_vault::durable::sync_name_of;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use uuid::Uuid;

const MAGIC: [u8; 4] = *b"FSOV";
const VERSION: u16 = 3;
const HEADER_BYTES: usize = 64;
/// In the head: a sync failed, and what was written since the flush before it may be lost.
const IN_DOUBT: u16 = 1;
/// Where the bitmaps begin.
const BITS_OFFSET: u64 = 4096;

/// The map file beside an overlay's data file.
pub(super) fn path_of(data: &Path) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".map");
    PathBuf::from(name)
}

/// Beside an overlay in doubt, a file that somebody made who goes on with what was flushed.
pub(super) fn consent_of(data: &Path) -> PathBuf {
    let mut name = data.as_os_str().to_owned();
    name.push(".accept-loss");
    PathBuf::from(name)
}

/// What the head of a map says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Head {
    base: OverlayBase,
    /// Of the machine when it was opened last.
    boot: Uuid,
    is_in_doubt: bool,
}

/// An open map.
#[derive(Debug)]
pub(super) struct MapFile {
    file: File,
    head: Head,
    bitmap_bytes: u64,
    /// Whether it was in doubt when it was opened.
    was_in_doubt: bool,
}

impl MapFile {
    /// Makes the map of a new overlay, durably.
    pub(super) fn create(
        path: &Path,
        data: &Path,
        base: OverlayBase,
    ) -> Result<(Self, Bits), OverlayError> {
        let error =
            |source| OverlayError::Io { path: data.to_owned(), verb: "make its map", source };
        let bitmap_bytes = bitmap_bytes(base.size_bytes);
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(".partial");
        let temporary = PathBuf::from(temporary);
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&temporary).map_err(error)?;
        let head = Head { base, boot: boot_id(), is_in_doubt: false };
        let bits = Bits::empty(base.size_bytes);
        let write = || {
            file.write_all_at(&header(&head), 0)?;
            file.set_len(BITS_OFFSET + 2 * bitmap_bytes)?;
            // A full disk is then met by the data, where it does no harm. Not every file system can.
            let length = BITS_OFFSET + 2 * bitmap_bytes;
            let _ = rustix::io::retry_on_intr(|| {
                rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, length)
            });
            // Sealed from the start: a sector that is found zero was lost, and is not one without bits.
            bits.write(&file, BITS_OFFSET, Kind::Flushed)?;
            bits.write(&file, BITS_OFFSET + bitmap_bytes, Kind::Live)?;
            file.sync_all()?;
            fs::rename(&temporary, path)?;
            sync_name_of(path)
        };
        write().map_err(error)?;
        Ok((Self { file, head, bitmap_bytes, was_in_doubt: false }, bits))
    }

    /// Checks that the map at `path` is one of `base`; returns what its head says.
    pub(super) fn check(
        path: &Path,
        data: &Path,
        base: OverlayBase,
    ) -> Result<(File, Head), OverlayError> {
        let error =
            |source| OverlayError::Io { path: data.to_owned(), verb: "read its map", source };
        let file = OpenOptions::new().read(true).write(true).open(path).map_err(error)?;
        let mut bytes = [0; HEADER_BYTES];
        file.read_exact_at(&mut bytes, 0).map_err(error)?;
        let head = read_header(&bytes).map_err(|error| match error {
            DecodeError::Version { .. } => OverlayError::Version { path: data.to_owned() },
            _ => OverlayError::Damaged {
                path: data.to_owned(),
                what: "the head of its map is damaged",
            },
        })?;
        if head.base != base {
            let OverlayBase { volume, seq, size_bytes } = head.base;
            return Err(OverlayError::OtherPoint {
                path: data.to_owned(),
                volume,
                seq,
                size_bytes,
            });
        }
        Ok((file, head))
    }

    /// Opens the map of an overlay that was used before.
    pub(super) fn open(
        path: &Path,
        data: &Path,
        base: OverlayBase,
    ) -> Result<(Self, Bits), OverlayError> {
        let error =
            |source| OverlayError::Io { path: data.to_owned(), verb: "read its map", source };
        let (file, head) = Self::check(path, data, base)?;
        let boot = boot_id();
        let is_same_run = !boot.is_nil() && boot == head.boot;
        let consent = consent_of(data);
        // Who runs on it may not know yet that a flush failed, and what is in memory may not be on the disk.
        // After the machine went down nobody runs on it, and only what was flushed counts anyway.
        if head.is_in_doubt && is_same_run && !consent.try_exists().map_err(error)? {
            return Err(OverlayError::InDoubt { path: data.to_owned(), consent });
        }
        let was_in_doubt = head.is_in_doubt;
        let is_kept = is_same_run && !was_in_doubt;
        let head = Head { base, boot, is_in_doubt: false };
        let map = Self { file, head, bitmap_bytes: bitmap_bytes(base.size_bytes), was_in_doubt };
        let (flushed, live) = (BITS_OFFSET, BITS_OFFSET + map.bitmap_bytes);
        let read = |offset, kind| match Bits::read(&map.file, offset, base.size_bytes, kind) {
            Ok(Ok(bits)) => Ok(bits),
            Ok(Err(BadSector { number })) => {
                tracing::error!(path = %path.display(), ?kind, number, "a sector of an overlay's map is damaged");
                Err(OverlayError::Damaged {
                    path: data.to_owned(),
                    what: "its map is damaged: which blocks were written is not known",
                })
            }
            Err(source) => Err(error(source)),
        };
        if is_kept {
            let bits = read(live, Kind::Live)?;
            bits.change_all();
            return Ok((map, bits));
        }
        // The machine went down since: what was not flushed then is not there for sure.
        let bits = read(flushed, Kind::Flushed)?;
        let reset = || {
            bits.write(&map.file, live, Kind::Live)?;
            map.file.sync_all()?;
            // Only now may the live bits be believed again.
            map.file.write_all_at(&header(&head), 0)?;
            map.file.sync_all()?;
            match fs::remove_file(&consent) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            }
        };
        reset().map_err(error)?;
        Ok((map, bits))
    }

    pub(super) fn was_in_doubt(&self) -> bool {
        self.was_in_doubt
    }

    /// Notes that a sync failed, for whoever opens it next.
    pub(super) fn note_doubt(&self) -> io::Result<()> {
        let head = Head { is_in_doubt: true, ..self.head };
        self.file.write_all_at(&header(&head), 0)?;
        self.file.sync_all()
    }

    /// Writes sectors of live bits.
    pub(super) fn write_live(&self, (from, bytes): &Sectors) -> io::Result<()> {
        self.file.write_all_at(bytes, BITS_OFFSET + self.bitmap_bytes + from)
    }

    /// Writes sectors of flushed bits and makes them durable.
    pub(super) fn write_flushed(&self, sectors: &[Sectors]) -> io::Result<()> {
        if sectors.is_empty() {
            return Ok(());
        }
        for (from, bytes) in sectors {
            self.file.write_all_at(bytes, BITS_OFFSET + from)?;
        }
        self.file.sync_data()
    }
}

fn header(head: &Head) -> Vec<u8> {
    let Head { base, boot, is_in_doubt } = *head;
    let mut out = Vec::with_capacity(HEADER_BYTES);
    out.put_bytes(&MAGIC);
    out.put_u16(VERSION);
    out.put_u16(if is_in_doubt { IN_DOUBT } else { 0 });
    out.put_bytes(&base.volume.0);
    out.put_u64(base.seq.0);
    out.put_u64(base.size_bytes);
    out.put_bytes(boot.as_bytes());
    out.put_zeros(HEADER_BYTES - 4 - out.len());
    put_crc(&mut out, 0);
    out
}

fn read_header(bytes: &[u8]) -> Result<Head, DecodeError> {
    let mut reader = Reader::new("overlay map", bytes);
    reader.magic(MAGIC)?;
    reader.version(VERSION)?;
    check_crc("overlay map", bytes)?;
    let is_in_doubt = match reader.u16()? {
        0 => false,
        IN_DOUBT => true,
        other => return Err(DecodeError::Range { what: "overlay doubt", value: other.into() }),
    };
    let base = OverlayBase {
        volume: VolumeId(reader.array()?),
        seq: Seq(reader.u64()?),
        size_bytes: reader.u64()?,
    };
    let boot = Uuid::from_bytes(reader.array()?);
    reader.reserved(reader.left().saturating_sub(4))?;
    Ok(Head { base, boot, is_in_doubt })
}

/// Identity of this run of the kernel; nil where it does not tell.
fn boot_id() -> Uuid {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim().parse().unwrap_or(Uuid::nil())
}
