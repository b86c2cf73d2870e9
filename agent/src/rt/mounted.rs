//! A device on which a file system is mounted: what is written through that one is not in the page cache
//! of the device, so whoever reads the device through its cache gets what was there before.

use super::portable::{PortableFile, forget_cached};
use super::{Backend, READ_BYTES_MAX, ReadFile, Reads};
use crate::disk::{Access, Disk, Recorded};
use crate::loops::{Loop, not_tried, run};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

/// Bytes of the device.
const BYTES: usize = 16 << 20;
/// Bytes of the file.
const FILE_BYTES: usize = 4 << 20;

/// A loop device with a file system that is mounted, and a file in it; unmounted when dropped.
struct Mounted {
    device: Loop,
    at: PathBuf,
    written: File,
    _dir: tempfile::TempDir,
}

impl Mounted {
    /// None on a machine that is said to have none.
    fn begin() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let (below, at) = (dir.path().join("below"), dir.path().join("at"));
        File::create(&below).unwrap().set_len(BYTES as u64).unwrap();
        std::fs::create_dir(&at).unwrap();
        let device = Loop::over(&below)?;
        let is_mounted = run(Command::new("mkfs.ext4").args(["-q", "-b", "4096", &device.0]))
            .is_some()
            && run(Command::new("mount").arg(&device.0).arg(&at)).is_some();
        if !is_mounted {
            not_tried("no file system can be made and mounted");
            return None;
        }
        let written = File::create_new(at.join("file")).unwrap();
        let mounted = Self { device, at, written, _dir: dir };
        mounted.write(b'a');
        Some(mounted)
    }

    /// Fills the file, where it lies, and waits until the device has it.
    fn write(&self, byte: u8) {
        self.written.write_all_at(&vec![byte; FILE_BYTES], 0).unwrap();
        rustix::fs::syncfs(&self.written).unwrap();
    }

    fn open(&self) -> File {
        File::open(&self.device.0).unwrap()
    }

    fn disk(&self) -> Disk {
        Disk::open(self.device.0.as_ref(), Access::Read, &Recorded::default()).unwrap()
    }

    /// Whether the file is in what was read, as it was written last. The rest is the file system's own, and
    /// may change at any time.
    #[track_caller]
    fn assert_read(found: &[u8], byte: u8, how: &str) {
        let is_new = |block: &&[u8]| block.iter().all(|found| *found == byte);
        let new = found.chunks(4096).filter(is_new).count();
        assert_eq!((found.len(), new * 4096), (BYTES, FILE_BYTES), "{how}: bytes that are new");
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, as the file in it is still open.
        run(Command::new("umount").arg("--lazy").arg(&self.at));
    }
}

async fn all_of(disk: &ReadFile) -> Vec<u8> {
    let mut found = Vec::new();
    while found.len() < BYTES {
        found.extend_from_slice(&disk.read(found.len() as u64, READ_BYTES_MAX).await.unwrap());
    }
    found
}

fn opened(reads: &Reads, mounted: &Mounted) -> ReadFile {
    reads.open(&mounted.open(), Arc::new((BYTES as u64).into())).unwrap()
}

/// Whoever else reads the device fills its cache.
fn fill_cache(mounted: &Mounted) {
    std::fs::read(&mounted.device.0).unwrap();
}

#[tokio::test]
async fn what_a_mounted_file_system_writes_is_read_by_both_backends() {
    let Some(mounted) = Mounted::begin() else { return };
    for (how, reads) in [("portable", Reads::portable()), ("best", Reads::start())] {
        mounted.write(b'b');
        fill_cache(&mounted);
        let disk = opened(&reads, &mounted);
        Mounted::assert_read(&all_of(&disk).await, b'b', how);
        mounted.write(b'c');
        Mounted::assert_read(&all_of(&disk).await, b'c', how);
        Mounted::assert_read(&all_of(&opened(&reads, &mounted)).await, b'c', how);
    }
}

#[test]
fn what_a_mounted_file_system_writes_is_read_by_a_disk_that_is_scanned() {
    let Some(mounted) = Mounted::begin() else { return };
    fill_cache(&mounted);
    let disk = mounted.disk();
    // Not on the grid either.
    for (byte, from) in [(b'b', 0), (b'c', 4096), (b'd', 777)] {
        mounted.write(byte);
        let mut found = vec![0; BYTES];
        disk.read(&mut found[from..], from as u64).unwrap();
        Mounted::assert_read(&found, byte, "disk");
    }
}

/// As where a device has blocks that are larger than what is read at least.
#[tokio::test]
async fn what_a_mounted_file_system_writes_is_read_where_o_direct_does_not_work() {
    let Some(mounted) = Mounted::begin() else { return };
    let reads = Reads::portable();
    let portable = PortableFile::buffered(&mounted.open()).unwrap();
    let disk = reads.file(None, portable, Arc::new((BYTES as u64).into()));
    for byte in b'b'..b'f' {
        fill_cache(&mounted);
        mounted.write(byte);
        Mounted::assert_read(&all_of(&disk).await, byte, "buffered");
        // A block is kept together with its neighbours, once they were brought in together.
        forget_cached(&mounted.open(), 0, BYTES as u64).unwrap();
        fill_cache(&mounted);
        let byte = byte.to_ascii_uppercase();
        mounted.write(byte);
        let mut found = vec![0; BYTES];
        for (block, at) in found.chunks_mut(4096).zip((0..).step_by(4096)) {
            disk.portable.read(block, at).unwrap();
        }
        Mounted::assert_read(&found, byte, "block by block");
    }
}

#[tokio::test]
async fn what_a_mounted_file_system_writes_is_read_after_the_ring_has_ended() {
    let Some(mounted) = Mounted::begin() else { return };
    let reads = Reads::start();
    let disk = opened(&reads, &mounted);
    Mounted::assert_read(&all_of(&disk).await, b'a', "before");
    // Where there is no io_uring nothing can end.
    if let Some(ring) = &reads.uring {
        assert_eq!(disk.backend(), Backend::Uring);
        ring.end();
    }
    fill_cache(&mounted);
    mounted.write(b'b');
    Mounted::assert_read(&all_of(&disk).await, b'b', "behind it");
    let opened = opened(&reads, &mounted);
    assert_eq!(opened.backend(), Backend::Portable);
    Mounted::assert_read(&all_of(&opened).await, b'b', "opened behind it");
}
