//! The control plane of Farshore: identity, placement, epochs, recovery points, failover.
//!
//! | module | does |
//! |---|---|
//! | [`http`] | routes; the only one that knows warp |
//! | [`domain`] | decisions: pure functions and state machines |
//! | [`db`] | the catalogue; the only one that knows SQL |
//! | [`serve`], [`tls`], [`ca`] | the accept loop, TLS 1.3, certificates |
//! | [`reconcile`] | what happens of its own accord: placement, failovers |
//! | [`providers`] | processes that serve and run failed-over machines |
//! | [`control`] | starts and stops all of it |
//! | [`app`] | what requests share |
//!
//! It never touches payload bytes, and replication goes on without it.

#![forbid(unsafe_code)]

pub mod admission;
pub mod app;
pub mod ca;
pub mod clock;
pub mod control;
pub mod data_dir;
pub mod db;
pub mod domain;
pub mod entrance;
pub mod error;
pub mod fatal;
pub mod http;
pub mod limits;
pub mod providers;
pub mod reconcile;
pub mod serve;
pub mod settings;
pub mod tls;
pub mod turnstile;
