//! QEMU's control socket: QMP, one JSON object a line.
//!
//! Only what a failover needs: in which state the machine is, whether its disk had an error, whether
//! its processors do anything, what it did with its disk, and to let it go on.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use super::ProviderError;

/// How long QEMU may take to answer: it answers at once, unless it or its host hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Longest line that is taken; answers to what is asked here have some hundred bytes a disk.
const LINE_BYTES_MAX: u64 = 1 << 20;

/// Most events that are passed over while an answer is waited for.
const EVENTS_MAX: usize = 10_000;

/// In which state QEMU says its machine is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Its processors run.
    Running,
    /// Its disk had an error: it stands still, and goes on when told.
    DiskError,
    /// It has shut itself down.
    ShutDown,
    /// Its processor came to an error that it cannot go on from.
    Broken,
    /// It stands still for another reason, or is not yet or no more running.
    Other,
}

/// What a machine did with its disk since it was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    /// Bytes read.
    pub read_bytes: u64,
    /// Bytes written.
    pub written_bytes: u64,
}

/// An open control socket.
#[derive(Debug)]
pub struct Qmp {
    socket: PathBuf,
    reader: BufReader<OwnedReadHalf>,
    writer: OwnedWriteHalf,
}

impl Qmp {
    /// Connects and greets. QEMU takes one connection at a time.
    ///
    /// # Errors
    /// `Control`.
    pub async fn connect(socket: &Path) -> Result<Self, ProviderError> {
        let error = |source| control(socket, source);
        let connect = tokio::time::timeout(ANSWER_TIMEOUT, UnixStream::connect(socket));
        let stream = connect.await.map_err(|_| error(timed_out()))?.map_err(error)?;
        let (reader, writer) = stream.into_split();
        let mut qmp = Self { socket: socket.to_owned(), reader: BufReader::new(reader), writer };
        qmp.line().await?;
        qmp.ask("qmp_capabilities").await?;
        Ok(qmp)
    }

    /// In which state the machine is.
    ///
    /// # Errors
    /// `Control`.
    pub async fn status(&mut self) -> Result<Status, ProviderError> {
        let answer = self.ask("query-status").await?;
        Ok(match answer["status"].as_str().unwrap_or_default() {
            "running" => Status::Running,
            "io-error" => Status::DiskError,
            "shutdown" => Status::ShutDown,
            "internal-error" => Status::Broken,
            _ => Status::Other,
        })
    }

    /// Whether the last error of a disk was that it has no room.
    ///
    /// # Errors
    /// `Control`.
    pub async fn is_out_of_space(&mut self) -> Result<bool, ProviderError> {
        let disks = self.ask("query-block").await?;
        let mut disks = disks.as_array().into_iter().flatten();
        Ok(disks.any(|disk| disk["io-status"] == "nospace"))
    }

    /// The threads that run the machine's processors.
    ///
    /// # Errors
    /// `Control`.
    pub async fn processors(&mut self) -> Result<Vec<u64>, ProviderError> {
        let processors = self.ask("query-cpus-fast").await?;
        let processors = processors.as_array().into_iter().flatten();
        Ok(processors.filter_map(|processor| processor["thread-id"].as_u64()).collect())
    }

    /// What the machine did with its disk; none if QEMU does not say.
    ///
    /// # Errors
    /// `Control`.
    pub async fn disk_use(&mut self) -> Result<Option<DiskUse>, ProviderError> {
        let devices = self.ask("query-blockstats").await?;
        // The others are its firmware's.
        let is_disk = |device: &&Value| {
            device["device"].as_str().is_some_and(|name| name.starts_with("virtio"))
        };
        let disk = devices.as_array().into_iter().flatten().find(is_disk);
        Ok(disk.and_then(|disk| {
            let of = |name: &str| disk["stats"][name].as_u64();
            Some(DiskUse { read_bytes: of("rd_bytes")?, written_bytes: of("wr_bytes")? })
        }))
    }

    /// Lets a machine go on that stands still; what its disk failed at is tried again.
    ///
    /// # Errors
    /// `Control`.
    pub async fn go_on(&mut self) -> Result<(), ProviderError> {
        self.ask("cont").await.map(drop)
    }

    async fn ask(&mut self, command: &str) -> Result<Value, ProviderError> {
        // One limit for all of it: events may come for ever.
        match tokio::time::timeout(ANSWER_TIMEOUT, self.exchange(command)).await {
            Ok(answer) => answer,
            Err(_) => Err(control(&self.socket, timed_out())),
        }
    }

    async fn exchange(&mut self, command: &str) -> Result<Value, ProviderError> {
        let line = format!("{}\n", json!({ "execute": command }));
        let said = self.writer.write_all(line.as_bytes()).await;
        said.map_err(|source| control(&self.socket, source))?;
        for _ in 0..EVENTS_MAX {
            let mut answer = self.line().await?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                let why = error["desc"].as_str().unwrap_or("it gives no reason");
                let why = format!("it refuses {command}: {why}");
                return Err(control(&self.socket, io::Error::other(why)));
            }
        }
        Err(control(&self.socket, io::Error::other("it only tells events")))
    }

    async fn line(&mut self) -> Result<Value, ProviderError> {
        let mut line = Vec::new();
        let mut limited = (&mut self.reader).take(LINE_BYTES_MAX);
        let read = tokio::time::timeout(ANSWER_TIMEOUT, limited.read_until(b'\n', &mut line));
        let count = read
            .await
            .map_err(|_| control(&self.socket, timed_out()))?
            .map_err(|source| control(&self.socket, source))?;
        if count == 0 {
            return Err(control(&self.socket, io::ErrorKind::UnexpectedEof.into()));
        }
        serde_json::from_slice(&line).map_err(|error| control(&self.socket, error.into()))
    }
}

fn control(socket: &Path, source: io::Error) -> ProviderError {
    ProviderError::Control { socket: socket.to_owned(), source }
}

fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    /// A QEMU that says these lines, one for each line that it is told after its greeting.
    async fn qemu(
        lines: &'static [&'static str],
    ) -> (tempfile::TempDir, Result<Qmp, ProviderError>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("qmp.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"{\"QMP\": {}}\n").await.unwrap();
            let (reader, mut writer) = stream.split();
            let mut told = BufReader::new(reader).lines();
            for said in lines {
                if told.next_line().await.unwrap().is_none() {
                    return;
                }
                writer.write_all(said.as_bytes()).await.unwrap();
            }
        });
        let qmp = Qmp::connect(&socket).await;
        (dir, qmp)
    }

    #[tokio::test]
    async fn events_are_passed_over_and_states_are_read() {
        let (_dir, qmp) = qemu(&[
            "{\"return\": {}}\n",
            "{\"event\": \"BLOCK_IO_ERROR\"}\n{\"return\": {\"status\": \"io-error\"}}\n",
            "{\"return\": [{\"io-status\": \"nospace\"}]}\n",
            "{\"return\": [{\"thread-id\": 7}]}\n",
            "{\"error\": {\"desc\": \"no such thing\"}}\n",
        ])
        .await;
        let mut qmp = qmp.unwrap();
        assert_eq!(qmp.status().await.unwrap(), Status::DiskError);
        assert!(qmp.is_out_of_space().await.unwrap());
        assert_eq!(qmp.processors().await.unwrap(), [7]);
        let refused = qmp.go_on().await.unwrap_err();
        assert!(refused.to_string().contains("refuses cont: no such thing"), "{refused}");
        assert!(qmp.status().await.is_err(), "it hung up");
    }

    #[tokio::test]
    async fn whatever_is_said_in_place_of_an_answer_is_an_error() {
        for said in [&["gibberish\n"][..], &["[]"], &[]] {
            let (_dir, qmp) = qemu(said).await;
            assert!(matches!(qmp, Err(ProviderError::Control { .. })), "{said:?}");
        }
        let nowhere = Qmp::connect(Path::new("/nowhere/qmp.sock")).await.unwrap_err();
        assert!(nowhere.to_string().contains("/nowhere/qmp.sock"), "{nowhere}");
    }
}
