//! Places of connections on which nobody has shown yet who it is.
//!
//! They are shared out by host, and a crowd of more hosts than there are places takes all of them, each with one.
//! Hosts from which an agent or node came lately have places of their own, so that such a crowd keeps none of them out.

use std::sync::OnceLock;

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit, setrlimit};

use crate::limits::{Host, Place, Places};

/// Connections at one time without a certificate of hosts that nobody knows: those on which none was shown yet,
/// operators, and whoever enrols.
const STRANGERS_MAX: usize = 1_024;

/// The same of hosts that are known, all together.
const KNOWN_MAX: usize = 4_096;

/// And of one of them: many peers may share one address.
const KNOWN_OF_ONE_MAX: usize = 1_024;

/// The places.
#[derive(Debug)]
pub struct Entrance {
    strangers: Places<Host>,
    known: Places<Host>,
}

impl Default for Entrance {
    fn default() -> Self {
        let strangers = Places::new(STRANGERS_MAX, STRANGERS_MAX);
        Self { strangers, known: Places::new(KNOWN_MAX, KNOWN_OF_ONE_MAX) }
    }
}

impl Entrance {
    /// Takes a place for a connection from `host`; none when all that it might have are taken by others with no more
    /// than it would have.
    #[must_use]
    pub fn enter(&self, host: Host, is_known: bool) -> Option<Place<Host>> {
        let own = if is_known { self.known.enter(host) } else { None };
        own.or_else(|| self.strangers.enter(host))
    }
}

/// The limit of open files that this process was started with, once it has raised its own.
static STARTED_WITH: OnceLock<Rlimit> = OnceLock::new();

/// Gives a child the limit of open files that this process was started with.
pub fn lower_descriptors_of(child: u32) {
    let pid = i32::try_from(child).ok().and_then(Pid::from_raw);
    let (Some(pid), Some(limit)) = (pid, STARTED_WITH.get()) else { return };
    // One that has ended needs none.
    if let Err(error) = prlimit(Some(pid), Resource::Nofile, *limit)
        && error != rustix::io::Errno::SRCH
    {
        tracing::warn!(child, %error, "cannot lower the limit of open files");
    }
}

/// Raises the limit of open files as far as it goes: these places are more than is usual, and a connection that cannot
/// be accepted is kept out as well.
pub fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    STARTED_WITH.get_or_init(|| limit);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "cannot raise the limit of open files");
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    fn host(number: usize) -> Host {
        IpAddr::from(u32::try_from(number).unwrap().to_be_bytes()).into()
    }

    /// N19: as many strange hosts as there are places, with one each.
    #[test]
    fn strangers_keep_no_known_host_out() {
        let entrance = Entrance::default();
        let crowd: Vec<_> = (0..STRANGERS_MAX).map(|n| entrance.enter(host(n), false)).collect();
        assert!(crowd.iter().all(Option::is_some));
        let late = host(STRANGERS_MAX);
        assert!(entrance.enter(late, false).is_none(), "strangers keep strangers out");
        let places: Vec<_> = (0..100).map(|_| entrance.enter(late, true)).collect();
        assert!(places.iter().all(Option::is_some));
    }

    /// N19: no kind of host takes what is the other's.
    #[test]
    fn known_hosts_keep_no_stranger_out_and_share_among_themselves() {
        let entrance = Entrance::default();
        let greedy: Vec<_> =
            (0..2 * KNOWN_MAX).map(|_| entrance.enter(host(1), true).unwrap()).collect();
        assert!(entrance.enter(host(2), false).is_some());
        let others: Vec<_> =
            (2..KNOWN_MAX).map(|n| entrance.enter(host(n), true).unwrap()).collect();
        // All places of known hosts are taken, and no host can give one.
        drop(greedy);
        let rest: Vec<_> = (0..2).map(|n| entrance.enter(host(n), true).unwrap()).collect();
        let late = entrance.enter(host(KNOWN_MAX), true);
        assert!(late.is_some(), "it may still come as a stranger");
        drop((others, rest));
    }
}
