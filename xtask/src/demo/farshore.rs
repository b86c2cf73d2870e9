//! `farshore up` and the operator's command, as a script uses them.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::run_folder::RunFolder;
use crate::repo;

const START_LIMIT: Duration = Duration::from_secs(60);
const STOP_LIMIT: Duration = Duration::from_secs(30);
const PAUSE: Duration = Duration::from_millis(50);

/// A running `farshore up`.
#[derive(Debug)]
pub(crate) struct Farshore {
    data: PathBuf,
    up: Option<Child>,
}

impl Farshore {
    /// Starts it on free ports and waits until it is ready.
    ///
    /// # Errors
    /// If it ends or is not ready in time.
    pub(crate) fn up(folder: &RunFolder, vault: Option<&str>) -> Result<Self> {
        let data = folder.path("data");
        fs::create_dir_all(&data).context("create the data folder")?;
        let log = File::create(folder.path("up.log")).context("create up.log")?;
        let ports = [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
        let [control, node] =
            [ports[0].local_addr()?.port().to_string(), ports[1].local_addr()?.port().to_string()];
        drop(ports);
        let mut command = program();
        command.args(["up", "--control-port", &control, "--node-port", &node, "--data"]).arg(&data);
        if let Some(vault) = vault {
            command.args(["--vault", vault]);
        }
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let up = command.spawn().context("start `farshore up`")?;
        let mut farshore = Self { data, up: Some(up) };
        wait_until("`farshore up` to be ready", START_LIMIT, || farshore.is_ready())?;
        Ok(farshore)
    }

    fn is_ready(&mut self) -> Result<Option<()>> {
        let up = self.up.as_mut().context("`farshore up` was stopped")?;
        if let Some(status) = up.try_wait()? {
            bail!("`farshore up` ended with {status}");
        }
        Ok(self.data.join("endpoints.json").is_file().then_some(()))
    }

    /// Stops it as a service manager does.
    ///
    /// # Errors
    /// If it does not end in time and in order.
    pub(crate) fn stop(mut self) -> Result<()> {
        let mut up = self.up.take().context("`farshore up` was stopped")?;
        kill(up.id(), Signal::TERM)?;
        let status = wait_until("`farshore up` to stop", STOP_LIMIT, || Ok(up.try_wait()?));
        if status.is_err() {
            self.up = Some(up);
        }
        let status = status?;
        ensure!(status.success(), "`farshore up` stopped with {status}");
        Ok(())
    }

    /// Process number of `control`, `node` or `agent`.
    ///
    /// # Errors
    /// If endpoints.json does not say.
    pub(crate) fn pid(&self, part: &str) -> Result<u32> {
        let number = self.endpoints()?["pids"][part].as_u64();
        u32::try_from(number.with_context(|| format!("endpoints.json has no pid of the {part}"))?)
            .context("a process number out of range")
    }

    /// SIGKILL to a part.
    ///
    /// # Errors
    /// If it is not there.
    pub(crate) fn kill(&self, part: &str) -> Result<()> {
        kill(self.pid(part)?, Signal::KILL)
    }

    /// One text of endpoints.json.
    ///
    /// # Errors
    /// If it is not there.
    pub(crate) fn endpoint(&self, name: &str) -> Result<String> {
        let endpoints = self.endpoints()?;
        let text = endpoints[name].as_str().map(str::to_owned);
        text.with_context(|| format!("endpoints.json has no {name}"))
    }

    fn endpoints(&self) -> Result<Value> {
        let text = fs::read(self.data.join("endpoints.json")).context("read endpoints.json")?;
        serde_json::from_slice(&text).context("read endpoints.json")
    }

    /// Runs a verb to its end.
    ///
    /// # Errors
    /// If it refuses; its sentence is in the error.
    pub(crate) fn run(&self, words: &[&str]) -> Result<()> {
        repo::output(program().args(words).env("FARSHORE_DATA", &self.data)).map(|_| ())
    }

    /// Runs a verb and returns what it prints as JSON.
    ///
    /// # Errors
    /// As [`Self::run`], or if it prints something else.
    pub(crate) fn json(&self, words: &[&str]) -> Result<Value> {
        let mut command = program();
        command.args(words).args(["--output", "json"]).env("FARSHORE_DATA", &self.data);
        parse(words, &repo::output(&mut command)?)
    }

    /// Runs a verb with the store and the recovery key alone.
    ///
    /// # Errors
    /// As [`Self::run`].
    pub(crate) fn bare(&self, words: &[&str]) -> Result<()> {
        repo::output(&mut self.bare_command(words)?).map(|_| ())
    }

    /// As [`Self::bare`], as JSON.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub(crate) fn bare_json(&self, words: &[&str]) -> Result<Value> {
        let mut command = self.bare_command(words)?;
        parse(words, &repo::output(command.args(["--output", "json"]))?)
    }

    fn bare_command(&self, words: &[&str]) -> Result<Command> {
        let mut command = program();
        command
            .args(words)
            .env_remove("FARSHORE_DATA")
            .env("FARSHORE_KEY_FILE", self.endpoint("key_file")?);
        Ok(command)
    }
}

impl Drop for Farshore {
    /// Reached with a child only when a step has failed: nothing may stay behind.
    fn drop(&mut self) {
        let Some(mut up) = self.up.take() else { return };
        let parts = ["control", "node", "agent"].map(|part| self.pid(part).ok());
        let _ = kill(up.id(), Signal::TERM);
        let end = wait_until("`farshore up` to stop", STOP_LIMIT, || Ok(up.try_wait()?));
        if end.is_err() {
            let _ = up.kill();
            let _ = up.wait();
            for part in parts.into_iter().flatten() {
                let _ = kill(part, Signal::KILL);
            }
        }
    }
}

fn program() -> Command {
    Command::new(repo::target().join("release/farshore"))
}

fn parse(words: &[&str], printed: &[u8]) -> Result<Value> {
    serde_json::from_slice(printed).with_context(|| {
        format!("`farshore {}` printed {}", words.join(" "), String::from_utf8_lossy(printed))
    })
}

fn kill(number: u32, signal: Signal) -> Result<()> {
    let pid = Pid::from_raw(i32::try_from(number)?).context("process number 0")?;
    kill_process(pid, signal).with_context(|| format!("signal process {number}"))
}

/// User and system time of a process so far, in seconds.
///
/// # Errors
/// If it is gone.
pub(crate) fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = Path::new("/proc").join(pid.to_string()).join("stat");
    let stat = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    // The name, second of the fields, stands in parentheses and may hold spaces.
    let (_, fields) = stat.rsplit_once(") ").context("a process's stat without a name")?;
    let ticks: u64 = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(|ticks| ticks.parse::<u64>().context("ticks of a process"))
        .sum::<Result<u64>>()?;
    let hertz = rustix::param::clock_ticks_per_second();
    #[expect(clippy::cast_precision_loss, reason = "ticks of a short run, shown with one digit")]
    let seconds = ticks as f64 / hertz as f64;
    Ok(seconds)
}

/// Looks until `look` finds something.
///
/// # Errors
/// If `look` fails or finds nothing in time.
pub(crate) fn wait_until<T>(
    what: &str,
    limit: Duration,
    mut look: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(found) = look()? {
            return Ok(found);
        }
        if start.elapsed() > limit {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        thread::sleep(PAUSE);
    }
}
