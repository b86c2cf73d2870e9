//! The program that the demo's guest runs, twice.
//!
//! As `/init` of the initramfs it loads the kernel modules of the disk, mounts the root file system
//! and goes on as `/sbin/init` of that file system. There it is the *recorder*: it reads the records
//! that are on the disk, says on the console what it found, and appends numbered, checksummed
//! records with an fsync each, saying so after each. Whoever reads the console therefore knows
//! which records the disk has promised to hold.

#![forbid(unsafe_code)]

#[path = "../src/guest/records.rs"]
mod records;

use std::fs::{self, File, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use rustix::mount::{MountFlags, mount, mount_move};
use rustix::process::{chdir, chroot};
use rustix::system::{RebootCommand, finit_module, reboot};

use records::{record, tally};

/// Where the initramfs lists its modules, in loading order.
const MODULES: &str = "/modules/order";
const RECORDS: &str = "/var/lib/farshore/records";
/// One record each: a busy small database, and few enough to print them all.
const PACE: Duration = Duration::from_millis(20);
/// How long the root disk may take to appear.
const DISK_WAIT: Duration = Duration::from_secs(30);
/// On the command line or as the machine's serial number: only verify, then power off.
const VERIFY_FLAG: &str = "farshore.verify";

fn main() {
    let is_initramfs = Path::new(MODULES).exists();
    let end = if is_initramfs { initramfs() } else { recorder() };
    if let Err(error) = end {
        println!("farshore-guest: error: {error:#}");
    }
    rustix::fs::sync();
    let _ = reboot(RebootCommand::PowerOff);
    // Only reached where there is no machine to power off.
    loop {
        thread::park();
    }
}

/// Brings the root file system up and continues there.
fn initramfs() -> Result<()> {
    virtual_mounts("")?;
    load_modules()?;
    let disk = root_partition()?;
    let flags = if is_verifying() { MountFlags::RDONLY } else { MountFlags::empty() };
    fs::create_dir_all("/root").context("create /root")?;
    mount(disk.as_path(), "/root", "ext4", flags | MountFlags::NOATIME, None)
        .with_context(|| format!("mount {}", disk.display()))?;
    for folder in ["dev", "proc", "sys"] {
        mount_move(format!("/{folder}"), format!("/root/{folder}")).context("move a mount")?;
    }
    chdir("/root").context("enter the root")?;
    mount_move(".", "/").context("move the root")?;
    chroot(".").context("change the root")?;
    let error = Command::new("/sbin/init").exec();
    Err(error).context("start /sbin/init")
}

fn virtual_mounts(root: &str) -> Result<()> {
    for (kind, folder) in [("devtmpfs", "dev"), ("proc", "proc"), ("sysfs", "sys")] {
        let folder = format!("{root}/{folder}");
        fs::create_dir_all(&folder).with_context(|| format!("create {folder}"))?;
        mount(kind, folder.as_str(), kind, MountFlags::empty(), None)
            .with_context(|| format!("mount {folder}"))?;
    }
    Ok(())
}

fn load_modules() -> Result<()> {
    for name in fs::read_to_string(MODULES).context("read the list of modules")?.lines() {
        let file = File::open(Path::new("/modules").join(name)).context("open a module")?;
        finit_module(&file, c"", 0).with_context(|| format!("load {name}"))?;
    }
    Ok(())
}

/// Waits for the second partition of the first disk.
fn root_partition() -> Result<PathBuf> {
    let start = Instant::now();
    while start.elapsed() < DISK_WAIT {
        let found = ["/dev/vda2", "/dev/sda2", "/dev/nvme0n1p2"].map(PathBuf::from);
        if let Some(disk) = found.into_iter().find(|disk| disk.exists()) {
            return Ok(disk);
        }
        thread::sleep(Duration::from_millis(10));
    }
    bail!("no disk appeared within {} s", DISK_WAIT.as_secs())
}

fn is_verifying() -> bool {
    ["/proc/cmdline", "/sys/class/dmi/id/product_serial"]
        .iter()
        .any(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(VERIFY_FLAG)))
}

/// Says what the disk holds, then appends for ever.
fn recorder() -> Result<()> {
    let file = fs::read(RECORDS).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(Vec::new()),
        _ => Err(error),
    });
    let file = file.context("read the records")?;
    let tally = tally(&file);
    println!(
        "farshore-guest: boot records={} last={} gap={} torn={}",
        tally.records, tally.last, tally.gaps, tally.torn
    );
    if is_verifying() {
        return Ok(());
    }
    append(file.len() as u64, tally.last + 1)
}

/// Appends records from `number` on at `offset`, until the disk is full.
fn append(offset: u64, mut number: u64) -> Result<()> {
    fs::create_dir_all(Path::new(RECORDS).parent().expect("the file lies in a folder"))
        .context("create the folder of the records")?;
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(RECORDS)
        .context("open the records")?;
    file.seek(SeekFrom::Start(offset)).context("go to the end of the records")?;
    let mut next = Instant::now();
    loop {
        file.write_all(&record(number, now_ms())).context("write a record")?;
        file.sync_all().context("sync a record")?;
        println!("farshore-guest: record {number}");
        number += 1;
        next += PACE;
        match next.checked_duration_since(Instant::now()) {
            Some(rest) => thread::sleep(rest),
            None => next = Instant::now(),
        }
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
