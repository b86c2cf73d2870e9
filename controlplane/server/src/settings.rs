//! What an operator tunes. Checked before any port is opened.

use std::net::SocketAddr;
use std::path::PathBuf;

use crate::fatal::Fatal;

/// Settings of the control plane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Directory for the CA, the catalogue and failovers' files.
    pub data: PathBuf,
    /// Address to serve HTTPS on.
    pub listen: SocketAddr,
    /// URL of the vault, handed to exports.
    pub vault: String,
    /// File with the vault's recovery key, handed to exports; its content is never read here.
    pub key_file: PathBuf,
    /// The `farshore-node` program, which serves exports.
    pub node_program: PathBuf,
    /// The QEMU program, which runs failed-over machines.
    pub qemu_program: PathBuf,
    /// What failed-over machines run on.
    pub qemu_accel: QemuAccel,
    /// The user that failed-over machines run as.
    pub guest_user: Option<String>,
    /// Where firmware may lie that a failover names.
    pub firmware_dir: Option<PathBuf>,
    /// Seconds of silence after which a node's volumes go to another node, if there is one.
    pub node_lost_after_seconds: u64,
}

/// What failed-over machines run on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum QemuAccel {
    /// KVM if it proves to run firmware, else software
    #[default]
    Auto,
    /// KVM; machines fail without it
    Kvm,
    /// Software: slow, and runs anywhere
    Tcg,
}

impl Settings {
    /// Where failovers' files lie.
    #[must_use]
    pub fn failovers(&self) -> PathBuf {
        self.data.join("failovers")
    }

    /// Checks what can be checked without changing anything.
    ///
    /// # Errors
    /// `Setting` with the first problem found.
    pub fn validate(&self) -> Result<(), Fatal> {
        if self.vault.trim().is_empty() || self.vault.bytes().any(|byte| byte < b' ') {
            let why = "must be the vault's URL, such as file:///srv/vault".into();
            return Err(Fatal::Setting { flag: "--vault", why });
        }
        if !self.key_file.is_absolute() {
            let why = format!("is {}; it must be an absolute path", self.key_file.display());
            return Err(Fatal::Setting { flag: "--key-file", why });
        }
        if let Some(dir) = self.firmware_dir.as_deref().filter(|dir| !dir.is_dir()) {
            let why = format!("is {}; it must be a directory", dir.display());
            return Err(Fatal::Setting { flag: "--firmware-dir", why });
        }
        Ok(())
    }
}
