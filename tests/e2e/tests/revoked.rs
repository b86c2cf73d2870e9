//! A node that is revoked gets nothing more: its agents leave it within seconds, and say why.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore_e2e::image::{Content, MIB};
use farshore_e2e::{Machine, System, run, wait};
use serde_json::Value;

const DISK: (u64, Content) = (16 * MIB, Content::Mixed(47));
const SECONDS: Duration = Duration::from_secs(15);

fn committed(shown: &Value) -> Result<u64> {
    shown["volumes"][0]["committed_seq"].as_u64().context("how far the vault has it")
}

/// What is shown of the machine once it says that the node is over.
fn left(system: &System, machine: &Machine) -> Result<Value> {
    wait::until("the agent to leave the node", SECONDS, || {
        let shown = system.farshore().json(&format!("machine show {}", machine.name))?;
        let says_why = shown.to_string().contains("certificate that is over");
        Ok(says_why.then_some(shown))
    })
}

#[test]
fn an_agent_leaves_a_revoked_node_and_its_disk_is_served_on() {
    run(|system| {
        let machine = Machine::protect(system, "web1", "nbd", DISK)?;
        machine.wait_until_protected()?;
        machine.mark()?;
        let farshore = system.farshore();
        let nodes = farshore.json("node list")?;
        let node = nodes["nodes"][0]["id"].as_str().context("the node")?;
        let mut writer = machine.writer(43)?;
        writer.progress(50, SECONDS)?;
        farshore.ok(&format!("node revoke {node} --yes"))?;
        let before = committed(&left(system, &machine)?)?;
        writer.progress(200, SECONDS)?;
        writer.stop()?;
        let shown = left(system, &machine)?;
        ensure!(committed(&shown)? == before, "the node was sent more: {shown}");
        ensure!(shown["state"] != "protected", "{shown}");
        Ok(())
    });
}
