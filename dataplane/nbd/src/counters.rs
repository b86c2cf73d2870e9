//! What the server counts: connections, bytes, and every refusal by its name.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use tracing::{debug, info};

use crate::backend::BackendError;

/// Why something that a client sent was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// A connection beyond [`CONNECTIONS_MAX`](crate::limits::CONNECTIONS_MAX). Closed.
    ConnectionsTooMany,
    /// More than [`HANDSHAKES_MAX`](crate::limits::HANDSHAKES_MAX) negotiated at once, and this was the oldest. Closed.
    HandshakesTooMany,
    /// Negotiation was not over in [`HANDSHAKE_DEADLINE`](crate::limits::HANDSHAKE_DEADLINE). Closed.
    HandshakeTooSlow,
    /// The client set a handshake flag that was not offered. Closed.
    ClientFlagsUnknown,
    /// An option did not begin with its magic: not an NBD client. Closed.
    OptionMagicWrong,
    /// An option over [`OPTION_BYTES_MAX`](crate::limits::OPTION_BYTES_MAX). Closed.
    OptionTooLong,
    /// An option this server does not know; clients probe for extensions like this.
    OptionUnsupported,
    /// An option whose data make no sense.
    OptionInvalid,
    /// An export that is not here. Closed if the option was EXPORT_NAME, which has no error reply.
    ExportUnknown,
    /// The connection ended inside an option, a request or its payload.
    CutShort,
    /// A request did not begin with its magic: the stream is out of step. Closed.
    RequestMagicWrong,
    /// A write over [`PAYLOAD_BYTES_MAX`](crate::limits::PAYLOAD_BYTES_MAX). Closed, for its payload is on the way.
    WriteTooLong,
    /// A read over [`PAYLOAD_BYTES_MAX`](crate::limits::PAYLOAD_BYTES_MAX). `EOVERFLOW`.
    ReadTooLong,
    /// A command this server does not know. `EINVAL`.
    CommandUnknown,
    /// A flag that the command does not have. `EINVAL`.
    FlagUnknown,
    /// An offset or length off the 512-byte grid. `EINVAL`.
    Misaligned,
    /// A read, query or trim that goes past the end. `EINVAL`.
    ReadPastEnd,
    /// A write, of data or zeroes, that goes past the end. `ENOSPC`.
    WritePastEnd,
    /// A change to a read-only export. `EPERM`.
    ReadOnly,
    /// A flush with an offset or length. `EINVAL`.
    FlushNotBare,
    /// BLOCK_STATUS without a negotiated context, or of no bytes. `EINVAL`.
    StatusNotAgreed,
    /// Fast zeroing of a backend where it is not fast. `ENOTSUP`; clients probe like this.
    ZeroingNotFast,
}

impl Refusal {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 22] = [
        Self::ConnectionsTooMany,
        Self::HandshakesTooMany,
        Self::HandshakeTooSlow,
        Self::ClientFlagsUnknown,
        Self::OptionMagicWrong,
        Self::OptionTooLong,
        Self::OptionUnsupported,
        Self::OptionInvalid,
        Self::ExportUnknown,
        Self::CutShort,
        Self::RequestMagicWrong,
        Self::WriteTooLong,
        Self::ReadTooLong,
        Self::CommandUnknown,
        Self::FlagUnknown,
        Self::Misaligned,
        Self::ReadPastEnd,
        Self::WritePastEnd,
        Self::ReadOnly,
        Self::FlushNotBare,
        Self::StatusNotAgreed,
        Self::ZeroingNotFast,
    ];

    /// The name for metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConnectionsTooMany => "connections_too_many",
            Self::HandshakesTooMany => "handshakes_too_many",
            Self::HandshakeTooSlow => "handshake_too_slow",
            Self::ClientFlagsUnknown => "client_flags_unknown",
            Self::OptionMagicWrong => "option_magic_wrong",
            Self::OptionTooLong => "option_too_long",
            Self::OptionUnsupported => "option_unsupported",
            Self::OptionInvalid => "option_invalid",
            Self::ExportUnknown => "export_unknown",
            Self::CutShort => "cut_short",
            Self::RequestMagicWrong => "request_magic_wrong",
            Self::WriteTooLong => "write_too_long",
            Self::ReadTooLong => "read_too_long",
            Self::CommandUnknown => "command_unknown",
            Self::FlagUnknown => "flag_unknown",
            Self::Misaligned => "misaligned",
            Self::ReadPastEnd => "read_past_end",
            Self::WritePastEnd => "write_past_end",
            Self::ReadOnly => "read_only",
            Self::FlushNotBare => "flush_not_bare",
            Self::StatusNotAgreed => "status_not_agreed",
            Self::ZeroingNotFast => "zeroing_not_fast",
        }
    }

    /// A probe for something optional, or our own doing: nothing is wrong with the client.
    const fn is_ordinary(self) -> bool {
        matches!(self, Self::OptionUnsupported | Self::ZeroingNotFast)
    }
}

/// Counts since the server was bound; read them at any time.
#[derive(Debug, Default)]
pub struct Counters {
    /// Connections accepted, those refused at once included.
    pub connections: AtomicU64,
    /// Connections open now.
    pub connections_open: AtomicU64,
    /// Requests carried out or refused, disconnects not counted.
    pub requests: AtomicU64,
    /// Bytes of data read by clients, zeroes included.
    pub read_bytes: AtomicU64,
    /// Bytes of data written by clients.
    pub written_bytes: AtomicU64,
    /// Requests that the backend failed.
    pub backend_errors: AtomicU64,
    /// Failed accepts.
    pub accept_errors: AtomicU64,
    refusals: [AtomicU64; Refusal::ALL.len()],
}

impl Counters {
    /// How often something was refused for this reason.
    pub fn refused(&self, refusal: Refusal) -> u64 {
        self.refusals[refusal as usize].load(Ordering::Relaxed)
    }

    pub(crate) fn refuse(&self, refusal: Refusal) {
        self.refusals[refusal as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// Notes what one connection does wrong: counts all of it, logs the first of each kind.
#[derive(Debug)]
pub(crate) struct Ledger {
    pub(crate) counters: Arc<Counters>,
    /// Number of the connection, for the log.
    connection: u64,
    /// One bit for each refusal that was logged, and the highest for a backend error.
    logged: AtomicU32,
}

const BACKEND_BIT: u32 = 31;
const _: () = assert!(Refusal::ALL.len() <= BACKEND_BIT as usize);

impl Ledger {
    pub(crate) fn new(counters: Arc<Counters>, connection: u64) -> Self {
        Self { counters, connection, logged: AtomicU32::new(0) }
    }

    pub(crate) fn refuse(&self, refusal: Refusal) {
        self.counters.refuse(refusal);
        let connection = self.connection;
        if self.is_first(refusal as u32) && !refusal.is_ordinary() {
            info!(connection, reason = refusal.name(), "nbd client refused");
        } else {
            debug!(connection, reason = refusal.name(), "nbd client refused");
        }
    }

    pub(crate) fn backend_failed(&self, command: &'static str, error: &BackendError) {
        self.counters.backend_errors.fetch_add(1, Ordering::Relaxed);
        let connection = self.connection;
        let source = std::error::Error::source(error).map(ToString::to_string);
        if self.is_first(BACKEND_BIT) {
            tracing::warn!(connection, command, %error, source, "nbd backend failed a request");
        } else {
            debug!(connection, command, %error, source, "nbd backend failed a request");
        }
    }

    fn is_first(&self, bit: u32) -> bool {
        self.logged.fetch_or(1 << bit, Ordering::Relaxed) & (1 << bit) == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_has_its_place_and_a_name_of_its_own() {
        for (index, refusal) in Refusal::ALL.into_iter().enumerate() {
            assert_eq!(refusal as usize, index);
            let same = Refusal::ALL.iter().filter(|other| other.name() == refusal.name());
            assert_eq!(same.count(), 1);
        }
    }

    #[test]
    fn each_kind_is_logged_once_and_counted_always() {
        let ledger = Ledger::new(Arc::default(), 1);
        assert!(ledger.is_first(3));
        assert!(!ledger.is_first(3));
        assert!(ledger.is_first(4));
        ledger.refuse(Refusal::Misaligned);
        ledger.refuse(Refusal::Misaligned);
        assert_eq!(ledger.counters.refused(Refusal::Misaligned), 2);
        assert_eq!(ledger.counters.refused(Refusal::ReadOnly), 0);
    }
}
