//! Machines with one disk, put into the vault by who takes their volume.

use super::{Revise, find, put};
use crate::error::VaultError;
use crate::vault::Vault;
use farshore_proto::limits::{DISK_TEXT_BYTES_MAX, NAME_BYTES_MAX};
use farshore_proto::machine::{Disk, DiskRole, DiskState, Firmware, MachineBody};
use farshore_proto::{Epoch, MachineId, Seq, VolumeId};

/// Times that another writer may be first.
const TRIES_MAX: usize = 4;

/// What is known of a machine with one disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneDisk {
    /// The machine.
    pub machine: MachineId,
    /// Its name; cut where it is too long.
    pub name: String,
    /// The volume that holds its disk.
    pub volume: VolumeId,
    /// Size of the disk in bytes.
    pub size_bytes: u64,
    /// What the machine calls the disk; cut where it is too long.
    pub disk: String,
    /// The writer's wall clock.
    pub time_unix_ms: u64,
}

/// How a description ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Described {
    /// The vault has it now, in this revision.
    Put {
        /// The revision.
        revision: u64,
    },
    /// The vault says all of that already.
    Known,
    /// The vault says that the machine has other disks: what to make of that is for an operator.
    Others,
    /// A later program says more of the machine than this one knows, and whatever this one put would lose that.
    Newer,
    /// Other writers were first, again and again: call again.
    Outrun,
}

/// Has the vault say what a machine with one disk is made of, if it does not yet. What it says of the machine besides
/// stays.
///
/// # Errors
/// `Corrupt` if the machine's newest revision does not open; `Unavailable` (also when full: `is_no_space`); `Limit`.
pub async fn describe(vault: &Vault, one: &OneDisk) -> Result<Described, VaultError> {
    for _ in 0..TRIES_MAX {
        let newest = match find::<MachineBody>(vault, one.machine).await? {
            Some(found) => found.into_newest()?,
            None => None,
        };
        let (held, wanted) = match newest {
            None => (0, one.new_machine()),
            Some(revision) => match one.changed(&revision.body) {
                Change::None => return Ok(Described::Known),
                Change::Others => return Ok(Described::Others),
                Change::To(_) if !revision.is_all => return Ok(Described::Newer),
                Change::To(body) => (revision.number, *body),
            },
        };
        if let Revise::Put { revision } = put(vault, one.machine, held, &wanted).await? {
            return Ok(Described::Put { revision });
        }
    }
    Ok(Described::Outrun)
}

/// What a machine becomes.
enum Change {
    None,
    Others,
    To(Box<MachineBody>),
}

impl OneDisk {
    fn name(&self) -> String {
        match cut(&self.name, NAME_BYTES_MAX) {
            "" => self.machine.to_string(),
            name => name.to_owned(),
        }
    }

    fn new_machine(&self) -> MachineBody {
        let disk = Disk {
            index: 0,
            volume: Some(self.volume),
            size_bytes: self.size_bytes,
            since: (Epoch(0), Seq(0)),
            boot_rank: 1,
            sector_log2: 0,
            // The only disk is what a failover boots.
            role: DiskRole::Boot,
            state: DiskState::Protected,
            name: cut(&self.disk, DISK_TEXT_BYTES_MAX).to_owned(),
            label: String::new(),
            serial: String::new(),
        };
        MachineBody {
            time_unix_ms: self.time_unix_ms,
            memory_bytes: 0,
            processors: 0,
            firmware: Firmware::Unknown,
            is_secure_boot: false,
            name: self.name(),
            system: String::new(),
            disks: vec![disk],
        }
    }

    fn changed(&self, body: &MachineBody) -> Change {
        let mut next = body.clone();
        let disk = next.disks.iter_mut().find(|disk| disk.volume == Some(self.volume));
        let Some(disk) = disk else { return Change::Others };
        disk.size_bytes = self.size_bytes;
        disk.name = cut(&self.disk, DISK_TEXT_BYTES_MAX).to_owned();
        next.name = self.name();
        if next == *body {
            return Change::None;
        }
        next.time_unix_ms = self.time_unix_ms;
        Change::To(Box::new(next))
    }
}

/// At most so many bytes of a text, whole characters.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::ObjectName;
    use crate::machine::{Revised, list_points};
    use crate::testing::{World, counted};
    use farshore_proto::machine::place;

    fn one(world: &World) -> OneDisk {
        OneDisk {
            machine: MachineId([5; 16]),
            name: "web-1".to_owned(),
            volume: world.volumes[0].id,
            size_bytes: 1 << 20,
            disk: "/dev/vda".to_owned(),
            time_unix_ms: 7,
        }
    }

    async fn newest(world: &World) -> (u64, MachineBody) {
        let found = find::<MachineBody>(&world.vault, MachineId([5; 16])).await.unwrap();
        let revision = found.unwrap().into_newest().unwrap().unwrap();
        (revision.number, revision.body)
    }

    #[tokio::test]
    async fn a_machine_is_put_once_and_again_when_something_changed() {
        let mut world = World::new(2, 1).await;
        let first = one(&world);
        let put = describe(&world.vault, &first).await.unwrap();
        assert_eq!(put, Described::Put { revision: 1 });
        let later = OneDisk { time_unix_ms: 9, ..first.clone() };
        assert_eq!(describe(&world.vault, &later).await.unwrap(), Described::Known);
        let grown = OneDisk { size_bytes: 2 << 20, name: "web-2".to_owned(), ..later };
        let put = describe(&world.vault, &grown).await.unwrap();
        assert_eq!(put, Described::Put { revision: 2 });
        let (number, body) = newest(&world).await;
        assert_eq!((number, body.name.as_str(), body.time_unix_ms), (2, "web-2", 9));
        assert_eq!((body.disks[0].size_bytes, body.disks[0].name.as_str()), (2 << 20, "/dev/vda"));
        // Each mark of its one disk is a complete point.
        world.write(0, 0, 4, 7);
        world.end_span(0, true);
        world.commit(0).await;
        let revision = find(&world.vault, first.machine).await.unwrap().unwrap().revision.unwrap();
        let points = list_points(&world.vault, first.machine, &revision).await.unwrap().points;
        assert!(points.len() == 1 && points[0].is_complete());
    }

    #[tokio::test]
    async fn what_the_vault_says_besides_stays_and_other_disks_are_left_alone() {
        let world = World::new(2, 1).await;
        let first = one(&world);
        describe(&world.vault, &first).await.unwrap();
        let (_, mut body) = newest(&world).await;
        body.firmware = Firmware::Uefi;
        body.disks[0].serial = "S".to_owned();
        put(&world.vault, first.machine, 1, &body).await.unwrap();
        let grown = OneDisk { size_bytes: 2 << 20, ..first.clone() };
        describe(&world.vault, &grown).await.unwrap();
        let (number, body) = newest(&world).await;
        assert_eq!(
            (number, body.firmware, body.disks[0].serial.as_str()),
            (3, Firmware::Uefi, "S")
        );
        let other = OneDisk { volume: world.volumes[1].id, ..first };
        assert_eq!(describe(&world.vault, &other).await.unwrap(), Described::Others);
        assert_eq!(newest(&world).await.0, 3);
    }

    /// What a later program wrote and this one may ignore would not be in what this one puts.
    #[tokio::test]
    async fn a_machine_of_which_a_later_program_says_more_is_left_alone() {
        let world = World::new(1, 1).await;
        let first = one(&world);
        describe(&world.vault, &first).await.unwrap();
        let (_, body) = newest(&world).await;
        let vault = &world.vault;
        let name = ObjectName::machine(first.machine, 2);
        world.outgrow(&name, place(vault.id(), first.machine, 2), body.encode());
        assert_eq!(newest(&world).await, (2, body));
        assert_eq!(describe(vault, &first).await.unwrap(), Described::Known);
        let grown = OneDisk { size_bytes: 2 << 20, ..first };
        assert_eq!(describe(vault, &grown).await.unwrap(), Described::Newer);
        assert_eq!(newest(&world).await.0, 2);
    }

    #[tokio::test]
    async fn who_is_outrun_each_time_is_told_and_describes_it_when_called_again() {
        let world = World::new(1, 1).await;
        let (store, others) = counted(&world.vault);
        let vault = Vault::open(&store, &world.recovery).await.unwrap();
        let ours = one(&world);
        let theirs = OneDisk { name: "theirs".to_owned(), ..ours.clone() };
        let mut body = theirs.new_machine();
        for revision in 1..=TRIES_MAX as u64 {
            body.memory_bytes = revision;
            let keys = vault.seal_keys();
            let sealed = body.seal(vault.id(), ours.machine, revision, keys).unwrap();
            let name = ObjectName::machine(ours.machine, revision);
            others.outrun(&name, world.file(&name), sealed);
        }
        assert_eq!(describe(&vault, &ours).await.unwrap(), Described::Outrun);
        let revision = TRIES_MAX as u64 + 1;
        assert_eq!(describe(&vault, &ours).await.unwrap(), Described::Put { revision });
        let (_, body) = newest(&world).await;
        assert_eq!((body.name.as_str(), body.memory_bytes), ("web-1", TRIES_MAX as u64));
    }

    #[tokio::test]
    async fn names_that_are_too_long_or_empty_are_made_to_fit() {
        let world = World::new(1, 1).await;
        let long = OneDisk { name: "ä".repeat(200), disk: "ß".repeat(65), ..one(&world) };
        describe(&world.vault, &long).await.unwrap();
        let (_, body) = newest(&world).await;
        assert_eq!((body.name.len(), body.disks[0].name.len()), (254, 128));
        let nameless = OneDisk { name: String::new(), ..long };
        describe(&world.vault, &nameless).await.unwrap();
        assert_eq!(newest(&world).await.1.name, nameless.machine.to_string());
    }
}
