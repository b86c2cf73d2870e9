//! Carries out what the supervisor decides, and tells it what happened.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions};
use std::future::pending;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::time::{Duration, Instant, SystemTime};

use farshore_api::identity::{CreateToken, Token};
use farshore_api::{Exit, Role, paths};
use farshore_program::{StopSignals, tell};
use farshore_proto::Timestamp;
use rustix::process::{Pid, Signal as Kill, kill_process};
use tokio::sync::mpsc::{Receiver, Sender, channel};

use crate::client::{Client, Target};
use crate::endpoints::{Endpoints, Pids, replace_file};
use crate::failure::{Failure, Outcome};

use super::process::Launch;
use super::settings::UpSettings;
use super::site::{Programs, Site};
use super::supervisor::{Child, Input, Note, Output, Supervisor};

/// Events that wait: a child sends at most two.
const EVENTS_MAX: usize = 32;
/// Longest wait for an enrolment token.
const TOKEN_WAIT: Duration = Duration::from_secs(5);

/// Runs the children.
pub(super) struct Driver<A> {
    site: Site,
    settings: UpSettings,
    programs: Programs,
    announce: A,
    log: File,
    started: Instant,
    supervisor: Supervisor,
    events: Sender<Input>,
    arriving: Receiver<Input>,
    endpoints: Option<Endpoints>,
}

impl<A: Fn(&Site, &Endpoints) -> Outcome> Driver<A> {
    pub(super) fn new(
        site: Site,
        settings: UpSettings,
        programs: Programs,
        announce: A,
    ) -> Outcome<Self> {
        let path = site.own_log();
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&path)
            .map_err(|error| Failure::io("open the log", &path, &error, Exit::CannotCreate))?;
        let (events, arriving) = channel(EVENTS_MAX);
        Ok(Self {
            site,
            settings,
            programs,
            announce,
            log,
            started: Instant::now(),
            supervisor: Supervisor::new(),
            events,
            arriving,
            endpoints: None,
        })
    }

    /// Runs until everything has ended.
    pub(super) async fn run(mut self) -> Outcome {
        let mut signals = StopSignals::listen().map_err(|error| {
            Failure::new(Exit::Internal, format!("cannot listen for signals: {error}"))
        })?;
        let mut inputs = VecDeque::from([Input::Begin]);
        loop {
            while let Some(input) = inputs.pop_front() {
                self.observe(&input);
                let mut out = Vec::new();
                self.supervisor.step(self.now(), input, &mut out);
                for output in out {
                    if let Output::Finish(result) = output {
                        self.say("everything has stopped");
                        return Endpoints::remove(self.site.data()).and(result);
                    }
                    inputs.extend(self.perform(output).await);
                }
            }
            let tick = self.supervisor.next_tick();
            let input = tokio::select! {
                // There is always a sender: `self.events`.
                Some(event) = self.arriving.recv() => event,
                signal = signals.asked() => {
                    self.say(&format!("told to stop by {signal}"));
                    Input::Stop
                }
                () = wait_until(self.started, tick) => Input::Tick,
            };
            inputs.push_back(input);
        }
    }

    fn now(&self) -> Timestamp {
        Timestamp(u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    /// Does what an input means for the files here.
    fn observe(&mut self, input: &Input) {
        if let Input::Ready { child, pid } = input {
            self.say(&format!("{child} is ready (pid {pid})"));
            if let Err(failure) = self.forget_token(*child) {
                self.say(&failure.message);
            }
        }
    }

    /// Performs an output; its result is the next input.
    async fn perform(&mut self, output: Output) -> Option<Input> {
        match output {
            Output::Launch(child) => return Some(self.launch(child).await),
            Output::Terminate { child, pid } => {
                self.say(&format!("stopping {child} (pid {pid})"));
                send(pid, Kill::TERM);
            }
            Output::Kill { pid, .. } => send(pid, Kill::KILL),
            Output::Publish { pids } => self.publish(pids),
            Output::Announce => self.announce(),
            Output::Note { child, note } => self.note(child, note),
            // Handled by the loop.
            Output::Finish(_) => {}
        }
        None
    }

    async fn launch(&mut self, child: Child) -> Input {
        let args = match self.args(child).await {
            Ok(args) => args,
            Err(failure) => return Input::NotLaunched { child, failure, is_final: false },
        };
        let (program, log) = (self.programs.path(child), self.site.log(child));
        match (Launch { child, program, args, log }).start(&self.events) {
            Ok(pid) => {
                self.say(&format!("started {child} (pid {pid})"));
                Input::Launched { child, pid }
            }
            Err(failure) => Input::NotLaunched { child, failure, is_final: true },
        }
    }

    /// The command line of a child, with a new enrolment token if it has no identity that lives.
    async fn args(&self, child: Child) -> Outcome<Vec<String>> {
        let text = |path: std::path::PathBuf| path.to_string_lossy().into_owned();
        let settings = &self.settings;
        let vault = |key_file| {
            ["--vault".into(), settings.vault.clone(), "--key-file".into(), text(key_file)]
        };
        let mut args = Vec::new();
        if child == Child::Node {
            args.push("serve".to_owned());
        }
        args.extend(["--data".into(), text(self.site.child(child))]);
        match child {
            Child::Control => {
                args.extend(["--listen".into(), settings.control_address().to_string()]);
                args.extend(vault(self.site.key_file()));
                return Ok(args);
            }
            Child::Node => {
                args.extend(["--listen".into(), settings.node_address().to_string()]);
                // Never the recovery key: what a node may lose is a key that can be taken from it.
                args.extend(vault(self.site.node_key_file()));
            }
            Child::Agent => {}
        }
        args.extend(["--control".into(), settings.control_url()]);
        if !self.site.is_enrolled(child) {
            let path = self.site.enrolment_token(child);
            let token = self.token(child).await?;
            replace_file(&path, format!("{}\n", token.token).as_bytes(), 0o600)?;
            args.extend(["--token-file".into(), text(path)]);
        }
        Ok(args)
    }

    async fn token(&self, child: Child) -> Outcome<Token> {
        let client = Client::new(Target {
            control: self.settings.control_url(),
            ca_file: self.site.ca_file(),
            token_file: self.site.token_file(),
        })?;
        let role = if child == Child::Node { Role::Node } else { Role::Agent };
        // A child that was away for longer than its certificate lasts keeps its id, and its machines.
        let identity = self.site.identity(child);
        let request = CreateToken { role, identity, ttl_seconds: None };
        let asked = async {
            match client.post(paths::TOKENS, &request).await {
                // The control plane forgot it: its catalogue is a new one.
                Err(failure) if identity.is_some() && failure.code == Exit::NotFound.code() => {
                    let request = CreateToken { identity: None, ..request };
                    client.post(paths::TOKENS, &request).await
                }
                answered => answered,
            }
        };
        tokio::time::timeout(TOKEN_WAIT, asked).await.unwrap_or_else(|_| {
            let message =
                format!("the control plane gave no enrolment token for the {child} in time");
            Err(Failure::new(Exit::Unavailable, message))
        })
    }

    /// A child that is ready has an identity: a token is of no use any more.
    fn forget_token(&self, child: Child) -> Outcome {
        let token = self.site.enrolment_token(child);
        match std::fs::remove_file(&token) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Failure::io("remove", &token, &error, Exit::InputOutput))
            }
            _ => Ok(()),
        }
    }

    fn publish(&mut self, [control, node, agent]: [u32; 3]) {
        let endpoints = Endpoints {
            control: self.settings.control_url(),
            node: self.settings.node_address().to_string(),
            vault: self.settings.vault.clone(),
            key_file: self.site.key_file(),
            ca_file: self.site.ca_file(),
            token_file: self.site.token_file(),
            pids: Pids { up: std::process::id(), control, node, agent },
        };
        // Replication goes on without the file; the next restart writes it again.
        if let Err(failure) = endpoints.write(self.site.data()) {
            self.complain(&failure.to_string());
        }
        self.endpoints = Some(endpoints);
    }

    fn announce(&mut self) {
        let Some(endpoints) = &self.endpoints else { return };
        if let Err(failure) = (self.announce)(&self.site, endpoints) {
            self.complain(&failure.to_string());
        }
    }

    fn note(&mut self, child: Child, note: Note) {
        let log = self.site.log(child);
        let text = match note {
            Note::Restart { last_words, after_ms } => {
                format!("{child} died: {last_words}; starting it again in {after_ms} ms")
            }
            Note::Back => format!("{child} is back"),
            Note::SlowStart { ms } => {
                let (seconds, log) = (ms / 1_000, log.display());
                format!("{child} is not ready after {seconds} s; its log is {log}")
            }
            Note::Killed => format!("{child} did not stop in time and was killed"),
        };
        self.complain(&text);
    }

    /// To the log and the terminal.
    fn complain(&mut self, text: &str) {
        tell!("farshore up: {text}");
        self.say(text);
    }

    /// To the log.
    fn say(&mut self, text: &str) {
        let now = humantime::format_rfc3339_millis(SystemTime::now());
        // A full disk must not end what it could still replicate.
        let _ = writeln!(self.log, "{now} {text}");
    }
}

fn send(pid: u32, signal: Kill) {
    let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
    // One that is gone by now is what is wanted; its death is on its way.
    let _ = pid.map(|pid| kill_process(pid, signal));
}

async fn wait_until(started: Instant, due: Option<Timestamp>) {
    match due {
        Some(due) => {
            tokio::time::sleep_until((started + Duration::from_millis(due.0)).into()).await
        }
        None => pending().await,
    }
}
