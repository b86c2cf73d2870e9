//! What an `up` was started with, remembered in `DIR/up.json`, so that the next start on the same
//! directory goes on with the same vault and the same ports.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use farshore_api::Exit;
use farshore_vault::{vault_url, vault_url_of};
use serde::{Deserialize, Serialize};

use crate::endpoints::replace_file;
use crate::failure::{Failure, Outcome};
use crate::vault::store_failure;

use super::site::Site;

const NODE_PORT: u16 = 9_443;
const CONTROL_PORT: u16 = 9_442;

/// Settings of an `up`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct UpSettings {
    /// URL of the vault.
    pub(crate) vault: String,
    /// Port of the node.
    pub(crate) node_port: u16,
    /// Port of the control plane.
    pub(crate) control_port: u16,
}

impl UpSettings {
    /// From the command line, else as at the last start, else the defaults.
    ///
    /// # Errors
    /// `Usage` for two equal ports and for another vault than that of the last start.
    pub(super) fn choose(
        site: &Site,
        vault: Option<&str>,
        node_port: Option<u16>,
        control_port: Option<u16>,
    ) -> Outcome<Self> {
        let last = Self::last(site)?;
        let asked = vault.map(vault_url).transpose().map_err(|error| store_failure(&error))?;
        if let (Some(asked), Some(last)) = (&asked, &last)
            && vault_url(&last.vault).ok().as_ref() != Some(asked)
        {
            let data = site.data().display();
            let message = format!("{data} belongs to the vault {}, not to {asked}", last.vault);
            return Err(Failure::new(Exit::Usage, message).hint(format!(
                "choose another --data for another vault; if this one has moved, correct \
                 {data}/up.json"
            )));
        }
        let of_last = |port: fn(&Self) -> u16| last.as_ref().map(port);
        let settings = Self {
            node_port: node_port.or(of_last(|last| last.node_port)).unwrap_or(NODE_PORT),
            control_port: control_port
                .or(of_last(|last| last.control_port))
                .unwrap_or(CONTROL_PORT),
            vault: match asked.or_else(|| last.map(|last| last.vault)) {
                Some(vault) => vault,
                None => {
                    vault_url_of(&site.default_vault()).map_err(|error| store_failure(&error))?
                }
            },
        };
        if settings.node_port == settings.control_port {
            let message =
                format!("port {} cannot serve both node and control plane", settings.node_port);
            return Err(Failure::new(Exit::Usage, message)
                .hint("give --node-port and --control-port different values"));
        }
        Ok(settings)
    }

    /// The settings of the last start, if there was one.
    ///
    /// # Errors
    /// `DataInvalid` if they cannot be read.
    pub(crate) fn last(site: &Site) -> Outcome<Option<Self>> {
        let path = Self::path(site);
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::io("read", &path, &error, Exit::InputOutput)),
        };
        serde_json::from_str(&text).map(Some).map_err(|error| {
            Failure::new(Exit::DataInvalid, format!("{} cannot be read: {error}", path.display()))
                .hint("correct it: it holds `vault`, `node_port` and `control_port`")
        })
    }

    /// Keeps the settings for the next start.
    pub(super) fn remember(&self, site: &Site) -> Outcome {
        let text = serde_json::to_vec_pretty(self).map_err(|error| {
            Failure::new(Exit::Internal, format!("cannot write the settings as JSON: {error}"))
        })?;
        replace_file(&Self::path(site), &text, 0o644)
    }

    fn path(site: &Site) -> PathBuf {
        site.data().join("up.json")
    }

    /// Where the node listens.
    pub(super) fn node_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.node_port).into()
    }

    /// Where the control plane listens.
    pub(super) fn control_address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.control_port).into()
    }

    /// URL of the control plane.
    pub(super) fn control_url(&self) -> String {
        format!("https://{}", self.control_address())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(site: &Site, vault: Option<&str>) -> Outcome<UpSettings> {
        UpSettings::choose(site, vault, None, None)
    }

    #[test]
    fn the_first_start_takes_the_defaults() {
        let data = tempfile::tempdir().unwrap();
        let site = Site::open(data.path()).unwrap();
        let settings = choose(&site, None).unwrap();
        assert_eq!(settings.vault, format!("file://{}/vault", site.data().display()));
        assert_eq!((settings.node_port, settings.control_port), (9_443, 9_442));
        assert_eq!(settings.control_url(), "https://127.0.0.1:9442");
    }

    #[test]
    fn the_next_start_goes_on_with_the_same_vault_and_ports() {
        let data = tempfile::tempdir().unwrap();
        let site = Site::open(data.path()).unwrap();
        let first = UpSettings::choose(&site, Some("/srv/a b"), Some(1_000), Some(1_001)).unwrap();
        assert_eq!(first.vault, "file:///srv/a%20b");
        first.remember(&site).unwrap();
        assert_eq!(choose(&site, None).unwrap(), first);
        assert_eq!(choose(&site, Some("file:///srv/a%20b/")).unwrap(), first);
        let moved = UpSettings::choose(&site, None, Some(1_002), None).unwrap();
        assert_eq!((moved.node_port, moved.control_port), (1_002, 1_001));
    }

    #[test]
    fn another_vault_on_the_same_directory_is_refused() {
        let data = tempfile::tempdir().unwrap();
        let site = Site::open(data.path()).unwrap();
        choose(&site, Some("/srv/a")).unwrap().remember(&site).unwrap();
        let failure = choose(&site, Some("/srv/b")).unwrap_err();
        assert_eq!(failure.code, Exit::Usage.code());
        assert!(failure.message.contains("/srv/a"), "{failure}");
    }

    #[test]
    fn one_port_does_not_serve_two() {
        let data = tempfile::tempdir().unwrap();
        let site = Site::open(data.path()).unwrap();
        let failure = UpSettings::choose(&site, None, Some(9_442), None).unwrap_err();
        assert_eq!(failure.code, Exit::Usage.code());
    }
}
