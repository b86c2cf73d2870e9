//! Thousands of sockets that never get anywhere, from several addresses at once.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::peer::client_hello;

/// Addresses that the crowd comes from: 127.0.0.2 and on.
pub const HOSTS: usize = 8;
/// The crowd arrives within this time.
const ARRIVAL: Duration = Duration::from_secs(2);
/// A member that was sent away comes again after this and up to as much again.
const PAUSE: Duration = Duration::from_secs(5);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// What the members do.
#[derive(Debug, Default)]
struct Shared {
    is_over: AtomicBool,
    comes_again: bool,
    open: AtomicUsize,
    open_max: AtomicUsize,
    opened: AtomicUsize,
    sent_away: AtomicUsize,
}

/// A crowd at work on a thread of its own.
#[derive(Debug)]
pub struct Crowd {
    shared: Arc<Shared>,
    over: watch::Sender<bool>,
    thread: JoinHandle<Result<()>>,
}

/// What came of it.
#[derive(Clone, Copy, Debug)]
pub struct Count {
    /// Most sockets that were open at once, as the crowd sees it.
    pub open_max: usize,
    /// Connections that were made.
    pub opened: usize,
    /// Connections that the node ended.
    pub sent_away: usize,
}

/// Has this thread run only when nobody else wants to: hostile peers have machines of their own, here they
/// share the node's cores.
///
/// # Errors
/// If the system does not allow it.
pub fn give_way() -> Result<()> {
    const LEAST: i32 = 19;
    rustix::process::setpriority_process(None, LEAST).context("lower the priority of the crowd")
}

impl Crowd {
    /// Sends `members` to a port; with `comes_again` those that the node sends away come back.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn gather(port: u16, members: usize, comes_again: bool) -> Result<Self> {
        let shared = Arc::new(Shared { comes_again, ..Shared::default() });
        let (over, listening) = watch::channel(false);
        let mine = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("crowd".to_owned()).spawn(move || {
            give_way()?;
            mine.run(port, members, &listening)
        })?;
        Ok(Self { shared, over, thread })
    }

    /// Sockets open now, as the crowd sees it.
    #[must_use]
    pub fn open(&self) -> usize {
        self.shared.open.load(Ordering::Relaxed)
    }

    /// Connections made so far.
    #[must_use]
    pub fn opened(&self) -> usize {
        self.shared.opened.load(Ordering::Relaxed)
    }

    /// Ends it: all sockets are closed.
    ///
    /// # Errors
    /// If it could not work.
    pub fn leave(self) -> Result<Count> {
        self.shared.is_over.store(true, Ordering::Relaxed);
        self.over.send_replace(true);
        match self.thread.join() {
            Ok(end) => end?,
            Err(_) => anyhow::bail!("the crowd panicked"),
        }
        let count = |counter: &AtomicUsize| counter.load(Ordering::Relaxed);
        Ok(Count {
            open_max: count(&self.shared.open_max),
            opened: count(&self.shared.opened),
            sent_away: count(&self.shared.sent_away),
        })
    }
}

impl Shared {
    fn run(self: Arc<Self>, port: u16, members: usize, over: &watch::Receiver<bool>) -> Result<()> {
        let hello: Arc<[u8]> = client_hello()?.into();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let tasks: Vec<_> = (0..members)
                .map(|number| {
                    let (shared, hello, mut over) =
                        (Arc::clone(&self), Arc::clone(&hello), over.clone());
                    tokio::spawn(async move {
                        tokio::select! {
                            _ = over.wait_for(|over| *over) => {}
                            () = shared.member(port, number, members, &hello) => {}
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.context("a member of the crowd")?;
            }
            anyhow::Ok(())
        })
    }

    async fn member(&self, port: u16, number: usize, members: usize, hello: &[u8]) {
        let share = |time: Duration| time.mul_f64(number as f64 / members as f64);
        sleep(share(ARRIVAL)).await;
        while !self.is_over.load(Ordering::Relaxed) {
            if let Ok(Ok(stream)) = timeout(CONNECT_LIMIT, connect(port, number)).await {
                let _open = Open::count(self);
                // Members say different things; none says enough.
                linger(stream, number, hello).await;
                self.sent_away.fetch_add(1, Ordering::Relaxed);
            }
            if !self.comes_again {
                return;
            }
            sleep(PAUSE + share(PAUSE)).await;
        }
    }
}

/// Counts a socket for as long as it is open.
struct Open<'a>(&'a Shared);

impl<'a> Open<'a> {
    fn count(shared: &'a Shared) -> Self {
        shared.opened.fetch_add(1, Ordering::Relaxed);
        let open = shared.open.fetch_add(1, Ordering::Relaxed) + 1;
        shared.open_max.fetch_max(open, Ordering::Relaxed);
        Self(shared)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

async fn connect(port: u16, number: usize) -> std::io::Result<TcpStream> {
    let host = u8::try_from(number % HOSTS).unwrap_or_default();
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 0, 0, 2 + host), 0)))?;
    socket.connect(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

/// Stays until the node ends it.
async fn linger(mut stream: TcpStream, number: usize, hello: &[u8]) {
    let said: &[u8] = match number % 4 {
        0 => &[],
        1 => &hello[..hello.len() / 2],
        _ => hello,
    };
    let (mut reader, mut writer) = stream.split();
    let speaking = async {
        if number % 4 == 3 {
            for byte in said.chunks(1) {
                if writer.write_all(byte).await.is_err() {
                    break;
                }
                sleep(Duration::from_secs(1)).await;
            }
        } else {
            let _ = writer.write_all(said).await;
        }
        std::future::pending::<()>().await;
    };
    let listening = async {
        let mut buffer = [0; 1024];
        while reader.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    };
    tokio::select! {
        () = speaking => {}
        () = listening => {}
    }
}
