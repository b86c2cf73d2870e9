//! The recovery point itself: exported, its file system checked, its records read without a guest.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use super::checks::{Checks, Finding};
use super::failover::Revived;
use super::farshore::Farshore;
use super::live::NAME;
use super::run_folder::RunFolder;
use crate::guest::{self, records};
use crate::repo;

/// Exports the point that the server runs from and looks into it.
///
/// # Errors
/// If it cannot be exported.
pub(crate) fn check(
    farshore: &Farshore,
    folder: &RunFolder,
    revived: &Revived,
    checks: &mut Checks,
) -> Result<()> {
    let (disk, root) = (folder.path("point.raw"), folder.path("point-root.ext4"));
    let to = disk.to_str().context("a folder whose name is not UTF-8")?;
    farshore.run(&["point", "export", NAME, &revived.point, "--format", "raw", "--to", to])?;
    cut(&disk, &root)?;
    let replayed = e2fsck(&root, &["-E", "journal_only", "-y"]);
    // What a mount does first: a point taken in mid-write has a journal to replay.
    let checked = replayed.and_then(|_| e2fsck(&root, &["-fn"]));
    checks.add(Finding {
        check: "e2fsck -fn of the exported point",
        expected: "clean".to_owned(),
        seen: checked.as_ref().map_or_else(|error| format!("{error:#}"), |_| "clean".to_owned()),
        holds: checked.is_ok(),
    });
    let tally = records::tally(&dump(&root, &folder.path("point-records"))?);
    let boot = revived.boot;
    checks.add(Finding {
        check: "records in the exported point",
        expected: format!("{} as the guest says, whole", boot.records),
        seen: format!("{}, gap {}, torn {}", tally.records, tally.gaps, tally.torn),
        holds: (tally.records, tally.last, tally.gaps, tally.torn)
            == (boot.records, boot.last, boot.gaps, boot.torn),
    });
    fs::remove_file(&disk).and_then(|()| fs::remove_file(&root)).context("remove the export")
}

/// Copies the root partition out of the disk, leaving holes where it has zeros.
fn cut(disk: &Path, root: &Path) -> Result<()> {
    let disk = File::open(disk).context("open the exported point")?;
    let root = File::create(root).context("create the partition's file")?;
    root.set_len(guest::ROOT.bytes).context("size the partition's file")?;
    let mut bytes = vec![0; 1 << 20];
    for at in (0..guest::ROOT.bytes).step_by(bytes.len()) {
        disk.read_exact_at(&mut bytes, guest::ROOT.start + at).context("read the point")?;
        if bytes.iter().any(|byte| *byte != 0) {
            root.write_all_at(&bytes, at).context("write the partition")?;
        }
    }
    Ok(())
}

fn e2fsck(root: &Path, options: &[&str]) -> Result<()> {
    let mut command = repo::tool("e2fsck");
    let said = command.args(options).arg(root).output().context("start e2fsck")?;
    let text = String::from_utf8_lossy(&said.stdout).replace('\n', "; ");
    anyhow::ensure!(said.status.success(), "{} after {text}", said.status);
    Ok(())
}

/// Takes the file of records out of the file system without mounting it.
fn dump(root: &Path, to: &Path) -> Result<Vec<u8>> {
    let request = format!("dump /var/lib/farshore/records {}", to.display());
    let mut debugfs: Command = repo::tool("debugfs");
    repo::output(debugfs.arg("-R").arg(request).arg(root))?;
    fs::read(to).context("read the records of the point")
}
