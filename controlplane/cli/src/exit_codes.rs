//! `exit-codes`: the table of exit codes, also as the text of `farshore help exit-codes`.

use farshore_api::Exit;
use serde::Serialize;

use crate::args::Global;
use crate::failure::Outcome;
use crate::output::{Format, print_json, print_text};

#[derive(Debug, Serialize)]
struct Row {
    code: u8,
    meaning: &'static str,
}

/// Help text with the table in it.
pub(crate) fn long_about() -> String {
    let mut text =
        "What the exit codes mean. They are the same for every Farshore binary:\n".to_owned();
    for exit in Exit::ALL {
        text.push_str(&format!("\n  {:>3}  {}", exit.code(), exit.meaning()));
    }
    text
}

/// Prints the table.
pub(crate) fn run(global: &Global) -> Outcome {
    let rows: Vec<Row> =
        Exit::ALL.iter().map(|exit| Row { code: exit.code(), meaning: exit.meaning() }).collect();
    match global.output.unwrap_or_default() {
        Format::Json => print_json(&serde_json::json!({ "exit_codes": rows })),
        Format::Table => print_text(&rows.iter().fold(String::new(), |text, row| {
            text + &format!("{:>3}  {}\n", row.code, row.meaning)
        })),
    }
}
