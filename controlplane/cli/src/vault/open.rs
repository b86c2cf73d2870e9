//! Which vault, with which key; opening and making it.

use std::error::Error;
use std::path::{Path, PathBuf};

use farshore_api::Exit;
use farshore_codec::WrappingKey;
use farshore_proto::ErrorKind;
use farshore_proto::keys::WrapperKind;
use farshore_vault::key_file::{self, KeyFileError};
use farshore_vault::layout::ObjectName;
use farshore_vault::{Access, Store, StoreError, Vault, VaultError};

use crate::args::Global;
use crate::endpoints::Endpoints;
use crate::failure::{Failure, Outcome};
use crate::up::{Site, UpSettings};

/// Options that name a vault.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct Source {
    /// URL of the vault: s3://BUCKET/FOLDER, az://CONTAINER/FOLDER, file:///absolute/path, or a path
    /// [default: the vault of --data]
    #[arg(long, env = "FARSHORE_VAULT", value_name = "URL")]
    vault: Option<String>,
    /// File with the vault's recovery key, or with a node key of it [default: DIR/recovery.key of --data]
    #[arg(long, env = "FARSHORE_KEY_FILE", value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl Source {
    /// URL of the vault and the file with its key: as said, else those of the data directory.
    ///
    /// # Errors
    /// `Usage` if one of them is not named.
    pub(super) fn locate(&self, global: &Global) -> Outcome<(String, PathBuf)> {
        let (vault, key_file) = match &global.data {
            Some(data) if self.vault.is_none() || self.key_file.is_none() => of_directory(data)?,
            _ => (None, None),
        };
        let vault = self.vault.clone().or(vault).ok_or_else(|| {
            Failure::new(Exit::Usage, "it is not said which vault is meant")
                .hint("say --vault URL, or --data DIR of a `farshore up`")
        })?;
        let key_file = self.key_file.clone().or(key_file).ok_or_else(|| {
            Failure::new(Exit::Usage, "it is not said where the vault's recovery key is")
                .hint("set FARSHORE_KEY_FILE=FILE or say --key-file FILE")
        })?;
        Ok((vault, key_file))
    }

    /// Opens the vault for reading.
    pub(super) async fn open(&self, global: &Global) -> Outcome<Vault> {
        let (url, key_file) = self.locate(global)?;
        let store = Store::open(&url, Access::Read).map_err(|error| store_failure(&error))?;
        let key = key_file::read(&key_file).map_err(|error| key_failure(&error))?;
        let vault = Vault::open(&store, &key).await;
        vault.map_err(|error| {
            vault_failure(&error).hint_on(Exit::Corrupt, || {
                "nothing in the vault can be read without it: put it back from a copy of the store"
                    .to_owned()
            })
        })
    }

    /// Opens the vault with its recovery key, to change which keys open it.
    pub(super) async fn open_as_operator(&self, global: &Global) -> Outcome<Vault> {
        let (url, key_file) = self.locate(global)?;
        let key = key_file::read_kind(&key_file, WrapperKind::Recovery)
            .map_err(|error| key_failure(&error))?;
        let store = Store::open(&url, Access::Write).map_err(|error| store_failure(&error))?;
        Vault::open(&store, &key).await.map_err(|error| vault_failure(&error))
    }
}

/// Opens the store that a URL or a data directory names, and no vault in it.
///
/// # Errors
/// `Usage` if none is named; what the store says.
pub(super) fn open_store(global: &Global, url: Option<String>) -> Outcome<Store> {
    let url = match (url, &global.data) {
        (None, Some(data)) => of_directory(data)?.0,
        (url, _) => url,
    };
    let url = url.ok_or_else(|| {
        Failure::new(Exit::Usage, "it is not said which store is meant")
            .hint("give its URL, or --data DIR of a `farshore up`")
    })?;
    Store::open(&url, Access::Write).map_err(|error| store_failure(&error))
}

/// Vault and key of a `farshore up`, whether it runs or not.
fn of_directory(data: &Path) -> Outcome<(Option<String>, Option<PathBuf>)> {
    if let Some(endpoints) = Endpoints::find(data)? {
        return Ok((Some(endpoints.vault), Some(endpoints.key_file)));
    }
    let site = Site::existing(data)?;
    let settings = UpSettings::last(&site)?;
    Ok((settings.map(|settings| settings.vault), Some(site.key_file())))
}

/// What [`make`] found and made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Made {
    /// Whether the recovery key is new.
    pub(crate) is_key_new: bool,
    /// Whether the vault is new.
    pub(crate) is_vault_new: bool,
}

/// Makes the vault and its recovery key, as far as they are not there; overwrites neither.
///
/// # Errors
/// `NotFound` if the vault is there without its key, `WrongKey` if the key is another vault's.
pub(crate) async fn make(url: &str, key_file: &Path) -> Outcome<(Vault, Made)> {
    let store = Store::open(url, Access::Make).map_err(|error| store_failure(&error))?;
    let exists = store.exists(&ObjectName::vault()).await;
    let is_vault_new = !exists.map_err(|error| store_failure(&error))?;
    let (key, is_key_new) = match key_file::read_kind(key_file, WrapperKind::Recovery) {
        Ok(key) => (key, false),
        Err(KeyFileError::Missing { .. }) if is_vault_new => {
            (new_key(key_file, WrapperKind::Recovery)?, true)
        }
        Err(KeyFileError::Missing { .. }) => return Err(key_missing(url, key_file)),
        Err(error) => return Err(key_failure(&error)),
    };
    let vault = Vault::open_or_init(&store, &key).await;
    let vault = vault.map_err(|error| vault_failure(&error))?;
    Ok((vault, Made { is_key_new, is_vault_new }))
}

/// Opens a vault that is known to have been made, for writing: one that is gone is not replaced.
pub(crate) async fn reopen(url: &str, key_file: &Path) -> Outcome<Vault> {
    let store = Store::open(url, Access::Write).map_err(|error| store_failure(&error))?;
    let key = key_file::read_kind(key_file, WrapperKind::Recovery);
    let key = key.map_err(|error| match error {
        KeyFileError::Missing { .. } => key_missing(url, key_file),
        error => key_failure(&error),
    })?;
    Vault::open(&store, &key).await.map_err(|error| vault_failure(&error))
}

/// Draws a key and writes it to a new file.
pub(super) fn new_key(path: &Path, kind: WrapperKind) -> Outcome<WrappingKey> {
    let key =
        WrappingKey::draw(kind).map_err(|error| Failure::new(Exit::SystemMissing, told(&error)))?;
    key_file::create(path, &key).map_err(|error| key_failure(&error))?;
    Ok(key)
}

fn key_missing(url: &str, path: &Path) -> Failure {
    let message =
        format!("the vault {url} is there, but its recovery key {} is not", path.display());
    Failure::new(Exit::NotFound, message).hint(
        "put your copy of the key back there (mode 0600); without it nothing in this vault can be \
         read",
    )
}

/// A failure of the vault.
pub(super) fn vault_failure(error: &VaultError) -> Failure {
    let exit = match error {
        VaultError::Store(error) => return store_failure(error),
        VaultError::WrongKey { .. } | VaultError::Withheld { .. } => Exit::WrongKey,
        VaultError::NotAVault { .. } => Exit::NotFound,
        VaultError::NotWriteOnce { .. } => Exit::DataInvalid,
        VaultError::Version { .. } => Exit::DataInvalid,
        error => exit_of(error.kind()),
    };
    let failure = Failure::new(exit, told(error));
    match error {
        VaultError::NoVolume { .. } => failure.hint("`farshore vault volumes` shows what there is"),
        _ => failure,
    }
}

pub(crate) fn store_failure(error: &StoreError) -> Failure {
    let exit = match error {
        error if error.is_no_space() => Exit::NoSpace,
        StoreError::DirectoryMissing { .. } | StoreError::BucketMissing { .. } => Exit::NotFound,
        StoreError::NotWritable { .. }
        | StoreError::Denied { .. }
        | StoreError::Hidden { .. }
        | StoreError::Credential { .. }
        | StoreError::NoCredential { .. } => Exit::Denied,
        StoreError::NotDirectory { .. } => Exit::DataInvalid,
        error => exit_of(error.kind()),
    };
    Failure::new(exit, told(error))
}

pub(super) fn key_failure(error: &KeyFileError) -> Failure {
    let exit = match error {
        KeyFileError::Open { .. } => Exit::Denied,
        KeyFileError::Content { .. } => Exit::DataInvalid,
        KeyFileError::Io { source, .. } => Exit::from_io(source, Exit::InputOutput),
        error => exit_of(error.kind()),
    };
    Failure::new(exit, told(error))
}

/// The exit for a kind of error of the data plane.
pub(super) fn exit_of(kind: ErrorKind) -> Exit {
    match kind {
        ErrorKind::Unavailable => Exit::Unavailable,
        ErrorKind::Throttled => Exit::TryAgain,
        ErrorKind::Fenced => Exit::Fenced,
        ErrorKind::Conflict => Exit::Conflict,
        ErrorKind::Invalid => Exit::Usage,
        ErrorKind::NotFound => Exit::NotFound,
        ErrorKind::Corrupt => Exit::Corrupt,
        ErrorKind::Limit => Exit::DataInvalid,
        ErrorKind::Internal => Exit::Internal,
    }
}

/// The error with those of its causes that it does not tell itself.
pub(super) fn told(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let words = cause.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(path: &Path) -> String {
        format!("file://{}", path.display())
    }

    #[tokio::test]
    async fn a_vault_and_its_key_are_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let (vault, key) = (url(&dir.path().join("vault")), dir.path().join("recovery.key"));
        let (first, made) = make(&vault, &key).await.unwrap();
        assert_eq!(made, Made { is_key_new: true, is_vault_new: true });
        let text = std::fs::read(&key).unwrap();
        let (second, made) = make(&vault, &key).await.unwrap();
        assert_eq!(made, Made { is_key_new: false, is_vault_new: false });
        assert_eq!(first.id(), second.id());
        assert_eq!(std::fs::read(&key).unwrap(), text);
        assert_eq!(reopen(&vault, &key).await.unwrap().id(), first.id());
    }

    #[tokio::test]
    async fn a_vault_without_its_key_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (vault, key) = (url(&dir.path().join("vault")), dir.path().join("recovery.key"));
        make(&vault, &key).await.unwrap();
        let copy = dir.path().join("copy");
        std::fs::rename(&key, &copy).unwrap();
        for failure in
            [make(&vault, &key).await.unwrap_err(), reopen(&vault, &key).await.unwrap_err()]
        {
            assert_eq!(failure.code, Exit::NotFound.code());
            assert!(failure.message.contains("recovery.key"), "{failure}");
        }
        assert!(!key.exists());
    }

    #[tokio::test]
    async fn a_key_of_another_vault_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let key = |name: &str| dir.path().join(format!("{name}.key"));
        let place = |name: &str| (url(&dir.path().join(name)), key(name));
        let ((a, key_a), (b, key_b)) = (place("a"), place("b"));
        make(&a, &key_a).await.unwrap();
        make(&b, &key_b).await.unwrap();
        let failure = make(&a, &key_b).await.unwrap_err();
        assert_eq!(failure.code, Exit::WrongKey.code(), "{failure}");
    }

    #[tokio::test]
    async fn a_directory_that_holds_something_else_gets_no_vault() {
        let dir = tempfile::tempdir().unwrap();
        let key = dir.path().join("recovery.key");
        let failure = make(&url(dir.path()), &key).await.unwrap_err();
        assert_eq!(failure.code, Exit::Conflict.code(), "{failure}");
        assert!(failure.message.contains("such as recovery.key"), "{failure}");
    }

    #[tokio::test]
    async fn a_vault_that_is_gone_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let (vault, key) = (dir.path().join("vault"), dir.path().join("recovery.key"));
        make(&url(&vault), &key).await.unwrap();
        std::fs::remove_dir_all(&vault).unwrap();
        let failure = reopen(&url(&vault), &key).await.unwrap_err();
        assert_eq!(failure.code, Exit::NotFound.code(), "{failure}");
        assert!(!vault.exists());
        // The directory is there again, but empty, as where nothing is mounted.
        std::fs::create_dir(&vault).unwrap();
        let failure = reopen(&url(&vault), &key).await.unwrap_err();
        assert_eq!(failure.code, Exit::NotFound.code(), "{failure}");
    }
}
