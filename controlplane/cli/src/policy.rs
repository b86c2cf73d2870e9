//! `policy`: how often marks are set and how long points are kept.

use std::time::Duration;

use clap::Subcommand;
use farshore_api::paths;
use farshore_api::policy::{CreatePolicy, Policies, Policy};
use farshore_api::status::{RetentionStatus, Status};
use serde_json::json;

use crate::args::Global;
use crate::client::Client;
use crate::confirm::Consent;
use crate::failure::Outcome;
use crate::machine::mark_interval_ms;
use crate::output::{interval, or_dash, time};
use crate::table::Table;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List all policies
    List,
    /// Create a policy, and NAME-failback for the way back
    Create {
        /// Name of the policy
        name: String,
        /// Time between two marks, such as 5s
        #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
        mark_interval: Duration,
        /// Hours that recovery points are kept [default: 24]
        #[arg(long, value_name = "HOURS")]
        retention_hours: Option<u32>,
    },
    /// Say that the control plane's clock is right, after it jumped forward: old points go by it again
    BelieveClock {
        #[command(flatten)]
        consent: Consent,
    },
    /// Show one policy
    Show {
        /// Name of the policy
        name: String,
    },
}

/// Runs a verb.
pub(crate) async fn run(global: &Global, verb: Verb) -> Outcome {
    let format = global.output.unwrap_or_default();
    let client = Client::of(global)?;
    match verb {
        Verb::List => format.print(&client.get::<Policies>(paths::POLICIES).await?, list),
        Verb::Create { name, mark_interval, retention_hours } => {
            let mark_interval_ms = mark_interval_ms(mark_interval)?;
            let request = CreatePolicy { name, mark_interval_ms, retention_hours };
            let policy: Policy = client.post(paths::POLICIES, &request).await?;
            format.print(&policy, show)
        }
        Verb::BelieveClock { consent } => {
            let status: Status = client.get(paths::STATUS).await?;
            if !consent.ask(&believing(&status.retention))? {
                return Ok(());
            }
            let status: RetentionStatus = client.post(paths::BELIEVE_CLOCK, &json!({})).await?;
            format.print(&status, |status| {
                let mut table = Table::pairs();
                table.pair("old points go by", or_dash(status.time_unix_ms.map(time)));
                table.render()
            })
        }
        Verb::Show { name } => {
            crate::machine::check_name("policy", &name)?;
            let policy: Policy = client.get(&paths::policy(&name)).await.map_err(|failure| {
                failure.hint_on(farshore_api::Exit::NotFound, || {
                    "`farshore policy list` shows the policies".to_owned()
                })
            })?;
            format.print(&policy, show)
        }
    }
}

/// What believing the clock does.
fn believing(retention: &RetentionStatus) -> String {
    if retention.doubt_ms == 0 {
        return "believe the control plane's clock, which is not in doubt: points that are too old by it are \
                dropped from the catalogue"
            .to_owned();
    }
    format!(
        "believe the control plane's clock now, not in {}: {} recovery points that are too old by it are \
         dropped from the catalogue; the newest of each machine stays",
        interval(retention.doubt_ms / 1000 * 1000),
        retention.points_in_doubt
    )
}

fn list(policies: &Policies) -> String {
    let mut table =
        Table::new(&["NAME", "MARKS EVERY", "KEPT FOR", "FAILBACK", "MACHINES"], "no policies");
    for policy in &policies.policies {
        table.row([
            policy.name.clone(),
            interval(policy.mark_interval_ms),
            format!("{} h", policy.retention_hours),
            or_dash(policy.failback_policy.as_deref()),
            policy.machines.to_string(),
        ]);
    }
    table.render()
}

fn show(policy: &Policy) -> String {
    let mut table = Table::pairs();
    table
        .pair("name", &policy.name)
        .pair("marks every", interval(policy.mark_interval_ms))
        .pair("points kept for", format!("{} h", policy.retention_hours))
        .pair("failback policy", or_dash(policy.failback_policy.as_deref()))
        .pair("machines", policy.machines);
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_believed_clock_drops_is_named() {
        let doubt = |doubt_ms, points_in_doubt| {
            believing(&RetentionStatus { time_unix_ms: Some(1), doubt_ms, points_in_doubt })
        };
        let text = doubt(3_600_500, 7);
        assert!(text.contains("in 1h: 7 recovery points"), "{text}");
        assert!(doubt(0, 0).contains("not in doubt"), "{}", doubt(0, 0));
    }
}
