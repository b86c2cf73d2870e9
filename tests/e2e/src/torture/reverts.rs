//! State that goes back: the control plane's catalogue, or a whole server with its agent's folder.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use super::faults::{EVIDENCE_LIMIT, Struck};
use super::rounds::Point;
use super::site::{Guest, Site, is_gone};
use super::small;
use super::watch::unix_ms;
use crate::oracle::{Moment, Totals, WriteLog};
use crate::system::{Part, System};
use crate::wait;

/// The catalogue, and what SQLite has not moved into it yet.
const CATALOGUE: [&str; 2] = ["control.db", "control.db-wal"];
/// Of SQLite, made anew from the other two.
const CATALOGUE_INDEX: &str = "control.db-shm";
/// Made by `mkfs` in the agent's file system; nothing of the agent's.
const LOST_AND_FOUND: &str = "lost+found";
/// How long a signal may take to be everywhere in a process.
const SIGNAL_LIMIT: Duration = Duration::from_secs(30);

/// A moment in all that a disk went through: the number of its life, and when in that.
pub(super) type When = (usize, Moment);

/// What a disk went through before its server was rolled back.
#[derive(Debug)]
pub(super) struct PastLife {
    log: WriteLog,
    base: PathBuf,
    /// No mark of it is stamped later.
    until_ms: u64,
}

impl Guest {
    /// Holds a point's image against the writes of the life that the point is of.
    pub(super) fn judge(&self, image: &Path, point: &Point) -> Result<(When, When)> {
        let life = self.past.iter().position(|life| point.set_ms <= life.until_ms);
        let life = life.unwrap_or(self.past.len());
        let (start, end) = (Moment::START, Moment::END);
        let found = match self.past.get(life) {
            Some(past) => past.log.check_prefix(image, &past.base, start, end),
            None => self.jobs.log().check_prefix(image, &self.machine.base, start, end),
        };
        let found = found
            .with_context(|| format!("point {} (seq {}), life {life}", point.id, point.seq))?;
        Ok(((life, found.earliest), (life, found.latest)))
    }

    /// How much was written to the disk in all its lives.
    pub(super) fn totals(&self) -> Totals {
        let mut sum = self.jobs.log().totals();
        for Totals { issued, issued_bytes, acked, acked_bytes } in
            self.past.iter().map(|life| life.log.totals())
        {
            sum.issued += issued;
            sum.issued_bytes += issued_bytes;
            sum.acked += acked;
            sum.acked_bytes += acked_bytes;
        }
        sum
    }

    /// The disk is what is in `base` again, and its life until now is past.
    fn roll_back(&mut self, base: PathBuf, until_ms: u64) -> Result<()> {
        let log = self.jobs.roll_back(&base)?;
        let base = std::mem::replace(&mut self.machine.base, base);
        self.past.push(PastLife { log, base, until_ms });
        Ok(())
    }
}

impl Site {
    /// The catalogue is as it was when it was copied. What was given since is in the vault and with
    /// agents and nodes, which go on; epochs are raised, and no point leaves the vault.
    pub(super) fn catalogue_old(&self) -> Result<Struck> {
        // Until all is well again: an older catalogue knows of older epochs and points.
        self.watch.let_go_back(true);
        let begun_ms = unix_ms();
        while_dead(&self.system, Part::Control, || self.catalogue.put_back(&self.system))?;
        let forgets_since_ms = Some(self.catalogue.made_ms);
        Ok(Struck { forgets_since_ms, ..Struck::since(begun_ms) })
    }

    /// Copies the catalogue for the next time.
    pub(super) fn copy_catalogue(&mut self) -> Result<()> {
        self.catalogue = CatalogueCopy::make(&self.system)?;
        Ok(())
    }

    /// The server is rolled back: its disks and the agent's folder are those of a moment before, in
    /// the middle of the work. The node and the vault have what came since, whose points stay as they
    /// are; the agent must tell that from a crash, or the next point is of two lives at once.
    pub(super) fn agent_reverted(&mut self, hold: Duration) -> Result<Struck> {
        let snapshot = Snapshot::take(self)?;
        let taken_ms = unix_ms();
        self.watch.until("points of after the snapshot", EVIDENCE_LIMIT, |machines| {
            machines.values().all(|seen| seen.is_good_since(taken_ms))
        })?;
        thread::sleep(hold);
        for guest in &self.guests {
            guest.jobs.progress(5, EVIDENCE_LIMIT)?;
        }
        // A guest is rolled back with its disk: what it was about to write it does not know of.
        for guest in &self.guests {
            guest.jobs.pause(EVIDENCE_LIMIT)?;
        }
        let until_ms = while_dead(&self.system, Part::Agent, || {
            let until_ms = unix_ms();
            snapshot.put_back()?;
            for (guest, disk) in self.guests.iter_mut().zip(&snapshot.disks) {
                guest.roll_back(disk.copy.clone(), until_ms)?;
            }
            Ok(until_ms)
        })?;
        let struck = Struck { is_read_again: true, ..Struck::since(until_ms) };
        for guest in &self.guests {
            guest.jobs.resume();
        }
        Ok(struck)
    }
}

/// A copy of the control plane's catalogue.
#[derive(Debug)]
pub(super) struct CatalogueCopy {
    folder: PathBuf,
    made_ms: u64,
}

impl CatalogueCopy {
    /// Copies it while the control plane stands still, so that its files are of one moment.
    pub(super) fn make(system: &System) -> Result<Self> {
        let folder = system.path("catalogue.copy");
        fs::create_dir_all(&folder).context("make a folder for a copy of the catalogue")?;
        let made_ms = unix_ms();
        let from = system.data().join("control");
        while_stopped(system, Part::Control, || replace(&CATALOGUE, &from, &folder))?;
        Ok(Self { folder, made_ms })
    }

    /// Puts it back in place of the one that is there.
    fn put_back(&self, system: &System) -> Result<()> {
        let to = system.data().join("control");
        remove(&to.join(CATALOGUE_INDEX))?;
        replace(&CATALOGUE, &self.folder, &to)
    }
}

/// Copies files over others; one that is not there is removed there.
fn replace(names: &[&str], from: &Path, to: &Path) -> Result<()> {
    for name in names {
        let (from, to) = (from.join(name), to.join(name));
        if from.exists() {
            fs::copy(&from, &to).with_context(|| format!("copy {}", from.display()))?;
        } else {
            remove(&to)?;
        }
    }
    Ok(())
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// A server at one moment.
#[derive(Debug)]
struct Snapshot {
    /// The agent's folder, and the copy of what is in it.
    agent: (PathBuf, PathBuf),
    disks: Vec<DiskCopy>,
}

#[derive(Debug)]
struct DiskCopy {
    disk: PathBuf,
    copy: PathBuf,
    modified: SystemTime,
}

impl Snapshot {
    /// Takes it while the agent stands still. Requests may be under way in the kernel: their end is
    /// in it or not, as after a power cut.
    fn take(site: &Site) -> Result<Self> {
        let system = &site.system;
        let number = site.guests.first().map_or(0, |guest| guest.past.len());
        let folder = system.path(&format!("snapshot-{number}"));
        let agent = (system.data().join("agent"), folder.join("agent"));
        fs::create_dir_all(&agent.1).context("make a folder for a snapshot")?;
        let disks = while_stopped(system, Part::Agent, || {
            copy_folder(&agent.0, &agent.1)?;
            let copies = site.guests.iter().map(|guest| {
                let copy = folder.join(format!("{}.raw", guest.machine.name));
                DiskCopy::make(&guest.machine.disk, copy)
            });
            copies.collect::<Result<Vec<_>>>()
        })?;
        Ok(Self { agent, disks })
    }

    /// Makes the server what it was.
    fn put_back(&self) -> Result<()> {
        let (agent, copy) = &self.agent;
        for entry in fs::read_dir(agent).context("list the agent's folder")? {
            let path = entry.context("list the agent's folder")?.path();
            if path.ends_with(LOST_AND_FOUND) {
                continue;
            }
            let removed =
                if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
            removed.with_context(|| format!("remove {}", path.display()))?;
        }
        copy_folder(copy, agent)?;
        fs::remove_dir_all(copy).context("remove the copy of the agent's folder")?;
        self.disks.iter().try_for_each(DiskCopy::put_back)
    }
}

impl DiskCopy {
    fn make(disk: &Path, copy: PathBuf) -> Result<Self> {
        let context = || format!("copy {}", disk.display());
        let modified =
            fs::metadata(disk).and_then(|found| found.modified()).with_context(context)?;
        fs::copy(disk, &copy).with_context(context)?;
        Ok(Self { disk: disk.to_path_buf(), copy, modified })
    }

    /// The same file has what it had, and the time that it had: who rolls a server back sets no time.
    fn put_back(&self) -> Result<()> {
        let context = || format!("put {} back", self.disk.display());
        fs::copy(&self.copy, &self.disk).with_context(context)?;
        let file = File::options().write(true).open(&self.disk).with_context(context)?;
        file.set_modified(self.modified).with_context(context)
    }
}

/// Copies what is in a folder, with times, modes and holes.
pub(super) fn copy_folder(from: &Path, to: &Path) -> Result<()> {
    small::run(Command::new("cp").arg("--archive").arg(from.join(".")).arg(to))
}

/// Does something while a part stands still.
fn while_stopped<T>(system: &System, part: Part, work: impl FnOnce() -> Result<T>) -> Result<T> {
    while_still(system.pid(part)?, work)
}

/// The same with a process.
pub(super) fn while_still<T>(pid: Pid, work: impl FnOnce() -> Result<T>) -> Result<T> {
    kill_process(pid, Signal::STOP).context("stop a process for a moment")?;
    let done = until_still(pid).and_then(|()| work());
    kill_process(pid, Signal::CONT).context("let a process go on")?;
    done
}

/// Kills a part, does something while it is dead, and waits until it runs again.
pub(super) fn while_dead<T>(
    system: &System,
    part: Part,
    work: impl FnOnce() -> Result<T>,
) -> Result<T> {
    let before = system.pid(part)?;
    // Or it would be back at once.
    system.signal_supervisor(Signal::STOP)?;
    let killed = system.kill(part).and_then(|()| until_over(before));
    let done = killed.and_then(|()| work());
    system.signal_supervisor(Signal::CONT)?;
    let done = done?;
    system.wait_for_another(part, before)?;
    Ok(done)
}

/// Waits until every thread of a process stands still; the kernel's own workers in it wait with them.
fn until_still(pid: Pid) -> Result<()> {
    wait::until("a process to stand still", SIGNAL_LIMIT, || {
        let stats = thread_stats(pid)?;
        let is_still = |stat: &String| {
            let Some((name, rest)) = stat.rsplit_once(')') else { return false };
            rest.trim_start().starts_with('T') || name.contains("(iou-")
        };
        Ok(stats.iter().all(is_still).then_some(()))
    })
}

/// Waits until nothing is left of a killed process but its number.
fn until_over(pid: Pid) -> Result<()> {
    wait::until("a killed process to end", SIGNAL_LIMIT, || {
        let is_over = is_gone(pid) && thread_stats(pid).map_or(0, |stats| stats.len()) <= 1;
        Ok(is_over.then_some(()))
    })
}

/// What `/proc` says of each thread.
fn thread_stats(pid: Pid) -> Result<Vec<String>> {
    let path = format!("/proc/{}/task", pid.as_raw_nonzero());
    let mut stats = Vec::new();
    for entry in fs::read_dir(&path).with_context(|| format!("list {path}"))? {
        // One that has just ended is no thread any more.
        let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) else { continue };
        stats.push(stat);
    }
    Ok(stats)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::Stdio;

    #[test]
    fn a_disk_that_is_put_back_is_the_same_file_with_the_bytes_and_the_time_of_then() {
        let folder = tempfile::tempdir().unwrap();
        let (disk, copy) = (folder.path().join("disk"), folder.path().join("copy"));
        fs::write(&disk, b"of then").unwrap();
        let then = SystemTime::UNIX_EPOCH + Duration::new(1_700_000_000, 123_456_789);
        File::options().write(true).open(&disk).unwrap().set_modified(then).unwrap();
        let inode = fs::metadata(&disk).unwrap().ino();
        let made = DiskCopy::make(&disk, copy).unwrap();
        fs::write(&disk, b"of now, and longer").unwrap();
        made.put_back().unwrap();
        let found = fs::metadata(&disk).unwrap();
        assert_eq!((found.ino(), found.modified().unwrap()), (inode, then));
        assert_eq!(fs::read(&disk).unwrap(), b"of then");
    }

    #[test]
    fn a_file_that_a_copy_lacks_is_gone_when_it_is_put_back() {
        let folder = tempfile::tempdir().unwrap();
        let (from, to) = (folder.path().join("from"), folder.path().join("to"));
        fs::create_dir(&from).unwrap();
        fs::create_dir(&to).unwrap();
        fs::write(from.join(CATALOGUE[0]), b"old").unwrap();
        for name in CATALOGUE {
            fs::write(to.join(name), b"new").unwrap();
        }
        replace(&CATALOGUE, &from, &to).unwrap();
        assert_eq!(fs::read(to.join(CATALOGUE[0])).unwrap(), b"old");
        assert!(!to.join(CATALOGUE[1]).exists());
    }

    #[test]
    fn a_process_is_still_once_stopped_and_over_once_killed() {
        let mut child = Command::new("sleep").arg("60").stdin(Stdio::null()).spawn().unwrap();
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::STOP).unwrap();
        until_still(pid).unwrap();
        child.kill().unwrap();
        // Nobody has asked how it ended: its number is still there.
        until_over(pid).unwrap();
        child.wait().unwrap();
        until_over(pid).unwrap();
    }
}
