//! The session of one volume: carries the log to the node and the acks back.
//!
//! The decisions are [`farshore_engine::source`]'s; here are the transport, the reads of the log
//! and the way to whoever else must know.

pub mod dial;
mod driver;
mod wire;

pub use dial::{Dial, DialError, Target, Transport};
pub use driver::{OnPoint, Route, Session, Standing};
pub use wire::{Said, WireError, said_header};
