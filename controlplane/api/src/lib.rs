//! Requests, replies, error codes and exit codes of Farshore's control plane.
//!
//! This crate stands alone: it knows neither the server's HTTP stack nor its database, so the
//! command line, the agent and the node can share its types without linking either.
//!
//! | module | holds |
//! |---|---|
//! | [`paths`] | every route as a constant or a function |
//! | [`error`] | the error body, its codes and their HTTP statuses |
//! | [`exit`] | the exit codes of every Farshore binary |
//! | [`identity`] | roles, enrolment tokens, certificates, the operator's token |
//! | [`machine`] | protected machines and their volumes |
//! | [`point`], [`selector`] | recovery points, and how they are named |
//! | [`policy`] | replication and failback policies |
//! | [`failover`] | drills and failovers |
//! | [`export`] | what an export says of itself |
//! | [`agent`], [`node`] | what agents and nodes tell and are told |
//! | [`status`] | the control plane about itself, and its audit events |
//!
//! Requests refuse unknown fields. Replies may gain fields in later versions: readers ignore those
//! that they do not know. All times are Unix times with the unit in the name; all sizes are bytes.

#![forbid(unsafe_code)]

pub mod agent;
pub mod audit;
pub mod error;
pub mod exit;
pub mod export;
pub mod failover;
pub mod identity;
pub mod limits;
pub mod machine;
pub mod node;
pub mod paths;
pub mod point;
pub mod policy;
pub mod selector;
pub mod status;
pub mod text;

pub use error::{ErrorBody, ErrorCode, ErrorDetail, ErrorKind};
pub use exit::Exit;
pub use identity::Role;
