//! A view of a volume that has something in few of the slots that its log grew by since the newest map.

use std::ops::Range;
use std::path::Path;

use anyhow::Result;
use farshore_codec::segment::slot_without_data;
use farshore_engine::ledger::{Ledger, SpanEnd};
use farshore_proto::Slot;
use farshore_proto::segment::{SlotKind, SlotWriter};
use farshore_vault::layout::ObjectName;
use farshore_vault::{checkpoint, map};

use super::Options;
use super::disk::{Disk, INCARNATION, LOG};
use super::past::open_latest;
use super::report::Figure;

/// Segments of the volume behind its map.
const BEHIND: u64 = 16;
/// Slots behind the newest checkpoint: at 256 there is another.
const TAIL: u64 = 200;
const SIZE_BYTES: u64 = 1 << 36;

/// Opening the latest view.
///
/// # Errors
/// If the log cannot be written, or what is opened is not what was written.
pub(super) async fn measure(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let disk = write(options.quiet_slots, &folder.join("quiet")).await?;
    let name = format!(
        "view of a volume with {BEHIND} segments in the {} slots that its log grew by since the map",
        options.quiet_slots
    );
    let remark = format!("{TAIL} slots behind the newest checkpoint");
    Ok(vec![open_latest(options, disk, &name, remark).await?])
}

/// A volume with a map, whose log then grew by so many slots.
async fn write(slots: u64, directory: &Path) -> Result<Disk> {
    let mut disk = Disk::make(directory.to_owned(), SIZE_BYTES).await?;
    let mut ledger = Ledger::default();
    segment(&mut disk, &mut ledger)?;
    map::write(&disk.vault, disk.volume).await?;
    for _ in 0..BEHIND {
        let between = disk.next.0..disk.next.0 + slots / BEHIND;
        fills(&mut disk, between, None)?;
        segment(&mut disk, &mut ledger)?;
    }
    let at = disk.next;
    ledger.reached(at);
    let body = ledger.body().expect("it has one volume").clone();
    checkpoint::write(&disk.vault, LOG, at, body).await?;
    fills(&mut disk, at.0..at.0 + TAIL, Some(at))?;
    Ok(disk)
}

/// A segment of the volume.
fn segment(disk: &mut Disk, ledger: &mut Ledger) -> Result<()> {
    let slot = disk.next;
    let built = disk.segment(|_| Vec::new())?;
    let spans = built.table.spans.iter().map(SpanEnd::from);
    ledger.take(slot, &SlotWriter::of_run(INCARNATION), spans);
    Ok(())
}

/// Slots of others.
fn fills(disk: &mut Disk, slots: Range<u64>, checkpoint: Option<Slot>) -> Result<()> {
    let keys = disk.vault.seal_keys();
    let writer = SlotWriter { checkpoint, ..SlotWriter::of_run(INCARNATION) };
    for slot in slots.clone().map(Slot) {
        let at = (disk.vault.id(), LOG, slot);
        let object = slot_without_data(SlotKind::Fill, at, writer, keys)?;
        disk.put(&ObjectName::slot(LOG, slot), &object)?;
    }
    disk.next = Slot(slots.end);
    Ok(())
}
