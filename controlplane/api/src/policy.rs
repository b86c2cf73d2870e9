//! Policies: how often marks are set and how long points are kept.
//!
//! Creating the policy `x` also creates `x-failback` with the same values, for the way back. Both
//! are ordinary policies afterwards: each can be changed on its own.

use serde::{Deserialize, Serialize};

/// Name of the policy that exists from the first start: a mark every 5 s.
pub const DEFAULT_POLICY: &str = "default";

/// Ending of a failback policy's name.
pub const FAILBACK_SUFFIX: &str = "-failback";

/// Creates a policy and its failback policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CreatePolicy {
    /// `[a-z0-9][a-z0-9._-]*`, at most 54 bytes, unique, not ending in `-failback`.
    pub name: String,
    /// Milliseconds between two marks, 1 000 to 86 400 000.
    pub mark_interval_ms: u64,
    /// Hours that recovery points stay in the catalogue, 1 to 87 600; default 24.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_hours: Option<u32>,
}

/// Changes a policy. Absent fields stay as they are.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UpdatePolicy {
    /// Milliseconds between two marks, 1 000 to 86 400 000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark_interval_ms: Option<u64>,
    /// Hours that recovery points stay in the catalogue, 1 to 87 600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retention_hours: Option<u32>,
}

/// A policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// Its name.
    pub name: String,
    /// Milliseconds between two marks.
    pub mark_interval_ms: u64,
    /// Hours that recovery points stay in the catalogue.
    pub retention_hours: u32,
    /// Name of the policy for the way back; null for a failback policy.
    pub failback_policy: Option<String>,
    /// Machines that follow it.
    pub machines: u64,
}

/// All policies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    /// In the order of their names.
    pub policies: Vec<Policy>,
}
