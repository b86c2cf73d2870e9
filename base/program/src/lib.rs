//! What every program of Farshore does with what it is started with: its arguments, its standard
//! streams, its signals, and how it ends.
//!
//! A program is started by shells, service managers, other programs, `nohup` and `| head`. None of them
//! may take it down by the way: standard error that is closed, full, stuck or without a reader costs
//! words and nothing else; standard output that cannot be written is an exit code; signals that the
//! parent had ignored or blocked work again.
//!
//! Files that are opened never become standard streams: Rust's runtime opens the null device in place of
//! those that are closed. That standard output was closed is remembered: a result that goes nowhere was not
//! written.

#![deny(unsafe_code)]

mod arguments;
mod closed;
mod errors;
mod output;
mod panics;
mod private;
mod signals;
mod stop;

pub use arguments::parse;
pub use errors::{Errors, errors, write_error};
pub use output::{Unheard, announce, check_heard, print};
pub use panics::abort_on_panic;
pub use private::private_dir;
pub use signals::{begin, is_hangup_ignored};
pub use stop::StopSignals;

/// Writes a line to standard error. One that cannot be written is lost, and nothing else is.
#[macro_export]
macro_rules! tell {
    ($($part:tt)*) => {
        $crate::write_error(::std::format_args!($($part)*), "\n")
    };
}
