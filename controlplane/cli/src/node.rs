//! `node`: the nodes.

use clap::Subcommand;
use farshore_api::node::{Node, NodeLife, Nodes};
use farshore_api::{Exit, Role, paths};
use serde_json::json;
use uuid::Uuid;

use crate::agent::{RevokeArgs, TokenArgs, revoke, token};
use crate::args::Global;
use crate::client::Client;
use crate::confirm::Consent;
use crate::failure::{Failure, Outcome};
use crate::output::age;
use crate::table::Table;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List all nodes
    List,
    /// Show one node with its counters
    Show {
        /// Id of the node
        id: Uuid,
    },
    /// Say that a silent node is gone for good: its volumes move to other nodes
    Lost {
        /// Id of the node
        id: Uuid,
        #[command(flatten)]
        consent: Consent,
    },
    /// Create a token that enrols one node once
    Token(TokenArgs),
    /// End a node's identity: its certificates are over, its volumes go to another node
    Revoke(RevokeArgs),
}

/// Runs a verb.
pub(crate) async fn run(global: &Global, verb: Verb) -> Outcome {
    let format = global.output.unwrap_or_default();
    let client = Client::of(global)?;
    match verb {
        Verb::List => format.print(&client.get::<Nodes>(paths::NODES).await?, list),
        Verb::Show { id } => format.print(&find(&client, id).await?, show),
        Verb::Lost { id, consent } => {
            let node = find(&client, id).await?;
            if consent.dry_run && node.healthy {
                return Err(speaks(&node));
            }
            if !consent.ask(&losing(&node))? {
                return Ok(());
            }
            let node: Node = client.post(&paths::node_lost(id), &json!({})).await?;
            format.print(&node, show)
        }
        Verb::Token(args) => token(global, &client, Role::Node, &args).await,
        Verb::Revoke(args) => revoke(global, &client, Role::Node, &args).await,
    }
}

async fn find(client: &Client, id: Uuid) -> Outcome<Node> {
    let nodes: Nodes = client.get(paths::NODES).await?;
    nodes.nodes.into_iter().find(|node| node.id == id).ok_or_else(|| {
        Failure::new(Exit::NotFound, format!("there is no node {id}"))
            .hint("`farshore node list` shows the nodes")
    })
}

/// Why the control plane refuses to take a node for lost.
fn speaks(node: &Node) -> Failure {
    let (id, address, seen) = (node.id, &node.address, age(node.last_seen_unix_ms));
    Failure::new(Exit::Conflict, format!("node {id} at {address} is not gone: it spoke {seen}"))
        .hint("stop it first; nothing was done")
}

/// What taking a node for lost does.
fn losing(node: &Node) -> String {
    let lost = if node.life == NodeLife::Lost { ", as it is already" } else { "" };
    format!(
        "take node {} at {} for lost{lost}; it spoke last {}: its volumes ({}) move to other nodes, and what \
         only its journal holds is sent again by the agents",
        node.id,
        node.address,
        age(node.last_seen_unix_ms),
        node.volumes
    )
}

fn list(nodes: &Nodes) -> String {
    let mut table = Table::new(
        &["ID", "ADDRESS", "SHARDS", "VOLUMES", "HEALTHY", "LIFE", "CERTIFICATE", "SEEN"],
        "no nodes",
    );
    for node in &nodes.nodes {
        table.row([
            node.id.to_string(),
            node.address.clone(),
            node.shards.to_string(),
            node.volumes.to_string(),
            if node.healthy { "yes" } else { "no" }.to_owned(),
            node.life.as_str().to_owned(),
            node.certified.standing.as_str().to_owned(),
            age(node.last_seen_unix_ms),
        ]);
    }
    let asked = nodes.nodes.iter().filter(|node| node.life == NodeLife::Asked);
    let question = |node: &Node| {
        format!(
            "Is node {} gone? Others are silent too, or only agents speak for it, so its volumes stay until \
             it is heard, or until `farshore node lost {} --yes`.\n",
            node.id, node.id
        )
    };
    table.render() + &asked.map(question).collect::<String>()
}

fn show(node: &Node) -> String {
    let mut table = Table::pairs();
    table
        .pair("id", node.id)
        .pair("address", &node.address)
        .pair("version", &node.version)
        .pair("shards", node.shards)
        .pair("volumes", node.volumes)
        .pair("healthy", if node.healthy { "yes" } else { "no" })
        .pair("life", node.life.as_str())
        .pair("certificate", node.certified.standing.as_str())
        .pair("two holders", node.certified.cloned.as_deref().unwrap_or("none"))
        .pair("trouble", node.trouble.as_deref().unwrap_or("none"))
        .pair("seen", age(node.last_seen_unix_ms))
        .pair("up for", format!("{:.0} s", node.uptime_seconds))
        .pair("CPU time", format!("{:.1} s", node.cpu_seconds));
    for (name, count) in &node.counters {
        table.pair(name, count);
    }
    table.render()
}
