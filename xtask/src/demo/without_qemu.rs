//! The demo on a machine without QEMU: the disk is scanned, lost, restored from the vault alone,
//! and compared byte for byte.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use super::checks::{Checks, Finding};
use super::farshore::{Farshore, wait_until};
use super::live::NAME;
use super::run_folder::RunFolder;
use super::{Options, figures_of_vault, step};
use crate::guest::{self, records};

const COPY_LIMIT: Duration = Duration::from_secs(300);
/// Records that are appended between the two points.
const RECORDS: u64 = 2000;

/// Runs it.
///
/// # Errors
/// If a step fails.
pub(crate) fn show(options: &Options, folder: &RunFolder) -> Result<Checks> {
    step("a server's disk");
    let disk = folder.path("server.raw");
    let bytes = guest::build_data_disk(&folder.path("parts"), &disk)?;
    println!(
        "{} MiB with an ext4 file system of {} MiB of files",
        guest::DISK_BYTES >> 20,
        bytes >> 20
    );

    step("farshore up; the disk is scanned every second");
    let farshore = Farshore::up(folder, options.vault.as_deref())?;
    let path = disk.to_str().context("a folder whose name is not UTF-8")?;
    farshore.run(&[
        "machine",
        "protect",
        NAME,
        "--disk",
        path,
        "--capture",
        "scan",
        "--mark-interval",
        "1s",
    ])?;
    wait_until("the initial copy", COPY_LIMIT, || {
        let shown = farshore.json(&["machine", "show", NAME])?;
        Ok((shown["state"] == "protected").then_some(()))
    })?;
    let first = mark_and_copy(&farshore, folder, &disk, "first.raw")?;
    append(&disk)?;
    let second = mark_and_copy(&farshore, folder, &disk, "second.raw")?;

    step("the server is lost: SIGKILL to its agent, and its disk is gone");
    let volume = farshore.json(&["machine", "show", NAME])?["volumes"][0]["id"].clone();
    let volume = volume.as_str().context("no volume")?;
    fs::remove_file(&disk).context("remove the disk")?;
    farshore.kill("agent")?;

    step("restore from the store and the recovery key alone");
    let mut checks = Checks::default();
    let vault = farshore.endpoint("vault")?;
    let points =
        [("the first point", &first, "first.raw"), ("the second point", &second, "second.raw")];
    for (check, point, copy) in points {
        let to = folder.path("restored.raw");
        let file = to.to_str().context("a folder whose name is not UTF-8")?;
        farshore.bare(&[
            "vault", "restore", "--vault", &vault, "--volume", volume, "--point", point, "--to",
            file,
        ])?;
        let is_equal = equal(&folder.path(copy), &to)?;
        checks.add(Finding {
            check,
            expected: "every byte of the disk".to_owned(),
            seen: if is_equal { "equal" } else { "different" }.to_owned(),
            holds: is_equal,
        });
        fs::remove_file(&to).context("remove the restored disk")?;
    }
    figures_of_vault(&farshore, &mut checks)?;
    farshore.stop()?;
    Ok(checks)
}

/// Sets a mark while nothing writes and keeps a copy of the disk.
fn mark_and_copy(
    farshore: &Farshore,
    folder: &RunFolder,
    disk: &Path,
    copy: &str,
) -> Result<String> {
    fs::copy(disk, folder.path(copy)).context("copy the disk")?;
    let marked = farshore.json(&["point", "mark", NAME, "--wait"])?;
    marked["point"].as_str().map(str::to_owned).with_context(|| format!("no point in {marked}"))
}

/// Changes the disk as the guest would: records in place of the last MiB of the root.
fn append(disk: &Path) -> Result<()> {
    use std::os::unix::fs::FileExt;
    let file = File::options().write(true).open(disk).context("open the disk")?;
    let start = guest::ROOT.start + guest::ROOT.bytes - RECORDS * records::RECORD_BYTES as u64;
    for number in 0..RECORDS {
        let at = start + number * records::RECORD_BYTES as u64;
        file.write_all_at(&records::record(number + 1, 0), at).context("write the disk")?;
    }
    file.sync_all().context("sync the disk")
}

fn equal(left: &Path, right: &Path) -> Result<bool> {
    let open = |path: &Path| File::open(path).with_context(|| format!("open {}", path.display()));
    let (mut a, mut b) = (open(left)?, open(right)?);
    if a.metadata()?.len() != b.metadata()?.len() {
        return Ok(false);
    }
    let (mut part_a, mut part_b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    loop {
        let count = a.read(&mut part_a).context("read the copy")?;
        if count == 0 {
            return Ok(true);
        }
        b.read_exact(&mut part_b[..count]).context("read the restored disk")?;
        if part_a[..count] != part_b[..count] {
            return Ok(false);
        }
    }
}
