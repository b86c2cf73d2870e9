//! What certificates say, whom they are taken from, and what is said when a clock stands in the way.
//!
//! Both sides of every connection of ours rest on the same rules: an identity is the only URI of a
//! certificate, and one that has ended may be taken for a while, by whoever says so.

#![forbid(unsafe_code)]

mod clocks;
mod ended;
mod shown;

pub use clocks::{clock_trouble, shown_apart, shown_time};
pub use ended::{TakesEnded, WhileAllowed};
pub use shown::{Shown, peer_of, shown_by};
