//! Where a store is, as a person writes it.

use super::StoreError;
use std::path::PathBuf;
use url::Url;

/// Kinds of stores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Service {
    /// A directory of this machine.
    Directory,
    /// S3, or a store that speaks its protocol.
    S3,
    /// Azure Blob Storage.
    Azure,
    /// Something else: a test.
    Other,
}

impl Service {
    /// What holds the objects, in the words of the service.
    pub(super) fn bucket(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::S3 | Self::Other => "bucket",
            Self::Azure => "container",
        }
    }

    /// How to give a credential.
    pub(super) fn credential_advice(self) -> &'static str {
        match self {
            Self::Directory | Self::Other => "check owner and mode",
            Self::S3 => {
                "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE for a profile of \
                 ~/.aws/credentials"
            }
            Self::Azure => {
                "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and \
                 AZURE_STORAGE_ACCOUNT_KEY"
            }
        }
    }

    /// Whether an answer to HEAD, which has no body, leaves open what is missing.
    pub(super) fn tells_nothing_on_head(self) -> bool {
        matches!(self, Self::S3 | Self::Azure)
    }
}

/// Where a store is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    Directory(PathBuf),
    S3 { bucket: String, folder: String },
    Azure { container: String, folder: String },
}

impl Place {
    /// Reads a URL or path.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let bad = || StoreError::Url { url: url.to_owned() };
        if url.is_empty() || url.contains('\0') {
            return Err(bad());
        }
        let Some((scheme, _)) = url.split_once("://") else {
            return std::path::absolute(url).map(Self::Directory).map_err(|_| bad());
        };
        let parsed = Url::parse(url).map_err(|_| bad())?;
        match scheme.to_ascii_lowercase().as_str() {
            "file" => parsed.to_file_path().map(Self::Directory).map_err(|()| bad()),
            "s3" => {
                let (bucket, folder) = bucket_and_folder(&parsed).ok_or_else(bad)?;
                Ok(Self::S3 { bucket, folder })
            }
            "az" => {
                let (container, folder) = bucket_and_folder(&parsed).ok_or_else(bad)?;
                Ok(Self::Azure { container, folder })
            }
            _ => Err(StoreError::Scheme { url: url.to_owned(), scheme: scheme.to_owned() }),
        }
    }
}

/// Credentials, ports and queries have no place in the URL of a vault: it is shown everywhere.
fn bucket_and_folder(url: &Url) -> Option<(String, String)> {
    let is_plain = url.username().is_empty()
        && url.password().is_none()
        && url.port().is_none()
        && url.query().is_none()
        && url.fragment().is_none();
    let bucket = url.host_str().filter(|bucket| is_plain && is_name(bucket))?;
    let folder = url.path().trim_matches('/');
    let is_folder = folder.is_empty() || folder.split('/').all(is_name);
    is_folder.then(|| (bucket.to_owned(), folder.to_owned()))
}

/// Names that mean the same in every store and in every URL.
fn is_name(name: &str) -> bool {
    let is_safe = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.$".contains(&byte);
    !name.is_empty() && !name.bytes().all(|byte| byte == b'.') && name.bytes().all(is_safe)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s3(bucket: &str, folder: &str) -> Place {
        Place::S3 { bucket: bucket.to_owned(), folder: folder.to_owned() }
    }

    #[test]
    fn urls_and_paths_say_where_a_store_is() {
        assert_eq!(Place::parse("s3://vaults").unwrap(), s3("vaults", ""));
        assert_eq!(Place::parse("s3://vaults/").unwrap(), s3("vaults", ""));
        assert_eq!(Place::parse("S3://my.vaults/a/b-c/").unwrap(), s3("my.vaults", "a/b-c"));
        let container = "$root".to_owned();
        let azure = Place::Azure { container, folder: "x".to_owned() };
        assert_eq!(Place::parse("az://$root/x").unwrap(), azure);
        assert_eq!(Place::parse("file:///a%20b").unwrap(), Place::Directory("/a b".into()));
        assert_eq!(Place::parse("/a/b").unwrap(), Place::Directory("/a/b".into()));
    }

    #[test]
    fn what_names_no_store_is_refused() {
        for url in [
            "",
            "s3://",
            "s3:///folder",
            "s3://key:secret@bucket",
            "s3://key@bucket",
            "s3://bucket:9000/x",
            "s3://bucket?region=x",
            "s3://bucket/a b",
            "s3://bucket/a//b",
            "s3://bucket/#x",
            "az://",
            "file://host/x",
        ] {
            let error = Place::parse(url).expect_err(url);
            assert!(matches!(error, StoreError::Url { .. }), "{url}: {error}");
        }
        let error = Place::parse("gs://bucket/x").unwrap_err();
        assert!(error.to_string().contains("scheme \"gs\" are not supported"), "{error}");
    }
}
