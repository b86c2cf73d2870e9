//! The server under the clients that people use: libnbd's tools, QEMU's, fio, and libnbd driven by a script.
#![allow(missing_docs, reason = "test code")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::{Context as _, ensure};
use farshore_nbd::{Address, Backend, Counters, Refusal, Server};
use serde_json::Value;
use support::{Memory, Running, Vast, until};
use tempfile::TempDir;

const INSTALL: &str =
    "apt-get install -y --no-install-recommends libnbd-bin python3-libnbd qemu-utils fio";
const MIB: u64 = 1 << 20;

/// Runs a tool beside the server and returns what it printed.
async fn run(tool: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new("timeout");
    command.arg("120").arg(tool).args(arguments);
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() != Some(127), "{tool} is missing; install it: {INSTALL}");
    ensure!(output.status.success(), "{tool} {arguments:?}: {}: {said}{complaint}", output.status);
    Ok(said)
}

async fn unix(directory: &TempDir, name: &str, memory: Memory) -> Running {
    let path = directory.path().join(format!("{name}.sock"));
    Running::start(Address::Unix(path), name, memory).await
}

/// Bytes that do not repeat, with holes of zeroes among them.
fn sparse_bytes(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = vec![0; length];
    for (index, block) in bytes.chunks_mut(65_536).enumerate() {
        if index % 3 == 1 {
            continue;
        }
        for word in block.chunks_exact_mut(8) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            word.copy_from_slice(&state.to_le_bytes());
        }
    }
    bytes
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are plain")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_of_any_size_is_copied_to_the_byte() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    for size in [1, 511, 512, 513, 4097, 1_048_575, (1 << 20) + 512] {
        let content: Vec<u8> = (0..size).map(|at| 1 + (at % 251) as u8).collect();
        let memory = Memory::new(size);
        memory.fill(0, &content);
        let server = Running::tcp(memory).await;
        let info: Value = serde_json::from_str(&run("nbdinfo", &["--json", &server.uri]).await?)?;
        let export = &info["exports"][0];
        assert_eq!(export["export-size"], size);
        let grid = if size % 512 == 0 { 512 } else { 1 };
        assert_eq!(export["block_size_minimum"], grid, "{size}");
        let file = directory.path().join(format!("{size}.raw"));
        let path = file.to_str().context("a path")?;
        run("nbdcopy", &[&server.uri, path]).await?;
        assert!(fs::read(&file)? == content, "{size} bytes read");
        let other = Running::tcp(Memory::new(size)).await;
        run("nbdcopy", &[path, &other.uri]).await?;
        assert!(other.memory.bytes() == content, "{size} bytes written");
        // QEMU counts in sectors of 512 bytes: it sees the rest of the last one as zeros.
        let image = directory.path().join(format!("{size}.qemu"));
        let path = image.to_str().context("a path")?;
        let convert = ["convert", "-f", "raw", "-O", "raw", &server.uri, path];
        run("qemu-img", &convert).await?;
        let mut found = fs::read(&image)?;
        assert_eq!(found.len() as u64, size.next_multiple_of(512), "{size}");
        let behind = found.split_off(content.len());
        assert!(found == content && behind.iter().all(|byte| *byte == 0), "{size} bytes by QEMU");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_sees_what_is_served() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let memory = Memory::new(8 * MIB);
    memory.fill(4096, &[1; 8192]);
    memory.fill(2 << 20, &[2; 1 << 20]);
    for server in
        [unix(&directory, "web 01", memory).await, Running::tcp(Memory::new(8 * MIB)).await]
    {
        let info: Value = serde_json::from_str(&run("nbdinfo", &["--json", &server.uri]).await?)?;
        assert_eq!(info["protocol"], "newstyle-fixed");
        assert_eq!(info["TLS"], false);
        assert_eq!(info["structured"], true);
        let export = &info["exports"][0];
        assert_eq!(export["export-size"], 8 * MIB);
        assert_eq!(export["is_read_only"], false);
        for can in ["cache", "df", "fast_zero", "flush", "fua", "multi_conn", "trim", "zero"] {
            assert_eq!(export[format!("can_{can}")], true, "{can} in {info:#}");
        }
        assert_eq!(export["block_size_minimum"], 512);
        assert_eq!(export["block_size_preferred"], 4096);
        assert_eq!(export["block_size_maximum"], 32 * MIB);
        assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
        let listed: Value =
            serde_json::from_str(&run("nbdinfo", &["--list", "--json", &server.uri]).await?)?;
        let name = if server.uri.starts_with("nbd+unix") { "web 01" } else { "disk" };
        assert_eq!(listed["exports"][0]["export-name"], name);
        if name == "web 01" {
            let map: Value =
                serde_json::from_str(&run("nbdinfo", &["--map", "--json", &server.uri]).await?)?;
            let extents: Vec<(u64, u64, u64)> = map
                .as_array()
                .context("a list")?
                .iter()
                .map(|e| ["offset", "length", "type"].map(|key| e[key].as_u64().expect(key)))
                .map(|[offset, length, kind]| (offset, length, kind))
                .collect();
            let expected = [
                (0, 4096, 3),
                (4096, 8192, 0),
                (12_288, 2 * MIB - 12_288, 3),
                (2 * MIB, MIB, 0),
                (3 * MIB, 5 * MIB, 3),
            ];
            assert_eq!(extents, expected);
        }
        server.stop().await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdinfo_sees_a_read_only_disk() -> anyhow::Result<()> {
    let server = Running::tcp(Memory::new(MIB).read_only()).await;
    let info: Value = serde_json::from_str(&run("nbdinfo", &["--json", &server.uri]).await?)?;
    let export = &info["exports"][0];
    assert_eq!(export["is_read_only"], true);
    for can in ["fast_zero", "trim", "zero"] {
        assert_eq!(export[format!("can_{can}")], false, "{can}");
    }
    server.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nbdcopy_brings_back_what_it_took() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let server = unix(&directory, "disk", Memory::new(64 * MIB)).await;
    let (source, copy) = (directory.path().join("source"), directory.path().join("copy"));
    let bytes = sparse_bytes(64 << 20);
    fs::write(&source, &bytes)?;
    run("nbdcopy", &["--flush", "--threads=4", "--connections=4", text(&source), &server.uri])
        .await?;
    assert!(server.memory.bytes() == bytes, "the disk differs from what was copied in");
    assert!(server.memory.flushes.load(Ordering::SeqCst) > 0);
    // What was zero was not sent as data.
    assert!(server.memory.allocated_blocks() < 12_000, "{}", server.memory.allocated_blocks());
    run("nbdcopy", &["--threads=4", "--connections=4", &server.uri, text(&copy)]).await?;
    assert!(fs::read(&copy)? == bytes, "the copy differs from the disk");
    assert!(server.counters.connections.load(Ordering::Relaxed) >= 8);
    let open = || server.counters.connections_open.load(Ordering::Relaxed);
    until("connections close", || open() == 0).await;
    for refusal in Refusal::ALL {
        let is_probe = refusal == Refusal::OptionUnsupported;
        assert!(is_probe || server.counters.refused(refusal) == 0, "{refusal:?}");
    }
    server.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_io_verifies_the_patterns_it_writes() -> anyhow::Result<()> {
    let server = Running::tcp(Memory::new(16 * MIB)).await;
    let commands = [
        "write -P 0xaa 0 1M",
        "write -f -P 0xbb 4096 4096",
        // Not on the grid of 512: QEMU reads, changes and writes back.
        "write -P 0xcc 1000001 7",
        "aio_write -P 0x11 2M 1M",
        "aio_write -P 0x22 3M 1M",
        "aio_flush",
        "write -z 4M 1M",
        "write -z -u 5M 1M",
        "discard 6M 1M",
        "flush",
        "read -P 0xaa 0 4096",
        "read -P 0xbb 4096 4096",
        "read -P 0xcc 1000001 7",
        "read -P 0xaa 1000008 40000",
        "read -P 0x11 2M 1M",
        "read -P 0x22 3M 1M",
        "read -P 0 4M 2M",
    ];
    let mut arguments = vec!["-f", "raw"];
    commands.iter().for_each(|command| arguments.extend(["-c", command]));
    arguments.push(&server.uri);
    let said = run("qemu-io", &arguments).await?;
    assert!(!said.contains("fail") && !said.contains("error"), "{said}");
    assert!(server.memory.durable_writes.load(Ordering::SeqCst) > 0);
    assert_eq!(server.memory.bytes()[1_000_001..1_000_008], [0xcc; 7]);
    server.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn qemu_img_converts_compares_and_maps() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let server = unix(&directory, "disk", Memory::new(16 * MIB)).await;
    let source = directory.path().join("source");
    fs::write(&source, sparse_bytes(16 << 20))?;
    let uri = server.uri.as_str();
    let convert = ["convert", "-n", "-f", "raw", "-O", "raw", text(&source), uri];
    run("qemu-img", &convert).await?;
    let same = run("qemu-img", &["compare", "-f", "raw", "-F", "raw", text(&source), uri]).await?;
    assert!(same.contains("Images are identical"), "{same}");
    let map = run("qemu-img", &["map", "--output=json", "-f", "raw", uri]).await?;
    let map: Vec<Value> = serde_json::from_str(&map)?;
    let holes: Vec<u64> = map
        .iter()
        .filter(|extent| extent["zero"] == true)
        .map(|extent| extent["start"].as_u64().expect("a number"))
        .collect();
    let expected: Vec<u64> = (0..256).filter(|n| n % 3 == 1).map(|n| n * 65_536).collect();
    assert_eq!(holes, expected);
    let listed =
        run("qemu-nbd", &["--list", "-k", text(&directory.path().join("disk.sock"))]).await?;
    assert!(listed.contains("'disk'") && listed.contains("base:allocation"), "{listed}");
    server.stop().await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn fio_verifies_what_it_wrote() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let server = unix(&directory, "disk", Memory::new(64 * MIB)).await;
    let uri = format!("--uri={}", server.uri);
    let arguments = [
        "--name=verify",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bsrange=512-128k",
        "--blockalign=512",
        "--size=64M",
        "--iodepth=64",
        "--fsync=100",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--randseed=7",
        "--output-format=json",
    ];
    let said = run("fio", &arguments).await?;
    let json = &said[said.find('{').context("a report")?..];
    let report: Value = serde_json::from_str(json)?;
    assert_eq!(report["jobs"][0]["error"], 0);
    assert!(report["jobs"][0]["read"]["total_ios"].as_u64() > Some(500), "{report:#}");
    assert!(server.memory.flushes.load(Ordering::SeqCst) > 0);
    server.stop().await;
    Ok(())
}

/// Runs the script over a disk of a kind; returns how many cases it went through.
async fn edges<B: Backend>(kind: &str, backend: Arc<B>) -> anyhow::Result<(usize, Arc<Counters>)> {
    // Where a module that is not there would look like any other failed script.
    let module = run("/usr/bin/python3", &["-c", "import nbd"]).await;
    module.with_context(|| format!("python3's nbd module is missing; install it: {INSTALL}"))?;
    let directory = tempfile::tempdir()?;
    let address = Address::Unix(directory.path().join("disk.sock"));
    let server = Server::bind(&address, "disk", backend).await?;
    let (uri, counters) = (server.uri(), server.counters());
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let serving = tokio::spawn(server.serve(async { drop(stopped.await) }));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/edges.py");
    let said = run("/usr/bin/python3", &[script, kind, &uri]).await?;
    drop(stop);
    serving.await?;
    assert_eq!(counters.connections_open.load(Ordering::Relaxed), 0);
    let ok = said.lines().filter(|line| line.starts_with("ok ")).count();
    assert_eq!(said.lines().count(), ok, "{said}");
    Ok((ok, counters))
}

fn were_counted(counters: &Counters, refusals: &[Refusal]) {
    for refusal in refusals {
        assert!(counters.refused(*refusal) > 0, "{refusal:?}");
    }
}

/// N3: every edge of the protocol that libnbd can reach, each refused by its name or done right.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libnbd_finds_every_edge_of_a_plain_disk() -> anyhow::Result<()> {
    let memory = Arc::new(Memory::new(4 * MIB));
    let (cases, counters) = edges("plain", Arc::clone(&memory)).await?;
    assert_eq!(cases, 23);
    were_counted(
        &counters,
        &[
            Refusal::ReadPastEnd,
            Refusal::WritePastEnd,
            Refusal::FlagUnknown,
            Refusal::Misaligned,
            Refusal::ZeroingNotFast,
            Refusal::StatusNotAgreed,
            Refusal::ExportUnknown,
            Refusal::ConnectionsTooMany,
            Refusal::CutShort,
        ],
    );
    assert!(memory.flushes.load(Ordering::SeqCst) > 0);
    assert!(memory.durable_writes.load(Ordering::SeqCst) > 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libnbd_finds_every_edge_of_a_read_only_disk() -> anyhow::Result<()> {
    let memory = Memory::new(4 * MIB).read_only();
    memory.fill(0, &[0x5e; 4 << 20]);
    let (cases, counters) = edges("sealed", Arc::new(memory)).await?;
    assert_eq!(cases, 3);
    were_counted(&counters, &[Refusal::ReadOnly]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libnbd_finds_every_edge_of_a_disk_that_zeroes_fast() -> anyhow::Result<()> {
    let mut memory = Memory::new(4 * MIB);
    memory.fast_zero = true;
    let (cases, counters) = edges("quick", Arc::new(memory)).await?;
    assert_eq!(cases, 2);
    assert_eq!(counters.refused(Refusal::ZeroingNotFast), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn libnbd_finds_every_edge_of_a_vast_disk() -> anyhow::Result<()> {
    let (cases, counters) = edges("vast", Arc::new(Vast)).await?;
    assert_eq!(cases, 6);
    were_counted(&counters, &[Refusal::ReadTooLong, Refusal::WriteTooLong, Refusal::ReadPastEnd]);
    Ok(())
}
