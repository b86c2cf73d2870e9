//! The control plane as others see it: over TLS, as a program, with processes under it.

#![expect(clippy::unwrap_used, reason = "the whole crate is a test")]

mod failover;
mod https;
mod program;
mod qemu;
mod site;
