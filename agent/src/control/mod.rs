//! The agent's side of the control plane: what to do, and how it goes.
//!
//! Two loops that do not wait for each other. While the control plane does not answer, the agent
//! goes on with the assignments that it was given last, kept in its directory ([`Kept`]).

mod kept;
mod known;
mod loops;

pub use kept::{Kept, keep};
pub use known::{Assigned, Known, KnownVolume, Word, port_holder};
pub use loops::{poll, report};
