//! What a store could not do, in words that say what to do about it.

use super::answer::Reason;
use super::place::Service;
use farshore_proto::ErrorKind;
use std::io;
use std::path::PathBuf;

/// Why the store did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Neither a URL of a known scheme nor a path.
    #[error(
        "{url}: not a vault URL: give s3://BUCKET/FOLDER, az://CONTAINER/FOLDER, file:///absolute/path or a path"
    )]
    Url {
        /// What was given.
        url: String,
    },
    /// A percent sign that begins no escape.
    #[error(
        "{url}: in a file URL a percent sign is written %25: write it so, or give the plain path"
    )]
    Escape {
        /// What was given.
        url: String,
    },
    /// A name that does not mean the same in every store and in every URL.
    #[error(
        "{url}: {name:?} cannot be a bucket or folder of a vault: only letters, digits and -_.$ may stand there (an endpoint goes into the environment)"
    )]
    Name {
        /// What was given.
        url: String,
        /// The name.
        name: String,
    },
    /// A credential in a URL, which is not repeated.
    #[error(
        "the URL of a vault is shown everywhere and takes no credential: give it in the environment or in a file, as docs/stores.md says"
    )]
    SecretInUrl,
    /// A scheme that this build does not know.
    #[error(
        "{url}: stores of scheme {scheme:?} are not supported: give s3://BUCKET/FOLDER, az://CONTAINER/FOLDER or file:///absolute/path"
    )]
    Scheme {
        /// What was given.
        url: String,
        /// Its scheme.
        scheme: String,
    },
    /// The settings of the environment or of a file do not make a client.
    #[error("{url}: the store cannot be opened with these settings: {why}")]
    Settings {
        /// What was given.
        url: String,
        /// What is wrong with them.
        why: String,
    },
    /// A file with settings or credentials cannot be read.
    #[error("{url}: cannot read {}: {source}", path.display())]
    SettingsFile {
        /// What was given.
        url: String,
        /// The file.
        path: PathBuf,
        /// What the operating system says.
        source: io::Error,
    },
    /// Nobody said with which credential.
    #[error("{url}: there is no credential for this store: {}", service.credential_advice())]
    NoCredential {
        /// The store.
        url: String,
        /// Its kind.
        service: Service,
    },
    /// The store knows no such credential, or its secret is wrong, or it has expired.
    #[error("{url}: the store does not accept the credential: {}", service.credential_advice())]
    Credential {
        /// The store.
        url: String,
        /// Its kind.
        service: Service,
        /// What the store says.
        #[source]
        source: Reason,
    },
    /// The store refuses requests that are signed with the time of this machine.
    #[error("{url}: the store refuses the time of this machine: set its clock right, best by NTP")]
    Clock {
        /// The store.
        url: String,
        /// What the store says.
        #[source]
        source: Reason,
    },
    /// There is no such bucket or container; nothing is said of what was in it.
    #[error("{url}: there is no such {} at the store: make it, or name another", service.bucket())]
    BucketMissing {
        /// The store.
        url: String,
        /// Its kind.
        service: Service,
        /// What the store says.
        #[source]
        source: Reason,
    },
    /// There is no such directory.
    #[error("{url}: the vault directory {} does not exist: mount it, or make a vault with `farshore vault init`", path.display())]
    DirectoryMissing {
        /// What was given.
        url: String,
        /// The directory.
        path: PathBuf,
    },
    /// A directory that was there when the store was opened is another one now, or gone.
    #[error("{url}: the vault directory {} has gone away or was replaced: mount it again", path.display())]
    DirectoryGone {
        /// The store.
        url: String,
        /// The directory.
        path: PathBuf,
    },
    /// The path holds bytes that are no text.
    #[error("{url}: the path {} of the vault is not valid UTF-8: rename the directory, or name another", path.display())]
    NotText {
        /// What was given.
        url: String,
        /// The path.
        path: PathBuf,
    },
    /// The path is not a directory.
    #[error("{url}: {} is not a directory", path.display())]
    NotDirectory {
        /// What was given.
        url: String,
        /// The path.
        path: PathBuf,
    },
    /// The directory cannot be written or made.
    #[error("{url}: the vault directory {} is not writable: change its owner or mode, or name another", path.display())]
    NotWritable {
        /// What was given.
        url: String,
        /// The directory.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The file system of the directory lacks what a vault cannot do without.
    #[error(
        "{url}: the file system of the vault directory {} ({file_system}) lacks {what}, and a vault cannot do without: name a directory on another file system, such as ext4, XFS or Btrfs",
        path.display()
    )]
    Lacks {
        /// What was given.
        url: String,
        /// The directory.
        path: PathBuf,
        /// What kind it is.
        file_system: String,
        /// What is missing.
        what: &'static str,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The directory cannot be reached.
    #[error("{url}: the vault directory {} cannot be opened", path.display())]
    Directory {
        /// What was given.
        url: String,
        /// The directory.
        path: PathBuf,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
    /// The object does not exist.
    #[error("{url}: there is no object {object}")]
    NotFound {
        /// The store.
        url: String,
        /// The object.
        object: String,
    },
    /// The object is larger than any legal one of its kind.
    #[error("{url}: object {object} has {bytes} bytes, at most {max} are legal")]
    TooLarge {
        /// The store.
        url: String,
        /// The object.
        object: String,
        /// Its size.
        bytes: u64,
        /// The largest legal size.
        max: u64,
    },
    /// More objects than a listing may return.
    #[error("{url}: more than {max} objects in {object}")]
    TooMany {
        /// The store.
        url: String,
        /// The listed part.
        object: String,
        /// The most that are read.
        max: usize,
    },
    /// The store is full.
    #[error("{url}: no space is left to write object {object}: free space in the vault")]
    NoSpace {
        /// The store.
        url: String,
        /// The object.
        object: String,
        /// What the store says.
        #[source]
        source: Reason,
    },
    /// The store does not let us.
    #[error("{url}: access to object {object} is denied: {}", service.permission(verb))]
    Denied {
        /// The store.
        url: String,
        /// Its kind.
        service: Service,
        /// What was asked.
        verb: &'static str,
        /// The object.
        object: String,
        /// What the store says.
        #[source]
        source: Reason,
    },
    /// The store does not let us read it, or it is not there: it does not say which.
    #[error(
        "{url}: the store does not let this credential read object {object}, or there is no such object: without s3:ListBucket it does not say which: allow s3:GetObject and s3:ListBucket"
    )]
    Hidden {
        /// The store.
        url: String,
        /// The object.
        object: String,
        /// What the store says.
        #[source]
        source: Reason,
    },
    /// Something that is not the store answered.
    #[error(
        "{url}: a web page came in place of object {object}: something else than the store answers, such as a proxy or a login page: check the endpoint and the way to it"
    )]
    WebPage {
        /// The store.
        url: String,
        /// The object.
        object: String,
    },
    /// Somebody says that there is nothing there, in other words than the store's: nothing is known.
    #[error(
        "{url}: object {object} was answered with 404, but not with the store's own {}: something on the way answers for the store: check the endpoint, and the proxies and gateways in front of it",
        service.absence().unwrap_or("answer")
    )]
    Unworded {
        /// The store.
        url: String,
        /// Its kind.
        service: Service,
        /// The object.
        object: String,
        /// What came.
        #[source]
        source: Reason,
    },
    /// The bucket is somewhere else.
    #[error("{url}: the {} is in another region, or the endpoint is not the one for it: set AWS_REGION or AWS_ENDPOINT_URL", service.bucket())]
    Elsewhere {
        /// The store.
        url: String,
        /// Its kind.
        service: Service,
        /// What the store says.
        #[source]
        source: Reason,
    },
    /// An object was moved to an archive class.
    #[error(
        "{url}: object {object} is in an archive class and cannot be read at once: bring it back to a class that can be read, and keep rules that archive off this vault"
    )]
    Archived {
        /// The store.
        url: String,
        /// The object.
        object: String,
        /// What the store says.
        #[source]
        source: Reason,
    },
    /// There is no way to the store.
    #[error("{url}: the store cannot be reached: {why}")]
    Unreachable {
        /// The store.
        url: String,
        /// What stands in the way, and what to do.
        why: &'static str,
        /// What was seen.
        #[source]
        source: Reason,
    },
    /// Anything else: the request may or may not have been carried out.
    #[error("{url}: the store could not {verb} object {object}")]
    Request {
        /// The store.
        url: String,
        /// The object.
        object: String,
        /// What was asked.
        verb: &'static str,
        /// What the store says.
        #[source]
        source: Reason,
    },
    /// The directory of an object cannot be synced.
    #[error("{url}: the directory of object {object} cannot be synced")]
    Sync {
        /// The store.
        url: String,
        /// The object.
        object: String,
        /// What the operating system says.
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Url { .. }
            | Self::Escape { .. }
            | Self::Name { .. }
            | Self::SecretInUrl
            | Self::NotText { .. }
            | Self::Scheme { .. }
            | Self::Settings { .. }
            | Self::SettingsFile { .. }
            | Self::NoCredential { .. }
            | Self::Credential { .. }
            | Self::DirectoryMissing { .. }
            | Self::NotDirectory { .. }
            | Self::NotWritable { .. }
            | Self::Lacks { .. }
            | Self::Hidden { .. }
            | Self::Elsewhere { .. }
            | Self::Denied { .. } => ErrorKind::Invalid,
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::TooLarge { .. } => ErrorKind::Corrupt,
            Self::TooMany { .. } => ErrorKind::Limit,
            // Never "not found": that would say that an object is not there.
            Self::BucketMissing { .. }
            | Self::Clock { .. }
            | Self::WebPage { .. }
            | Self::Unworded { .. }
            | Self::Archived { .. }
            | Self::Unreachable { .. }
            | Self::DirectoryGone { .. }
            | Self::Directory { .. }
            | Self::NoSpace { .. }
            | Self::Request { .. }
            | Self::Sync { .. } => ErrorKind::Unavailable,
        }
    }

    /// Whether the store is full: retrying helps only after somebody has made room.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        matches!(self, Self::NoSpace { .. })
    }
}
