//! The agent: runs on a protected server, learns of its disks' changes and streams them to a node.
//!
//! One volume is one disk: a [`capture`] puts its changes into an [`hrl`] log, a [`session`] sends
//! the log to the node that the control plane names, marks become recovery points, and what is
//! committed is trimmed. The [`service`] runs one task per volume; none disturbs another.

pub mod capture;
mod clock;
pub mod control;
mod data_dir;
pub mod disk;
mod durable;
#[cfg(test)]
mod fake_node;
#[cfg(test)]
mod faulty_files;
pub mod files;
pub mod hrl;
#[cfg(test)]
mod loops;
pub mod mark;
pub mod points;
pub mod rt;
pub mod service;
pub mod session;
pub mod stamps;
pub mod state;
pub mod stream;
pub mod volume;

pub use clock::{Clock, Now};
pub use data_dir::DataDir;
