//! Makes the disk of a small but real server, without root and without loop devices.
//!
//! GPT; an EFI system partition whose one binary joins Debian's cloud kernel, an initramfs and the
//! command line; an ext4 root with files of this machine and the recorder as its init.

mod content;
mod cpio;
mod efi;
mod gpt;
mod kernel;
pub(crate) mod records;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::repo;

const MIB: u64 = 1 << 20;
/// The whole disk.
pub(crate) const DISK_BYTES: u64 = 512 * MIB;
const ESP: gpt::Partition = gpt::Partition {
    kind: gpt::EFI_SYSTEM,
    id: *b"farshore-esp-001",
    name: "EFI system",
    start: MIB,
    bytes: 64 * MIB,
};
/// The root file system, up to the copy of the partition table in the last MiB.
pub(crate) const ROOT: gpt::Partition = gpt::Partition {
    kind: gpt::LINUX_DATA,
    id: *b"farshore-root-01",
    name: "root",
    start: 65 * MIB,
    bytes: DISK_BYTES - 66 * MIB,
};

/// What the guest's kernel is told. The early console shows its first line at once.
const COMMAND_LINE: &str =
    "console=ttyS0,115200 earlycon=uart8250,io,0x3f8 panic=5 rdinit=/init random.trust_cpu=on";

/// What was built, for whoever tells a person about it.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The raw disk image.
    pub(crate) disk: PathBuf,
    /// Such as `6.1.0-42-cloud-amd64`.
    pub(crate) kernel_version: String,
    /// Bytes of files on the root file system.
    pub(crate) content_bytes: u64,
}

/// Builds the disk at `disk`, keeping what does not change in the folder `parts`.
///
/// # Errors
/// If a tool is missing or refuses; its own words are in the error.
pub(crate) fn build(parts: &Path, disk: &Path) -> Result<Guest> {
    fs::create_dir_all(parts).with_context(|| format!("create {}", parts.display()))?;
    let recorder = link_recorder()?;
    let kernel = kernel::find(parts)?;
    let initramfs = parts.join("initramfs.cpio");
    fs::write(&initramfs, initramfs_bytes(&kernel, &recorder)?).context("write the initramfs")?;
    let binary = parts.join("bootx64.efi");
    efi::join(&kernel.image, &initramfs, COMMAND_LINE, parts, &binary)?;
    partition(disk)?;
    fill_esp(disk, &binary)?;
    let content_bytes = fill_root(disk, &parts.join("root"), &recorder)?;
    Ok(Guest { disk: disk.to_path_buf(), kernel_version: kernel.version, content_bytes })
}

/// Builds a disk with the same root and nothing to boot; returns the bytes of its files.
///
/// # Errors
/// As [`build`].
pub(crate) fn build_data_disk(parts: &Path, disk: &Path) -> Result<u64> {
    fs::create_dir_all(parts).with_context(|| format!("create {}", parts.display()))?;
    partition(disk)?;
    fill_root(disk, &parts.join("root"), &link_recorder()?)
}

fn partition(disk: &Path) -> Result<()> {
    let file = File::create(disk).with_context(|| format!("create {}", disk.display()))?;
    file.set_len(DISK_BYTES).context("size the disk")?;
    gpt::write(&file, DISK_BYTES, *b"farshore-demo-01", &[ESP, ROOT])
        .context("write the partition table")
}

/// Links the recorder statically, so that it needs nothing from the disk it runs on.
fn link_recorder() -> Result<PathBuf> {
    repo::check(
        repo::cargo()
            .args(["rustc", "--quiet", "--release", "--package", "xtask"])
            .args(["--bin", "farshore-guest", "--"])
            .args(["-C", "target-feature=+crt-static", "-C", "strip=symbols"]),
    )?;
    let recorder = repo::target().join("release/farshore-guest");
    ensure!(recorder.is_file(), "cargo built no {}", recorder.display());
    Ok(recorder)
}

fn initramfs_bytes(kernel: &kernel::Kernel, recorder: &Path) -> Result<Vec<u8>> {
    let mut archive = cpio::Archive::new();
    for folder in ["dev", "proc", "sys", "root", "modules"] {
        archive.folder(folder);
    }
    archive.console("dev/console");
    archive.file("init", 0o755, &fs::read(recorder).context("read the recorder")?);
    let mut order = String::new();
    for (name, module) in kernel.modules(&["virtio_pci", "virtio_blk"])? {
        archive.file(&format!("modules/{name}.ko"), 0o644, &module);
        order.push_str(&name);
        order.push_str(".ko\n");
    }
    archive.file("modules/order", 0o644, order.as_bytes());
    Ok(archive.finish())
}

/// Makes the FAT file system inside the disk file and copies the boot binary into it.
fn fill_esp(disk: &Path, binary: &Path) -> Result<()> {
    let image = format!("{}@@{}", disk.display(), ESP.start);
    let sectors = (ESP.bytes / gpt::SECTOR_BYTES).to_string();
    repo::check(Command::new("mformat").args(["-i", &image, "-T", &sectors, "-v", "ESP", "::"]))?;
    repo::check(Command::new("mmd").args(["-i", &image, "::/EFI", "::/EFI/BOOT"]))?;
    repo::check(
        Command::new("mcopy").args(["-i", &image]).arg(binary).arg("::/EFI/BOOT/BOOTX64.EFI"),
    )
}

/// Makes the root file system inside the disk file from a folder filled here.
fn fill_root(disk: &Path, tree: &Path, recorder: &Path) -> Result<u64> {
    if tree.exists() {
        fs::remove_dir_all(tree).with_context(|| format!("remove {}", tree.display()))?;
    }
    for folder in ["sbin", "dev", "proc", "sys", "etc", "var/lib/farshore"] {
        fs::create_dir_all(tree.join(folder)).with_context(|| format!("create {folder}"))?;
    }
    fs::copy(recorder, tree.join("sbin/init")).context("copy the recorder")?;
    fs::write(tree.join("etc/hostname"), "web1\n").context("name the guest")?;
    let content_bytes = content::fill(tree)?;
    repo::check(
        repo::tool("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-b", "4096", "-L", "root", "-d"])
            .arg(tree)
            .arg("-E")
            .arg(format!(
                "offset={},lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0",
                ROOT.start
            ))
            .arg(disk)
            .arg(format!("{}k", ROOT.bytes / 1024)),
    )?;
    fs::remove_dir_all(tree).with_context(|| format!("remove {}", tree.display()))?;
    Ok(content_bytes)
}
