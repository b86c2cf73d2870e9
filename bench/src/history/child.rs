//! What is measured in a process of its own: it does one thing, and its memory is that thing's.

use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use farshore_vault::Vault;
use serde::{Deserialize, Serialize};

use super::delayed::Delayed;
use super::disk::{key_in, vault_in};
use super::{index, restore, view};

/// What the process is to do.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Job {
    View(view::Job),
    Restore(restore::Job),
    Index(index::Job),
}

/// What it found.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Found {
    View(view::Found),
    Restore(restore::Found),
    Index(index::Found),
}

/// Does the job on standard input and prints what was found, both as JSON.
///
/// # Errors
/// If it is no job, or cannot be done.
pub(crate) fn run() -> Result<()> {
    let mut text = String::new();
    std::io::stdin().read_to_string(&mut text)?;
    let found = done(&serde_json::from_str(&text)?)?;
    std::io::stdout().write_all(&serde_json::to_vec(&found)?)?;
    Ok(())
}

fn done(job: &Job) -> Result<Found> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        Ok(match job {
            Job::View(job) => Found::View(view::done(job).await?),
            Job::Restore(job) => Found::Restore(restore::done(job).await?),
            Job::Index(job) => Found::Index(index::done(job)?),
        })
    })
}

/// Has a process do a job.
///
/// # Errors
/// If it fails.
#[cfg(not(test))]
pub(super) fn found(job: &Job) -> Result<Found> {
    use anyhow::{Context, ensure};
    use std::process::{Command, Stdio};

    let mut command = Command::new(std::env::current_exe()?);
    command.arg("history-child").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().context("start a process of its own")?;
    let mut input = child.stdin.take().context("its input")?;
    input.write_all(&serde_json::to_vec(job)?)?;
    drop(input);
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "the process that measures ended with {}", output.status);
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// In tests the program is another one: a thread does it.
#[cfg(test)]
pub(super) fn found(job: &Job) -> Result<Found> {
    std::thread::scope(|scope| scope.spawn(|| done(job)).join().expect("the thread ends"))
}

/// Opens the vault of a disk's folder as it is from far away.
pub(super) async fn open(directory: &Path, delay: Duration) -> Result<(Vault, Arc<Delayed>)> {
    Delayed::over(&vault_in(directory), delay)?.open(&key_in(directory)?).await
}

/// Most memory that this process ever had.
pub(super) fn peak_bytes() -> Result<u64> {
    let (_, peak_bytes) = farshore_e2e::process::memory(rustix::process::getpid())?;
    Ok(peak_bytes)
}
