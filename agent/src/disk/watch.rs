//! Noticing who else writes a disk while it is served.
//!
//! | what | how it is noticed | not noticed |
//! |---|---|---|
//! | a file, written, cut, given holes | fanotify tells of every change through an open file that is not ours | where the system has no fanotify for us: only at rest |
//! | a file at rest, written through a mapping | its time or size changed although we wrote nothing | a mapping written while we write as well |
//! | a block device at rest | the kernel's count of its writes grew although we wrote nothing since the last flush | a writer beside our own writes |
//! | a loop device over a file | it is attached (looked for every second) | – |
//!
//! Our own writes go through a descriptor that fanotify made: the kernel tells nobody of what is done
//! through such a one, so everything that is told was done by somebody else.

use farshore_disks::holders::{self, process_name};
use farshore_disks::sysfs::{self, DeviceNumber};
use farshore_proto::bugs::{Bug, is_on};
use nix::errno::Errno;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use std::collections::BTreeSet;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Most events taken in one look; the rest is for the next one.
const EVENTS_MAX: usize = 4096;
/// No flush yet.
const NEVER: u64 = u64::MAX;
/// Most writers that a sentence names.
const WRITERS_MAX: usize = 3;

/// File systems that change a file's time when it is written and at no other moment: others ask a
/// server, which may change its mind.
const STEADY_TIMES: [i64; 7] = [
    0xEF53,      // ext2, ext3, ext4
    0x5846_5342, // xfs
    0x9123_683E, // btrfs
    0x0102_1994, // tmpfs
    0xF2F5_2010, // f2fs
    0x2FC1_2FC1, // zfs
    0x794C_7630, // overlayfs
];

/// What does not change while a disk rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trace {
    /// Time of the last change in nanoseconds, and size.
    File(i64, u64),
    /// Writes and sectors written.
    Device(u64, u64),
}

#[derive(Debug, Default)]
struct Inner {
    /// Who wrote, as far as it is known.
    writers: BTreeSet<String>,
    /// Grows with everything that is noticed.
    noticed: u64,
    /// What of it was dealt with.
    settled: u64,
    /// What the disk looked like at rest, after so many of our changes.
    rest: Option<(u64, Trace)>,
    /// Loop devices over it, while there are some.
    loops: Option<String>,
}

/// Somebody else has written the disk, or may write it now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disturbance {
    /// To be given to [`Watch::settle`] once everything is read again.
    pub number: u64,
    /// What was seen, in one sentence.
    pub seen: String,
    /// Whether it can happen again at any moment without being told.
    pub goes_on: bool,
}

/// Watches one disk.
#[derive(Debug)]
pub(super) struct Watch {
    fanotify: Option<Fanotify>,
    /// Where a device counts its writes; none for a file.
    counters: Option<PathBuf>,
    has_steady_times: bool,
    begun: AtomicU64,
    ended: AtomicU64,
    /// Changes of ours that had ended before the last flush that went well; before the first one it is
    /// [`NEVER`]: what others wrote before us may still be on its way to the device.
    flushed: AtomicU64,
    inner: Mutex<Inner>,
}

impl Watch {
    /// Begins to watch an open disk; also the file to use from now on, in place of `file`.
    pub(super) fn begin(file: File) -> io::Result<(Self, File)> {
        let metadata = file.metadata()?;
        let is_device = metadata.file_type().is_block_device();
        let counters = is_device
            .then(|| sysfs::dir_of(DeviceNumber::of(metadata.rdev())))
            .flatten()
            .map(|dir| dir.join("stat"));
        let has_steady_times = !is_device
            && rustix::fs::fstatfs(&file).is_ok_and(|found| STEADY_TIMES.contains(&found.f_type));
        let (fanotify, file) = match (is_device, file) {
            // The system tells of no changes of a device.
            (true, file) => (None, file),
            (false, file) => match quiet(&file) {
                Ok((fanotify, quiet)) => (Some(fanotify), quiet),
                Err(error) => {
                    tracing::info!(%error, "no fanotify: other writers are noticed only at rest");
                    (None, file)
                }
            },
        };
        let watch = Self {
            fanotify,
            counters,
            has_steady_times,
            begun: AtomicU64::new(0),
            ended: AtomicU64::new(0),
            flushed: AtomicU64::new(NEVER),
            inner: Mutex::default(),
        };
        watch.look(&file);
        Ok((watch, file))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a change of ours.
    pub(super) fn change<T>(&self, work: impl FnOnce() -> T) -> T {
        self.begun.fetch_add(1, Ordering::SeqCst);
        let done = work();
        self.ended.fetch_add(1, Ordering::SeqCst);
        done
    }

    /// Runs a flush of ours.
    pub(super) fn flush(&self, work: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let ended = self.ended.load(Ordering::SeqCst);
        work()?;
        // An older one that ends later only delays the next look.
        self.flushed.store(ended, Ordering::SeqCst);
        Ok(())
    }

    /// Looks whether somebody else wrote: cheap enough for every mark. Whether something is noticed
    /// that was not dealt with.
    pub(super) fn look(&self, file: &File) -> bool {
        if is_on(Bug::OthersWritesUnseen) {
            return false;
        }
        let mut inner = self.lock();
        self.take_events(&mut inner);
        self.look_at_rest(&mut inner, file);
        inner.noticed > inner.settled || inner.loops.is_some()
    }

    /// Looks for what could write unseen; takes longer than [`Watch::look`].
    pub(super) fn look_around(&self, disk: &Metadata) {
        let loops = holders::sentence(&holders::loops_over(disk));
        let mut inner = self.lock();
        if loops.is_some() && inner.loops.is_none() {
            inner.noticed += 1;
        }
        inner.loops = loops;
    }

    /// What was noticed and not dealt with.
    pub(super) fn disturbance(&self) -> Option<Disturbance> {
        let inner = self.lock();
        if let Some(loops) = &inner.loops {
            let seen = format!("{loops}: what is written through it is not seen here; detach it");
            return Some(Disturbance { number: inner.noticed, seen, goes_on: true });
        }
        if inner.noticed == inner.settled {
            return None;
        }
        let mut named: Vec<&str> =
            inner.writers.iter().map(String::as_str).take(WRITERS_MAX).collect();
        if inner.writers.len() > WRITERS_MAX {
            named.push("others");
        }
        let who = if named.is_empty() { "somebody".to_owned() } else { named.join(", ") };
        let seen = format!("{who} wrote to the disk past its NBD server");
        Some(Disturbance { number: inner.noticed, seen, goes_on: false })
    }

    /// Everything that was noticed up to `number` is dealt with.
    pub(super) fn settle(&self, number: u64) {
        let mut inner = self.lock();
        inner.settled = inner.settled.max(number);
        if inner.settled == inner.noticed {
            inner.writers.clear();
        }
    }

    fn take_events(&self, inner: &mut Inner) {
        let Some(fanotify) = &self.fanotify else { return };
        let mut taken = 0;
        while taken < EVENTS_MAX {
            match fanotify.read_events() {
                Ok(events) if events.is_empty() => return,
                Ok(events) => {
                    taken += events.len();
                    inner.noticed += 1;
                    inner.writers.extend(events.iter().map(|event| writer(event.pid())));
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                // What it would have told is lost, so something was there to tell.
                Err(error) => {
                    tracing::warn!(%error, "a change of the disk cannot be read");
                    inner.noticed += 1;
                    return;
                }
            }
        }
    }

    fn look_at_rest(&self, inner: &mut Inner, file: &File) {
        let begun = self.begun.load(Ordering::SeqCst);
        // A device writes out what we wrote some time later; after a flush it has.
        let done = if self.counters.is_some() { &self.flushed } else { &self.ended };
        let is_at_rest = || self.begun.load(Ordering::SeqCst) == begun;
        if done.load(Ordering::SeqCst) != begun {
            return;
        }
        let Some(trace) = self.trace(file) else { return };
        if !is_at_rest() {
            return;
        }
        if let Some((at, known)) = inner.rest
            && at == begun
            && known != trace
        {
            inner.noticed += 1;
        }
        inner.rest = Some((begun, trace));
    }

    fn trace(&self, file: &File) -> Option<Trace> {
        if let Some(counters) = &self.counters {
            return device_trace(counters);
        }
        let found = self.has_steady_times.then(|| file.metadata().ok()).flatten()?;
        let time = found.mtime().wrapping_mul(1_000_000_000).wrapping_add(found.mtime_nsec());
        Some(Trace::File(time, found.len()))
    }
}

/// The kernel's count of a device's writes.
fn device_trace(counters: &Path) -> Option<Trace> {
    let told = std::fs::read_to_string(counters).ok()?;
    let fields: Vec<u64> = told.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // Discards are counted apart, behind the time spent.
    let discarded = fields.get(13).copied().unwrap_or_default();
    Some(Trace::Device(*fields.get(4)?, fields.get(6)?.wrapping_add(discarded)))
}

fn writer(pid: i32) -> String {
    match u32::try_from(pid) {
        // Who runs in another namespace has no number here.
        Ok(0) | Err(_) => "a process of another container or host".to_owned(),
        Ok(pid) if pid == std::process::id() => "this agent itself".to_owned(),
        Ok(pid) => process_name(pid),
    }
}

/// Watches a file, and opens it anew so that the watch does not tell of what is done through that.
fn quiet(file: &File) -> io::Result<(Fanotify, File)> {
    let flags = InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK | InitFlags::FAN_CLASS_NOTIF;
    let how = EventFFlags::O_RDWR | EventFFlags::O_CLOEXEC | EventFFlags::O_LARGEFILE;
    let fanotify = Fanotify::init(flags, how)?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let here = rustix::fs::CWD;
    let both = MaskFlags::FAN_MODIFY | MaskFlags::FAN_OPEN;
    fanotify.mark(MarkFlags::FAN_MARK_ADD, both, here, Some(&path))?;
    // The event of this opening carries a descriptor of the file.
    drop(File::open(&path)?);
    let wanted = file.metadata()?;
    let quiet = opened(&fanotify, &wanted)?;
    fanotify.mark(MarkFlags::FAN_MARK_REMOVE, MaskFlags::FAN_OPEN, here, Some(&path))?;
    Ok((fanotify, quiet))
}

fn opened(fanotify: &Fanotify, wanted: &Metadata) -> io::Result<File> {
    for event in fanotify.read_events()? {
        let Some(fd) = event.fd() else { continue };
        let file = File::from(fd.try_clone_to_owned()?);
        let found = file.metadata()?;
        if (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()) {
            return Ok(file);
        }
    }
    Err(io::Error::other("the system did not tell of an opening"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loops::{Loop, not_tried};
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    fn watched() -> (tempfile::TempDir, PathBuf, Watch, File) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let (watch, file) = Watch::begin(file).unwrap();
        (dir, path, watch, file)
    }

    /// Whether the system lets us use fanotify; a plain container may not.
    fn has_fanotify(watch: &Watch) -> bool {
        if watch.fanotify.is_none() {
            not_tried("no fanotify can be had");
        }
        watch.fanotify.is_some()
    }

    #[test]
    fn tells_nothing_of_our_own_changes() {
        let (_dir, _path, watch, file) = watched();
        for at in 0..100_u64 {
            watch.change(|| file.write_all_at(&[7; 4096], at * 4096)).unwrap();
            assert!(!watch.look(&file), "after write {at}");
        }
        watch.flush(|| file.sync_data()).unwrap();
        assert!(!watch.look(&file));
        assert_eq!(watch.disturbance(), None);
    }

    #[test]
    fn notices_another_writer_between_our_own_writes_and_names_it() {
        let (_dir, path, watch, file) = watched();
        if !has_fanotify(&watch) {
            return;
        }
        let changes: [&[&str]; 3] = [
            &["dd", "if=/dev/zero", "bs=512", "count=1", "conv=notrunc", "status=none"],
            &["truncate", "-s", "1M"],
            &["fallocate", "-p", "-l", "4096"],
        ];
        for change in changes {
            watch.change(|| file.write_all_at(&[7; 4096], 0)).unwrap();
            let mut command = Command::new(change[0]);
            command.args(&change[1..]);
            let path = path.to_str().unwrap();
            if change[0] == "dd" {
                command.arg(format!("of={path}"))
            } else {
                command.arg(path)
            };
            assert!(command.status().unwrap().success());
            watch.change(|| file.write_all_at(&[7; 4096], 0)).unwrap();
            // A cut to the size that it has changes nothing but the time.
            if change[0] == "truncate" {
                continue;
            }
            assert!(watch.look(&file), "{change:?}");
            let seen = watch.disturbance().unwrap();
            assert!(!seen.goes_on && seen.seen.contains("process"), "{seen:?}");
            watch.settle(seen.number);
            assert!(!watch.look(&file), "settled");
        }
    }

    #[test]
    fn notices_a_write_by_this_very_process_that_is_not_the_splitters() {
        let (_dir, path, watch, file) = watched();
        let other = File::options().write(true).open(&path).unwrap();
        assert!(!watch.look(&file));
        other.write_all_at(&[9], 5).unwrap();
        assert!(watch.look(&file));
    }

    #[test]
    fn what_is_noticed_after_a_look_is_not_settled_with_it() {
        let (_dir, path, watch, file) = watched();
        let other = File::options().write(true).open(&path).unwrap();
        other.write_all_at(&[9], 5).unwrap();
        assert!(watch.look(&file));
        let seen = watch.disturbance().unwrap();
        other.write_all_at(&[8], 6).unwrap();
        assert!(watch.look(&file));
        watch.settle(seen.number);
        assert!(watch.look(&file), "the second one stands");
    }

    #[test]
    fn notices_at_rest_without_being_told() {
        let (_dir, path, mut watch, file) = watched();
        watch.fanotify = None;
        if !watch.has_steady_times {
            println!("the times of this file system are not relied on");
            return;
        }
        watch.change(|| file.write_all_at(&[7; 4096], 0)).unwrap();
        assert!(!watch.look(&file));
        // Times are kept in ticks of the kernel's.
        let before = file.metadata().unwrap().modified().unwrap();
        let other = File::options().write(true).open(&path).unwrap();
        while file.metadata().unwrap().modified().unwrap() == before {
            other.write_all_at(&[9], 5).unwrap();
        }
        assert!(watch.look(&file));
    }

    /// D13: a device tells of nothing; its count of writes does, once ours are on it.
    #[test]
    fn notices_another_writer_of_a_device_at_rest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk.img");
        std::fs::write(&path, vec![1; 1 << 20]).unwrap();
        let Some(device) = Loop::over(&path) else { return };
        let file = File::options().read(true).write(true).open(&device.0).unwrap();
        // What was written before, by whomever, may reach the device only now.
        file.write_all_at(&[6; 4096], 4096).unwrap();
        let (watch, file) = Watch::begin(file).unwrap();
        watch.flush(|| file.sync_data()).unwrap();
        assert!(!watch.look(&file), "what came before the watch");
        watch.change(|| file.write_all_at(&[7; 4096], 0)).unwrap();
        assert!(!watch.look(&file), "not flushed: nothing is known");
        watch.flush(|| file.sync_data()).unwrap();
        assert!(!watch.look(&file));
        let mut wrote = Command::new("dd");
        wrote.args(["if=/dev/zero", "bs=4096", "count=1", "seek=9", "conv=fsync,notrunc"]);
        assert!(
            wrote
                .arg(format!("of={}", device.0))
                .stderr(std::process::Stdio::null())
                .status()
                .unwrap()
                .success()
        );
        let is_noticed = watch.look(&file);
        drop(file);
        assert!(is_noticed);
    }
}
