//! The command line.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Error, Parser};
use farshore_api::Exit;

/// Reads the command line; what clap has to say about it is printed.
///
/// # Errors
/// The exit code to end with: that of a wrong command line, or of success for help and version.
pub fn parse<A: Parser>() -> Result<A, ExitCode> {
    A::try_parse().map_err(|error| explain(&error).into())
}

/// Asking for help is no mistake; help that cannot be printed is one.
fn explain(error: &Error) -> Exit {
    let printed = error.print();
    if error.use_stderr() {
        return Exit::Usage;
    }
    match printed.and_then(|()| io::stdout().flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Exit::from_io(&error, Exit::InputOutput)
        }
        _ => Exit::Success,
    }
}
