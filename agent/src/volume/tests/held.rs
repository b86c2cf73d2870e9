//! Disks that somebody has: as a part of another disk, as swap.

use super::disks::until_error;
use super::*;
use crate::loops::{Loop, not_tried, run};
use std::path::Path;
use std::process::Command;

const SECTOR: u64 = 512;
const PART_AT: u64 = MIB;
const PART_BYTES: u64 = 8 * MIB;

/// A disk with one partition: the loop device over `file`, and the partition's path. None, with the reason
/// told, on a machine that is said to have none.
fn parted(file: &Path) -> Option<(Loop, String)> {
    let (start, count) = (PART_AT / SECTOR, PART_BYTES / SECTOR);
    let number = |sectors: u64| u32::try_from(sectors).unwrap().to_le_bytes();
    let mut table = std::fs::read(file).unwrap();
    // The table's first entry: not to be booted, Linux, where it begins and how long it is; by heads and
    // cylinders nobody counts any more.
    table[446..454].copy_from_slice(&[0, 0xfe, 0xff, 0xff, 0x83, 0xfe, 0xff, 0xff]);
    table[454..458].copy_from_slice(&number(start));
    table[458..462].copy_from_slice(&number(count));
    table[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(file, table).unwrap();
    let whole = Loop::over_with(file, &["--partscan"])?;
    let part = format!("{}p1", whole.0);
    if !Path::new(&part).exists() {
        // A kernel that reads no such tables is told.
        let place = [1, start, count].map(|number| number.to_string());
        run(Command::new("addpart").arg(&whole.0).args(place));
    }
    if !Path::new(&part).exists() {
        not_tried("loop devices have no partitions");
        return None;
    }
    Some((whole, part))
}

fn named(rig: &Rig) -> String {
    rig.assigned.borrow().disk.clone()
}

/// While the first has its disk the second is refused by its name; then it goes on by itself.
async fn only_one(first: &mut Rig, second: &mut Rig) {
    first.start(Steps::default());
    first.until_protected().await;
    second.start(Steps::default());
    let refused = format!("{} is captured already, by this agent as", named(second));
    until_error(second, &[&refused, &named(first)]).await;
    assert_eq!(second.report().nbd_uri, None);
    first.stop().await;
    second.until_protected().await;
    second.stop().await;
}

/// D14: one disk as a whole and as a part.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_disk_and_its_partition_are_captured_once_whichever_was_first() {
    for capture in [Capture::Nbd, Capture::Scan] {
        let (mut whole, mut part) = (Rig::new(16 * MIB, capture), Rig::new(PART_BYTES, capture));
        let Some((device, path)) = parted(&whole.disk()) else { return };
        whole.assigned.send_modify(|volume| volume.disk.clone_from(&device.0));
        part.assigned.send_modify(|volume| volume.disk = path);
        only_one(&mut whole, &mut part).await;
        only_one(&mut part, &mut whole).await;
    }
}

/// What is swapped to, until it is dropped.
struct Swap(String);

impl Swap {
    fn on(device: &str) -> Option<Self> {
        let is_on = run(Command::new("mkswap").arg(device)).is_some()
            && run(Command::new("swapon").arg(device)).is_some();
        if !is_on {
            not_tried("nothing can be swapped to");
        }
        is_on.then(|| Self(device.to_owned()))
    }
}

impl Drop for Swap {
    fn drop(&mut self) {
        run(Command::new("swapoff").arg(&self.0));
    }
}

/// D12: what the system swaps to is refused and called that, and so is the file behind it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_device_that_is_swapped_to_is_refused_by_name() {
    let mut rig = Rig::new(16 * MIB, Capture::Nbd);
    let Some(device) = Loop::over(&rig.disk()) else { return };
    let Some(swap) = Swap::on(&device.0) else { return };
    let words = format!("{} is used as swap", device.0);
    let file = named(&rig);
    for disk in [&file, &device.0] {
        rig.assigned.send_modify(|volume| volume.disk.clone_from(disk));
        rig.start(Steps::default());
        until_error(&rig, &[disk, "is in use", &words]).await;
        rig.stop().await;
    }
    rig.start(Steps::default());
    until_error(&rig, &[&words]).await;
    drop(swap);
    rig.until_protected().await;
    rig.stop().await;
}
