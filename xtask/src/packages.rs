//! The Debian packages that building, testing and demonstrating Farshore need.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::repo;

/// Every package, with what needs it. This is the only list.
const PACKAGES: [(&str, &str); 17] = [
    ("gcc", "links Rust programs, builds aws-lc, zstd and SQLite"),
    ("libc6-dev", "headers and the static libc of the demo's guest"),
    ("g++", "builds libFuzzer for `cargo xtask fuzz`"),
    ("make", "builds liburing for glommio"),
    ("binutils", "objcopy joins kernel and initramfs into one EFI binary"),
    ("systemd-boot-efi", "the stub that starts that EFI binary"),
    ("mtools", "fills the EFI system partition without mounting it"),
    ("e2fsprogs", "makes and checks the guest's root file system"),
    ("xz-utils", "unpacks kernel modules where Debian compresses them"),
    ("ovmf", "UEFI firmware for the guest"),
    ("qemu-system-x86", "runs the guest"),
    ("qemu-utils", "qemu-io and qemu-img, an independent NBD client"),
    ("libnbd-bin", "nbdcopy and nbdinfo, another one"),
    ("libfaketime", "a clock that a store does not believe"),
    ("fio", "a load with verification through its NBD engine"),
    ("python3-libnbd", "an NBD client that can break the protocol on purpose"),
    ("ca-certificates", "fetches crates"),
];

/// Packages are missing and only root may install them.
#[derive(Debug)]
pub(crate) struct MissingPackages {
    line: String,
}

impl fmt::Display for MissingPackages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Debian packages are missing; run this as root, then try again:\n  {}", self.line)
    }
}

impl std::error::Error for MissingPackages {}

/// Packages that a run without a guest does without.
const GUEST_ONLY: [&str; 6] =
    ["systemd-boot-efi", "mtools", "xz-utils", "ovmf", "qemu-system-x86", "binutils"];

/// Installs what is missing, or says what to install; all of it, or all but what only a guest needs.
///
/// # Errors
/// [`MissingPackages`] when not root; otherwise what apt said.
pub(crate) fn ensure(is_without_guest: bool) -> Result<()> {
    if !repo::has_program("dpkg-query") {
        println!("this is not Debian: the programs of these packages must be there: {}", names());
        return Ok(());
    }
    let missing: Vec<&str> = PACKAGES
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !(is_without_guest && GUEST_ONLY.contains(name)))
        .filter(|name| !is_installed(name))
        .collect();
    if missing.is_empty() {
        println!("every package that is needed is there");
        return Ok(());
    }
    install(&missing)
}

/// Installs packages of Debian, or says what to install.
///
/// # Errors
/// [`MissingPackages`] when not root; otherwise what apt said.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    if !is_root() {
        let line = format!(
            "apt-get update && apt-get install -y --no-install-recommends {}",
            packages.join(" ")
        );
        return Err(MissingPackages { line }.into());
    }
    println!("installing {}", packages.join(" "));
    repo::check(Command::new("apt-get").args(["update", "-qq"]))?;
    repo::check(
        Command::new("apt-get")
            .env("DEBIAN_FRONTEND", "noninteractive")
            .args(["install", "-y", "-qq", "--no-install-recommends"])
            .args(packages),
    )
}

/// Installs packages unless the program is there, from wherever.
///
/// # Errors
/// As [`install`].
pub(crate) fn ensure_program(program: &str, packages: &[&str]) -> Result<()> {
    if repo::has_program(program) { Ok(()) } else { install(packages) }
}

/// Installs cargo-nextest from source when it is not there.
///
/// # Errors
/// What cargo said.
pub(crate) fn ensure_nextest() -> Result<()> {
    if repo::has_program("cargo-nextest") {
        return Ok(());
    }
    println!("installing cargo-nextest");
    repo::check(repo::cargo().args(["install", "--locked", "cargo-nextest"]))
        .context("install cargo-nextest")
}

fn names() -> String {
    PACKAGES.map(|(name, _)| name).join(" ")
}

fn is_installed(name: &str) -> bool {
    Command::new("dpkg-query")
        .args(["-W", "-f", "${db:Status-Status}", name])
        .output()
        .is_ok_and(|output| output.status.success() && output.stdout == b"installed")
}

/// Whether this process runs as root.
pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}
