//! Which control plane is meant, found as the operator's command finds it.

use serde::Deserialize;
use std::io;
use std::path::{Path, PathBuf};

/// What the command line says of the control plane.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct SiteArgs {
    /// Directory of a `farshore up`; its endpoints.json says where everything is
    #[arg(long, env = "FARSHORE_DATA", value_name = "DIR")]
    pub data: Option<PathBuf>,
    /// URL of the control plane, in place of the one in endpoints.json
    #[arg(long, env = "FARSHORE_CONTROL", value_name = "URL")]
    pub control: Option<String>,
    /// PEM file with the only CA to trust for the control plane
    #[arg(long, env = "FARSHORE_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// File that holds the operator's token
    #[arg(long, env = "FARSHORE_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,
}

/// A control plane and what to be its operator.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Site {
    /// URL without a path.
    pub control: String,
    /// The only CA to trust.
    pub ca_file: PathBuf,
    /// The operator's token.
    pub token_file: PathBuf,
}

/// Why no control plane is known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SiteError {
    /// Nothing was said.
    #[error(
        "it is not said which control plane is meant: set FARSHORE_DATA=DIR or say --data DIR of a \
         running `farshore up`; or say --control URL, --ca-file FILE and --token-file FILE"
    )]
    Unsaid,
    /// Nothing runs there.
    #[error("no Farshore is up in {}: start it with `farshore up --data {}`", data.display(),
        data.display())]
    Down {
        /// The directory.
        data: PathBuf,
    },
    /// The file cannot be read.
    #[error("cannot read {}: {error}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the system says.
        error: io::Error,
    },
    /// The file is damaged.
    #[error("{} is not an endpoints file: {error}; restart `farshore up` on that directory",
        path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: serde_json::Error,
    },
}

impl SiteArgs {
    /// The site that is meant; what the command line leaves out is in endpoints.json.
    ///
    /// # Errors
    /// [`SiteError`] if it cannot be told.
    pub fn site(&self) -> Result<Site, SiteError> {
        if let (Some(control), Some(ca_file), Some(token_file)) =
            (&self.control, &self.ca_file, &self.token_file)
        {
            let (ca_file, token_file) = (ca_file.clone(), token_file.clone());
            return Ok(Site { control: control.clone(), ca_file, token_file });
        }
        let found = read(self.data.as_deref().ok_or(SiteError::Unsaid)?)?;
        Ok(Site {
            control: self.control.clone().unwrap_or(found.control),
            ca_file: self.ca_file.clone().unwrap_or(found.ca_file),
            token_file: self.token_file.clone().unwrap_or(found.token_file),
        })
    }
}

fn read(data: &Path) -> Result<Site, SiteError> {
    let path = data.join("endpoints.json");
    let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => SiteError::Down { data: data.to_owned() },
        _ => SiteError::Unreadable { path: path.clone(), error },
    })?;
    serde_json::from_str(&text).map_err(|error| SiteError::Damaged { path, error })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_goes_before_the_endpoints_file() {
        let dir = tempfile::tempdir().unwrap();
        let text =
            r#"{"control": "https://a:1", "ca_file": "/ca", "token_file": "/t", "pids": {}}"#;
        std::fs::write(dir.path().join("endpoints.json"), text).unwrap();
        let data = Some(dir.path().to_owned());
        let control = Some("https://b:2".to_owned());
        let args = SiteArgs { data, control, ..SiteArgs::default() };
        let site = args.site().unwrap();
        assert_eq!(site.control, "https://b:2");
        assert_eq!(site.ca_file, Path::new("/ca"));
    }

    #[test]
    fn what_is_missing_is_said() {
        assert!(matches!(SiteArgs::default().site(), Err(SiteError::Unsaid)));
        let dir = tempfile::tempdir().unwrap();
        let args = SiteArgs { data: Some(dir.path().to_owned()), ..SiteArgs::default() };
        let error = args.site().unwrap_err().to_string();
        assert!(error.contains("farshore up --data"), "{error}");
        std::fs::write(dir.path().join("endpoints.json"), "{").unwrap();
        assert!(matches!(args.site(), Err(SiteError::Damaged { .. })));
    }
}
