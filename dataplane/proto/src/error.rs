//! What a caller does about an error.

/// The answer of every library error to "what do I do now?".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorKind {
    /// Retry with backoff.
    Unavailable,
    /// Slow down, then retry.
    Throttled,
    /// Stop writing for good: a newer epoch owns this.
    Fenced,
    /// Somebody else was first: read again and decide again.
    Conflict,
    /// Fix the request, the file or the settings; retrying cannot help.
    Invalid,
    /// The object does not exist.
    NotFound,
    /// The bytes are damaged or do not belong here: quarantine, tell a human.
    Corrupt,
    /// Over a limit: drop the peer or shed load.
    Limit,
    /// A bug: report it.
    Internal,
}

/// Bytes from outside that cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The bytes end early.
    #[error("{what}: ends after {have} bytes, {needed} are needed")]
    Truncated {
        /// The layout being decoded.
        what: &'static str,
        /// Bytes needed.
        needed: usize,
        /// Bytes there.
        have: usize,
    },
    /// The first bytes are not those of the layout.
    #[error("{what}: wrong magic")]
    Magic {
        /// The layout being decoded.
        what: &'static str,
    },
    /// A version this build does not read.
    #[error("{what}: version {found} is not supported")]
    Version {
        /// The layout being decoded.
        what: &'static str,
        /// The version found.
        found: u16,
    },
    /// Something that a reader must understand, and this build does not know of.
    #[error("{what}: written by a newer version of Farshore ({feature} {bit} is not known here)")]
    Newer {
        /// The layout being decoded.
        what: &'static str,
        /// Bit of the header, or section.
        feature: &'static str,
        /// Its number.
        bit: u32,
    },
    /// A vault that works with another parameter than this build.
    #[error("{what}: {name}: {found} is recorded, this version of Farshore works with {expected}")]
    Parameter {
        /// The layout being decoded.
        what: &'static str,
        /// The parameter.
        name: &'static str,
        /// The value found.
        found: u32,
        /// The value of this build.
        expected: u32,
    },
    /// A checksum does not match.
    #[error("{what}: checksum does not match")]
    Checksum {
        /// The layout or part being decoded.
        what: &'static str,
    },
    /// Reserved bytes are not zero.
    #[error("{what}: reserved bytes are not zero")]
    Reserved {
        /// The layout being decoded.
        what: &'static str,
    },
    /// A field outside its legal values.
    #[error("{what}: value {value} is out of range")]
    Range {
        /// The field.
        what: &'static str,
        /// The value found.
        value: u64,
    },
    /// A length above its limit.
    #[error("{what}: {value} is over the limit of {max}")]
    Limit {
        /// The field.
        what: &'static str,
        /// The value found.
        value: u64,
        /// The largest legal value.
        max: u64,
    },
    /// Text that is not UTF-8.
    #[error("{what}: not valid UTF-8")]
    Text {
        /// The field.
        what: &'static str,
    },
}

impl DecodeError {
    /// What the caller does about it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Limit { .. } => ErrorKind::Limit,
            other if other.is_foreign() => ErrorKind::Invalid,
            _ => ErrorKind::Corrupt,
        }
    }

    /// Whether the bytes are whole as far as can be told, but of another version of Farshore.
    #[must_use]
    pub fn is_foreign(&self) -> bool {
        matches!(self, Self::Version { .. } | Self::Newer { .. } | Self::Parameter { .. })
    }
}
