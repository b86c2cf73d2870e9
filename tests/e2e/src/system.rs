//! A whole Farshore on loopback, in a folder of its own.

use std::fs::{self, File, OpenOptions};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::Value;
use tempfile::TempDir;

use crate::command::{Farshore, binary};
use crate::{logs, wait};

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);

/// How a system is started.
#[derive(Clone, Debug, Default)]
pub struct Setting {
    /// Words added to `farshore up`.
    pub arguments: Vec<String>,
    /// Environment of `farshore up` and so of all it starts.
    pub environment: Vec<(String, String)>,
    /// Where the programs of `farshore up` are, if not where cargo put them.
    pub programs: Option<PathBuf>,
    /// Ports of the control plane and the node, if somebody must know them before.
    pub ports: Option<(u16, u16)>,
}

/// A process that `farshore up` looks after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// `farshore-control`
    Control,
    /// `farshore-node`
    Node,
    /// `farshore-agent`
    Agent,
}

impl Part {
    /// Its name in `endpoints.json` and behind `farshore-`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Control => "control",
            Self::Node => "node",
            Self::Agent => "agent",
        }
    }
}

/// A running `farshore up`.
#[derive(Debug)]
pub struct System {
    folder: Option<TempDir>,
    path: PathBuf,
    up: Option<Child>,
    setting: Setting,
    /// Port of the control plane.
    pub control_port: u16,
    /// Port of the node.
    pub node_port: u16,
    expected: Vec<String>,
}

impl System {
    /// Starts on a fresh folder and waits until everything is ready.
    ///
    /// # Errors
    /// If it ends or is not ready in time; the logs were printed.
    pub fn start(setting: Setting) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("farshore-e2e-").tempdir()?;
        Self::start_in(folder, setting)
    }

    /// Starts on a folder in which something may have been prepared.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn start_in(folder: TempDir, setting: Setting) -> Result<Self> {
        let path = folder.path().to_path_buf();
        fs::create_dir_all(path.join("data")).context("create the data folder")?;
        let (control_port, node_port) = setting.ports.map_or_else(free_ports, Ok)?;
        let mut system = Self {
            folder: Some(folder),
            path,
            up: None,
            setting,
            control_port,
            node_port,
            expected: Vec::new(),
        };
        if let Err(error) = system.up() {
            system.keep_and_print();
            return Err(error);
        }
        Ok(system)
    }

    /// Starts `farshore up` on the same folder again.
    ///
    /// # Errors
    /// As [`Self::start`], or if it is still running.
    pub fn up(&mut self) -> Result<()> {
        ensure!(self.up.is_none(), "`farshore up` is still running");
        let endpoints = self.data().join("endpoints.json");
        // An unclean stop leaves the old file behind; only a new one says that all is ready.
        if endpoints.exists() {
            fs::remove_file(&endpoints).context("remove the old endpoints.json")?;
        }
        let log = self.log_file("up.log")?;
        let programs = self.setting.programs.as_ref();
        let mut farshore = match programs {
            Some(programs) => Command::new(programs.join("farshore")),
            None => binary("farshore")?,
        };
        let child = farshore
            .arg("up")
            .arg("--data")
            .arg(self.data())
            .args(["--control-port", &self.control_port.to_string()])
            .args(["--node-port", &self.node_port.to_string()])
            .args(&self.setting.arguments)
            .envs(self.setting.environment.iter().cloned())
            .env_remove("FARSHORE_DATA")
            .stdin(std::process::Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("start `farshore up`")?;
        let child = self.up.insert(child);
        wait::until("endpoints.json", START_LIMIT, || {
            if let Some(status) = child.try_wait()? {
                bail!("`farshore up` ended with {status}");
            }
            Ok(endpoints.is_file().then_some(()))
        })
    }

    /// Stops with SIGTERM, as a service manager does.
    ///
    /// # Errors
    /// If it does not end in time, or not with code 0, or leaves a process behind.
    pub fn stop(&mut self) -> Result<()> {
        let Some(mut up) = self.up.take() else { return Ok(()) };
        let parts: Vec<Pid> = [Part::Control, Part::Node, Part::Agent]
            .into_iter()
            .filter_map(|part| self.pid(part).ok())
            .collect();
        kill_process(pid(up.id())?, Signal::TERM).context("stop `farshore up`")?;
        let status = wait::until("`farshore up` to stop", STOP_LIMIT, || Ok(up.try_wait()?));
        let status = match status {
            Ok(status) => status,
            Err(error) => {
                self.up = Some(up);
                return Err(error);
            }
        };
        ensure!(status.success(), "`farshore up` stopped with {status}");
        for part in parts {
            ensure!(test_kill_process(part).is_err(), "`farshore up` left process {part:?} behind");
        }
        Ok(())
    }

    /// Stops and starts on the same folder.
    ///
    /// # Errors
    /// As [`Self::stop`] and [`Self::up`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.up()
    }

    /// The same with programs from another directory.
    ///
    /// # Errors
    /// As [`Self::restart`].
    pub fn restart_with(&mut self, programs: PathBuf) -> Result<()> {
        self.stop()?;
        self.setting.programs = Some(programs);
        self.up()
    }

    /// Kills a part with SIGKILL; `farshore up` starts it again.
    ///
    /// # Errors
    /// If it is not there.
    pub fn kill(&self, part: Part) -> Result<()> {
        let pid = self.pid(part)?;
        kill_process(pid, Signal::KILL).with_context(|| format!("kill the {}", part.name()))
    }

    /// Sends a signal to a part, such as STOP or CONT.
    ///
    /// # Errors
    /// If it is not there.
    pub fn signal(&self, part: Part, signal: Signal) -> Result<()> {
        let pid = self.pid(part)?;
        kill_process(pid, signal).with_context(|| format!("signal the {}", part.name()))
    }

    /// Sends a signal to `farshore up` itself.
    ///
    /// # Errors
    /// If it does not run.
    pub fn signal_supervisor(&self, signal: Signal) -> Result<()> {
        let up = self.up.as_ref().context("`farshore up` does not run")?;
        kill_process(pid(up.id())?, signal).context("signal `farshore up`")
    }

    /// Kills `farshore up` with SIGKILL; its children are left to their fate. [`Self::up`] goes on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill_supervisor(&mut self) -> Result<()> {
        let mut up = self.up.take().context("`farshore up` does not run")?;
        up.kill().context("kill `farshore up`")?;
        up.wait().context("kill `farshore up`").map(|_| ())
    }

    /// Kills `farshore up` and every part at once with SIGKILL. [`Self::up`] goes on.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill_all(&mut self) -> Result<()> {
        let parts = [Part::Control, Part::Node, Part::Agent].map(|part| self.pid(part).ok());
        // Before the others: it would start them again.
        let killed = self.kill_supervisor();
        for part in parts.into_iter().flatten() {
            // One that died by itself just now is dead enough.
            let _ = kill_process(part, Signal::KILL);
        }
        killed
    }

    /// Waits until a part runs as another process than `before`.
    ///
    /// # Errors
    /// If that takes too long.
    pub fn wait_for_another(&self, part: Part, before: Pid) -> Result<()> {
        wait::until(&format!("another {}", part.name()), START_LIMIT, || {
            let now = self.pid(part).ok();
            Ok(now.filter(|pid| *pid != before && test_kill_process(*pid).is_ok()).map(|_| ()))
        })
    }

    /// The process of a part, from endpoints.json.
    ///
    /// # Errors
    /// If it is not there.
    pub fn pid(&self, part: Part) -> Result<Pid> {
        let endpoints = self.endpoints()?;
        let number = endpoints["pids"][part.name()]
            .as_u64()
            .with_context(|| format!("endpoints.json has no pid of the {}", part.name()))?;
        pid(u32::try_from(number)?)
    }

    /// What `farshore up` says of itself.
    ///
    /// # Errors
    /// If endpoints.json is missing or no JSON.
    pub fn endpoints(&self) -> Result<Value> {
        let text = fs::read(self.data().join("endpoints.json")).context("read endpoints.json")?;
        serde_json::from_slice(&text).context("read endpoints.json")
    }

    /// One text of endpoints.json, such as `vault`.
    ///
    /// # Errors
    /// If it is not there.
    pub fn endpoint(&self, name: &str) -> Result<String> {
        let endpoints = self.endpoints()?;
        let text = endpoints[name].as_str();
        text.map(str::to_owned).with_context(|| format!("endpoints.json has no {name}"))
    }

    /// The operator's command for this system.
    #[must_use]
    pub fn farshore(&self) -> Farshore {
        self.in_its_environment(Farshore::on(&self.data()))
    }

    /// The operator's command as on a new machine: only the store and the recovery key.
    ///
    /// # Errors
    /// If endpoints.json names no key file.
    pub fn bare(&self) -> Result<Farshore> {
        let key = self.endpoint("key_file")?;
        Ok(self.in_its_environment(Farshore::bare()).with("FARSHORE_KEY_FILE", key))
    }

    /// What reaches the store is in the environment.
    fn in_its_environment(&self, farshore: Farshore) -> Farshore {
        let pairs = self.setting.environment.iter();
        pairs.fold(farshore, |farshore, (name, value)| farshore.with(name, value))
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// A path in this scenario's folder.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Says that error lines with this text are part of the scenario.
    pub fn expect_error(&mut self, text: &str) {
        self.expected.push(text.to_owned());
    }

    /// Checks that no process logged an unexpected error.
    ///
    /// # Errors
    /// If one did.
    pub fn check_logs(&self) -> Result<()> {
        let found = logs::unexpected(&self.path, &self.expected)?;
        ensure!(found.is_empty(), "unexpected errors in the logs:\n{}", found.join("\n"));
        Ok(())
    }

    /// Prints every log and keeps the folder when `FARSHORE_E2E_KEEP` is set.
    pub fn keep_and_print(&mut self) {
        logs::print(&self.path);
        if std::env::var_os("FARSHORE_E2E_KEEP").is_some()
            && let Some(folder) = self.folder.take()
        {
            eprintln!("kept {}", folder.keep().display());
        }
    }

    /// Keeps the folder when everything ends; returns where it is.
    pub fn keep(&mut self) -> &Path {
        if let Some(folder) = self.folder.take() {
            drop(folder.keep());
        }
        &self.path
    }

    /// The folder of the scenario.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.path
    }

    fn log_file(&self, name: &str) -> Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.path.join(name))
            .with_context(|| format!("create {name}"))
    }
}

impl System {
    /// Leaves no process behind, in order or not.
    pub fn end(&mut self) {
        if self.stop().is_ok() {
            return;
        }
        let parts = [Part::Control, Part::Node, Part::Agent].map(|part| self.pid(part).ok());
        if let Some(mut up) = self.up.take() {
            let _ = up.kill();
            let _ = up.wait();
        }
        for part in parts.into_iter().flatten() {
            let _ = kill_process(part, Signal::KILL);
        }
    }
}

impl Drop for System {
    fn drop(&mut self) {
        self.end();
    }
}

fn pid(number: u32) -> Result<Pid> {
    let number = i32::try_from(number).context("a process number out of range")?;
    Pid::from_raw(number).context("process number 0")
}

/// Two ports that nobody listens on right now.
///
/// # Errors
/// If the system has none.
pub fn free_ports() -> Result<(u16, u16)> {
    let port = || TcpListener::bind("127.0.0.1:0");
    let (a, b) = (port()?, port()?);
    Ok((a.local_addr()?.port(), b.local_addr()?.port()))
}

/// The URL of a folder as a vault.
#[must_use]
pub fn vault_url(folder: &Path) -> String {
    format!("file://{}", folder.display())
}
