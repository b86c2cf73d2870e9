//! What a failover's fence cuts off was acknowledged to nobody (C9; I1, I3, I12).

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::nbd::Client;
use farshore_e2e::{Machine, Part, System, run, wait};
use rustix::process::Signal;
use serde_json::Value;

const DISK: (u64, Content) = (16 * MIB, Content::Mixed(61));
const LIMIT: Duration = Duration::from_secs(120);

fn show(system: &System, id: &str) -> Result<Value> {
    system.farshore().json(&format!("failover show {id}"))
}

fn epoch(machine: &Machine) -> Result<u64> {
    machine.show()?["epoch"].as_u64().context("no epoch")
}

/// Writes a block that says `n`, sets a point and checks that it equals the disk.
fn goes_on(system: &System, machine: &Machine, n: u8) -> Result<()> {
    machine.wait_until_protected()?;
    let mut client = Client::connect(&machine.nbd_uri()?)?;
    client.write(u64::from(n) * MIB, &[n; 8192], true)?;
    client.disconnect()?;
    let point = machine.mark()?;
    let file = system.path(&format!("{}-{n}.raw", machine.name));
    machine.export(&point, &file)?;
    image::compare(&machine.disk, &file)
}

fn verify(system: &System) -> Result<()> {
    let vault = system.endpoint("vault")?;
    system.bare()?.ok(&format!("vault verify --vault {vault} --read-data")).map(|_| ())
}

/// The node lives: it lets the volume go, and the other volume of its shard goes on as it was.
#[test]
fn a_living_node_lets_go_and_loses_nothing_that_it_acknowledged() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", DISK)?;
        let other = Machine::protect(system, "web2", "nbd", DISK)?;
        machine.wait_until_protected()?;
        goes_on(system, &other, 1)?;
        let before = epoch(&other)?;
        // Marks come every second while the failover is asked for.
        let mut writer = machine.writer(7)?;
        machine.mark()?;
        let started: Value = system.farshore().json("failover start web1 --serve-only --yes")?;
        let id = started["id"].as_str().context("no id")?.to_owned();
        let shown = show(system, &id)?;
        let detail = shown["detail"].as_str().unwrap_or_default();
        let point = shown["point"].as_str().context("no point")?.to_owned();
        // All points that anybody was told of lie before the fence, and the failover's is the newest.
        let listed: Value = system.farshore().json("point list web1")?;
        let listed = listed["points"].as_array().context("no points")?;
        let newest = listed.last().and_then(|point| point["point"].as_str());
        ensure!(newest == Some(&point), "{shown} is not of the newest point {newest:?}");
        let file = system.path("failed-over.raw");
        machine.export(&point, &file)?;
        writer.stop()?;
        let log = writer.log();
        log.check_point(&file, &machine.base, 0, log.issued())?;
        // On a machine so busy that the node was not heard for seconds its log was sealed.
        if !detail.contains("sealed") {
            ensure!(epoch(&other)? == before, "the other volume was fenced along: {shown}");
        }
        goes_on(system, &other, 2)?;
        system.farshore().ok(&format!("failover cleanup {id} --yes"))?;
        goes_on(system, &machine, 3)?;
        verify(system)
    });
}

/// The node is stopped and goes on later: what it had under way reaches nobody.
#[test]
fn a_node_that_does_not_answer_has_its_log_sealed_and_goes_on_with_another() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", DISK)?;
        let other = Machine::protect(system, "web2", "nbd", DISK)?;
        goes_on(system, &machine, 1)?;
        goes_on(system, &other, 1)?;
        system.signal(Part::Node, Signal::STOP)?;
        let started = system.farshore().json("failover start web1 --serve-only --yes");
        let shown = started
            .and_then(|started: Value| show(system, started["id"].as_str().context("no id")?));
        system.signal(Part::Node, Signal::CONT)?;
        let shown = shown?;
        ensure!(shown["detail"].as_str().is_some_and(|text| text.contains("sealed")), "{shown}");
        // Its other volume goes on, under a new epoch if it is of the same shard, and the failed-over one
        // comes back.
        goes_on(system, &other, 2)?;
        let id = shown["id"].as_str().context("no id")?;
        system.farshore().ok(&format!("failover cleanup {id} --yes"))?;
        goes_on(system, &machine, 3)?;
        verify(system)
    });
}

/// The vault is away at the first try. The second takes what is the newest then.
#[test]
fn a_retry_takes_the_newest_point_of_a_vault_that_was_away() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", DISK)?;
        goes_on(system, &machine, 1)?;
        let seq =
            |shown: &Value, name: &str| shown["volumes"][0][name].as_u64().unwrap_or_default();
        let vault = system.endpoint("vault")?;
        let vault = std::path::PathBuf::from(vault.strip_prefix("file://").unwrap_or(&vault));
        let away = vault.with_extension("away");
        std::fs::rename(&vault, &away).context("take the vault away")?;
        let before = seq(&machine.show()?, "journaled_seq");
        let mut client = Client::connect(&machine.nbd_uri()?)?;
        client.write(MIB, &[9; 8192], true)?;
        client.disconnect()?;
        // The write and a mark behind it are in the journal and cannot go on.
        wait::until("a mark in the journal", LIMIT, || {
            Ok((seq(&machine.show()?, "journaled_seq") >= before + 2).then_some(()))
        })?;
        let known: Value = system.farshore().json("point list web1")?;
        let known = known["points"].as_array().and_then(|points| points.last()).cloned();
        let known = known.context("no point")?["point"].clone();
        let came_up = system.farshore().ok("failover start web1 --serve-only --yes").is_ok();
        ensure!(!came_up, "it came up without a vault");
        let listed: Value = system.farshore().json("failover list")?;
        let failover = listed["failovers"][0].clone();
        ensure!(failover["state"] == "failed", "{failover}");
        let id = failover["id"].as_str().context("no id")?.to_owned();

        std::fs::rename(&away, &vault).context("put the vault back")?;
        system.farshore().ok(&format!("failover retry {id}"))?;
        let shown = wait::until("the failover to run", LIMIT, || {
            let shown = show(system, &id)?;
            Ok((shown["state"] == "running").then_some(shown))
        })?;
        let point = shown["point"].as_str().context("no point")?.to_owned();
        ensure!(known != point.as_str(), "{shown} is of the point before");
        let file = system.path("retried.raw");
        machine.export(&point, &file)?;
        image::compare(&machine.disk, &file)?;
        system.farshore().ok(&format!("failover cleanup {id} --yes"))?;
        goes_on(system, &machine, 3)?;
        verify(system)
    });
}
