//! Decisions, without I/O and without a clock.
//!
//! | module | decides |
//! |---|---|
//! | [`liveness`] | which nodes live |
//! | [`placement`] | which node takes which volume |
//! | [`generation`] | whether a certificate may still be used |
//! | [`failover`] | what a failover does next |
//! | [`point_time`] | when a point was set, whatever its agent's clock says |
//! | [`machine`] | how a machine's state reads, given what was last heard |
//! | [`report_order`] | which report of an agent or node is its newest |
//! | [`retention`] | by which time old points go |
//! | [`validate`] | whether a request is acceptable |

pub mod failover;
pub mod generation;
pub mod liveness;
pub mod machine;
pub mod placement;
pub mod point_time;
pub mod report_order;
pub mod retention;
pub mod validate;
