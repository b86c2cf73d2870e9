//! `cargo xtask demo`: a real server is replicated, killed, and booted again from the vault.

mod checks;
mod console;
mod failover;
mod farshore;
mod live;
mod machine;
mod point;
mod run_folder;
mod without_qemu;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::{guest, packages, progress, repo};

use checks::{Checks, Finding};
use farshore::Farshore;
use run_folder::RunFolder;

/// Options of the demo.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Seconds of records between "protected" and the kill
    #[arg(long, default_value_t = 15)]
    seconds: u64,
    /// Keep the folder with disk, vault and logs
    #[arg(long)]
    keep: bool,
    /// Folder to work in, which must not exist; default: one below target/demo
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Vault to replicate to; default: a folder
    #[arg(long, value_name = "URL")]
    vault: Option<String>,
    /// Restore and compare bytes instead of booting a guest
    #[arg(long)]
    without_qemu: bool,
}

/// Runs the demo.
///
/// # Errors
/// If a step fails or a check does not hold.
pub(crate) fn run(options: &Options) -> Result<()> {
    step("what is needed");
    packages::ensure(options.without_qemu)?;
    build()?;
    let folder = RunFolder::create(options.data.as_deref(), options.keep)?;
    let has_qemu = repo::has_program(machine::QEMU);
    let end = if options.without_qemu || !has_qemu {
        println!("no guest is booted: restoring and comparing bytes instead");
        without_qemu::show(options, &folder)
    } else {
        show(options, &folder)
    };
    let checks = match end {
        Ok(checks) => checks,
        Err(error) => {
            folder.print_logs();
            return Err(error);
        }
    };
    println!("\n{}", checks.table());
    if !checks.hold() {
        folder.print_logs();
        bail!("not every check held");
    }
    println!("every check held");
    Ok(())
}

fn step(what: &str) {
    println!("\n== {what}");
}

fn build() -> Result<()> {
    let packages = ["farshore-cli", "farshore-control", "farshore-node", "farshore-agent"];
    progress::build_packages(&["--release"], &packages)
}

/// The demo with a real guest.
fn show(options: &Options, folder: &RunFolder) -> Result<Checks> {
    step("a server's disk");
    let guest = guest::build(&repo::target().join("demo/parts"), &folder.path("server.raw"))?;
    println!(
        "{} MiB: GPT, EFI system partition with Debian's kernel {}, ext4 root with {} MiB of files",
        guest::DISK_BYTES >> 20,
        guest.kernel_version,
        guest.content_bytes >> 20
    );

    step("farshore up; the server runs on the agent's splitter");
    let farshore = Farshore::up(folder, options.vault.as_deref())?;
    let source =
        live::replicate(&farshore, folder, &guest.disk, Duration::from_secs(options.seconds))?;

    step("the server is lost in mid-write: SIGKILL, and its disk is gone");
    let lost = live::lose(&farshore, source, &guest.disk)?;

    step("failover");
    let revived = failover::start(&farshore, &lost)?;
    let mut checks = Checks::default();
    failover::check(&lost, &revived, &mut checks);

    step("the point itself, byte for byte from the vault");
    point::check(&farshore, folder, &revived, &mut checks)?;
    figures(&farshore, &lost, &mut checks)?;
    revived.end(&farshore)?;
    farshore.stop()?;
    Ok(checks)
}

/// What it cost.
fn figures(farshore: &Farshore, lost: &live::Lost, checks: &mut Checks) -> Result<()> {
    #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
    let gib = lost.bytes_in as f64 / f64::from(1 << 30);
    checks.add(Finding {
        check: "node CPU-seconds per GiB in",
        expected: "< 11.2 (restic 0.14)".to_owned(),
        seen: format!("{:.1} ({:.1} s for {gib:.2} GiB)", lost.node_cpu / gib, lost.node_cpu),
        holds: lost.node_cpu / gib < 11.2,
    });
    figures_of_vault(farshore, checks)
}

/// What the vault says of itself, with the recovery key alone.
fn figures_of_vault(farshore: &Farshore, checks: &mut Checks) -> Result<()> {
    let vault = farshore.endpoint("vault")?;
    let stats = farshore.bare_json(&["vault", "stats", "--vault", &vault])?;
    let number = |name: &str| stats[name].as_f64().with_context(|| format!("no {name} in {stats}"));
    let (raw, unique) = (number("raw_bytes")?, number("unique_bytes")?);
    let stored = number("stored_bytes")?;
    checks.add(Finding {
        check: "stored / raw in the vault",
        expected: "< 0.70".to_owned(),
        seen: format!("{:.2} (unique {:.2} of raw)", stored / raw, unique / raw),
        holds: stored / raw < 0.70,
    });
    let verified = farshore.bare(&["vault", "verify", "--vault", &vault, "--read-data"]);
    checks.add(Finding {
        check: "vault verify --read-data",
        expected: "every object opens".to_owned(),
        seen: verified.as_ref().map_or_else(|error| format!("{error:#}"), |_| "it does".to_owned()),
        holds: verified.is_ok(),
    });
    Ok(())
}
