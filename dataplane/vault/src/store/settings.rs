//! Settings of stores from the environment and from files.

use super::StoreError;
use crate::limits::{STORE_REQUEST_SECONDS_MAX, STORE_REQUEST_TIME};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;
use url::Url;

/// Larger than any settings file that a person keeps.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// An environment variable that says something.
pub(super) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The variables with a prefix that say something, in lower case.
pub(super) fn variables(prefix: &str) -> impl Iterator<Item = (String, String)> {
    std::env::vars_os().filter_map(move |(name, value)| {
        let name = name.into_string().ok().filter(|name| name.starts_with(prefix))?;
        let value = value.into_string().ok().filter(|value| !value.is_empty())?;
        Some((name.to_ascii_lowercase(), value))
    })
}

/// How long a request and its answer may take: `FARSHORE_STORE_TIMEOUT` in seconds, if it says
/// something.
pub(super) fn request_time(url: &str) -> Result<Duration, StoreError> {
    let Some(text) = variable("FARSHORE_STORE_TIMEOUT") else { return Ok(STORE_REQUEST_TIME) };
    match text.parse() {
        Ok(seconds) if (1..=STORE_REQUEST_SECONDS_MAX).contains(&seconds) => {
            Ok(Duration::from_secs(seconds))
        }
        _ => {
            let why = format!(
                "FARSHORE_STORE_TIMEOUT={text}: give seconds from 1 to {STORE_REQUEST_SECONDS_MAX}"
            );
            Err(StoreError::Settings { url: url.to_owned(), why })
        }
    }
}

/// Whether an endpoint is one without TLS: who writes http:// means it, what is sent there is sealed and
/// requests are signed.
///
/// # Errors
/// `Settings` if it is no URL of a server.
pub(super) fn check_endpoint(url: &str, name: &str, endpoint: &str) -> Result<bool, StoreError> {
    let parsed = Url::parse(endpoint).ok().filter(Url::has_host);
    match parsed.as_ref().map(Url::scheme) {
        Some("http") => Ok(true),
        Some("https") => Ok(false),
        _ => {
            let why = format!("{name}={endpoint}: give https://HOST[:PORT] or http://HOST[:PORT]");
            Err(StoreError::Settings { url: url.to_owned(), why })
        }
    }
}

/// The file that a variable names, or one below the home directory.
pub(super) fn file(name: &str, below_home: &str) -> Option<PathBuf> {
    match variable(name) {
        Some(path) => Some(path.into()),
        None => std::env::home_dir().map(|home| home.join(below_home)),
    }
}

/// The content of a settings file; none if there is no such file.
pub(super) fn read(url: &str, path: &Path) -> Result<Option<String>, StoreError> {
    let error =
        |source| StoreError::SettingsFile { url: url.to_owned(), path: path.into(), source };
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            return Err(error(io::Error::other("it is too large for a settings file")));
        }
        Ok(_) => {}
        Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(error(source)),
    }
    std::fs::read_to_string(path).map(Some).map_err(error)
}

/// The error of settings that make no client.
pub(super) fn refused(url: &str, error: &object_store::Error) -> StoreError {
    StoreError::Settings { url: url.to_owned(), why: error.to_string() }
}

/// A settings file with sections.
#[derive(Debug)]
pub(super) struct Ini(ini::Ini);

impl Ini {
    /// Reads a file, if it is there.
    pub(super) fn read(url: &str, path: &Path) -> Result<Option<Self>, StoreError> {
        let Some(text) = read(url, path)? else { return Ok(None) };
        let parsed = ini::Ini::load_from_str_noescape(&text);
        parsed.map(|ini| Some(Self(ini))).map_err(|error| {
            let source = io::Error::new(io::ErrorKind::InvalidData, error.to_string());
            StoreError::SettingsFile { url: url.to_owned(), path: path.into(), source }
        })
    }

    /// Whether it has a section.
    pub(super) fn has(&self, section: &str) -> bool {
        self.0.section(Some(section)).is_some()
    }

    /// A value, unless it is empty.
    pub(super) fn get(&self, section: &str, key: &str) -> Option<String> {
        let value = self.0.get_from(Some(section), key)?;
        Some(value.to_owned()).filter(|value| !value.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_a_url_of_a_server() {
        let check = |endpoint| check_endpoint("s3://b", "AWS_ENDPOINT_URL", endpoint);
        assert!(check("http://127.0.0.1:9000").unwrap());
        assert!(!check("https://s3.example.com").unwrap());
        for endpoint in ["", "localhost:9000", "s3.example.com", "ftp://x", "http://"] {
            let error = check(endpoint).expect_err(endpoint).to_string();
            assert!(error.contains("AWS_ENDPOINT_URL="), "{error}");
        }
    }

    #[test]
    fn a_settings_file_is_read_by_section() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("credentials");
        assert!(Ini::read("s3://b", &path).unwrap().is_none());
        let text = "# mine\n[default]\naws_access_key_id = a\naws_secret_access_key=b\\/+=\n\n\
                    [profile x]\nregion=\ns3 =\n  max_concurrent_requests = 20\n";
        std::fs::write(&path, text).unwrap();
        let ini = Ini::read("s3://b", &path).unwrap().unwrap();
        assert_eq!(ini.get("default", "aws_access_key_id").as_deref(), Some("a"));
        assert_eq!(ini.get("default", "aws_secret_access_key").as_deref(), Some("b\\/+="));
        assert!(ini.has("profile x") && !ini.has("x"));
        assert_eq!(ini.get("profile x", "region"), None);
        std::fs::write(&path, "[default\nx").unwrap();
        assert!(Ini::read("s3://b", &path).is_err());
    }
}
