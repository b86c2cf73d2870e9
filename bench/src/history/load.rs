//! A whole Farshore under load from `farshore-loadgen`: real processes, real sessions, the vault in a directory.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use farshore_e2e::command::binary;
use farshore_e2e::{Setting, System, wait};
use serde::Deserialize;

/// Enrolment of a thousand sources, and all that is not the run itself.
const BESIDE_LIMIT: Duration = Duration::from_secs(900);
pub(super) const MINUTE_MS: u64 = 60_000;
/// Time between two marks of a volume.
pub(super) const INTERVAL: Duration = Duration::from_secs(5);

/// What sources do.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// Volumes that write, and that write once.
    pub(super) busy: u32,
    pub(super) idle: u32,
    /// Of all that write, each second.
    pub(super) rate_bytes: u64,
    /// Of one write.
    pub(super) write_bytes: u64,
    pub(super) warmup: Duration,
    pub(super) counted: Duration,
    /// From which content and times follow.
    pub(super) seed: u64,
}

/// What the load generator says of it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Found {
    pub(super) counted_from_unix_ms: u64,
    pub(super) counted_to_unix_ms: u64,
    connected: u32,
    pub(super) reconnects: u64,
    committed_latency: Latency,
}

#[derive(Clone, Debug, Deserialize)]
struct Latency {
    count: u64,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

impl Found {
    /// Seconds from when a write was due to its ack *committed*: of half of them, of 99 in a hundred, and of all.
    pub(super) fn committed_seconds(&self) -> [f64; 3] {
        let Latency { p50_ms, p99_ms, max_ms, .. } = self.committed_latency;
        [p50_ms, p99_ms, max_ms].map(|ms| ms / 1e3)
    }

    /// How many writes that was.
    pub(super) fn writes(&self) -> u64 {
        self.committed_latency.count
    }

    pub(super) fn counted_ms(&self) -> u64 {
        self.counted_to_unix_ms - self.counted_from_unix_ms
    }
}

/// A running Farshore, with nothing in its vault at first.
pub(super) struct Site {
    system: System,
    vault: PathBuf,
}

impl Site {
    /// Starts it in a folder of its own.
    ///
    /// # Errors
    /// If it does not start.
    pub(super) fn start(folder: &Path) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("load-").tempdir_in(folder)?;
        let system = System::start_in(folder, Setting::default())?;
        let vault = system.data().join("vault");
        Ok(Self { system, vault })
    }

    /// Lets sources do what the plan says. Those of a run before are the same ones.
    ///
    /// # Errors
    /// If one of them fails, or a write is lost.
    pub(super) fn load(&self, plan: &Plan) -> Result<Found> {
        let (told, log) = (self.system.path("load.json"), self.system.path("load.log"));
        let seconds = |time: Duration| format!("{}s", time.as_secs());
        let Plan { busy, idle, rate_bytes, write_bytes, seed, .. } = plan;
        let mut child = binary("farshore-loadgen")?
            .args(["run", "--output", "json", "--compressible", "0", "--volume-size", "64MiB"])
            .args(["--sources", &busy.to_string(), "--idle", &idle.to_string()])
            .args(["--rate", &rate_bytes.to_string(), "--block-size", &write_bytes.to_string()])
            .args(["--mark-interval", &seconds(INTERVAL), "--seed", &seed.to_string()])
            .args(["--warmup", &seconds(plan.warmup), "--duration", &seconds(plan.counted)])
            .arg("--identities")
            .arg(self.system.path("identities"))
            .arg("--data")
            .arg(self.system.data())
            .stdin(Stdio::null())
            .stdout(File::create(&told)?)
            .stderr(File::create(&log)?)
            .spawn()
            .context("start the load generator")?;
        let limit = BESIDE_LIMIT + plan.warmup + plan.counted;
        let end = wait::until("the load to end", limit, || Ok(child.try_wait()?));
        if end.is_err() {
            child.kill()?;
            child.wait()?;
        }
        let said = || fs::read_to_string(&log).unwrap_or_default();
        let status = end.with_context(said)?;
        ensure!(status.success(), "the load ended with {status}: {}", said());
        let found: Found = serde_json::from_slice(&fs::read(&told)?).context("read its report")?;
        ensure!(found.connected == busy + idle, "{} sources were welcome", found.connected);
        Ok(found)
    }

    /// What came into the vault while a run counted.
    ///
    /// # Errors
    /// If the vault cannot be listed.
    pub(super) fn added(&self, found: &Found) -> Result<Added> {
        let (from, to) = (found.counted_from_unix_ms, found.counted_to_unix_ms);
        let mut added = Added { from, logs: BTreeMap::new(), others: BTreeMap::new() };
        for log in folders(&self.vault.join("logs"))? {
            // A log to which nothing came counts too: that of an idle shard.
            added.logs.insert(log, Vec::new());
        }
        added.walk(&self.vault, &mut Vec::new(), (from, to))?;
        Ok(added)
    }

    /// Ends it.
    ///
    /// # Errors
    /// If it does not end in order, or something was logged that should not happen.
    pub(super) fn stop(mut self) -> Result<()> {
        self.system.stop()?;
        self.system.check_logs()
    }
}

fn folders(of: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(of).with_context(|| format!("list {}", of.display()))? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}

/// One object: when it was put, and how large it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Put {
    at_ms: u64,
    bytes: u64,
}

/// The objects that came in some time.
#[derive(Clone, Debug)]
pub(super) struct Added {
    from: u64,
    /// The slots of each log.
    logs: BTreeMap<String, Vec<Put>>,
    /// All else, by its folder in the vault.
    others: BTreeMap<String, u64>,
}

impl Added {
    fn walk(&mut self, folder: &Path, names: &mut Vec<String>, time: (u64, u64)) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("list {}", folder.display()))? {
            let entry = entry?;
            names.push(entry.file_name().to_string_lossy().into_owned());
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                self.walk(&entry.path(), names, time)?;
            } else {
                let at = metadata.modified()?.duration_since(UNIX_EPOCH)?;
                let at_ms = u64::try_from(at.as_millis())?;
                if (time.0..time.1).contains(&at_ms) {
                    self.note(names, Put { at_ms, bytes: metadata.len() });
                }
            }
            names.pop();
        }
        Ok(())
    }

    fn note(&mut self, names: &[String], put: Put) {
        match names {
            [logs, log, _slot] if logs == "logs" => {
                self.logs.entry(log.clone()).or_default().push(put);
            }
            [logs, _log, checkpoints, ..] if logs == "logs" => {
                *self.others.entry(checkpoints.clone()).or_default() += 1;
            }
            [first, ..] => *self.others.entry(first.clone()).or_default() += 1,
            [] => {}
        }
    }

    /// All slots.
    pub(super) fn slots(&self) -> usize {
        self.logs.values().map(Vec::len).sum()
    }

    /// How many logs there are.
    pub(super) fn logs(&self) -> usize {
        self.logs.len()
    }

    /// Objects of all kinds.
    pub(super) fn objects(&self) -> u64 {
        self.slots() as u64 + self.others.values().sum::<u64>()
    }

    /// Bytes of all slots.
    pub(super) fn bytes(&self) -> u64 {
        self.logs.values().flatten().map(|put| put.bytes).sum()
    }

    /// Slots in each minute, log by log.
    pub(super) fn by_minute(&self, minutes: u64) -> Vec<Vec<u64>> {
        let of_log = |puts: &Vec<Put>| {
            let in_minute = |minute: u64| {
                let is_in = |put: &&Put| (put.at_ms - self.from) / MINUTE_MS == minute;
                puts.iter().filter(is_in).count() as u64
            };
            (0..minutes).map(in_minute).collect()
        };
        self.logs.values().map(of_log).collect()
    }

    /// What came beside the slots, in words.
    pub(super) fn others_text(&self) -> String {
        let told = self.others.iter().map(|(folder, count)| format!("{count} in {folder}"));
        let told = told.collect::<Vec<_>>().join(", ");
        if told.is_empty() { "nothing beside the slots".to_owned() } else { told }
    }
}

#[cfg(test)]
/// What a run of a minute might have found: so many slots of so many bytes each, and so many other objects.
pub(super) fn example(slots: usize, bytes: u64, others: u64) -> (Found, Added) {
    let latency = Latency { count: 9, p50_ms: 1.0, p99_ms: 2.0, max_ms: 3.0 };
    let found = Found {
        counted_from_unix_ms: 0,
        counted_to_unix_ms: MINUTE_MS,
        connected: 1,
        reconnects: 0,
        committed_latency: latency,
    };
    let logs = BTreeMap::from([("a".to_owned(), vec![Put { at_ms: 5, bytes }; slots])]);
    let others = BTreeMap::from([("maps".to_owned(), others)]);
    (found, Added { from: 0, logs, others })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    fn put(vault: &Path, name: &str, at_ms: u64, bytes: usize) {
        let path = vault.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, vec![0; bytes]).unwrap();
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(at_ms);
        File::options().write(true).open(&path).unwrap().set_modified(at).unwrap();
    }

    #[test]
    fn what_came_in_the_time_is_counted_by_its_place_and_minute() {
        let folder = tempfile::tempdir().unwrap();
        let vault = folder.path();
        for (name, at_ms) in [
            ("logs/a/0000000000000000", 99_999),
            ("logs/a/0000000000000001", 100_000),
            ("logs/a/0000000000000002", 159_999),
            ("logs/a/0000000000000003", 160_000),
            ("logs/a/0000000000000004", 220_000),
            ("logs/a/checkpoints/0000000000000003", 170_000),
            ("logs/b/0000000000000000", 1000),
            ("maps/v/p/a", 170_000),
            ("vault", 170_000),
        ] {
            put(vault, name, at_ms, 10);
        }
        let logs = folders(&vault.join("logs")).unwrap();
        let logs = logs.into_iter().map(|log| (log, Vec::new())).collect();
        let mut added = Added { from: 100_000, logs, others: BTreeMap::new() };
        added.walk(vault, &mut Vec::new(), (100_000, 220_000)).unwrap();
        assert_eq!((added.logs(), added.slots(), added.bytes(), added.objects()), (2, 3, 30, 6));
        assert_eq!(added.by_minute(2), [vec![2, 1], vec![0, 0]]);
        assert_eq!(added.others_text(), "1 in checkpoints, 1 in maps, 1 in vault");
    }
}
