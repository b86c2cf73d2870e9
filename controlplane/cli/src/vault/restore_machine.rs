//! `vault restore --machine`: all disks of one point, each to a file of its own.

use std::path::{Path, PathBuf};
use std::time::Instant;

use farshore_api::Exit;
use farshore_api::point::PointSelector;
use farshore_export::restore::{self, RestoreOptions, RestoreProgress, TargetKind};
use farshore_proto::machine::Disk;
use farshore_vault::machine::DiskPoint;
use farshore_vault::{PointSelector as VaultSelector, Vault, VolumeView};
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use crate::args::Global;
use crate::failure::{Failure, Outcome};
use crate::job::Job;
use crate::output::{size, time};
use crate::table::Table;

use super::find::{Chosen, ChosenRow, find_point};
use super::open::{Source, vault_failure};
use super::restore::{RestoreTo, Restored, journal_directory, or_another_point, restore_failure};

/// Longest part of a disk's name that a file's name has.
const NAME_BYTES_MAX: usize = 64;

/// Result of the restore of a machine.
#[derive(Debug, Serialize)]
struct RestoredMachine {
    #[serde(flatten)]
    chosen: ChosenRow,
    to: String,
    size_bytes: u64,
    disks: Vec<RestoredDisk>,
    seconds: f64,
}

#[derive(Debug, Serialize)]
struct RestoredDisk {
    index: u16,
    name: String,
    role: &'static str,
    #[serde(flatten)]
    restored: Restored,
}

/// A disk that is to be written, and where.
struct Target<'a> {
    disk: &'a Disk,
    point: DiskPoint,
    to: PathBuf,
}

/// Writes all disks of a machine as they were at a point to a directory.
pub(super) async fn restore(
    global: &Global,
    source: &Source,
    wanted: &str,
    point: PointSelector,
    may_lack: bool,
    to: RestoreTo,
) -> Outcome {
    let started = Instant::now();
    let vault = source.open(global).await?;
    let chosen = find_point(&vault, wanted, point, may_lack).await?;
    let disks = targets(&chosen, &to.to)?;
    if !may_write(&chosen, &disks, &to)? {
        return Ok(());
    }
    std::fs::create_dir_all(&to.to).map_err(|error| {
        Failure::io("make the directory", &to.to, &error, Exit::CannotCreate)
            .or_hint(|| "name another directory with --to".to_owned())
    })?;
    let job = Job::of_share(global, "restoring");
    let total: u64 = disks.iter().map(|disk| disk.point.point.size_bytes).sum();
    let mut done = 0;
    let mut restored = Vec::with_capacity(disks.len());
    for next in &disks {
        let told = |progress: RestoreProgress| {
            let size = next.point.point.size_bytes;
            #[expect(clippy::cast_precision_loss, reason = "a share of a bar")]
            let share = |part: u64, of: u64| if of == 0 { 1.0 } else { part as f64 / of as f64 };
            let of_disk = share(progress.written_bytes, progress.data_bytes);
            #[expect(clippy::cast_precision_loss, reason = "a share of a bar")]
            let all = (done as f64 + of_disk * size as f64) / total.max(1) as f64;
            job.share(all, || {
                json!({
                    "disk": next.disk.index,
                    "share_done": all,
                    "bytes_done": progress.written_bytes,
                    "bytes_total": progress.data_bytes,
                })
            });
        };
        match restore_disk(&vault, next, to.force, told).await {
            Ok(disk) => {
                if disks.len() > 1 {
                    // Who ends this run knows what need not be done again.
                    farshore_program::tell!("finished: {}", disk.place());
                }
                restored.push(disk);
            }
            Err(failure) => return Err(with_finished(failure, &chosen, &restored)),
        }
        done += next.point.point.size_bytes;
    }
    let result = RestoredMachine {
        chosen: ChosenRow::from(&chosen),
        to: to.to.display().to_string(),
        size_bytes: total,
        disks: restored,
        seconds: started.elapsed().as_secs_f64(),
    };
    job.finish(&result, RestoredMachine::table)
}

/// What is finished need not be done again.
fn with_finished(failure: Failure, chosen: &Chosen, finished: &[RestoredDisk]) -> Failure {
    if finished.is_empty() {
        return failure;
    }
    let files: Vec<String> = finished.iter().map(RestoredDisk::place).collect();
    let hint = failure.hint.as_deref().map_or(String::new(), |hint| format!("{hint}; "));
    let hint = format!(
        "{hint}finished at point {}: {}; a restore of the machine with --force does them again, \
         `farshore vault restore --volume ID` does each other disk by itself",
        Uuid::from(chosen.point.id),
        files.join(", ")
    );
    failure.hint(hint)
}

async fn restore_disk(
    vault: &Vault,
    next: &Target<'_>,
    may_replace: bool,
    told: impl FnMut(RestoreProgress) + Send,
) -> Outcome<RestoredDisk> {
    let started = Instant::now();
    let view = open_view(vault, &next.point).await?;
    let options = RestoreOptions { may_replace, journal_directory: journal_directory() };
    let report = restore::restore(&view, &next.to, options, told).await;
    let volume = next.point.volume.into();
    let report = report.map_err(|error| or_another_point(restore_failure(&error), volume))?;
    Ok(RestoredDisk {
        index: next.disk.index,
        name: next.disk.name.clone(),
        role: next.disk.role.word(),
        restored: Restored::new(&view, &next.to, report, started),
    })
}

/// Opens a disk at its point.
pub(super) async fn open_view(vault: &Vault, disk: &DiskPoint) -> Outcome<VolumeView> {
    let selector = VaultSelector::Seq(disk.point.seq);
    let view = VolumeView::open(vault, disk.volume, selector).await;
    view.map_err(|error| or_another_point(vault_failure(&error), disk.volume.into()))
}

/// The disks that have the point, and the files that get them.
fn targets<'a>(chosen: &'a Chosen, to: &Path) -> Outcome<Vec<Target<'a>>> {
    if to.exists() && !to.is_dir() {
        let message = format!("{} is not a directory", to.display());
        return Err(Failure::new(Exit::DataInvalid, message)
            .hint("name a directory, or one that is not there yet: it gets a file for each disk"));
    }
    let of = |(disk, point): (&'a Disk, &DiskPoint)| Target {
        disk,
        point: *point,
        to: to.join(file_name(disk)),
    };
    Ok(chosen.disks().map(of).collect())
}

/// The file of a disk.
fn file_name(disk: &Disk) -> String {
    format!("{}.raw", file_stem(disk))
}

/// The name of a disk's files: nothing of its name but letters, digits and the like, so that it stays in its directory.
pub(super) fn file_stem(disk: &Disk) -> String {
    let last = disk.name.rsplit(['/', '\\']).next().unwrap_or_default();
    let plain = |c: char| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '_' };
    let name: String = last.chars().map(plain).take(NAME_BYTES_MAX).collect();
    match name.as_str() {
        "" => format!("disk-{}", disk.index),
        name => format!("disk-{}-{name}", disk.index),
    }
}

/// Looks at what is there before anything is written, says what would be done, and asks where a device would lose
/// something. False for a dry run.
fn may_write(chosen: &Chosen, disks: &[Target<'_>], to: &RestoreTo) -> Outcome<bool> {
    let options = RestoreOptions { may_replace: to.force, journal_directory: None };
    let mut over = String::new();
    // What is not there yet is made first, and nobody has anything in it.
    if to.to.exists() {
        for disk in disks {
            let found = restore::survey(&disk.to).map_err(|error| restore_failure(&error))?;
            let checked = found.check(disk.point.point.size_bytes, &options);
            checked.map_err(|error| restore_failure(&error))?;
            // A link may lead to one.
            if let (TargetKind::Device, Some(content)) = (found.kind, &found.content) {
                over += &format!(", over what is on {}: {content}", found.path.display());
            }
        }
    }
    if over.is_empty() && !to.consent.dry_run {
        return Ok(true);
    }
    let total = disks.iter().map(|disk| disk.point.point.size_bytes).sum();
    let files: Vec<String> = disks.iter().map(|disk| disk.to.display().to_string()).collect();
    to.consent.ask(&format!(
        "write {} of {} in all, machine {} as it was at {}, to {}{over}",
        if disks.len() == 1 { "a disk".to_owned() } else { format!("{} disks", disks.len()) },
        size(total),
        chosen.machine.name(),
        time(chosen.point.time_unix_ms()),
        files.join(", ")
    ))
}

impl RestoredDisk {
    /// Which it is, and where it was written to.
    fn place(&self) -> String {
        format!("disk {} ({})", self.index, self.restored.to)
    }
}

impl RestoredMachine {
    fn table(&self) -> String {
        let mut table = Table::pairs();
        self.chosen.add_to(&mut table, "restored");
        for disk in &self.disks {
            table.pair(&format!("disk {}", disk.index), disk.restored.to_text());
        }
        table.pair("took", format!("{:.1} s", self.seconds));
        table.render()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::machine::{DiskRole, DiskState};
    use farshore_proto::{Epoch, Seq};

    fn disk(name: &str) -> Disk {
        Disk {
            index: 3,
            volume: None,
            size_bytes: 0,
            since: (Epoch(0), Seq(0)),
            boot_rank: 0,
            sector_log2: 0,
            role: DiskRole::Data,
            state: DiskState::Excluded,
            name: name.to_owned(),
            label: String::new(),
            serial: String::new(),
        }
    }

    #[test]
    fn the_name_of_a_disk_never_leads_out_of_its_directory() {
        for (name, file) in [
            ("/dev/vda", "disk-3-vda.raw"),
            ("", "disk-3.raw"),
            ("/dev/", "disk-3.raw"),
            ("../../etc/passwd", "disk-3-passwd.raw"),
            ("..", "disk-3-...raw"),
            (r"\\.\PhysicalDrive0", "disk-3-PhysicalDrive0.raw"),
            ("a\nb ü", "disk-3-a_b__.raw"),
        ] {
            assert_eq!(file_name(&disk(name)), file, "{name:?}");
        }
        assert_eq!(file_name(&disk(&"x".repeat(500))).len(), "disk-3-.raw".len() + 64);
    }
}
