//! The command line: nouns, what every verb understands, and who runs what.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::failure::Outcome;
use crate::output::Format;
use crate::{
    agent, audit, events, exit_codes, failover, machine, node, point, policy, status, up, vault,
};

/// Keeps servers recoverable: replicate, fail over, come back.
#[derive(Debug, Parser)]
#[command(
    name = "farshore",
    version,
    arg_required_else_help = true,
    subcommand_required = true,
    after_help = "Every failure has its own exit code: see `farshore help exit-codes`."
)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) noun: Noun,
}

/// What every verb understands.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Global {
    /// How to print results [default: table; long jobs print JSON lines when piped]
    #[arg(long, short, global = true, value_enum, value_name = "FORMAT", help_heading = "Global")]
    pub(crate) output: Option<Format>,
    /// Directory of a `farshore up`; its endpoints.json says where everything is
    #[arg(long, global = true, env = "FARSHORE_DATA", value_name = "DIR", help_heading = "Global")]
    pub(crate) data: Option<PathBuf>,
    /// URL of the control plane, in place of the one in endpoints.json
    #[arg(
        long,
        global = true,
        env = "FARSHORE_CONTROL",
        value_name = "URL",
        help_heading = "Global"
    )]
    pub(crate) control: Option<String>,
    /// PEM file with the only CA to trust for the control plane
    #[arg(
        long,
        global = true,
        env = "FARSHORE_CA_FILE",
        value_name = "FILE",
        help_heading = "Global"
    )]
    pub(crate) ca_file: Option<PathBuf>,
    /// File that holds the operator's token
    #[arg(
        long,
        global = true,
        env = "FARSHORE_TOKEN_FILE",
        value_name = "FILE",
        help_heading = "Global"
    )]
    pub(crate) token_file: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Noun {
    /// Run everything on this machine: control plane, one node, the local agent, a local vault
    Up(up::UpArgs),
    /// Protected machines
    #[command(subcommand)]
    Machine(machine::Verb),
    /// Recovery points of a machine
    #[command(subcommand)]
    Point(point::Verb),
    /// The vault itself; needs only the store and the recovery key
    #[command(subcommand)]
    Vault(vault::Verb),
    /// Drills and failovers
    #[command(subcommand)]
    Failover(failover::Verb),
    /// Nodes
    #[command(subcommand)]
    Node(node::Verb),
    /// Policies
    #[command(subcommand)]
    Policy(policy::Verb),
    /// Agents and enrolment
    #[command(subcommand)]
    Agent(agent::Verb),
    /// What happened
    Events(events::EventsArgs),
    /// What operators did and who was let in, for good
    #[command(subcommand)]
    Audit(audit::Verb),
    /// What runs, on which vault, with how many of everything
    Status,
    /// What the exit codes mean
    #[command(long_about = exit_codes::long_about())]
    ExitCodes,
}

/// Runs the verb that was asked for.
pub(crate) async fn dispatch(args: Args) -> Outcome {
    let global = &args.global;
    match args.noun {
        Noun::Up(up) => up::run(global, up).await,
        Noun::Machine(verb) => machine::run(global, verb).await,
        Noun::Point(verb) => point::run(global, verb).await,
        Noun::Vault(verb) => vault::run(global, verb).await,
        Noun::Failover(verb) => failover::run(global, verb).await,
        Noun::Node(verb) => node::run(global, verb).await,
        Noun::Policy(verb) => policy::run(global, verb).await,
        Noun::Agent(verb) => agent::run(global, verb).await,
        Noun::Events(events) => events::run(global, &events).await,
        Noun::Audit(verb) => audit::run(global, verb).await,
        Noun::Status => status::run(global).await,
        Noun::ExitCodes => exit_codes::run(global),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn global_options_stand_anywhere() {
        let args =
            Args::try_parse_from(["farshore", "machine", "list", "--output", "json"]).unwrap();
        assert_eq!(args.global.output, Some(Format::Json));
        let args = Args::try_parse_from(["farshore", "-o", "json", "status"]).unwrap();
        assert_eq!(args.global.output, Some(Format::Json));
    }
}
