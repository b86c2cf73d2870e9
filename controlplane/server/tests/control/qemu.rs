//! A machine in the real QEMU, with a disk that qemu-nbd serves in place of the export.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::failover::until;
use crate::site::{DEADLINE, QEMU_NBD_EXPORT, Site, script};
use farshore_api::failover::{Failover, FailoverState};
use farshore_api::paths;
use serde_json::json;

fn is_installed(program: &str) -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).any(|dir| dir.join(program).is_file())
}

#[tokio::test]
async fn a_machine_runs_its_firmware_up_to_its_console() {
    let firmware = Path::new("/usr/share/ovmf/OVMF.fd");
    if !(is_installed("qemu-system-x86_64") && is_installed("qemu-nbd") && firmware.exists()) {
        eprintln!("not tried: it needs qemu-system-x86_64, qemu-nbd and OVMF");
        return;
    }
    let site = Site::start(QEMU_NBD_EXPORT).await;
    let bin = site.dir.path().join("bin");
    script(&bin.join("qemu"), "#!/bin/sh\nexec qemu-system-x86_64 \"$@\"\n");
    let disk = std::fs::File::create(bin.join("disk.raw")).unwrap();
    disk.set_len(64 << 20).unwrap();
    site.protect().await;
    let body = json!({ "kind": "drill", "memory_mib": 256, "cpus": 1 });
    let drill: Failover = site.post(&paths::machine_failovers("web"), body).await;
    let path = format!("{}?wait_ms=30000", paths::failover(drill.id));
    let drill: Failover = site.get(&path).await;
    assert_eq!(drill.state, FailoverState::Running, "{drill:?}");
    until_console_says(drill.console_path.as_deref().unwrap()).await;

    // Its export dies under it: the machine waits for the next one, and is not touched.
    crate::failover::kill(drill.export_pid);
    let back = until(&site, drill.id, |now| {
        now.state == FailoverState::Running && now.export_pid != drill.export_pid
    })
    .await;
    assert_eq!(back.machine_pid, drill.machine_pid);

    // It is killed: that is no shutdown.
    crate::failover::kill(back.machine_pid);
    let again = until(&site, drill.id, |now| {
        now.state == FailoverState::Running
            && now.machine_pid.is_some()
            && now.machine_pid != back.machine_pid
    })
    .await;
    assert!(!again.machine_is_down);
    until_console_says(again.console_path.as_deref().unwrap()).await;
    let _: Failover = site.post(&paths::failover_cleanup(drill.id), json!({})).await;
    until(&site, drill.id, |now| now.state == FailoverState::CleanedUp).await;
}

/// Waits until the firmware finds the disk, and nothing on it to boot.
async fn until_console_says(console: &str) {
    let deadline = Instant::now() + DEADLINE;
    loop {
        let said = std::fs::read(console).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        if said.contains("BdsDxe") && said.contains("PciRoot") {
            return;
        }
        assert!(Instant::now() < deadline, "the console says {said:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
