//! Asking before something is destroyed.

use std::io::{self, BufRead, IsTerminal};

use farshore_api::Exit;

use crate::failure::{Failure, Outcome};
use crate::output::printable;

/// Flags of every destructive verb.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Consent {
    /// Do it without asking
    #[arg(long)]
    pub(crate) yes: bool,
    /// Only say what would be done
    #[arg(long)]
    pub(crate) dry_run: bool,
}

impl Consent {
    /// Whether to go on: `what` says in one sentence what would be done.
    ///
    /// # Errors
    /// `Usage` where nobody can be asked, `Failure` when the answer is no.
    pub(crate) fn ask(self, what: &str) -> Outcome<bool> {
        let what = &*printable(what);
        if self.dry_run {
            farshore_program::tell!("would {what}; nothing was done");
            return Ok(false);
        }
        if self.yes {
            return Ok(true);
        }
        if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
            return Err(Failure::new(Exit::Usage, format!("this would {what}; nothing was done"))
                .hint("say --yes to do it, --dry-run to only see it"));
        }
        farshore_program::write_error(format_args!("This will {what}. Go on? [y/N] "), "");
        let mut answer = String::new();
        match io::stdin().lock().read_line(&mut answer) {
            Ok(_) if matches!(answer.trim(), "y" | "Y" | "yes") => Ok(true),
            _ => Err(Failure::new(Exit::Failure, "not confirmed; nothing was done")),
        }
    }
}
