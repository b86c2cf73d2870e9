//! The whole way of an identity, against a small control plane that a test scripts.

mod authority;
mod enrolment;
mod files;
mod peers;
mod renewal;
mod server;
