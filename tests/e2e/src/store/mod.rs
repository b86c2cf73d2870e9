//! Real object stores, each started for one test, and trouble on the way to them.
//!
//! The programs are those that `cargo xtask servers` left below `target/servers`.

mod azurite;
pub mod proxy;
mod server;

pub use server::{Kind, Server, installed};
