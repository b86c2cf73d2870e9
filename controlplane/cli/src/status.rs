//! `status`: the control plane about itself.

use farshore_api::paths;
use farshore_api::status::Status;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Outcome;
use crate::output::{age, interval, or_dash, time};
use crate::table::Table;

/// Prints the status.
pub(crate) async fn run(global: &Global) -> Outcome {
    let status: Status = Client::of(global)?.get(paths::STATUS).await?;
    global.output.unwrap_or_default().print(&status, table)
}

fn table(status: &Status) -> String {
    let counts = &status.counts;
    let mut table = Table::pairs();
    table
        .pair("version", &status.version)
        .pair("vault", &status.vault)
        .pair("CA fingerprint", &status.ca_fingerprint)
        .pair("started", age(status.started_at_unix_ms))
        .pair("agents", counts.agents)
        .pair("nodes", format!("{} ({} healthy)", counts.nodes, counts.nodes_healthy))
        .pair("machines", counts.machines)
        .pair("policies", counts.policies)
        .pair("recovery points", counts.points)
        .pair("active failovers", counts.failovers_active);
    let retention = &status.retention;
    if retention.doubt_ms > 0 {
        table.pair(
            "retention",
            format!(
                "the control plane's clock jumped; old points go by {} until {} have passed, or \
                 `farshore policy believe-clock`, which drops {} points",
                or_dash(retention.time_unix_ms.map(time)),
                interval(retention.doubt_ms / 1000 * 1000),
                retention.points_in_doubt
            ),
        );
    }
    table.render()
}
