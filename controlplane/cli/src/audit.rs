//! `audit`: what operators did and who was let in, for good.

use clap::Subcommand;
use farshore_api::audit::{Entries, Head};
use farshore_api::{Exit, limits, paths};

use crate::args::Global;
use crate::client::Client;
use crate::failure::{Failure, Outcome};
use crate::output::time;
use crate::table::Table;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// List entries, oldest first
    List(ListArgs),
    /// Check that no entry was changed or taken out
    Verify(VerifyArgs),
}

/// Arguments of `audit list`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct ListArgs {
    /// Only those after this id; without it the newest ones
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 100,
        value_parser = clap::value_parser!(u32).range(1..=i64::from(limits::PAGE_MAX)))]
    limit: u32,
}

/// Arguments of `audit verify`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct VerifyArgs {
    /// An end that an earlier `audit verify` printed: it must still be there, so that entries taken
    /// off the end are noticed
    #[arg(long, value_name = "ID:HASH", value_parser = parse_end)]
    end: Option<(u64, String)>,
}

fn parse_end(text: &str) -> Result<(u64, String), String> {
    let (id, hash) = text.split_once(':').ok_or("it must be ID:HASH")?;
    let id = id.parse().map_err(|_| "the part before the colon must be a number")?;
    let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    if is_hash { Ok((id, hash.to_ascii_lowercase())) } else { Err("the hash has 64 digits".into()) }
}

/// Runs a verb.
pub(crate) async fn run(global: &Global, verb: Verb) -> Outcome {
    let client = Client::of(global)?;
    let format = global.output.unwrap_or_default();
    match verb {
        Verb::List(args) => {
            let mut path = format!("{}?limit={}", paths::AUDIT, args.limit);
            if let Some(after) = args.after {
                path.push_str(&format!("&after={after}"));
            }
            format.print(&client.get::<Entries>(&path).await?, list)
        }
        Verb::Verify(args) => {
            let head = verify(&client, args.end.as_ref()).await?;
            format.print(&head, |head| {
                format!("{} entries, none changed; the end is {}:{}\n", head.id, head.id, head.hash)
            })
        }
    }
}

/// Follows the chain from its begin. The hashes are made here: the server is not believed.
async fn verify(client: &Client, end: Option<&(u64, String)>) -> Outcome<Head> {
    let mut head = Head::default();
    let mut is_passed = end.is_none();
    loop {
        let path = format!("{}?after={}&limit={}", paths::AUDIT, head.id, limits::PAGE_MAX);
        let entries = client.get::<Entries>(&path).await?.entries;
        if entries.is_empty() {
            break;
        }
        for entry in &entries {
            head.follow(entry).map_err(|broken| {
                Failure::new(Exit::DataInvalid, broken.to_string())
                    .hint("compare the control plane's control.db with a backup of it")
            })?;
            is_passed |= end.is_some_and(|(id, hash)| *id == head.id && *hash == head.hash);
        }
    }
    match end {
        Some((id, _)) if !is_passed => Err(Failure::new(
            Exit::DataInvalid,
            format!("the audit log does not hold the given end {id}: entries were taken off"),
        )),
        _ => Ok(head),
    }
}

fn list(entries: &Entries) -> String {
    let mut table = Table::new(&["ID", "TIME", "WHO", "ACTION", "OBJECT", "DETAIL"], "no entries");
    for entry in &entries.entries {
        table.row([
            entry.id.to_string(),
            time(entry.at_unix_ms),
            entry.actor.clone(),
            entry.action.clone(),
            entry.object.clone(),
            entry.detail.clone(),
        ]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_is_read_as_it_was_printed() {
        let hash = "A".repeat(64);
        assert_eq!(parse_end(&format!("7:{hash}")), Ok((7, hash.to_lowercase())));
        for bad in ["", "7", "x:aa", &format!("7:{}", "g".repeat(64)), "7:aa"] {
            assert!(parse_end(bad).is_err(), "{bad}");
        }
    }
}
