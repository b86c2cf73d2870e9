//! `farshore-control`: the control plane.

#![forbid(unsafe_code)]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use farshore_api::Exit;
use farshore_api::limits::{
    NODE_LOST_AFTER_SECONDS_DEFAULT, NODE_LOST_AFTER_SECONDS_MAX, NODE_LOST_AFTER_SECONDS_MIN,
};
use farshore_control::control::Control;
use farshore_control::fatal::Fatal;
use farshore_control::settings::{QemuAccel, Settings};
use farshore_program::{StopSignals, tell};
use tracing_subscriber::EnvFilter;

/// Serves Farshore's control plane over HTTPS.
///
/// Prints `ready https://ADDRESS` when it serves, and stops cleanly on SIGTERM. The first start
/// makes DIR with ca.key, ca.pem, control.db and operator.token in it.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Directory for the CA, the catalogue and the files of failovers.
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Address to serve on; port 0 takes a free one.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:9442")]
    listen: SocketAddr,
    /// URL of the vault that failovers are served from.
    #[arg(long, value_name = "URL")]
    vault: String,
    /// File with the vault's recovery key.
    #[arg(long, value_name = "FILE", env = "FARSHORE_KEY_FILE")]
    key_file: PathBuf,
    /// Directory that holds farshore-node; default: the one that holds this program.
    #[arg(long, value_name = "DIR")]
    farshore_bin_dir: Option<PathBuf>,
    /// Program that runs failed-over machines.
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    qemu: PathBuf,
    /// What failed-over machines run on.
    #[arg(long, value_enum, env = "FARSHORE_QEMU_ACCEL", default_value_t)]
    qemu_accel: QemuAccel,
    /// User that failed-over machines run as; farshore-guest where that exists and this runs as root.
    #[arg(long, value_name = "NAME", env = "FARSHORE_GUEST_USER")]
    guest_user: Option<String>,
    /// Directory that firmware may be taken from, besides what the system has installed.
    #[arg(long, value_name = "DIR", env = "FARSHORE_FIRMWARE_DIR")]
    firmware_dir: Option<PathBuf>,
    /// Seconds without a report after which a node's volumes go to another node, if there is one.
    #[arg(long, value_name = "SECONDS", env = "FARSHORE_NODE_LOST_AFTER",
        default_value_t = NODE_LOST_AFTER_SECONDS_DEFAULT,
        value_parser = clap::value_parser!(u64)
            .range(NODE_LOST_AFTER_SECONDS_MIN..=NODE_LOST_AFTER_SECONDS_MAX))]
    node_lost_after: u64,
}

impl Arguments {
    fn settings(self) -> Result<Settings, Fatal> {
        let absolute = |path: PathBuf| {
            std::path::absolute(&path).map_err(|source| Fatal::File {
                action: "resolve",
                path,
                source,
            })
        };
        let bin_dir = match self.farshore_bin_dir {
            Some(dir) => absolute(dir)?,
            None => own_directory(),
        };
        Ok(Settings {
            data: self.data,
            listen: self.listen,
            vault: self.vault,
            key_file: absolute(self.key_file)?,
            node_program: bin_dir.join("farshore-node"),
            // A name is looked for in PATH; a path is this directory's, not the guest's.
            qemu_program: match self.qemu.components().count() {
                0 | 1 => self.qemu,
                _ => absolute(self.qemu)?,
            },
            qemu_accel: self.qemu_accel,
            guest_user: self.guest_user,
            firmware_dir: self.firmware_dir.map(absolute).transpose()?,
            node_lost_after_seconds: self.node_lost_after,
        })
    }
}

fn own_directory() -> PathBuf {
    let own = std::env::current_exe().ok();
    own.and_then(|own| own.parent().map(PathBuf::from)).unwrap_or_default()
}

fn main() -> ExitCode {
    farshore_program::begin();
    let arguments = match farshore_program::parse::<Arguments>() {
        Ok(arguments) => arguments,
        Err(exit) => return exit,
    };
    tracing_subscriber::fmt()
        .with_env_filter(
            EnvFilter::try_from_env("FARSHORE_LOG").unwrap_or_else(|_| EnvFilter::new("info")),
        )
        .with_writer(farshore_program::errors)
        .with_ansi(false)
        .init();
    match run(arguments) {
        Ok(()) => Exit::Success.into(),
        Err(fatal) => {
            tell!("farshore-control: {fatal}");
            fatal.exit().into()
        }
    }
}

fn run(arguments: Arguments) -> Result<(), Fatal> {
    let settings = arguments.settings()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(|source| Fatal::Runtime { source })?;
    runtime.block_on(async {
        let runtime_error = |source| Fatal::Runtime { source };
        // Signals are caught before anything is opened, so that none is lost.
        let mut stop = StopSignals::listen().map_err(runtime_error)?;
        let control = Control::start(settings).await?;
        farshore_program::announce(format_args!("ready https://{}", control.address()));
        let signal = stop.asked().await;
        tracing::info!("{signal}: stopping");
        control.stop().await;
        Ok(())
    })
}
