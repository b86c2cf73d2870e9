//! Joins kernel, initramfs and command line into one EFI binary with systemd-boot's stub.
//!
//! Source: systemd-stub(7): the sections follow the stub's own, aligned, the kernel last.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::repo;

const STUB: &str = "/usr/lib/systemd/boot/efi/linuxx64.efi.stub";
/// Where each section starts: a page, as firmware maps sections with their own rights.
const ALIGNMENT: u64 = 4096;

/// Writes the joined binary to `to`; `parts` takes small files that are needed on the way.
///
/// # Errors
/// If the stub is missing or objcopy refuses.
pub(crate) fn join(
    kernel: &Path,
    initramfs: &Path,
    command_line: &str,
    parts: &Path,
    to: &Path,
) -> Result<()> {
    let stub = Path::new(STUB);
    ensure!(stub.is_file(), "{STUB} is missing (package systemd-boot-efi)");
    let release = part(parts, "os-release", "ID=farshore-demo\nNAME=\"Farshore demo\"\n")?;
    let command_line = part(parts, "cmdline", command_line)?;
    let mut at = stub_end(stub)?;
    let mut objcopy = Command::new("objcopy");
    let sections: [(&str, &Path); 4] = [
        (".osrel", &release),
        (".cmdline", &command_line),
        (".initrd", initramfs),
        (".linux", kernel),
    ];
    for (name, file) in sections {
        objcopy.arg("--add-section").arg(format!("{name}={}", file.display()));
        objcopy.arg("--change-section-vma").arg(format!("{name}={at:#x}"));
        let bytes = fs::metadata(file).with_context(|| format!("look at {}", file.display()))?;
        at = (at + bytes.len()).next_multiple_of(ALIGNMENT);
    }
    repo::check(objcopy.arg(stub).arg(to))
}

fn part(parts: &Path, name: &str, text: &str) -> Result<PathBuf> {
    let path = parts.join(name);
    fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// The first address behind the stub's own sections.
fn stub_end(stub: &Path) -> Result<u64> {
    let headers = repo::text(Command::new("objdump").arg("-h").arg(stub))?;
    // "  0 .text  0000bff0  0000000000004000  …": index, name, size, address.
    let end = headers.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let is_section = fields.len() >= 6 && fields[0].parse::<u32>().is_ok();
        let number = |field: &str| u64::from_str_radix(field, 16).ok();
        if is_section { Some(number(fields[2])? + number(fields[3])?) } else { None }
    });
    let end = end.max().with_context(|| format!("{} has no sections", stub.display()))?;
    Ok(end.next_multiple_of(ALIGNMENT))
}
