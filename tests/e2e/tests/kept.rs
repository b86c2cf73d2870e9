//! What was failed over is kept: it outlives its processes, and nobody ends it by mistake.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore_e2e::image::{Content, MIB};
use farshore_e2e::nbd::Client;
use farshore_e2e::{Machine, Part, System, run, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const DISK: (u64, Content) = (16 * MIB, Content::Mixed(41));
const BACK_LIMIT: Duration = Duration::from_secs(90);

fn show(system: &System, id: &str) -> Result<Value> {
    system.farshore().json(&format!("failover show {id}"))
}

/// Starts an unplanned failover that only serves: its id and where.
fn start(system: &System) -> Result<(String, String)> {
    let started: Value = system.farshore().json("failover start web1 --serve-only --yes")?;
    let text = |name: &str| {
        let text = started[name].as_str().map(str::to_owned);
        text.with_context(|| format!("the failover has no {name}: {started}"))
    };
    Ok((text("id")?, text("nbd_uri")?))
}

fn kill_export(system: &System, id: &str) -> Result<u64> {
    let pid = show(system, id)?["export_pid"].as_u64().context("no export runs")?;
    let raw = Pid::from_raw(i32::try_from(pid)?).context("no pid")?;
    kill_process(raw, Signal::KILL)?;
    Ok(pid)
}

/// Waits until another export than `before` serves.
fn is_back(system: &System, id: &str, before: u64, state: &str) -> Result<Value> {
    wait::until("the export to be back", BACK_LIMIT, || {
        let now = show(system, id)?;
        let pid = now["export_pid"].as_u64();
        let is_back = now["state"] == state && pid.is_some_and(|pid| pid != before);
        Ok(is_back.then_some(now))
    })
}

fn holds(uri: &str, offset: u64, expected: &[u8]) -> Result<()> {
    let mut client = Client::connect(uri)?;
    let mut bytes = vec![0; expected.len()];
    client.read(offset, &mut bytes)?;
    client.disconnect()?;
    ensure!(bytes == expected, "a write at {offset} is lost");
    Ok(())
}

#[test]
fn a_failover_outlives_every_kill_and_is_not_ended_by_mistake() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", DISK)?;
        machine.wait_until_protected()?;
        machine.mark()?;
        let (id, uri) = start(system)?;
        let mut client = Client::connect(&uri)?;
        client.write(MIB, &[0x11; 4096], true)?;
        // Answered and not flushed: a kill is no power cut.
        client.write(2 * MIB, &[0x22; 4096], false)?;
        drop(client);

        let before = kill_export(system, &id)?;
        let back = is_back(system, &id, before, "running")?;
        ensure!(back["nbd_uri"] == uri.as_str(), "it serves elsewhere: {back}");
        holds(&uri, MIB, &[0x11; 4096])?;
        holds(&uri, 2 * MIB, &[0x22; 4096])?;

        system.farshore().ok(&format!("failover commit {id}"))?;
        // Everything at once, as with the host, and `up` again.
        let before = kill_export(system, &id)?;
        system.kill_all()?;
        system.up()?;
        let back = is_back(system, &id, before, "committed")?;
        ensure!(back["nbd_uri"] == uri.as_str(), "it serves elsewhere: {back}");
        holds(&uri, MIB, &[0x11; 4096])?;
        holds(&uri, 2 * MIB, &[0x22; 4096])?;

        // The control plane alone: the export is taken up as it is.
        let export = back["export_pid"].clone();
        let control = system.pid(Part::Control)?;
        system.kill(Part::Control)?;
        system.wait_for_another(Part::Control, control)?;
        wait::until("the control plane to answer", BACK_LIMIT, || {
            Ok(show(system, &id).ok().filter(|now| now["state"] == "committed"))
        })?;
        ensure!(show(system, &id)?["export_pid"] == export, "it was started again");

        // Nobody ends it by mistake.
        let refused = system.farshore().run(&format!("failover cleanup {id} --yes"))?;
        refused.refused(79, &id)?;
        let refused = system.farshore().run(&format!("failover cleanup {id} --force"))?;
        refused.refused(64, &id)?;
        ensure!(refused.stderr.contains("in its overlay"), "{}", refused.stderr);
        system.farshore().ok(&format!("failover cleanup {id} --force --dry-run"))?;
        holds(&uri, MIB, &[0x11; 4096])?;
        system.farshore().ok(&format!("failover cleanup {id} --force --yes"))?;
        ensure!(Client::connect(&uri).is_err(), "the export outlived its cleanup");
        Ok(())
    });
}

#[test]
fn a_dry_run_of_a_failover_opens_the_point() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", DISK)?;
        machine.wait_until_protected()?;
        let point = machine.mark()?;
        let line = format!("failover start web1 --point {point} --serve-only --dry-run");
        let found: Value = system.farshore().json(&line)?;
        let checks = found["checks"].as_array().context("no checks")?;
        ensure!(checks.iter().all(|check| check["ok"] == true), "{found}");
        ensure!(found["point"] == point.as_str(), "{found}");
        // Of the latest the vault is asked as well.
        let found: Value = system.farshore().json("failover start web1 --serve-only --dry-run")?;
        let checks = found["checks"].as_array().context("no checks")?;
        let vault = checks.iter().find(|check| check["what"] == "vault").context("not asked")?;
        let said = vault["found"].as_str().unwrap_or_default();
        let newest = found["point"].as_str().context("no point")?;
        ensure!(said.contains(newest), "{found}");
        ensure!(checks.iter().all(|check| check["ok"] == true), "{found}");
        let all: Value = system.farshore().json("failover list")?;
        ensure!(all["failovers"].as_array().is_some_and(Vec::is_empty), "{all}");
        Ok(())
    });
}
