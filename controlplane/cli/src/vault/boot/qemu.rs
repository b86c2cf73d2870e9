//! A command that starts a machine on what is served.

use std::path::Path;

use farshore_api::Exit;
use farshore_proto::machine::{Disk, Firmware, MachineBody};

use crate::failure::{Failure, Outcome};
use crate::output::shell_word;

const PROGRAM: &str = "qemu-system-x86_64";
/// Of a machine whose own are not known.
const MEMORY_MIB_DEFAULT: u64 = 2048;
const PROCESSORS_DEFAULT: u32 = 2;
/// Most bytes of a serial that a guest is shown.
const SERIAL_BYTES_MAX: usize = 20;
/// Sectors that QEMU takes as they are; others are left to it.
const SECTORS: [u8; 2] = [9, 12];

/// Where distributions put UEFI: code with variables in it, and code whose variables lie beside it. The control plane
/// (`providers/qemu/firmware.rs`) looks in the same places: what boots there must boot here.
const COMBINED: [&str; 4] = [
    "/usr/share/ovmf/OVMF.fd",
    "/usr/share/OVMF/OVMF.fd",
    "/usr/share/qemu/OVMF.fd",
    "/usr/share/edk2/ovmf/OVMF.fd",
];
const CODE: [&str; 4] = [
    "/usr/share/OVMF/OVMF_CODE_4M.fd",
    "/usr/share/OVMF/OVMF_CODE.fd",
    "/usr/share/edk2/ovmf/OVMF_CODE.fd",
    "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
];

/// The words of a command that starts the machine with these disks, each at its URI. What the firmware keeps is in `dir`.
///
/// # Errors
/// If the firmware's variables cannot be copied there.
pub(super) fn command<'a>(
    body: &MachineBody,
    disks: impl Iterator<Item = (&'a Disk, &'a str)>,
    dir: &Path,
) -> Outcome<Vec<String>> {
    let memory = match body.memory_bytes >> 20 {
        0 => MEMORY_MIB_DEFAULT,
        mib => mib,
    };
    let processors = if body.processors == 0 { PROCESSORS_DEFAULT } else { body.processors };
    // The first accelerator that the host has.
    let front = ["-machine", "q35", "-accel", "kvm", "-accel", "tcg", "-cpu", "max", "-m"];
    let mut words = vec![PROGRAM.to_owned(), "-name".to_owned(), escaped(&body.name)];
    words.extend(front.map(str::to_owned));
    words.extend([memory.to_string(), "-smp".to_owned(), processors.to_string()]);
    if body.firmware == Firmware::Uefi {
        words.extend(uefi(dir)?);
    }
    let is_windows = body.system.to_lowercase().contains("windows");
    for (disk, uri) in disks {
        let drive = format!(
            "file={},format=raw,if=none,id=disk{},cache=writeback,discard=unmap",
            escaped(uri),
            disk.index
        );
        words.extend(["-drive".to_owned(), drive]);
        words.extend(["-device".to_owned(), device(disk, is_windows)]);
    }
    Ok(words)
}

/// The device of a disk. Windows has a driver for virtio only if somebody installed it.
fn device(disk: &Disk, is_windows: bool) -> String {
    let kind = if is_windows { "ide-hd" } else { "virtio-blk-pci" };
    let mut device = format!("{kind},drive=disk{}", disk.index);
    if disk.boot_rank > 0 {
        device.push_str(&format!(",bootindex={}", disk.boot_rank));
    }
    let plain = |c: &char| c.is_ascii_alphanumeric() || "-_.".contains(*c);
    let serial: String = disk.serial.chars().filter(plain).take(SERIAL_BYTES_MAX).collect();
    if !serial.is_empty() {
        device.push_str(&format!(",serial={serial}"));
    }
    if SECTORS.contains(&disk.sector_log2) {
        let bytes = 1_u32 << disk.sector_log2;
        device.push_str(&format!(",logical_block_size={bytes},physical_block_size={bytes}"));
    }
    device
}

fn uefi(dir: &Path) -> Outcome<Vec<String>> {
    let is_there = |path: &str| Path::new(path).is_file();
    if let Some(image) = COMBINED.iter().find(|path| is_there(path)) {
        return Ok(vec!["-bios".to_owned(), (*image).to_owned()]);
    }
    let apart = CODE.iter().map(|code| (code, code.replace("CODE", "VARS")));
    let mut apart = apart.filter(|(code, variables)| is_there(code) && is_there(variables));
    let Some((code, variables)) = apart.next() else {
        farshore_program::tell!(
            "warning: there is no UEFI for QEMU here: install the package ovmf"
        );
        return Ok(vec!["-bios".to_owned(), COMBINED[0].to_owned()]);
    };
    let own = dir.join("uefi-variables.fd");
    if !own.exists() {
        std::fs::copy(variables, &own)
            .map_err(|error| Failure::io("write", &own, &error, Exit::CannotCreate))?;
    }
    let flash = |more: &str, path: &str| {
        ["-drive".to_owned(), format!("if=pflash,format=raw,{more}file={}", escaped(path))]
    };
    let own = own.display().to_string();
    Ok([flash("readonly=on,", code), flash("", &own)].concat())
}

/// A value in a list of QEMU's options.
fn escaped(value: &str) -> String {
    value.replace(',', ",,")
}

/// The command as a line for a shell.
pub(super) fn line(words: &[String]) -> String {
    let words: Vec<String> = words.iter().map(|word| shell_word(Path::new(word))).collect();
    let mut line = String::new();
    for (at, word) in words.iter().enumerate() {
        // An option and its value on a line of their own.
        let is_option = at > 0 && word.starts_with('-');
        line.push_str(match (at, is_option) {
            (0, _) => "",
            (_, true) => " \\\n  ",
            (_, false) => " ",
        });
        line.push_str(word);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::machine::{DiskRole, DiskState};
    use farshore_proto::{Epoch, Seq, VolumeId};

    fn disk(index: u16) -> Disk {
        Disk {
            index,
            volume: Some(VolumeId([7; 16])),
            size_bytes: 1 << 20,
            since: (Epoch(0), Seq(0)),
            boot_rank: u16::from(index == 0),
            sector_log2: if index == 0 { 9 } else { 12 },
            role: DiskRole::Boot,
            state: DiskState::Protected,
            name: "/dev/vda".to_owned(),
            label: String::new(),
            serial: "ab,c d'-é".to_owned(),
        }
    }

    fn machine(firmware: Firmware, system: &str) -> MachineBody {
        MachineBody {
            time_unix_ms: 0,
            memory_bytes: 0,
            processors: 0,
            firmware,
            is_secure_boot: false,
            name: "web, 1".to_owned(),
            system: system.to_owned(),
            disks: vec![disk(0), disk(3)],
        }
    }

    fn words(firmware: Firmware, system: &str) -> Vec<String> {
        let dir = tempfile::tempdir().unwrap();
        let machine = machine(firmware, system);
        let uris = ["nbd+unix:///a?socket=/x,y", "nbd://127.0.0.1:7/b"];
        command(&machine, machine.disks.iter().zip(uris), dir.path()).unwrap()
    }

    #[test]
    fn each_disk_has_its_place_its_sectors_and_its_serial() {
        let words = words(Firmware::Unknown, "Debian 12");
        let drive = "file=nbd+unix:///a?socket=/x,,y,format=raw,if=none,id=disk0,cache=writeback,discard=unmap";
        assert!(words.contains(&drive.to_owned()), "{words:?}");
        let device = |index: u16, more: &str, bytes: u32| {
            format!(
                "virtio-blk-pci,drive=disk{index}{more},serial=abcd-,logical_block_size={bytes},physical_block_size={bytes}"
            )
        };
        assert!(words.contains(&device(0, ",bootindex=1", 512)), "{words:?}");
        assert!(words.contains(&device(3, "", 4096)), "{words:?}");
        assert_eq!(words[2], "web,, 1");
        assert!(words.windows(2).any(|pair| pair == ["-m", "2048"]), "{words:?}");
        assert!(!words.iter().any(|word| word == "-bios" || word.contains("pflash")), "{words:?}");
    }

    #[test]
    fn windows_gets_disks_that_it_has_drivers_for_and_uefi_its_firmware() {
        let words = words(Firmware::Uefi, "Windows Server 2022");
        assert!(words.iter().any(|word| word.starts_with("ide-hd,drive=disk0")), "{words:?}");
        assert!(words.iter().any(|word| word == "-bios" || word.contains("pflash")), "{words:?}");
    }

    #[test]
    fn the_line_is_one_for_a_shell() {
        let line = line(&words(Firmware::Bios, ""));
        assert!(line.starts_with("qemu-system-x86_64 \\\n  -name 'web,, 1' \\\n"), "{line}");
        assert!(line.contains("-drive 'file=nbd+unix:///a?socket=/x,,y,"), "{line}");
    }
}
