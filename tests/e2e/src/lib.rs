//! End-to-end tests: real processes, real disks, real stores, everything on loopback.
//!
//! A test is a scenario in a folder of its own: [`run`] starts `farshore up` there, hands the test a
//! [`System`], stops it, and fails when a process logged an error that the test did not expect.
//! On failure every log is printed. `FARSHORE_E2E_KEEP=1` keeps the folder.
//!
//! The binaries are those that `cargo build --workspace` left beside the test itself.

#![allow(clippy::disallowed_macros, reason = "not a program of the product")]
#![forbid(unsafe_code)]

pub mod command;
pub mod image;
pub mod logs;
pub mod nbd;
pub mod oracle;
pub mod process;
pub mod protect;
pub mod random;
pub mod store;
pub mod stranger;
pub mod system;
pub mod torture;
pub mod wait;
pub mod writer;

use anyhow::Result;

pub use command::{Farshore, Outcome};
pub use protect::Machine;
pub use system::{Part, Setting, System};

/// Runs a scenario on a fresh system and fails the test with every log when it does not hold.
///
/// # Panics
/// When the scenario fails, the system does not start or stop as it should, or a log holds an
/// unexpected error: this is how a test fails.
pub fn run(scenario: impl FnOnce(&mut System) -> Result<()>) {
    run_with(Setting::default(), scenario);
}

/// As [`run`], with settings of its own.
///
/// # Panics
/// As [`run`].
pub fn run_with(setting: Setting, scenario: impl FnOnce(&mut System) -> Result<()>) {
    run_on(System::start(setting), scenario);
}

/// As [`run`], with all data in memory: what is measured is the system, not the disk that others use
/// too.
///
/// # Panics
/// As [`run`].
pub fn run_in_memory(scenario: impl FnOnce(&mut System) -> Result<()>) {
    let folder = tempfile::Builder::new().prefix("farshore-e2e-").tempdir_in("/dev/shm");
    let started = folder.map_err(anyhow::Error::from);
    run_on(started.and_then(|folder| System::start_in(folder, Setting::default())), scenario);
}

fn run_on(started: Result<System>, scenario: impl FnOnce(&mut System) -> Result<()>) {
    let mut system = match started {
        Ok(system) => system,
        Err(error) => panic!("the system did not start: {error:#}"),
    };
    let end = scenario(&mut system).and_then(|()| system.stop()).and_then(|()| system.check_logs());
    if let Err(error) = end {
        system.keep_and_print();
        panic!("{error:#}");
    }
}
