//! Capture by reading the disk again and again.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::{Machine, System, run, wait};

const DISK_BYTES: u64 = 48 * MIB;

fn restore(system: &System, machine: &Machine, point: &str, to: &str) -> Result<()> {
    let (vault, volume) = (system.endpoint("vault")?, machine.volume()?);
    let file = system.path(to);
    system.bare()?.ok(&format!(
        "vault restore --vault {vault} --volume {volume} --point {point} --to {}",
        file.display()
    ))?;
    Ok(())
}

#[test]
fn a_scanned_disk_restores_from_the_vault_alone() {
    run(|system| {
        let machine = Machine::protect(system, "files1", "scan", (DISK_BYTES, Content::Mixed(1)))?;
        machine.wait_until_protected()?;
        let point = machine.mark()?;
        // Nothing but the store and the key: everything else is stopped.
        let (vault, volume) = (system.endpoint("vault")?, machine.volume()?);
        let bare = system.bare()?;
        system.stop()?;
        let copy = system.path("restored.raw");
        bare.ok(&format!(
            "vault restore --vault {vault} --volume {volume} --point {point} --to {}",
            copy.display()
        ))?;
        image::compare(&machine.disk, &copy)?;
        bare.ok(&format!("vault verify --vault {vault} --read-data"))?;
        Ok(())
    });
}

#[test]
fn a_later_scan_brings_the_changes_and_the_older_point_stays() {
    run(|system| {
        let machine = Machine::protect(system, "files1", "scan", (DISK_BYTES, Content::Mixed(2)))?;
        machine.wait_until_protected()?;
        let before = machine.mark()?;
        let disk = OpenOptions::new().write(true).open(&machine.disk)?;
        disk.write_all_at(&[0xa5; 70_000], 5 * MIB + 512)?;
        disk.write_all_at(&[0; 300_000], 20 * MIB)?;
        disk.sync_all()?;
        let after = machine.mark()?;
        restore(system, &machine, &before, "before.raw")?;
        restore(system, &machine, &after, "after.raw")?;
        image::compare(&machine.base, &system.path("before.raw"))?;
        image::compare(&machine.disk, &system.path("after.raw"))
    });
}

#[test]
fn stats_show_duplicates_zeros_and_compression() {
    run(|system| {
        let text = (16 * MIB, Content::Text(3));
        let first = Machine::protect(system, "twin1", "scan", text)?;
        first.wait_until_protected()?;
        let vault = system.endpoint("vault")?;
        let stats = |name: &str| {
            let stats = system.bare()?.json(&format!("vault stats --vault {vault}"))?;
            stats[name].as_u64().with_context(|| format!("`vault stats` has no {name}: {stats}"))
        };
        let (raw, unique, stored) =
            (stats("raw_bytes")?, stats("unique_bytes")?, stats("stored_bytes")?);
        ensure!(raw >= text.0, "raw {raw} of {}", text.0);
        ensure!(stored < unique / 2, "text compresses: {stored} of {unique}");
        ensure!(stats("chunks")? > 0, "no chunks");

        let second = Machine::protect(system, "twin2", "scan", text)?;
        second.wait_until_protected()?;
        let growth = stats("stored_bytes")? - stored;
        ensure!(growth < stored / 5, "the twin of {stored} bytes added {growth}");
        Ok(())
    });
}

#[test]
fn everything_goes_on_after_a_stop_and_a_start() {
    run(|system| {
        let machine = Machine::protect(system, "files1", "scan", (DISK_BYTES, Content::Mixed(4)))?;
        machine.wait_until_protected()?;
        let before = machine.mark()?;
        let count = |system: &System| {
            let points = system.farshore().json("point list files1")?;
            points["points"].as_array().map(Vec::len).context("no list of points")
        };
        ensure!(count(system)? >= 1, "no points");
        system.restart()?;
        machine.wait_until_protected()?;
        let disk = OpenOptions::new().write(true).open(&machine.disk)?;
        disk.write_all_at(b"after the restart", MIB)?;
        let after = machine.mark()?;
        machine.export(&before, &system.path("before.raw"))?;
        machine.export(&after, &system.path("after.raw"))?;
        image::compare(&machine.base, &system.path("before.raw"))?;
        image::compare(&machine.disk, &system.path("after.raw"))
    });
}

#[test]
fn points_come_by_themselves_and_rpo_is_short() {
    run(|system| {
        let machine = Machine::protect(system, "files1", "scan", (8 * MIB, Content::Mixed(5)))?;
        machine.wait_until_protected()?;
        let disk = OpenOptions::new().write(true).open(&machine.disk)?;
        let mut number = 0_u64;
        wait::until("three points", Duration::from_secs(30), || {
            number += 1;
            disk.write_all_at(&number.to_le_bytes(), 4096 * (number % 100))?;
            let points = system.farshore().json("point list files1")?;
            Ok(points["points"].as_array().filter(|list| list.len() >= 3).map(|_| ()))
        })?;
        let rpo = machine.show()?["rpo_seconds"].as_f64().context("no rpo_seconds")?;
        ensure!(rpo < 10.0, "RPO {rpo} s");
        Ok(())
    });
}
