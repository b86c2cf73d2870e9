//! A machine that writes nothing adds nothing to the vault, and stays protected.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use farshore_e2e::image::{self, Content, MIB};
use farshore_e2e::nbd::Client;
use farshore_e2e::{Machine, run, wait};

const DISK: (u64, Content) = (16 * MIB, Content::Mixed(41));
/// Marks come every second: so long without a write is many of them.
const IDLE_MS: u64 = 12_000;
const LIMIT: Duration = Duration::from_secs(120);

/// All objects below a folder of the vault.
fn objects(folder: &Path) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir(folder).context("list the vault")? {
        let entry = entry?;
        count += match entry.file_type()?.is_dir() {
            true => objects(&entry.path())?,
            false => 1,
        };
    }
    Ok(count)
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    u64::try_from(since.as_millis()).expect("not so late")
}

/// Waits until the newest point is old and what is shown of its age is not: many words of the agent.
fn wait_until_idle(machine: &Machine) -> Result<()> {
    let mut last = serde_json::Value::Null;
    let what = format!("{} to rest and stay protected", machine.name);
    let rested = wait::until(&what, LIMIT, || {
        last = machine.show()?;
        let set_at = last["last_point"]["time_unix_ms"].as_u64().context("a newest point")?;
        let rpo = last["rpo_seconds"].as_f64().context("an RPO")?;
        let age_ms = unix_ms().saturating_sub(set_at);
        let is_old = age_ms >= IDLE_MS && rpo * 2000.0 < age_ms as f64;
        Ok((is_old && last["state"] == "protected").then_some(()))
    });
    rested.with_context(|| format!("`machine show` says {last}"))
}

#[test]
fn an_idle_machine_adds_no_object_and_a_busy_one_beside_it_only_its_own() {
    run(|system| {
        let vault = system.path("data").join("vault");
        let idle = Machine::protect(system, "idle1", "nbd", DISK)?;
        idle.wait_until_protected()?;
        idle.mark()?;
        let before = objects(&vault)?;
        wait_until_idle(&idle)?;
        let after = objects(&vault)?;
        ensure!(after == before, "{} objects were added to {before} by nobody", after - before);
        // A time at which nothing was set is had all the same: the disk was what it had been.
        idle.export("6s-ago", &system.path("between.raw"))?;
        image::compare(&idle.base, &system.path("between.raw"))?;
        // Who asks for a mark gets one, though it says nothing new.
        let point = idle.mark()?;
        ensure!(objects(&vault)? > after, "the mark that was asked for is in no object");

        // Beside a busy one it stays idle: what is added is the other's.
        let busy = Machine::protect(system, "busy1", "nbd", DISK)?;
        busy.wait_until_protected()?;
        let mut writer = busy.writer(43)?;
        writer.progress(200, LIMIT)?;
        writer.stop()?;
        let newest = busy.mark()?;
        let listed = system.farshore().json("point list idle1")?;
        let points = listed["points"].as_array().context("a list of points")?;
        ensure!(
            points
                .iter()
                .all(|known| known["time_unix_ms"].as_u64() <= point_time(&listed, &point)),
            "a point of the idle machine was added: {listed}"
        );
        busy.export(&newest, &system.path("busy.raw"))?;
        image::compare(&busy.disk, &system.path("busy.raw"))?;

        // Its next write has a point in front of it, from the time when it was still idle.
        let rested_ms = unix_ms();
        let mut source = Client::connect(&idle.nbd_uri()?)?;
        source.write(0, &[0x5a; 4096], true)?;
        source.disconnect()?;
        let written = idle.mark()?;
        idle.export(&written, &system.path("written.raw"))?;
        image::compare(&idle.disk, &system.path("written.raw"))?;
        let listed = system.farshore().json("point list idle1")?;
        let points = listed["points"].as_array().context("a list of points")?;
        let kept = points.iter().find(|known| {
            let time = known["time_unix_ms"].as_u64();
            time > point_time(&listed, &point)
                && time <= Some(rested_ms + 5000)
                && known["point"] != written.as_str()
        });
        let kept = kept.with_context(|| format!("no point in front of the write: {listed}"))?;
        let kept = kept["point"].as_str().context("an id")?;
        idle.export(kept, &system.path("kept.raw"))?;
        image::compare(&idle.base, &system.path("kept.raw"))
    });
}

fn point_time(listed: &serde_json::Value, point: &str) -> Option<u64> {
    let points = listed["points"].as_array()?;
    points.iter().find(|known| known["point"] == point)?["time_unix_ms"].as_u64()
}
