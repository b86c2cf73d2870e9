//! Where a store is, as a person writes it.

use super::StoreError;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

/// A path that begins with one of these and a colon is a URL that lacks its slashes.
const SCHEMES: [&str; 3] = ["file", "s3", "az"];

/// All but RFC 3986's unreserved characters, and the slash between names.
const ESCAPED: &AsciiSet =
    &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'/');

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

    /// What is missing to whoever is denied a request, and must be allowed.
    pub(super) fn permission(self, verb: &str) -> &'static str {
        match (self, verb) {
            (Self::Directory | Self::Other, _) => "check owner, mode or credential",
            (Self::S3, "create") => "allow s3:PutObject, or see whether the bucket is read-only",
            (Self::S3, "delete") => "allow s3:DeleteObject",
            (Self::S3, "list") => "allow s3:ListBucket",
            (Self::S3, _) => "allow s3:GetObject and s3:ListBucket",
            (Self::Azure, "create") => "allow to create blobs (SAS: c, w)",
            (Self::Azure, "delete") => "allow to delete blobs (SAS: d)",
            (Self::Azure, "list") => "allow to list blobs (SAS: l)",
            (Self::Azure, _) => "allow to read blobs (SAS: r)",
        }
    }

    /// The code with which the store says that an object is not there; none where the system says it.
    pub(super) fn absence(self) -> Option<&'static str> {
        match self {
            Self::Directory | Self::Other => None,
            Self::S3 => Some("NoSuchKey"),
            Self::Azure => Some("BlobNotFound"),
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
    ///
    /// A `file` URL is an absolute path with some bytes written as `%XX`, and nothing else: a rule for what
    /// else may stand in a URL would take a part of a path for a query or a fragment, and put the vault into
    /// another directory than the one that is named.
    pub(super) fn parse(url: &str) -> Result<Self, StoreError> {
        let bad = || StoreError::Url { url: url.to_owned() };
        if url.is_empty() || url.contains('\0') {
            return Err(bad());
        }
        let scheme = url.split_once("://").filter(|(scheme, _)| is_scheme(scheme));
        let Some((scheme, rest)) = scheme else {
            return match url.split_once(':') {
                Some((scheme, _)) if SCHEMES.contains(&&*scheme.to_ascii_lowercase()) => Err(bad()),
                _ => directory(url, Path::new(url)),
            };
        };
        match &*scheme.to_ascii_lowercase() {
            "file" => directory(url, &path_of(url, rest)?),
            "s3" => {
                let (bucket, folder) = bucket_and_folder(url, rest)?;
                Ok(Self::S3 { bucket, folder })
            }
            "az" => {
                let (container, folder) = bucket_and_folder(url, rest)?;
                Ok(Self::Azure { container, folder })
            }
            _ => Err(StoreError::Scheme { url: url.to_owned(), scheme: scheme.to_owned() }),
        }
    }

    /// The one way to write it.
    fn url(&self) -> String {
        let joined = |scheme: &str, bucket: &str, folder: &str| match folder {
            "" => format!("{scheme}://{bucket}"),
            folder => format!("{scheme}://{bucket}/{folder}"),
        };
        match self {
            Self::Directory(path) => {
                format!("file://{}", percent_encode(path.as_os_str().as_bytes(), ESCAPED))
            }
            Self::S3 { bucket, folder } => joined("s3", bucket, folder),
            Self::Azure { container, folder } => joined("az", container, folder),
        }
    }
}

/// The URL of what a person calls a vault: absolute, with everything special escaped, and the same for all
/// ways to write it.
///
/// # Errors
/// `Invalid` for what is no URL or path.
pub fn vault_url(text: &str) -> Result<String, StoreError> {
    Place::parse(text).map(|place| place.url())
}

/// As [`vault_url`], of a directory.
///
/// # Errors
/// `Invalid` if the directory cannot be resolved.
pub fn vault_url_of(path: &Path) -> Result<String, StoreError> {
    directory(&path.display().to_string(), path).map(|place| place.url())
}

/// Whether it may be a scheme; a path does not look like one.
fn is_scheme(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "+-.".contains(c))
}

/// The path of a `file` URL: what follows `file://`.
fn path_of(url: &str, rest: &str) -> Result<PathBuf, StoreError> {
    let bad = || StoreError::Url { url: url.to_owned() };
    let path = rest.strip_prefix("localhost").filter(|path| path.starts_with('/')).unwrap_or(rest);
    if !path.starts_with('/') {
        return Err(bad());
    }
    let bytes = path.as_bytes();
    let is_hex = |at: usize| bytes.get(at).is_some_and(u8::is_ascii_hexdigit);
    let is_escape = |at: usize| is_hex(at + 1) && is_hex(at + 2);
    if bytes.iter().enumerate().any(|(at, byte)| *byte == b'%' && !is_escape(at)) {
        return Err(StoreError::Escape { url: url.to_owned() });
    }
    let path: Vec<u8> = percent_decode_str(path).collect();
    if path.contains(&0) {
        return Err(bad());
    }
    Ok(OsString::from_vec(path).into())
}

/// The directory that the system would take a path for, wherever it is looked up later.
fn directory(url: &str, path: &Path) -> Result<Place, StoreError> {
    resolved(path).map(Place::Directory).map_err(|source| {
        let (url, path) = (url.to_owned(), path.to_owned());
        match source.kind() {
            io::ErrorKind::NotFound => StoreError::DirectoryMissing { url, path },
            _ => StoreError::Directory { url, path, source },
        }
    })
}

/// Made absolute, without `.` and `..`. What lies before a `..` may be a link: it is followed.
fn resolved(path: &Path) -> io::Result<PathBuf> {
    let mut resolved = PathBuf::new();
    for part in std::path::absolute(path)?.components() {
        match part {
            Component::ParentDir => {
                resolved = resolved.canonicalize()?;
                resolved.pop();
            }
            part => resolved.push(part),
        }
    }
    Ok(resolved)
}

/// Credentials, ports and queries have no place in the URL of a vault: it is shown everywhere.
fn bucket_and_folder(url: &str, rest: &str) -> Result<(String, String), StoreError> {
    let (bucket, folder) = rest.split_once('/').unwrap_or((rest, ""));
    let folder = folder.strip_suffix('/').unwrap_or(folder);
    let mut names = std::iter::once(bucket).chain(folder.split('/').filter(|_| !folder.is_empty()));
    match names.find(|name| !is_name(name)) {
        None => Ok((bucket.to_owned(), folder.to_owned())),
        Some(name) if name.contains('@') => Err(StoreError::SecretInUrl),
        Some(name) => Err(StoreError::Name { url: url.to_owned(), name: name.to_owned() }),
    }
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
        assert_eq!(Place::parse("S3://My.vaults/a/b-c/").unwrap(), s3("My.vaults", "a/b-c"));
        let container = "$root".to_owned();
        let azure = Place::Azure { container, folder: "x".to_owned() };
        assert_eq!(Place::parse("az://$root/x").unwrap(), azure);
    }

    /// What is written, and the directory that is meant by it.
    const DIRECTORIES: [(&str, &str); 17] = [
        ("/a/b", "/a/b"),
        ("/a//b/./", "/a/b"),
        ("/a b,c", "/a b,c"),
        ("/a?b#c%41", "/a?b#c%41"),
        ("/http://x", "/http://x"),
        ("file:///a%20b", "/a b"),
        ("FILE:///a b", "/a b"),
        ("file://localhost/a", "/a"),
        ("file:///a/c#1/vault", "/a/c#1/vault"),
        ("file:///a/q?x", "/a/q?x"),
        ("file:///a/%41%2541%2F", "/a/A%41"),
        ("file:///a\\b", "/a\\b"),
        ("file:///a\tb\n", "/a\tb\n"),
        ("file:///ü/%C3%BC/", "/ü/ü"),
        ("file:////a//b", "/a/b"),
        ("file:///usr/../a", "/a"),
        ("/usr/lib/../a", "/usr/a"),
    ];

    #[test]
    fn a_directory_is_the_one_that_is_named() {
        for (written, path) in DIRECTORIES {
            let place = Place::parse(written).expect(written);
            assert_eq!(place, Place::Directory(path.into()), "{written}");
            let url = place.url();
            assert_eq!(Place::parse(&url).unwrap(), place, "{url}");
            assert_eq!(vault_url(written).unwrap(), url);
            let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~/%:".contains(&byte);
            assert!(url.bytes().all(is_plain), "{url}");
        }
        // Bytes that are no text have a URL all the same.
        let path = Path::new(std::ffi::OsStr::from_bytes(b"/a/\xff"));
        let url = vault_url_of(path).unwrap();
        assert_eq!(url, "file:///a/%FF");
        assert_eq!(Place::parse(&url).unwrap(), Place::Directory(path.into()));
    }

    #[test]
    fn dots_are_followed_as_the_system_follows_them() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(root.join("real/deep")).unwrap();
        std::os::unix::fs::symlink(root.join("real/deep"), root.join("link")).unwrap();
        let named = root.join("link/../vault");
        for url in [named.to_str().unwrap().to_owned(), format!("file://{}", named.display())] {
            let place = Place::parse(&url).unwrap();
            assert_eq!(place, Place::Directory(root.join("real/vault")), "{url}");
        }
        let nowhere = root.join("gone/../vault");
        let error = Place::parse(nowhere.to_str().unwrap()).unwrap_err();
        assert!(matches!(error, StoreError::DirectoryMissing { .. }), "{error}");
    }

    #[test]
    fn what_names_no_store_is_refused() {
        for url in
            ["", "s3:bucket", "file:/a", "File:a", "file://host/x", "file://a", "file://", "/a\0b"]
        {
            let error = Place::parse(url).expect_err(url);
            assert!(matches!(error, StoreError::Url { .. }), "{url}: {error}");
        }
        for url in [
            "s3://",
            "s3:///folder",
            "s3://bucket:9000/x",
            "s3://bucket?region=x",
            "s3://bucket/a b",
            "s3://bucket/a//b",
            "s3://bucket/#x",
            "s3://bucket/%41",
            "s3://bucket/a/../b",
            "s3://bucket/.",
            "s3://buc\tket/x",
            "s3://bücket/x",
            "az://",
        ] {
            let error = Place::parse(url).expect_err(url);
            assert!(matches!(error, StoreError::Name { .. }), "{url}: {error}");
            assert!(error.to_string().contains("letters, digits and -_.$"), "{error}");
        }
        for url in ["s3://key:secret@bucket", "s3://secret@bucket/x", "az://c/secret@x"] {
            let error = Place::parse(url).unwrap_err().to_string();
            assert!(error.contains("no credential") && !error.contains("secret@"), "{error}");
        }
        for url in ["file:///100%", "file:///50%off", "file:///%4", "file:///%%41"] {
            let error = Place::parse(url).unwrap_err().to_string();
            assert!(error.contains("%25"), "{error}");
        }
        assert!(matches!(Place::parse("file:///a%00"), Err(StoreError::Url { .. })));
        let error = Place::parse("gs://bucket/x").unwrap_err();
        assert!(error.to_string().contains("scheme \"gs\" are not supported"), "{error}");
    }
}
