//! A way to the control plane on which a connection can be made to hang.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};

use super::clock::Whose;
use super::faults::{EVIDENCE_LIMIT, Struck};
use super::site::{Site, Which};
use super::watch::unix_ms;
use crate::wait;

/// Time between two looks at a connection that hangs.
const LOOK_PAUSE: Duration = Duration::from_millis(20);
const PIECE_BYTES: usize = 16 << 10;

/// One for each who reports.
#[derive(Debug)]
pub(super) struct Relays {
    agent: Relay,
    nodes: [Relay; 2],
}

impl Relays {
    /// Ways to the control plane at a port, which may not be there yet.
    pub(super) fn to(port: u16) -> Result<Self> {
        let nodes = [Relay::to(port)?, Relay::to(port)?];
        Ok(Self { agent: Relay::to(port)?, nodes })
    }

    pub(super) fn of(&self, whose: Whose) -> Option<&Relay> {
        match whose {
            Whose::Control => None,
            Whose::Agent => Some(&self.agent),
            Whose::Node(which) => Some(&self.nodes[usize::from(which == Which::Second)]),
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    /// The next request that comes hangs, and its connection with it.
    is_armed: AtomicBool,
    /// Connections that were made to hang.
    held: AtomicU64,
    /// Counts what ends a hold: each connection hangs until the next one.
    releases: AtomicU64,
}

/// Bytes from one port to another, both ways.
#[derive(Debug)]
pub(super) struct Relay {
    pub(super) port: u16,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// One connection: not held, or until so many releases have been.
#[derive(Debug, Default)]
struct Wire {
    held_until: AtomicU64,
}

impl Relay {
    fn to(port: u16) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen")?;
        let own = listener.local_addr()?.port();
        let shared = Arc::new(Shared::default());
        let mine = Arc::clone(&shared);
        let thread = thread::Builder::new().name("relay".to_owned()).spawn(move || {
            for client in listener.incoming() {
                if mine.is_over.load(Ordering::SeqCst) {
                    return;
                }
                // Who finds no control plane finds a connection that ends at once.
                let Ok(client) = client else { continue };
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, port)) else { continue };
                join(&mine, &client, &server);
            }
        })?;
        Ok(Self { port: own, shared, thread: Some(thread) })
    }

    /// Lets the connection hang on which the next request comes; returns once one does.
    fn hold_next(&self) -> Result<()> {
        let before = self.shared.held.load(Ordering::SeqCst);
        self.shared.is_armed.store(true, Ordering::SeqCst);
        wait::until("a request that can hang", EVIDENCE_LIMIT, || {
            Ok((self.shared.held.load(Ordering::SeqCst) > before).then_some(()))
        })
    }

    /// What hung goes on, late as it is.
    fn release(&self) {
        self.shared.is_armed.store(false, Ordering::SeqCst);
        self.shared.releases.fetch_add(1, Ordering::SeqCst);
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::SeqCst);
        self.release();
        // Wakes the thread up.
        let _ = TcpStream::connect((Ipv4Addr::LOCALHOST, self.port));
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Carries bytes both ways until both have ended.
fn join(shared: &Arc<Shared>, client: &TcpStream, server: &TcpStream) {
    let wire = Arc::new(Wire::default());
    for (from, to, is_asking) in [(client, server, true), (server, client, false)] {
        let _ = from.set_nodelay(true);
        // Without its other end a connection ends, and whoever had it makes another.
        let (Ok(from), Ok(to)) = (from.try_clone(), to.try_clone()) else { return };
        let (shared, wire) = (Arc::clone(shared), Arc::clone(&wire));
        thread::spawn(move || {
            carry(&shared, &wire, (&from, &to), is_asking);
            // The end of the other way may still have something to say.
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}

fn carry(shared: &Shared, wire: &Wire, (from, to): (&TcpStream, &TcpStream), is_asking: bool) {
    let (mut from, mut to) = (from, to);
    let mut piece = vec![0; PIECE_BYTES];
    loop {
        let count = match from.read(&mut piece) {
            Ok(0) => return,
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(_) => {
                // A connection that broke is broken at both ends.
                let _ = to.shutdown(Shutdown::Both);
                return;
            }
        };
        if is_asking && shared.is_armed.swap(false, Ordering::SeqCst) {
            let until = shared.releases.load(Ordering::SeqCst) + 1;
            wire.held_until.store(until, Ordering::SeqCst);
            shared.held.fetch_add(1, Ordering::SeqCst);
        }
        while wire.held_until.load(Ordering::SeqCst) > shared.releases.load(Ordering::SeqCst)
            && !shared.is_over.load(Ordering::SeqCst)
        {
            thread::sleep(LOOK_PAUSE);
        }
        if to.write_all(&piece[..count]).is_err() {
            let _ = from.shutdown(Shutdown::Both);
            return;
        }
    }
}

impl Site {
    /// A request of the agent hangs on its way to the control plane, then one of the node with most
    /// volumes, and arrives late (C5, C13): both are heard all the while, points come, no volume moves,
    /// and what was said late takes nothing back.
    pub(super) fn report_hung(&self, hold: Duration) -> Result<Struck> {
        let before = self.watch.machines();
        let begun_ms = unix_ms();
        for whose in [Whose::Agent, Whose::Node(self.busy())] {
            let relay = self.relays.of(whose).context("the control plane reports to nobody")?;
            let held = relay.hold_next().and_then(|()| {
                let since_ms = unix_ms();
                thread::sleep(hold);
                self.watch.until("points while a report hangs", EVIDENCE_LIMIT, |machines| {
                    machines.values().all(|seen| seen.is_good_since(since_ms))
                })
            });
            relay.release();
            held.with_context(|| format!("a request of {} hangs", whose.name()))?;
        }
        let struck = Struck::since(begun_ms);
        self.check_unmoved(&before, "a report that hung")?;
        Ok(struck)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_connection_hangs_others_do_not_and_what_hung_arrives() {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let relay = Relay::to(listener.local_addr().unwrap().port()).unwrap();
        let connect = || {
            let client = TcpStream::connect((Ipv4Addr::LOCALHOST, relay.port)).unwrap();
            let (server, _) = listener.accept().unwrap();
            server.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
            (client, server)
        };
        let ((mut one, mut at_one), (mut other, mut at_other)) = (connect(), connect());
        let mut byte = [0];
        one.write_all(b"a").unwrap();
        at_one.read_exact(&mut byte).unwrap();
        thread::scope(|scope| {
            scope.spawn(|| {
                wait::until("the relay to be armed", EVIDENCE_LIMIT, || {
                    Ok(relay.shared.is_armed.load(Ordering::SeqCst).then_some(()))
                })
                .unwrap();
                one.write_all(b"b").unwrap();
            });
            relay.hold_next().unwrap();
        });
        other.write_all(b"c").unwrap();
        at_other.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"c");
        at_one.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        assert!(at_one.read_exact(&mut byte).is_err(), "it did not hang");
        at_one.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        relay.release();
        at_one.read_exact(&mut byte).unwrap();
        assert_eq!(byte, *b"b");
        drop(one);
        assert_eq!(at_one.read(&mut byte).unwrap(), 0, "its end does not arrive");
    }
}
