//! A guest that is real and small: one boot sector, which reboots once, waits until it may go on, and then
//! writes more than its overlay has room for.
//!
//! It is what these lines assemble to (`as --32`, `ld -m elf_i386 -Ttext 0x7c00 --oformat binary`):
//!
//! ```text
//! .code16
//! .globl _start
//! _start:
//!     cli
//!     xor %ax, %ax
//!     mov %ax, %ds
//!     mov %ax, %es
//!     mov %ax, %ss
//!     mov $0x7c00, %sp
//!     sti
//!     mov %dl, drive
//!     # how often it has begun stands in sector 8
//!     mov $0x42, %ah
//!     call disk
//!     incb 0x8000
//!     mov $0x43, %ah
//!     call disk
//!     mov $boot, %si
//!     call say
//!     mov 0x8000, %al
//!     add $'0', %al
//!     call put
//!     mov $'\n', %al
//!     call put
//!     cmpb $1, 0x8000
//!     jne fill
//!     # the first time it begins again
//!     mov $0xcf9, %dx
//!     mov $6, %al
//!     out %al, %dx
//! 1:  hlt
//!     jmp 1b
//! fill:
//!     # goes on when sector 16 says so
//!     movw $16, lba
//! 5:  hlt
//!     mov $0x42, %ah
//!     call disk
//!     cmpb $0, 0x8000
//!     je 5b
//!     # something to write
//!     mov $0x8200, %di
//!     mov $0x3f00, %cx
//!     mov $0x4242, %ax
//!     rep stosw
//!     # 1,024 times 64 sectors from sector 2048 on
//!     movw $64, count
//!     movw $2048, lba
//!     mov $1024, %cx
//! 2:  push %cx
//!     mov $0x43, %ah
//!     call disk
//!     pop %cx
//!     addw $64, lba
//!     adcw $0, lba+2
//!     loop 2b
//!     mov $done, %si
//!     call say
//! 3:  hlt
//!     jmp 3b
//! # reads (0x42) or writes (0x43) what the packet says, until that works
//! disk:
//!     push %ax
//!     xor %al, %al
//!     mov drive, %dl
//!     mov $packet, %si
//!     int $0x13
//!     pop %ax
//!     jc disk
//!     ret
//! say:
//!     lodsb
//!     test %al, %al
//!     jz 4f
//!     call put
//!     jmp say
//! 4:  ret
//! put:
//!     mov $0x3f8, %dx
//!     out %al, %dx
//!     ret
//! drive: .byte 0
//! packet:
//!     .byte 16, 0
//! count: .word 1
//!     .word 0x8000, 0
//! lba: .long 8, 0
//! boot: .asciz "boot "
//! done: .asciz "done\n"
//!     .org 510
//!     .word 0xaa55
//! ```

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use farshore_e2e::image::{Content, MIB};
use farshore_e2e::nbd::Client;
use farshore_e2e::{Machine, Setting, System, run_with, wait};
use serde_json::Value;

#[rustfmt::skip]
const GUEST: [u8; 200] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb, 0x88,
    0x16, 0xab, 0x7c, 0xb4, 0x42, 0xe8, 0x75, 0x00, 0xfe, 0x06, 0x00, 0x80, 0xb4, 0x43,
    0xe8, 0x6c, 0x00, 0xbe, 0xbc, 0x7c, 0xe8, 0x76, 0x00, 0xa0, 0x00, 0x80, 0x04, 0x30,
    0xe8, 0x79, 0x00, 0xb0, 0x0a, 0xe8, 0x74, 0x00, 0x80, 0x3e, 0x00, 0x80, 0x01, 0x75,
    0x09, 0xba, 0xf9, 0x0c, 0xb0, 0x06, 0xee, 0xf4, 0xeb, 0xfd, 0xc7, 0x06, 0xb4, 0x7c,
    0x10, 0x00, 0xf4, 0xb4, 0x42, 0xe8, 0x3d, 0x00, 0x80, 0x3e, 0x00, 0x80, 0x00, 0x74,
    0xf3, 0xbf, 0x00, 0x82, 0xb9, 0x00, 0x3f, 0xb8, 0x42, 0x42, 0xf3, 0xab, 0xc7, 0x06,
    0xae, 0x7c, 0x40, 0x00, 0xc7, 0x06, 0xb4, 0x7c, 0x00, 0x08, 0xb9, 0x00, 0x04, 0x51,
    0xb4, 0x43, 0xe8, 0x16, 0x00, 0x59, 0x83, 0x06, 0xb4, 0x7c, 0x40, 0x83, 0x16, 0xb6,
    0x7c, 0x00, 0xe2, 0xed, 0xbe, 0xc2, 0x7c, 0xe8, 0x13, 0x00, 0xf4, 0xeb, 0xfd, 0x50,
    0x30, 0xc0, 0x8a, 0x16, 0xab, 0x7c, 0xbe, 0xac, 0x7c, 0xcd, 0x13, 0x58, 0x72, 0xf1,
    0xc3, 0xac, 0x84, 0xc0, 0x74, 0x05, 0xe8, 0x03, 0x00, 0xeb, 0xf6, 0xc3, 0xba, 0xf8,
    0x03, 0xee, 0xc3, 0x00, 0x10, 0x00, 0x01, 0x00, 0x00, 0x80, 0x00, 0x00, 0x08, 0x00,
    0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0x62, 0x6f, 0x6f, 0x74, 0x20, 0x00, 0x64, 0x6f,
    0x6e, 0x65, 0x0a, 0x00,
];

const QEMU: &str = "/usr/bin/qemu-system-x86_64";
/// Debian's package `seabios`, on which `qemu-system-x86` depends.
const FIRMWARE_DIR: &str = "/usr/share/seabios";
const FIRMWARE: &str = "/usr/share/seabios/bios-256k.bin";
const LIMIT: Duration = Duration::from_secs(120);

/// A file system in memory, away when dropped.
struct Room<'a>(&'a Path);

impl<'a> Room<'a> {
    /// None, with the reason told, where none can be mounted.
    fn of(path: &'a Path, size: &str) -> Option<Self> {
        let options = format!("size={size},mode=700");
        let mounted = command("mount", &["-t", "tmpfs", "-o", &options, "farshore-e2e"], path);
        if !mounted {
            println!("a full overlay is not tried: no file system can be mounted here");
        }
        mounted.then_some(Self(path))
    }

    fn grow(&self, size: &str) -> Result<()> {
        let options = format!("remount,size={size}");
        ensure!(command("mount", &["-o", &options], self.0), "the file system does not grow");
        Ok(())
    }
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        command("umount", &["--lazy"], self.0);
    }
}

fn command(program: &str, arguments: &[&str], path: &Path) -> bool {
    Command::new(program).args(arguments).arg(path).status().is_ok_and(|status| status.success())
}

/// The guest on a disk of its own, and one point of it.
fn protect(system: &System) -> Result<()> {
    let machine = Machine::protect(system, "web1", "nbd", (48 * MIB, Content::Mixed(70)))?;
    machine.wait_until_protected()?;
    let mut client = Client::connect(&machine.nbd_uri()?)?;
    let mut sectors = [0; 12288];
    sectors[..GUEST.len()].copy_from_slice(&GUEST);
    sectors[510..512].copy_from_slice(&[0x55, 0xaa]);
    client.write(0, &sectors, true)?;
    client.disconnect()?;
    machine.mark().map(|_| ())
}

fn shown(system: &System, id: &str) -> Result<Value> {
    system.farshore().json(&format!("failover show {id}"))
}

fn until_said(console: &str, words: &str) -> Result<()> {
    wait::until(&format!("the guest to say {words:?}"), LIMIT, || {
        let said = std::fs::read(console).unwrap_or_default();
        Ok(String::from_utf8_lossy(&said).contains(words).then_some(()))
    })
}

/// D29: the guest of an overlay without room stands still, and goes on by itself when there is some. A
/// reboot in the guest is a reboot.
#[test]
fn a_guest_reboots_and_outlasts_a_full_overlay() {
    if ![QEMU, FIRMWARE].iter().all(|path| Path::new(path).exists()) {
        println!("not tried: it needs the Debian package qemu-system-x86");
        return;
    }
    let environment = [("FARSHORE_FIRMWARE_DIR", FIRMWARE_DIR), ("FARSHORE_QEMU_ACCEL", "tcg")];
    let environment = environment.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let setting = Setting { environment: environment.to_vec(), ..Setting::default() };
    run_with(setting, |system| {
        protect(system)?;
        let overlays = system.path("data/control/failovers");
        std::fs::create_dir_all(&overlays)?;
        let room = Room::of(&overlays, "12m");
        let line = format!("failover drill web1 --firmware {FIRMWARE} --memory 64 --cpus 1");
        let drill = system.farshore().json(&line)?;
        let text = |name: &str| drill[name].as_str().with_context(|| format!("no {name}: {drill}"));
        let (id, console) = (text("id")?.to_owned(), text("console_path")?.to_owned());
        until_said(&console, "boot 2")?;
        ensure!(shown(system, &id)?["machine_pid"] == drill["machine_pid"], "another machine");
        // It runs and has rebooted: now it may write.
        let mut client = Client::connect(text("nbd_uri")?)?;
        client.write(16 * 512, &[1; 4096], true)?;
        client.disconnect()?;
        if let Some(room) = &room {
            let full = wait::until("the guest to be paused", LIMIT, || {
                let now = shown(system, &id)?;
                let detail = now["detail"].as_str().unwrap_or_default();
                Ok((now["state"] == "recovering" && detail.contains("no room")).then_some(now))
            })?;
            ensure!(full["machine_pid"] == drill["machine_pid"], "another machine: {full}");
            let said = std::fs::read_to_string(&console)?;
            ensure!(!said.contains("done"), "there was room for everything");
            room.grow("200m")?;
        }
        until_said(&console, "done")?;
        let on = wait::until("the failover to run", LIMIT, || {
            Ok(Some(shown(system, &id)?).filter(|now| now["state"] == "running"))
        })?;
        ensure!(on["machine_pid"] == drill["machine_pid"], "another machine: {on}");
        let said = std::fs::read_to_string(&console)?;
        ensure!(said == "boot 1\nboot 2\ndone\n", "the guest says {said:?}");
        system.farshore().ok(&format!("failover cleanup {id} --yes")).map(|_| ())
    });
}
