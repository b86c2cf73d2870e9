//! The second node: a process of the torture's own, started again when it ends, as a service manager
//! would.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::process::{Pid, Signal, kill_process};

use crate::system::System;
use crate::wait;

/// Time between two looks at the process.
const LOOK_PAUSE: Duration = Duration::from_millis(50);
/// Pause before it is started again.
const AGAIN_PAUSE: Duration = Duration::from_millis(500);
/// Time to stop in order; then it is killed.
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// What is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wanted {
    Running,
    Away,
    Ended,
}

#[derive(Debug)]
struct Shared {
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug)]
struct Inner {
    wanted: Wanted,
    child: Option<Child>,
    starts: u64,
}

/// The second node.
#[derive(Debug)]
pub(super) struct SecondNode {
    shared: Arc<Shared>,
    keeper: Option<JoinHandle<()>>,
    /// Its folder.
    pub(super) data: PathBuf,
}

impl SecondNode {
    /// Enrols it by token and starts it.
    pub(super) fn start(system: &System, data: &Path, program: PathBuf) -> Result<Self> {
        let token = system.farshore().json("node token")?;
        let token = token["token"].as_str().context("`node token` printed no token")?;
        let token_file = system.path("node-b.token");
        let mut file =
            OpenOptions::new().create_new(true).write(true).mode(0o600).open(&token_file)?;
        writeln!(file, "{token}").context("write the token")?;
        let (port, _) = crate::system::free_ports()?;
        let text = |path: &Path| path.display().to_string();
        let arguments = [
            ("--data", text(data)),
            ("--listen", format!("127.0.0.1:{port}")),
            ("--vault", system.endpoint("vault")?),
            ("--key-file", system.endpoint("key_file")?),
            ("--control", system.endpoint("control")?),
            ("--token-file", text(&token_file)),
        ];
        let mut words = vec!["serve".to_owned()];
        words.extend(arguments.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
        let shared = Arc::new(Shared {
            program,
            arguments: words,
            log: system.path("node-b.log"),
            inner: Mutex::new(Inner { wanted: Wanted::Running, child: None, starts: 0 }),
        });
        let kept = Arc::clone(&shared);
        let keeper = thread::Builder::new().name("second node".to_owned()).spawn(move || {
            while kept.look() {
                thread::sleep(LOOK_PAUSE);
            }
        })?;
        Ok(Self { shared, keeper: Some(keeper), data: data.to_path_buf() })
    }

    /// Its process, if it runs.
    pub(super) fn pid(&self) -> Option<Pid> {
        let inner = self.shared.lock();
        let id = inner.child.as_ref()?.id();
        i32::try_from(id).ok().and_then(Pid::from_raw)
    }

    /// How often it was started.
    pub(super) fn starts(&self) -> u64 {
        self.shared.lock().starts
    }

    /// Sends it a signal.
    pub(super) fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().context("the second node does not run")?;
        kill_process(pid, signal).context("signal the second node")
    }

    /// Kills it; it is started again.
    pub(super) fn kill(&self) {
        self.shared.lock().kill();
    }

    /// Kills it; it stays away until [`Self::come_back`].
    pub(super) fn keep_away(&self) {
        let mut inner = self.shared.lock();
        inner.wanted = Wanted::Away;
        inner.kill();
    }

    /// It may run again.
    pub(super) fn come_back(&self) {
        self.shared.lock().wanted = Wanted::Running;
    }

    /// Stops it, in order if it does, and waits for the end.
    pub(super) fn end(&mut self) {
        self.shared.lock().wanted = Wanted::Ended;
        if let Some(pid) = self.pid() {
            let _ = kill_process(pid, Signal::CONT);
            let _ = kill_process(pid, Signal::TERM);
        }
        let ended = wait::until("the second node to stop", STOP_LIMIT, || {
            let mut inner = self.shared.lock();
            let is_over = match &mut inner.child {
                Some(child) => child.try_wait()?.is_some(),
                None => true,
            };
            Ok(is_over.then_some(()))
        });
        if ended.is_err() {
            self.shared.lock().kill();
        }
        if let Some(keeper) = self.keeper.take() {
            // A keeper that panicked keeps nothing.
            let _ = keeper.join();
        }
    }
}

/// The logs that the node of a folder writes.
pub(super) fn logs_of(data: &Path) -> Result<Vec<String>> {
    let path = data.join("state.json");
    let text = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let state: serde_json::Value = serde_json::from_slice(&text)?;
    let logs = state["logs"].as_array().context("a state without logs")?;
    Ok(logs.iter().filter_map(|log| log.as_str().map(str::to_owned)).collect())
}

impl Drop for SecondNode {
    fn drop(&mut self) {
        self.end();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts the process if it is to run and does not; false when all is over.
    fn look(&self) -> bool {
        let mut inner = self.lock();
        if let Some(child) = &mut inner.child {
            match child.try_wait() {
                Ok(None) => return true,
                Ok(Some(_)) | Err(_) => inner.child = None,
            }
            drop(inner);
            thread::sleep(AGAIN_PAUSE);
            inner = self.lock();
        }
        match inner.wanted {
            Wanted::Ended => return false,
            Wanted::Away => {}
            Wanted::Running => match self.spawn() {
                Ok(child) => {
                    inner.child = Some(child);
                    inner.starts += 1;
                }
                Err(error) => eprintln!("the second node does not start: {error:#}"),
            },
        }
        true
    }

    fn spawn(&self) -> Result<Child> {
        let log: File = OpenOptions::new().create(true).append(true).open(&self.log)?;
        Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start farshore-node")
    }
}

impl Inner {
    fn kill(&mut self) {
        if let Some(child) = &mut self.child {
            // One that has just ended is what is wanted.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
