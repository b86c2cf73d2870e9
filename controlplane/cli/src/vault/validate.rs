//! `vault validate-store`.

use farshore_api::Exit;
use farshore_vault::validate::{self, Broken, Check, Report, Tried};
use serde::Serialize;
use serde_json::json;

use crate::args::Global;
use crate::failure::{Failure, Outcome};
use crate::job::Job;
use crate::table::Table;

use super::open::{open_store, store_failure, told};

/// Result of `vault validate-store`.
#[derive(Debug, Serialize)]
struct Validated {
    store: String,
    holds: bool,
    checks: Vec<CheckRow>,
    /// Folder with objects that could not be removed.
    left: Option<String>,
}

#[derive(Debug, Serialize)]
struct CheckRow {
    check: &'static str,
    /// `passed`, `failed` or `not tried`.
    end: &'static str,
    detail: String,
    seconds: f64,
}

impl Validated {
    fn new(store: &str, report: &Report) -> Self {
        let row = |check: Check| {
            let tried = report.tried.iter().find(|tried| tried.check == check);
            let (end, detail) = match tried.map(|tried| &tried.end) {
                Some(Ok(seen)) => ("passed", seen.clone()),
                Some(Err(broken)) => ("failed", told(broken)),
                None => ("not tried", String::new()),
            };
            let seconds = tried.map_or(0.0, |tried| tried.took.as_secs_f64());
            CheckRow { check: check.name(), end, detail, seconds }
        };
        Self {
            store: store.to_owned(),
            holds: report.holds(),
            checks: Check::ALL.into_iter().map(row).collect(),
            left: report.left.as_ref().map(|(folder, error)| format!("{folder} ({})", told(error))),
        }
    }

    fn table(&self) -> String {
        let mut table = Table::new(&["CHECK", "", "SECONDS", "SEEN"], "nothing was tried");
        for row in &self.checks {
            let seconds = format!("{:.1}", row.seconds);
            table.row([row.check.to_owned(), row.end.to_owned(), seconds, row.detail.clone()]);
        }
        let mut text = table.render();
        if let Some(left) = &self.left {
            text +=
                &format!("left behind: {left}; nothing refers to it, remove it when you like\n");
        }
        if self.holds {
            text += &format!("{} will do for a vault\n", self.store);
        }
        text
    }
}

/// Tries a store; one that will not do makes the exit code that of invalid data.
pub(super) async fn validate(global: &Global, url: Option<String>) -> Outcome {
    let store = open_store(global, url)?;
    let job = Job::open_ended(global, "validating");
    let heard = |tried: &Tried| {
        let is_fine = tried.end.is_ok();
        job.news(
            || format!("{}: {}", tried.check, if is_fine { "passed" } else { "failed" }),
            || json!({ "check": tried.check.name(), "passed": is_fine }),
        );
    };
    let report = validate::validate(&store, heard).await;
    let validated = Validated::new(store.url(), &report);
    job.finish(&validated, Validated::table)?;
    if validated.holds {
        return Ok(());
    }
    let last = report.tried.into_iter().find_map(|tried| tried.end.err());
    match last {
        Some(Broken::Store(error)) => Err(store_failure(&error)),
        _ => {
            let message = format!("{} will not do for a vault", validated.store);
            let hint = "a vault needs a store that keeps If-None-Match: AWS S3, Azure Blob, SeaweedFS, \
                        or a directory";
            Err(Failure::new(Exit::DataInvalid, message).hint(hint))
        }
    }
}
