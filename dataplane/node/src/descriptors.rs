//! How many files and sockets the node may have open, and how many of those peers may use.
//!
//! A journal file that cannot be created is fatal to the node (I8), so a flood of connections must
//! never use the last descriptor.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;

/// Descriptors kept for the node itself: journal, index, rings, the store and the control plane.
const OWN_MIN: u64 = 256;
/// Or this part of all there are, if that is more.
const OWN_PARTS: u64 = 8;

/// Places in the kernel's table of descriptors that are made at the start; a place costs 8 bytes. When a
/// table grows, every thread that opens or accepts something waits for a grace period of the kernel: up
/// to 20 ms were seen, in which nobody gets an ack.
const TABLE: u64 = 1 << 16;

/// The lowest descriptor that peers may not have: the system gives the lowest free one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Descriptors {
    ceiling: u64,
}

impl Descriptors {
    /// Raises the limit as far as it goes: thousands of sessions need more than is usual.
    pub(crate) fn raise() -> Self {
        use rustix::process::{Resource, getrlimit, setrlimit};
        let mut limit = getrlimit(Resource::Nofile);
        limit.current = limit.maximum;
        if let Err(error) = setrlimit(Resource::Nofile, limit) {
            tracing::warn!(%error, "cannot raise the limit of open files");
        }
        let limit = getrlimit(Resource::Nofile).current;
        if let Err(error) = make_table(limit) {
            tracing::warn!(%error, "cannot make the table of open files beforehand");
        }
        Self::of(limit)
    }

    fn of(limit: Option<u64>) -> Self {
        let limit = limit.unwrap_or(u64::MAX);
        Self { ceiling: limit.saturating_sub((limit / OWN_PARTS).max(OWN_MIN)) }
    }

    /// Refuses a peer's descriptor that is one of the node's own.
    ///
    /// # Errors
    /// `QuotaExceeded`.
    pub(crate) fn check(self, descriptor: &impl AsRawFd) -> io::Result<()> {
        let number = u64::try_from(descriptor.as_raw_fd()).unwrap_or(u64::MAX);
        if number < self.ceiling {
            return Ok(());
        }
        let text = format!("peers have all {} files and sockets that they may", self.ceiling);
        Err(io::Error::new(io::ErrorKind::QuotaExceeded, text))
    }

    /// A socket that was accepted, if peers may have its descriptor. The system takes the number when the
    /// wait for a connection begins: a crowd that has left since must not keep out who comes first after it.
    ///
    /// # Errors
    /// `QuotaExceeded`; or the socket cannot be duplicated.
    pub(crate) fn take(self, socket: TcpStream) -> io::Result<TcpStream> {
        if self.check(&socket).is_ok() {
            return Ok(socket);
        }
        let lowest = socket.try_clone()?;
        self.check(&lowest)?;
        Ok(lowest)
    }
}

/// Has the kernel make its table as large as it will be needed, by using one of the last places.
fn make_table(limit: Option<u64>) -> io::Result<()> {
    let last = limit.unwrap_or(TABLE).min(TABLE).saturating_sub(1);
    let last = i32::try_from(last).map_err(io::Error::other)?;
    rustix::io::fcntl_dupfd_cloexec(io::stderr(), last)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_made_beforehand() {
        let _raised = Descriptors::raise();
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let size = status.lines().find_map(|line| line.strip_prefix("FDSize:")).unwrap();
        let size: u64 = size.trim().parse().unwrap();
        assert!(size >= limit.unwrap_or(TABLE).min(TABLE), "{size} of {limit:?}");
    }

    #[test]
    fn a_number_that_was_taken_long_ago_keeps_nobody_out() {
        let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let low = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let high = TcpStream::from(rustix::io::fcntl_dupfd_cloexec(&low, 600).unwrap());
        let descriptors = Descriptors { ceiling: 500 };
        let taken = descriptors.take(high).unwrap();
        assert!(descriptors.check(&taken).is_ok(), "{taken:?}");
        let none = Descriptors { ceiling: 0 };
        assert_eq!(none.take(taken).unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    }

    struct Numbered(i32);

    impl AsRawFd for Numbered {
        fn as_raw_fd(&self) -> i32 {
            self.0
        }
    }

    #[test]
    fn peers_never_get_the_last_descriptors() {
        for (limit, first_refused) in [(1024, 768), (20_000, 17_500)] {
            let descriptors = Descriptors::of(Some(limit));
            assert!(descriptors.check(&Numbered(first_refused - 1)).is_ok());
            let error = descriptors.check(&Numbered(first_refused)).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::QuotaExceeded);
        }
        assert!(Descriptors::of(Some(100)).check(&Numbered(0)).is_err());
        assert!(Descriptors::of(None).check(&Numbered(i32::MAX)).is_ok());
    }
}
