//! A machine in the real QEMU, with a disk that qemu-nbd serves in place of the export.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::failover::until;
use crate::site::{DEADLINE, QEMU_NBD_EXPORT, Site};
use farshore_api::failover::{Failover, FailoverState};
use farshore_api::paths;
use farshore_control::settings::Settings;
use serde_json::json;

const QEMU: &str = "qemu-system-x86_64";

fn is_installed(program: &str) -> bool {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&dirs).any(|dir| dir.join(program).is_file())
}

/// What the kernel says of a process.
fn status(pid: Option<u32>, field: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{}/status", pid.unwrap())).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().split_whitespace().next().unwrap().to_owned()
}

#[tokio::test]
async fn a_machine_runs_its_firmware_up_to_its_console() {
    runs_up_to_its_console(None, |settings| settings.qemu_program = QEMU.into()).await;
}

#[tokio::test]
async fn a_machine_runs_as_a_user_who_has_nothing_but_what_was_handed_to_it() {
    if !rustix::process::geteuid().is_root() {
        println!("not tried: only root can run machines as somebody else");
        return;
    }
    let change = |settings: &mut Settings| {
        settings.qemu_program = QEMU.into();
        settings.guest_user = Some("nobody".into());
    };
    runs_up_to_its_console(Some("nobody"), change).await;
}

async fn runs_up_to_its_console(user: Option<&str>, change: fn(&mut Settings)) {
    let firmware = Path::new("/usr/share/ovmf/OVMF.fd");
    if !(is_installed(QEMU) && is_installed("qemu-nbd") && firmware.exists()) {
        println!("not tried: it needs qemu-system-x86_64, qemu-nbd and OVMF");
        return;
    }
    let site = Site::start_with(QEMU_NBD_EXPORT, change).await;
    let bin = site.dir.path().join("bin");
    // Where another user cannot look.
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(site.dir.path(), private).unwrap();
    let disk = std::fs::File::create(bin.join("disk.raw")).unwrap();
    disk.set_len(64 << 20).unwrap();
    site.protect().await;
    let body = json!({ "kind": "drill", "memory_mib": 256, "cpus": 1 });
    let drill: Failover = site.post(&paths::machine_failovers("web"), body).await;
    let path = format!("{}?wait_ms=30000", paths::failover(drill.id));
    let drill: Failover = site.get(&path).await;
    assert_eq!(drill.state, FailoverState::Running, "{drill:?}");
    until_console_says(drill.console_path.as_deref().unwrap()).await;
    // There is nothing on its disk: that is said for as long as it is so.
    let told = until(&site, drill.id, |now| now.detail.contains("only its firmware")).await;
    assert_eq!(told.state, FailoverState::Running, "{told:?}");
    let of = |field| status(drill.machine_pid, field);
    assert_eq!((of("NoNewPrivs"), of("Seccomp")), ("1".into(), "2".into()), "in the sandbox");
    let ours = status(Some(std::process::id()), "Uid");
    assert_eq!(of("Uid") == ours, user.is_none());
    assert!(user.is_none() || of("CapPrm") == "0000000000000000", "{}", of("CapPrm"));

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
