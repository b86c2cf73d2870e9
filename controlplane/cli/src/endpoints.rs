//! `DIR/endpoints.json`: where everything of a `farshore up` is.
//!
//! It exists exactly while everything is up, and it is replaced atomically, so whoever waits for it
//! may read it as soon as it is there.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use farshore_api::Exit;
use serde::{Deserialize, Serialize};

use crate::args::Global;
use crate::failure::{Failure, Outcome};
use crate::output::shell_word;

/// Name of the file in the data directory.
pub(crate) const FILE: &str = "endpoints.json";

/// Where everything is. All paths are absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Endpoints {
    /// URL of the control plane.
    pub(crate) control: String,
    /// `ip:port` of the node.
    pub(crate) node: String,
    /// URL of the vault.
    pub(crate) vault: String,
    /// File with the vault's recovery key.
    pub(crate) key_file: PathBuf,
    /// PEM file with the CA of control plane and node.
    pub(crate) ca_file: PathBuf,
    /// File with the operator's token.
    pub(crate) token_file: PathBuf,
    /// The processes.
    pub(crate) pids: Pids,
}

/// Process ids, as of the last (re)start of one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pids {
    /// The supervisor.
    pub(crate) up: u32,
    /// The control plane.
    pub(crate) control: u32,
    /// The node.
    pub(crate) node: u32,
    /// The local agent.
    pub(crate) agent: u32,
}

impl Endpoints {
    /// Reads `DIR/endpoints.json`.
    ///
    /// # Errors
    /// `Unavailable` if nothing runs there, `DataInvalid` if the file is not what it should be.
    pub(crate) fn read(data: &Path) -> Outcome<Self> {
        Self::find(data)?.ok_or_else(|| {
            let word = shell_word(data);
            Failure::new(Exit::Unavailable, format!("no Farshore is up in {}", data.display()))
                .hint(format!("start it with `farshore up --data {word}`"))
        })
    }

    /// Reads `DIR/endpoints.json` if it is there.
    ///
    /// # Errors
    /// `DataInvalid` if the file is not what it should be.
    pub(crate) fn find(data: &Path) -> Outcome<Option<Self>> {
        let path = data.join(FILE);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::io("read", &path, &error, Exit::InputOutput)),
        };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            Failure::new(
                Exit::DataInvalid,
                format!("{} is not an endpoints file: {error}", path.display()),
            )
            .hint("restart `farshore up` on that directory: it writes the file anew")
        })
    }

    /// Replaces `DIR/endpoints.json` in one step.
    pub(crate) fn write(&self, data: &Path) -> Outcome {
        let text = serde_json::to_vec_pretty(self).map_err(|error| {
            Failure::new(Exit::Internal, format!("cannot write the endpoints as JSON: {error}"))
        })?;
        replace_file(&data.join(FILE), &text, 0o644)
    }

    /// Removes `DIR/endpoints.json`: nothing is up any more.
    pub(crate) fn remove(data: &Path) -> Outcome {
        let path = data.join(FILE);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Failure::io("remove", &path, &error, Exit::InputOutput))
            }
            _ => Ok(()),
        }
    }

    /// Those of the data directory that the command line or the environment names, if any.
    pub(crate) fn of(global: &Global) -> Outcome<Option<Self>> {
        global.data.as_deref().map(Self::read).transpose()
    }
}

/// Writes a file so that it is there whole or not at all, also after a power cut.
pub(crate) fn replace_file(path: &Path, bytes: &[u8], mode: u32) -> Outcome {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(".new");
    let fresh = directory.join(name);
    let write = || {
        // A leftover of an interrupted write may have another mode: begin with a new file.
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = File::options().write(true).create_new(true).mode(mode).open(&fresh)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&fresh, path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(|error| Failure::io("write", path, &error, Exit::InputOutput))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn endpoints() -> Endpoints {
        Endpoints {
            control: "https://127.0.0.1:9442".to_owned(),
            node: "127.0.0.1:9443".to_owned(),
            vault: "file:///d/vault".to_owned(),
            key_file: "/d/recovery.key".into(),
            ca_file: "/d/control/ca.pem".into(),
            token_file: "/d/control/operator.token".into(),
            pids: Pids { up: 1, control: 2, node: 3, agent: 4 },
        }
    }

    #[test]
    fn the_file_has_the_promised_fields() {
        let json = serde_json::to_value(endpoints()).unwrap();
        let fields: Vec<&String> = json.as_object().unwrap().keys().collect();
        assert_eq!(
            fields,
            ["ca_file", "control", "key_file", "node", "pids", "token_file", "vault"]
        );
        assert_eq!(json["pids"]["agent"], 4);
    }

    #[test]
    fn what_was_written_is_read_back_and_can_be_removed() {
        let data = tempfile::tempdir().unwrap();
        endpoints().write(data.path()).unwrap();
        endpoints().write(data.path()).unwrap();
        assert_eq!(Endpoints::read(data.path()).unwrap(), endpoints());
        Endpoints::remove(data.path()).unwrap();
        Endpoints::remove(data.path()).unwrap();
        let failure = Endpoints::read(data.path()).unwrap_err();
        assert_eq!(failure.code, Exit::Unavailable.code());
        assert!(failure.hint.unwrap().contains("farshore up --data"));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let data = tempfile::tempdir().unwrap();
        std::fs::write(data.path().join(FILE), "{").unwrap();
        let failure = Endpoints::read(data.path()).unwrap_err();
        assert_eq!(failure.code, Exit::DataInvalid.code());
        assert!(failure.message.contains("endpoints.json"), "{failure}");
    }

    #[test]
    fn secrets_get_their_mode_even_over_a_leftover() {
        let data = tempfile::tempdir().unwrap();
        let path = data.path().join("secret");
        std::fs::write(data.path().join("secret.new"), "old").unwrap();
        replace_file(&path, b"new", 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
