//! A store without space: replication waits, says so, and loses nothing.

#![allow(clippy::disallowed_macros, reason = "not a program of the product")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::nbd::Client;
use farshore_e2e::random::Random;
use farshore_e2e::{Machine, Setting, run_with, wait};

/// A file system in memory, of a size that a test sets.
struct Small(PathBuf);

impl Small {
    fn mount(at: &Path, mib: u32) -> Result<Self> {
        std::fs::create_dir_all(at)?;
        mount(&["-t", "tmpfs", "-o", &format!("size={mib}m"), "tmpfs"], at)?;
        Ok(Self(at.to_path_buf()))
    }

    fn resize(&self, mib: u32) -> Result<()> {
        mount(&["-o", &format!("remount,size={mib}m")], &self.0)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let status = Command::new("umount").arg("--lazy").arg(&self.0).status();
        if !status.is_ok_and(|status| status.success()) {
            eprintln!("cannot unmount {}", self.0.display());
        }
    }
}

fn mount(words: &[&str], at: &Path) -> Result<()> {
    let status = Command::new("mount").args(words).arg(at).status().context("run mount")?;
    ensure!(status.success(), "mount {words:?} {}: {status}; this test needs root", at.display());
    Ok(())
}

#[test]
fn a_full_vault_is_named_and_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let small = Small::mount(&folder.path().join("store"), 24).expect("a small file system");
    let vault = format!("file://{}/vault", small.0.display());
    let setting = Setting { arguments: vec!["--vault".to_owned(), vault], ..Setting::default() };
    run_with(setting, |system| {
        system.expect_error("space");
        let machine = Machine::protect(system, "web1", "nbd", (64 * MIB, Content::Zeros))?;
        machine.wait_until_protected()?;
        let before = machine.mark()?;
        let mut random = Random::new(77);
        let mut client = Client::connect(&machine.nbd_uri()?)?;
        let mut bytes = vec![0; 1 << 20];
        for n in 0..40 {
            random.fill(&mut bytes);
            client.write(n * MIB, &bytes, false)?;
        }
        client.flush()?;
        client.disconnect()?;
        wait::until("the machine to say that the vault is full", Duration::from_secs(30), || {
            let shown = system.farshore().json("machine show web1")?;
            let detail = shown["state_detail"].as_str().unwrap_or_default();
            Ok((shown["state"] == "degraded" && detail.contains("no space")).then_some(()))
        })?;
        small.resize(256)?;
        machine.wait_until_protected()?;
        let after = machine.mark()?;
        machine.export(&after, &system.path("after.raw"))?;
        image::compare(&machine.disk, &system.path("after.raw"))?;
        machine.export(&before, &system.path("before.raw"))?;
        let zeros = std::fs::read(system.path("before.raw"))?;
        ensure!(zeros.iter().all(|byte| *byte == 0), "the older point changed");
        Ok(())
    });
}
