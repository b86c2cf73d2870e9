//! Decisions, without I/O and without a clock.
//!
//! | module | decides |
//! |---|---|
//! | [`placement`] | which node takes which volume |
//! | [`generation`] | whether a certificate may still be used |
//! | [`failover`] | what a failover does next |
//! | [`machine`] | how a machine's state reads, given what was last heard |
//! | [`validate`] | whether a request is acceptable |

pub mod failover;
pub mod generation;
pub mod machine;
pub mod placement;
pub mod validate;
