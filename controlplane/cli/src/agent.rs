//! `agent`: agents, their enrolment and its end.

use std::time::Duration;

use clap::Subcommand;
use farshore_api::agent::Agents;
use farshore_api::identity::{CreateToken, EnrolmentToken, Revoked, Token};
use farshore_api::machine::{Machine, Machines};
use farshore_api::node::Nodes;
use farshore_api::{Exit, Role, paths};
use farshore_program::tell;
use serde_json::json;
use uuid::Uuid;

use crate::args::Global;
use crate::client::Client;
use crate::confirm::Consent;
use crate::failure::{Failure, Outcome};
use crate::output::{Format, age, check_heard, print_once, printable, time};
use crate::table::Table;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List all agents
    List,
    /// Create a token that enrols one agent once
    Token(TokenArgs),
    /// End an agent's identity: its certificates are over, its sessions end within seconds
    Revoke(RevokeArgs),
}

/// Arguments of `agent revoke` and `node revoke`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RevokeArgs {
    /// Id of the identity
    pub(crate) id: Uuid,
    #[command(flatten)]
    pub(crate) consent: Consent,
}

/// Arguments of `agent token` and `node token`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TokenArgs {
    /// Identity to enrol again, under its old id; a new one if absent
    #[arg(long, value_name = "ID")]
    id: Option<Uuid>,
    /// Life of the token, at most 7 days
    #[arg(long, value_name = "DURATION", default_value = "1h",
        value_parser = humantime::parse_duration)]
    ttl: Duration,
}

/// Runs a verb.
pub(crate) async fn run(global: &Global, verb: Verb) -> Outcome {
    let format = global.output.unwrap_or_default();
    let client = Client::of(global)?;
    match verb {
        Verb::List => format.print(&client.get::<Agents>(paths::AGENTS).await?, list),
        Verb::Token(args) => token(global, &client, Role::Agent, &args).await,
        Verb::Revoke(args) => revoke(global, &client, Role::Agent, &args).await,
    }
}

/// Ends an identity, having said what stops.
pub(crate) async fn revoke(
    global: &Global,
    client: &Client,
    role: Role,
    args: &RevokeArgs,
) -> Outcome {
    let id = args.id;
    let (known, path) = match role {
        Role::Agent => {
            let agents = client.get::<Agents>(paths::AGENTS).await?.agents;
            (agents.iter().any(|agent| agent.id == id), paths::revoke_agent(id))
        }
        Role::Node => {
            let nodes = client.get::<Nodes>(paths::NODES).await?.nodes;
            (nodes.iter().any(|node| node.id == id), paths::revoke_node(id))
        }
    };
    if !known {
        // One that enrolled and never came is revoked all the same, but it carries nothing.
        tell!("no {role} {id} has registered; only its certificates end");
    }
    let machines = client.get::<Machines>(paths::MACHINES).await?.machines;
    if !args.consent.ask(&consequences(role, id, &machines))? {
        return Ok(());
    }
    let revoked: Revoked = client.post(&path, &json!({})).await?;
    global.output.unwrap_or_default().print(&revoked, |revoked| {
        let count = revoked.machines.len();
        format!("{role} {} is revoked; it carried {count} machines\n", revoked.id)
    })
}

/// What stops with an identity, in one sentence.
fn consequences(role: Role, id: Uuid, machines: &[Machine]) -> String {
    let is_carried = |machine: &&Machine| match role {
        Role::Agent => machine.agent == id,
        Role::Node => machine.node == Some(id),
    };
    let carried: Vec<String> = machines
        .iter()
        .filter(is_carried)
        .map(|machine| {
            let disks: Vec<&str> = machine.volumes.iter().map(|v| v.disk.as_str()).collect();
            printable(&format!("{} ({})", machine.name, disks.join(", "))).into_owned()
        })
        .collect();
    let what = match (role, carried.is_empty()) {
        (_, true) => "it carries no machine".to_owned(),
        (Role::Agent, false) => format!(
            "the replication of {} stops until it is enrolled again with a token for this id",
            carried.join(", ")
        ),
        (Role::Node, false) => format!(
            "the replication of {} moves to another node, or stops if there is none",
            carried.join(", ")
        ),
    };
    format!("revoke {role} {id}: {what}")
}

/// Creates and prints an enrolment token.
pub(crate) async fn token(
    global: &Global,
    client: &Client,
    role: Role,
    args: &TokenArgs,
) -> Outcome {
    check_heard("the token")?;
    let request = CreateToken { role, identity: args.id, ttl_seconds: Some(args.ttl.as_secs()) };
    let token: Token = client.post(paths::TOKENS, &request).await?;
    let format = global.output.unwrap_or_default();
    // The token alone on standard output, so that it can be put into a file; the rest is for people.
    if let Err(failure) = print_once(format, &token, |token| format!("{}\n", token.token)) {
        return Err(take_back(client, &token, failure).await);
    }
    if format == Format::Table {
        let expires = time(token.expires_at_unix_s.saturating_mul(1_000));
        tell!("It works once, until {expires}. Put it into a file that only its reader can read.");
    }
    Ok(())
}

/// A token that nobody has seen whole must not stay good.
async fn take_back(client: &Client, token: &Token, unseen: Failure) -> Failure {
    let taken_back = match token.token.parse::<EnrolmentToken>() {
        Ok(token) => client.delete(&paths::token(&token.id())).await,
        Err(error) => Err(Failure::new(Exit::Protocol, error.to_string())),
    };
    match taken_back {
        Ok(()) => unseen.hint("no token was made; let it print to a terminal, a pipe or a file"),
        Err(failure) => {
            let expires = time(token.expires_at_unix_s.saturating_mul(1_000));
            let why = failure.message;
            unseen.hint(format!(
                "a token was made and could not be taken back ({why}); it ends by itself at {expires}"
            ))
        }
    }
}

fn list(agents: &Agents) -> String {
    let mut table = Table::new(
        &["ID", "HOSTNAME", "LOCAL", "MACHINES", "HEALTHY", "CERTIFICATE", "SEEN"],
        "no agents",
    );
    let yes = |is: bool| if is { "yes" } else { "no" }.to_owned();
    for agent in &agents.agents {
        table.row([
            agent.id.to_string(),
            agent.hostname.clone(),
            yes(agent.local),
            agent.machines.to_string(),
            yes(agent.healthy),
            agent.certified.standing.as_str().to_owned(),
            age(agent.last_seen_unix_ms),
        ]);
    }
    table.render()
}
