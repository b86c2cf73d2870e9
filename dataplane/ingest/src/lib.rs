//! What a shard does to bytes, from frames to segments, without its files and its runtime.
//!
//! - [`claim`] and [`recover`] decide who owns a volume and how far it got.
//! - [`journal`] keeps [`frames`] until they are committed; [`build`] makes a segment of them.
//! - [`dedup`] and [`index`] know which chunks the vault holds already, and [`sight`] whether it still does.

#![forbid(unsafe_code)]

pub mod build;
pub mod claim;
pub mod dedup;
pub mod frames;
pub mod index;
pub mod journal;
pub mod limits;
pub mod recover;
pub mod sight;
