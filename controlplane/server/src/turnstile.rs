//! A turnstile before the work of a handshake: so many are under way at once, of each host no more than
//! its share, and hosts that wait take turns. A handshake costs a signature and a key exchange, and both
//! are cheap to ask for.
//!
//! Hosts from which an agent or node has come have a turnstile of their own, so that no crowd of
//! strangers holds them up.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::limits::Host;

/// Handshakes under way of hosts that nobody knows, and of one of them.
const UNKNOWN: Share = Share { all: 64, one: 16 };

/// The same of hosts from which a peer has come. Many peers may share one address.
const KNOWN: Share = Share { all: 256, one: 64 };

/// Hosts that are remembered to have sent a peer.
const HOSTS_MAX: usize = 65_536;

/// A host from which no peer has come for so long is unknown again.
const KNOWN_FOR: Duration = Duration::from_secs(48 * 3600);

/// In a line that is so long, those are looked for who have gone.
const GONE_MAX: usize = 1_024;

/// Between two looks for hosts that are known no more.
const CLEAN_EVERY: Duration = Duration::from_secs(60);

/// How many may be under way at once.
#[derive(Debug, Clone, Copy)]
struct Share {
    all: usize,
    one: usize,
}

/// The turnstiles.
#[derive(Debug)]
pub struct Turnstiles {
    unknown: Turnstile,
    known: Turnstile,
    hosts: Mutex<Hosts>,
}

/// From where a peer has come, and when last.
#[derive(Debug, Default)]
struct Hosts {
    seen: HashMap<Host, Instant>,
    /// When those were looked for last that are known no more: looking costs as much as there are.
    cleaned: Option<Instant>,
}

impl Default for Turnstiles {
    fn default() -> Self {
        let (unknown, known) = (Turnstile::new(UNKNOWN), Turnstile::new(KNOWN));
        Self { unknown, known, hosts: Mutex::default() }
    }
}

impl Turnstiles {
    /// Waits for the turn of `host`. How many wait is the caller's to bound.
    ///
    /// # Cancel safety
    /// Safe: whoever stops waiting is passed over.
    pub async fn pass(&self, host: Host) -> Turn {
        let is_known = self.is_known(host);
        if is_known { self.known.pass(host).await } else { self.unknown.pass(host).await }
    }

    /// Whether an agent or node has come from `host` lately.
    #[must_use]
    pub fn is_known(&self, host: Host) -> bool {
        let seen = lock(&self.hosts).seen.get(&host).copied();
        seen.is_some_and(|seen| seen.elapsed() < KNOWN_FOR)
    }

    /// An agent or node has proved from `host` who it is.
    pub fn know(&self, host: Host) {
        let now = Instant::now();
        let mut hosts = lock(&self.hosts);
        let is_due = hosts.cleaned.is_none_or(|cleaned| now.duration_since(cleaned) >= CLEAN_EVERY);
        if is_due && hosts.seen.len() >= HOSTS_MAX {
            hosts.cleaned = Some(now);
            hosts.seen.retain(|_, seen| now.duration_since(*seen) < KNOWN_FOR);
        }
        // More hosts than that are strangers: a crowd of those is in their way.
        if hosts.seen.len() < HOSTS_MAX || hosts.seen.contains_key(&host) {
            hosts.seen.insert(host, now);
        }
    }
}

#[derive(Debug, Clone)]
struct Turnstile(Arc<Mutex<Table>>);

#[derive(Debug)]
struct Table {
    share: Share,
    under_way: usize,
    lines: HashMap<Host, Line>,
    /// Hosts that have somebody waiting, each once; the first is next.
    order: VecDeque<Host>,
}

#[derive(Debug, Default)]
struct Line {
    under_way: usize,
    waiting: VecDeque<oneshot::Sender<Turn>>,
}

/// A handshake that may be under way; dropping it lets the next one pass.
#[derive(Debug)]
pub struct Turn {
    /// None once it does not count any more.
    turnstile: Option<Turnstile>,
    host: Host,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Turnstile {
    fn new(share: Share) -> Self {
        let (lines, order) = (HashMap::new(), VecDeque::new());
        Self(Arc::new(Mutex::new(Table { share, under_way: 0, lines, order })))
    }

    async fn pass(&self, host: Host) -> Turn {
        loop {
            let waited = {
                let mut table = lock(&self.0);
                let line = table.lines.entry(host).or_default();
                let (sender, receiver) = oneshot::channel();
                if line.waiting.len() >= GONE_MAX {
                    line.waiting.retain(|waiting| !waiting.is_closed());
                }
                let is_first = line.waiting.is_empty();
                line.waiting.push_back(sender);
                if is_first && !table.order.contains(&host) {
                    table.order.push_back(host);
                }
                self.let_pass(&mut table);
                receiver
            };
            // The sender is kept until it has sent, so this cannot fail; if it did, we ask again.
            if let Ok(turn) = waited.await {
                return turn;
            }
        }
    }

    /// Lets pass whoever may, host by host.
    fn let_pass(&self, table: &mut Table) {
        let mut blocked = 0;
        while table.under_way < table.share.all && blocked < table.order.len() {
            let Some(host) = table.order.pop_front() else { return };
            let Some(line) = table.lines.get_mut(&host) else { continue };
            if line.under_way >= table.share.one {
                table.order.push_back(host);
                blocked += 1;
                continue;
            }
            if let Some(next) = line.waiting.pop_front() {
                let turn = Turn { turnstile: Some(self.clone()), host };
                match next.send(turn) {
                    Ok(()) => {
                        line.under_way += 1;
                        table.under_way += 1;
                        blocked = 0;
                    }
                    // It waits no more. Its turn must not come back here, where the table is held.
                    Err(mut turn) => turn.turnstile = None,
                }
            }
            if line.waiting.is_empty() {
                table.forget_idle(host);
            } else {
                table.order.push_back(host);
            }
        }
    }
}

impl Table {
    fn forget_idle(&mut self, host: Host) {
        let is_idle = |line: &Line| line.under_way == 0 && line.waiting.is_empty();
        if self.lines.get(&host).is_some_and(is_idle) {
            self.lines.remove(&host);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(turnstile) = self.turnstile.take() else { return };
        let mut table = lock(&turnstile.0);
        table.under_way -= 1;
        if let Some(line) = table.lines.get_mut(&self.host) {
            line.under_way -= 1;
        }
        table.forget_idle(self.host);
        turnstile.let_pass(&mut table);
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::net::IpAddr;
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use super::*;

    fn host(last: u8) -> Host {
        IpAddr::from([10, 0, 0, last]).into()
    }

    type Waiting<'a> = Pin<Box<dyn Future<Output = Turn> + 'a>>;

    fn turn_of(waiting: &mut Waiting<'_>) -> Option<Turn> {
        match waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    fn asks(turnstile: &Turnstile, last: u8) -> Waiting<'_> {
        let mut waiting: Waiting<'_> = Box::pin(turnstile.pass(host(last)));
        // It stands in line from its first look on.
        if let Some(turn) = turn_of(&mut waiting) {
            return Box::pin(std::future::ready(turn));
        }
        waiting
    }

    #[test]
    fn one_host_has_its_share_and_the_others_pass_it() {
        let turnstile = Turnstile::new(Share { all: 4, one: 2 });
        let mut crowd: Vec<_> = (0..5).map(|_| asks(&turnstile, 1)).collect();
        let turns: Vec<Turn> = crowd.iter_mut().filter_map(turn_of).collect();
        assert_eq!(turns.len(), 2);
        let mut other = asks(&turnstile, 2);
        let other = turn_of(&mut other).expect("there is room for others");
        drop(other);
        drop(turns);
        let turns: Vec<Turn> = crowd[2..].iter_mut().filter_map(turn_of).collect();
        assert_eq!(turns.len(), 2, "the next two of the crowd");
    }

    #[test]
    fn hosts_that_wait_take_turns() {
        let turnstile = Turnstile::new(Share { all: 1, one: 1 });
        let mut first = asks(&turnstile, 1);
        let first = turn_of(&mut first).unwrap();
        let mut crowd: Vec<_> = (0..3).map(|_| asks(&turnstile, 1)).collect();
        let mut late = asks(&turnstile, 2);
        assert!(turn_of(&mut late).is_none());
        drop(first);
        let second = turn_of(&mut crowd[0]).expect("it waited longest");
        drop(second);
        assert!(turn_of(&mut crowd[1]).is_none());
        let late = turn_of(&mut late).expect("then the other host");
        drop(late);
        assert!(turn_of(&mut crowd[1]).is_some());
    }

    #[test]
    fn whoever_stops_waiting_is_passed_over_and_nothing_is_kept() {
        let turnstile = Turnstile::new(Share { all: 1, one: 1 });
        let mut first = asks(&turnstile, 1);
        let first = turn_of(&mut first).unwrap();
        let gone = asks(&turnstile, 2);
        let mut last = asks(&turnstile, 3);
        drop(gone);
        drop(first);
        let turn = turn_of(&mut last).expect("the one behind passes");
        // A turn that was given and never looked at comes back.
        let given = asks(&turnstile, 4);
        drop(turn);
        drop(given);
        drop(last);
        let table = lock(&turnstile.0);
        assert_eq!((table.under_way, table.lines.len(), table.order.len()), (0, 0, 0));
    }

    #[test]
    fn who_comes_and_goes_does_not_make_a_line_long() {
        let turnstile = Turnstile::new(Share { all: 1, one: 1 });
        let mut first = asks(&turnstile, 1);
        let first = turn_of(&mut first).unwrap();
        for _ in 0..10 * GONE_MAX {
            drop(asks(&turnstile, 2));
        }
        assert!(lock(&turnstile.0).lines[&host(2)].waiting.len() <= GONE_MAX);
        let mut last = asks(&turnstile, 2);
        drop(first);
        assert!(turn_of(&mut last).is_some());
    }

    #[tokio::test]
    async fn strangers_do_not_hold_up_hosts_of_peers() {
        let turnstiles = Turnstiles::default();
        let (peer, stranger) = (host(200), host(201));
        turnstiles.know(peer);
        let mut crowd = Vec::new();
        for n in 0..UNKNOWN.all {
            crowd.push(turnstiles.pass(host(u8::try_from(n).unwrap())).await);
        }
        let mut waiting: Waiting<'_> = Box::pin(turnstiles.pass(stranger));
        assert!(turn_of(&mut waiting).is_none(), "strangers wait for strangers");
        let mut passing: Waiting<'_> = Box::pin(turnstiles.pass(peer));
        assert!(turn_of(&mut passing).is_some());
        crowd.pop();
        assert!(turn_of(&mut waiting).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn hosts_of_peers_are_not_known_for_ever_and_are_bounded() {
        let turnstiles = Turnstiles::default();
        for n in 0..u32::try_from(2 * HOSTS_MAX).unwrap() {
            turnstiles.know(IpAddr::from(n.to_be_bytes()).into());
        }
        assert_eq!(lock(&turnstiles.hosts).seen.len(), HOSTS_MAX);
        let first = IpAddr::from([0, 0, 0, 0]).into();
        assert!(turnstiles.is_known(first) && !turnstiles.is_known(IpAddr::from([9; 4]).into()));
        tokio::time::advance(KNOWN_FOR).await;
        assert!(!turnstiles.is_known(first));
        turnstiles.know(host(1));
        assert_eq!(lock(&turnstiles.hosts).seen.len(), 1);
    }
}
