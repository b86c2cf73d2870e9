//! `events`: what happened.

use farshore_api::paths;
use farshore_api::status::Events;

use crate::args::Global;
use crate::client::Client;
use crate::failure::Outcome;
use crate::output::time;
use crate::table::Table;

/// Arguments of `events`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct EventsArgs {
    /// Only those after this id; without it the newest ones
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(farshore_api::limits::PAGE_MAX)))]
    limit: u32,
}

/// Prints events, oldest first.
pub(crate) async fn run(global: &Global, args: &EventsArgs) -> Outcome {
    let mut path = format!("{}?limit={}", paths::EVENTS, args.limit);
    if let Some(after) = args.after {
        path.push_str(&format!("&after={after}"));
    }
    let events: Events = Client::of(global)?.get(&path).await?;
    global.output.unwrap_or_default().print(&events, table)
}

fn table(events: &Events) -> String {
    let mut table = Table::new(&["ID", "TIME", "WHO", "ACTION", "OBJECT", "DETAIL"], "no events");
    for event in &events.events {
        table.row([
            event.id.to_string(),
            time(event.at_unix_ms),
            event.actor.clone(),
            event.action.clone(),
            event.object.clone(),
            event.detail.clone(),
        ]);
    }
    table.render()
}
