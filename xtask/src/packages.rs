//! The Debian packages that building, testing and demonstrating Farshore need.

use std::fmt;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};

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

/// Rounds of installing: what is still missing then is not to be had beside the rest.
const INSTALL_ROUNDS_MAX: usize = 3;

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
    let wanted: Vec<&str> = PACKAGES
        .iter()
        .map(|(name, _)| *name)
        .filter(|name| !(is_without_guest && GUEST_ONLY.contains(name)))
        .collect();
    install_until_whole(&wanted, is_installed, install)
}

/// Installs what is missing of `wanted`, and again what that took away: apt removes an installed
/// package that breaks a new one (qemu-utils of a newer Debian beside this one's qemu-system).
fn install_until_whole(
    wanted: &[&str],
    is_there: impl Fn(&str) -> bool,
    mut install: impl FnMut(&[&str]) -> Result<()>,
) -> Result<()> {
    let missing =
        || -> Vec<&str> { wanted.iter().copied().filter(|name| !is_there(name)).collect() };
    for _ in 0..INSTALL_ROUNDS_MAX {
        let missing = missing();
        if missing.is_empty() {
            println!("every package that is needed is there");
            return Ok(());
        }
        install(&missing)?;
    }
    let missing = missing();
    ensure!(missing.is_empty(), "apt does not keep these packages together: {}", missing.join(" "));
    Ok(())
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

/// What the torture cannot do without: its small file systems, and its wrong clocks.
const TORTURE: [&str; 2] = ["e2fsprogs", "libfaketime"];

/// Installs what is missing of what the torture needs, or says what to install.
///
/// # Errors
/// As [`ensure`].
pub(crate) fn ensure_for_torture() -> Result<()> {
    if !repo::has_program("dpkg-query") {
        println!("this is not Debian: these packages must be there: {}", TORTURE.join(" "));
        return Ok(());
    }
    install_until_whole(&TORTURE, is_installed, install)
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::BTreeSet;

    /// Installing `utils` of a newer release is undone by `system`, which brings an older one.
    #[test]
    fn installs_again_what_installing_took_away() {
        let there = RefCell::new(BTreeSet::from(["utils"]));
        let mut rounds = 0;
        let installed = install_until_whole(
            &["system", "utils"],
            |name| there.borrow().contains(name),
            |names| {
                rounds += 1;
                if names.contains(&"system") {
                    there.borrow_mut().remove("utils");
                }
                for name in ["system", "utils"].into_iter().filter(|name| names.contains(name)) {
                    there.borrow_mut().insert(name);
                }
                Ok(())
            },
        );
        installed.unwrap();
        assert_eq!(rounds, 2);
        assert_eq!(there.into_inner(), BTreeSet::from(["system", "utils"]));
    }

    #[test]
    fn what_the_torture_needs_is_in_the_list() {
        for name in TORTURE {
            assert!(PACKAGES.iter().any(|(listed, _)| *listed == name), "{name} is not listed");
        }
    }

    #[test]
    fn says_which_packages_apt_does_not_keep() {
        let error = install_until_whole(&["fio"], |_| false, |_| Ok(())).unwrap_err();
        assert!(error.to_string().contains("fio"), "{error}");
    }
}
