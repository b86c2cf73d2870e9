//! `up`: everything on one machine, in the foreground.
//!
//! `supervisor` decides, `driver` does. The rest is what has to be right before the first child
//! starts: the data directory and its lock, what is left of an earlier run, the ports, the vault
//! and its key.

mod driver;
mod leftovers;
mod ports;
mod process;
mod settings;
mod site;
mod supervisor;
mod vault_setup;

use clap::value_parser;
use farshore_api::Exit;

use crate::args::Global;
use crate::endpoints::Endpoints;
use crate::failure::{Failure, Outcome};
use crate::output::{Format, print_json, print_text, shell_word};

pub(crate) use settings::UpSettings;
pub(crate) use site::Site;

/// Arguments of `up`; the data directory is the global `--data`.
#[derive(Debug, Clone, clap::Args)]
#[command(
    after_help = "Runs until SIGTERM or Ctrl-C, then stops everything in order. Started again \
    on the same directory it goes on. DIR/endpoints.json exists while everything is up."
)]
pub(crate) struct UpArgs {
    /// Where the recovery data goes [default: a local directory, DIR/vault]
    #[arg(long, value_name = "URL")]
    vault: Option<String>,
    /// Port that agents connect to [default: 9443]
    #[arg(long, value_name = "PORT", value_parser = value_parser!(u16).range(1..))]
    node_port: Option<u16>,
    /// Port of the control plane [default: 9442]
    #[arg(long, value_name = "PORT", value_parser = value_parser!(u16).range(1..))]
    control_port: Option<u16>,
}

/// Runs everything until it is told to stop.
pub(crate) async fn run(global: &Global, args: UpArgs) -> Outcome {
    let data = global.data.clone().ok_or_else(|| {
        Failure::new(Exit::Usage, "it is not said where to keep the data")
            .hint("say --data DIR; the directory is made if it does not exist")
    })?;
    let programs = site::Programs::find()?;
    let site = Site::open(&data)?;
    // Held until the process ends.
    let _lock = site.lock()?;
    Endpoints::remove(site.data())?;
    let settings =
        UpSettings::choose(&site, args.vault.as_deref(), args.node_port, args.control_port)?;
    leftovers::clear(&site).await?;
    ports::check_free(&settings)?;
    vault_setup::make(&site, &settings).await?;
    settings.remember(&site)?;
    let announce = announcement(global.output.unwrap_or_default());
    driver::Driver::new(site, settings, programs, announce)?.run().await
}

/// What is printed once everything is up.
fn announcement(format: Format) -> impl Fn(&Site, &Endpoints) -> Outcome {
    move |site, endpoints| match format {
        Format::Json => print_json(endpoints),
        Format::Table => print_text(&summary(site, endpoints)),
    }
}

fn summary(site: &Site, endpoints: &Endpoints) -> String {
    format!(
        "Farshore is up.\n\
         \n\
         control plane  {control}\n\
         node           {node}\n\
         vault          {vault}\n\
         recovery key   {key}\n\
         logs           {logs}\n\
         \n\
         Keep a copy of the recovery key somewhere else: with it and the vault everything comes\n\
         back, without it nothing does.\n\
         \n\
         Use it:   export FARSHORE_DATA={data}\n\
         \x20         farshore machine protect NAME --disk PATH\n\
         Stop it:  Ctrl-C\n",
        control = endpoints.control,
        node = endpoints.node,
        vault = endpoints.vault,
        key = endpoints.key_file.display(),
        logs = site.logs().display(),
        data = shell_word(site.data()),
    )
}
