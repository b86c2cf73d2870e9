//! The whole way of an identity, against a small control plane that a test scripts.

#![expect(clippy::unwrap_used, reason = "a test ends where something is wrong")]

mod authority;
mod enrolment;
mod files;
mod peers;
mod renewal;
mod server;
