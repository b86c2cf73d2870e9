//! The load generator against a real system: every write is accounted for, also when the node dies.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use farshore_e2e::command::binary;
use farshore_e2e::{Part, run, wait};
use serde_json::Value;
use std::time::Duration;

const SOURCES: u64 = 20;
/// Of 2 MB a second for 2 + 12 seconds.
const UNDER_WAY_BYTES: u64 = 8_000_000;
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn twenty_sources_lose_nothing_when_the_node_dies() {
    run(|system| {
        let report = system.path("load.json");
        let mut load = binary("farshore-loadgen")?
            .args(["run", "--sources", &SOURCES.to_string(), "--rate", "2MB", "--output", "json"])
            .args(["--block-size", "4KiB:70,64KiB:30", "--duplicates", "20", "--zeros", "5"])
            .args(["--duration", "12s", "--warmup", "2s", "--mark-interval", "1s", "--data"])
            .arg(system.data())
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(&report)?)
            .stderr(std::fs::File::create(system.path("load.log"))?)
            .spawn()
            .context("start the load generator")?;
        // In the middle of it: more has come than what the warm-up brings.
        wait::until("the load to be under way", LIMIT, || {
            let listed = system.farshore().json("node list")?;
            let received = listed["nodes"][0]["counters"]["received_bytes"].as_u64();
            Ok((received >= Some(UNDER_WAY_BYTES)).then_some(()))
        })?;
        let before = system.pid(Part::Node)?;
        system.kill(Part::Node)?;
        system.wait_for_another(Part::Node, before)?;
        let status = wait::until("the load to end", LIMIT, || Ok(load.try_wait()?))?;
        let report: Value = serde_json::from_slice(&std::fs::read(&report)?)?;
        is_complete(&report).with_context(|| format!("{report:#}"))?;
        ensure!(status.success(), "the load generator ended with {status}");
        let vault = system.endpoint("vault")?;
        let found = system.bare()?.json(&format!("vault verify --vault {vault} --read-data"))?;
        ensure!(found["whole"] == true && found["volumes"] == SOURCES, "{found}");
        Ok(())
    });
}

fn is_complete(report: &Value) -> Result<()> {
    ensure!(
        report["connected"] == SOURCES && report["failed"] == 0,
        "not every source went through"
    );
    ensure!(report["writes_lost"] == 0, "writes were lost");
    ensure!(report["writes_due"].as_u64() > Some(100), "hardly anything was sent");
    ensure!(report["reconnects"].as_u64() >= Some(SOURCES), "the node did not die in the middle");
    // Latency counts from when a write was due, so the time without a node is in it.
    let longest = report["journaled_latency"]["max_ms"].as_f64().context("a latency")?;
    ensure!(longest > 50.0, "the pause does not show: at most {longest} ms");
    Ok(())
}
