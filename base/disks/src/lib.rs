//! What the system tells of disks: what a block device is and stands on, and who has a disk or file
//! besides us.
//!
//! An agent asks before it serves a disk, a restore before it writes one.

pub mod holders;
pub mod sysfs;
