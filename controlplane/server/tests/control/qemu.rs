//! A machine in the real QEMU, with a disk that qemu-nbd serves in place of the export.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::failover::{until, until_within};
use crate::site::{DEADLINE, QEMU_NBD_EXPORT, Site};
use farshore_api::failover::{Failover, FailoverState};
use farshore_api::paths;
use farshore_control::settings::Settings;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

const QEMU: &str = "qemu-system-x86_64";

const SEABIOS: &str = "/usr/share/seabios";

/// A system in a boot sector: looks at the first byte of sector 1 until it is not zero, reads 2 MiB, and says U.
#[rustfmt::skip]
const SYSTEM: [u8; 0x57] = [
    0x31, 0xc0,                   // xor ax, ax
    0x8e, 0xd8,                   // mov ds, ax
    0x8e, 0xc0,                   // mov es, ax
    0x8e, 0xd0,                   // mov ss, ax
    0xbc, 0x00, 0x7c,             // mov sp, 0x7c00
    0xfb,                         // sti
    0xf4,                         // poll: hlt
    0xbe, 0x37, 0x7c,             // mov si, one
    0xe8, 0x1d, 0x00,             // call read
    0x80, 0x3e, 0x00, 0x80, 0x00, // cmp byte [0x8000], 0
    0x74, 0xf2,                   // je poll
    0xb9, 0x40, 0x00,             // mov cx, 64
    0x51,                         // more: push cx
    0xbe, 0x47, 0x7c,             // mov si, many
    0xe8, 0x0c, 0x00,             // call read
    0x59,                         // pop cx
    0xe2, 0xf6,                   // loop more
    0xba, 0xf8, 0x03,             // mov dx, 0x3f8
    0xb0, b'U',                   // mov al, 'U'
    0xee,                         // out dx, al
    0xf4,                         // stop: hlt
    0xeb, 0xfd,                   // jmp stop
    0xb4, 0x42,                   // read: mov ah, 0x42
    0xb2, 0x80,                   // mov dl, 0x80
    0xcd, 0x13,                   // int 0x13
    0xc3,                         // ret
    16, 0, 1, 0, 0, 0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, // one: a sector, to 0x8000, from sector 1
    16, 0, 64, 0, 0, 0, 0, 0x10, 64, 0, 0, 0, 0, 0, 0, 0, // many: 64 sectors, to 0x10000
];

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

/// Its programs are all installed, or that is said.
fn can_run(firmware: &str) -> bool {
    let can = is_installed(QEMU) && is_installed("qemu-nbd") && Path::new(firmware).exists();
    if !can {
        println!("not tried: it needs qemu-system-x86_64, qemu-nbd and {firmware}");
    }
    can
}

/// A machine with an empty disk, and what is said of it; none where it cannot run.
async fn in_its_firmware() -> Option<(Site, Failover)> {
    if !can_run("/usr/share/ovmf/OVMF.fd") {
        return None;
    }
    let site =
        Site::start_with(QEMU_NBD_EXPORT, |settings| settings.qemu_program = QEMU.into()).await;
    disk(&site);
    site.protect().await;
    let body = json!({ "kind": "drill", "memory_mib": 256, "cpus": 1 });
    let started: Failover = site.post(&paths::machine_failovers("web"), body).await;
    let told = until(&site, started.id, |now| now.detail.contains("only its firmware")).await;
    Some((site, told))
}

/// H32: firmware that finds nothing to boot is no server, however long it is left alone.
#[tokio::test]
async fn a_machine_with_nothing_to_boot_does_not_run() {
    let Some((site, told)) = in_its_firmware().await else { return };
    assert_eq!(told.state, FailoverState::Booting, "{told:?}");
    until_console_says(&told, |said| said.contains("BdsDxe") && said.contains("PciRoot")).await;

    // Its export dies: what came up is brought back, and does not run for that.
    crate::failover::kill(told.export_pid);
    let back = until(&site, told.id, |now| {
        now.export_pid.is_some()
            && now.export_pid != told.export_pid
            && now.detail.contains("only its firmware")
    })
    .await;
    assert_eq!((back.state, back.machine_pid), (FailoverState::Recovering, told.machine_pid));
    let _: Failover = site.post(&paths::failover_cleanup(told.id), json!({})).await;
    until(&site, told.id, |now| now.state == FailoverState::CleanedUp).await;
}

#[tokio::test]
async fn a_machine_runs_once_its_system_was_read() {
    boots_its_system(None, |settings| {
        settings.qemu_program = QEMU.into();
        settings.firmware_dir = Some(SEABIOS.into());
    })
    .await;
}

#[tokio::test]
async fn a_machine_runs_as_a_user_who_has_nothing_but_what_was_handed_to_it() {
    if !rustix::process::geteuid().is_root() {
        println!("not tried: only root can run machines as somebody else");
        return;
    }
    let change = |settings: &mut Settings| {
        settings.qemu_program = QEMU.into();
        settings.firmware_dir = Some(SEABIOS.into());
        settings.guest_user = Some("nobody".into());
    };
    boots_its_system(Some("nobody"), change).await;
}

/// P24: one that was seen in its firmware may have booted since, however long it is not seen.
#[tokio::test]
async fn a_machine_in_its_firmware_is_not_ended_because_it_is_silent() {
    let Some((site, told)) = in_its_firmware().await else { return };
    let machine = Pid::from_raw(told.machine_pid.unwrap().try_into().unwrap()).unwrap();
    kill_process(machine, Signal::STOP).unwrap();
    let long = Duration::from_secs(180);
    let silent = until_within(long, &site, told.id, |now| now.detail.contains("for 60 s"));
    let silent = silent.await;
    kill_process(machine, Signal::CONT).unwrap();
    assert_eq!((silent.state, silent.machine_pid), (FailoverState::Booting, told.machine_pid));
    let again = until(&site, told.id, |now| now.detail.contains("only its firmware")).await;
    assert_eq!(again.machine_pid, told.machine_pid, "{again:?}");
    let _: Failover = site.post(&paths::failover_cleanup(told.id), json!({})).await;
    let ended = until(&site, told.id, |now| now.state == FailoverState::CleanedUp).await;
    assert_eq!(ended.detail, "", "what was said for now is over");
}

/// An empty disk.
fn disk(site: &Site) -> std::fs::File {
    let disk = std::fs::File::create(site.dir.path().join("bin/disk.raw")).unwrap();
    disk.set_len(64 << 20).unwrap();
    disk
}

async fn boots_its_system(user: Option<&str>, change: fn(&mut Settings)) {
    let firmware = format!("{SEABIOS}/bios-256k.bin");
    if !can_run(&firmware) {
        return;
    }
    let site = Site::start_with(QEMU_NBD_EXPORT, change).await;
    // Where another user cannot look.
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(site.dir.path(), private).unwrap();
    let disk = disk(&site);
    let sector = [SYSTEM.as_slice(), &[0; 510 - SYSTEM.len()], &[0x55, 0xaa]].concat();
    disk.write_all_at(&sector, 0).unwrap();
    site.protect().await;
    let body = json!({ "kind": "drill", "memory_mib": 256, "cpus": 1, "firmware": firmware });
    let drill: Failover = site.post(&paths::machine_failovers("web"), body).await;
    let told = until(&site, drill.id, |now| now.detail.contains("only its firmware")).await;
    assert_eq!(told.state, FailoverState::Booting, "its system waits: {told:?}");
    disk.write_all_at(b"go", 512).unwrap();
    let drill = until(&site, drill.id, |now| now.state == FailoverState::Running).await;
    assert_eq!(drill.detail, "", "what was said for now is over");
    until_console_says(&drill, |said| said.ends_with('U')).await;
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
    until_console_says(&again, |said| said.ends_with('U')).await;
    let _: Failover = site.post(&paths::failover_cleanup(drill.id), json!({})).await;
    until(&site, drill.id, |now| now.state == FailoverState::CleanedUp).await;
}

/// Waits until the console has said something.
async fn until_console_says(failover: &Failover, is: impl Fn(&str) -> bool) {
    let console = failover.console_path.as_deref().unwrap();
    let deadline = Instant::now() + DEADLINE;
    loop {
        let said = std::fs::read(console).unwrap_or_default();
        let said = String::from_utf8_lossy(&said);
        if is(&said) {
            return;
        }
        assert!(Instant::now() < deadline, "the console says {said:?}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
