//! Vaults with machines of several disks: points that are complete and such that lack something, and a group of two
//! machines.

use super::{BLOCKS, Image, World};
use crate::machine::{Revise, Revised, put};
use farshore_proto::group::{GroupBody, GroupKind, Member, MemberState};
use farshore_proto::limits::BLOCK_BYTES;
use farshore_proto::machine::{Disk, DiskRole, DiskState, Firmware, MachineBody};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::{Epoch, GroupId, MachineId, MarkAttempt, MarkKind, PointId, Seq, VolumeId};
use std::fmt;

/// `db-1`: disks 0 and 1 are volumes 0 and 1; the second was added later.
pub const DB: MachineId = MachineId([0xd0; 16]);
/// `web-1`: disks 0, 1 and 3 are volumes 2, 3 and 4; disk 2 is excluded.
pub const WEB: MachineId = MachineId([0xd1; 16]);
/// `cache-1`: one disk, volume 5, marked alone.
pub const CACHE: MachineId = MachineId([0xd2; 16]);
/// `shop`: `db-1` and `web-1`.
pub const SHOP: GroupId = GroupId([0xe0; 16]);
/// The volume that no machine names.
pub const STRAY: usize = 6;

/// A point of a machine as the fixture knows it.
#[derive(Debug, Clone)]
pub struct KnownPoint {
    /// The machine.
    pub machine: MachineId,
    /// Its id.
    pub id: PointId,
    /// Whether all is there.
    pub is_complete: bool,
    /// The disks that have it: index, number of the volume, what it holds.
    pub disks: Vec<(u16, usize, Image)>,
}

/// A vault with three machines, a group and a volume that belongs to none.
#[derive(Debug)]
pub struct Machines {
    /// The vault.
    pub world: World,
    /// The points, in order of each machine.
    pub points: Vec<KnownPoint>,
    marks: u8,
    seed: u32,
}

/// A disk as it is described here, from the beginning of its volume.
#[must_use]
pub fn disk(index: u16, volume: Option<VolumeId>, role: DiskRole) -> Disk {
    let letter = char::from(b'a' + u8::try_from(index).unwrap());
    Disk {
        index,
        volume,
        size_bytes: BLOCKS * BLOCK_BYTES as u64,
        since: (Epoch(0), Seq(0)),
        boot_rank: u16::from(role == DiskRole::Boot),
        sector_log2: 9,
        role,
        state: if volume.is_some() { DiskState::Protected } else { DiskState::Excluded },
        name: format!("/dev/vd{letter}"),
        label: String::new(),
        serial: format!("SERIAL-{index}"),
    }
}

/// A machine of some disks.
#[must_use]
pub fn machine(name: &str, firmware: Firmware, disks: Vec<Disk>) -> MachineBody {
    MachineBody {
        time_unix_ms: 1_700_000_000_000,
        memory_bytes: 2 << 30,
        processors: 2,
        firmware,
        is_secure_boot: false,
        name: name.to_owned(),
        system: "Debian GNU/Linux 12".to_owned(),
        disks,
    }
}

/// Puts a revision behind those that were put before.
pub async fn put_next<K: Revised + PartialEq + fmt::Debug>(
    world: &World,
    id: K::Id,
    held: u64,
    body: &K,
) {
    let put = put(&world.vault, id, held, body).await.unwrap();
    assert_eq!(put, Revise::Put { revision: held + 1 });
}

impl Machines {
    /// Everything; see the constants for what there is.
    pub async fn new() -> Self {
        let world = World::new(7, 1).await;
        let mut all = Self { world, points: Vec::new(), marks: 0, seed: 1000 };
        all.put_first().await;
        // One disk so far, marked alone.
        all.alone(DB, 0, true).await;
        all.add_second_disk().await;
        all.together(&[(DB, 0, 0), (DB, 1, 1)], 2).await;
        all.together(&[(WEB, 0, 2), (WEB, 1, 3), (WEB, 3, 4)], 3).await;
        all.alone(CACHE, 5, true).await;
        // The second disk lacks its mark.
        all.together(&[(DB, 0, 0)], 2).await;
        let shop = [(DB, 0, 0), (DB, 1, 1), (WEB, 0, 2), (WEB, 1, 3), (WEB, 3, 4)];
        all.together(&shop, 5).await;
        // A disk of the other machine lacks it: incomplete for both.
        all.together(&shop[..4], 5).await;
        // A disk alone, although there are two.
        all.alone(DB, 0, false).await;
        all.alone(CACHE, 5, true).await;
        all.world.write(STRAY, 0, 8, 9000);
        all.world.end_span(STRAY, true);
        all.world.commit(0).await;
        all
    }

    /// The id of a volume.
    #[must_use]
    pub fn volume(&self, number: usize) -> VolumeId {
        self.world.volumes[number].id
    }

    /// The points of a machine, in order.
    #[must_use]
    pub fn points_of(&self, machine: MachineId) -> Vec<KnownPoint> {
        self.points.iter().filter(|point| point.machine == machine).cloned().collect()
    }

    async fn put_first(&self) {
        let volume = |number: usize| Some(self.volume(number));
        let db = machine("db-1", Firmware::Uefi, vec![disk(0, volume(0), DiskRole::Boot)]);
        put_next(&self.world, DB, 0, &db).await;
        let web = vec![
            disk(0, volume(2), DiskRole::Boot),
            disk(1, volume(3), DiskRole::Data),
            disk(2, None, DiskRole::Scratch),
            disk(3, volume(4), DiskRole::Data),
        ];
        put_next(&self.world, WEB, 0, &machine("web-1", Firmware::Bios, web)).await;
        let cache = machine("cache-1", Firmware::Unknown, vec![disk(0, volume(5), DiskRole::Boot)]);
        put_next(&self.world, CACHE, 0, &cache).await;
        let member = |machine: MachineId, number: usize| Member {
            machine,
            volume: self.volume(number),
            since: (Epoch(0), Seq(0)),
            state: MemberState::Member,
        };
        let members =
            [(DB, 0), (DB, 1), (WEB, 2), (WEB, 3), (WEB, 4)].map(|(id, number)| member(id, number));
        let shop = GroupBody {
            time_unix_ms: 1_700_000_000_000,
            kind: GroupKind::Machines,
            name: "shop".to_owned(),
            members: members.into(),
        };
        put_next(&self.world, SHOP, 0, &shop).await;
    }

    async fn add_second_disk(&self) {
        let mut first = disk(0, Some(self.volume(0)), DiskRole::Boot);
        first.since = (self.world.volumes[0].epoch, self.world.volumes[0].seq.next());
        let second = disk(1, Some(self.volume(1)), DiskRole::Data);
        let db = machine("db-1", Firmware::Uefi, vec![first, second]);
        put_next(&self.world, DB, 1, &db).await;
    }

    /// Writes some of a disk and marks it alone.
    pub async fn alone(&mut self, machine: MachineId, number: usize, is_complete: bool) {
        let id = self.draw();
        self.write_and_mark(number, id, MarkGroup::ALONE);
        let image = self.world.volumes[number].image.clone();
        self.points.push(KnownPoint { machine, id, is_complete, disks: vec![(0, number, image)] });
        self.world.commit(0).await;
    }

    /// Writes some of each disk and marks them together: machine, index, number of the volume. There should be so many
    /// members; those behind the ones given are lacking.
    pub async fn together(&mut self, disks: &[(MachineId, u16, usize)], members: u16) {
        let id = self.draw();
        let attempt = MarkAttempt(id.0.map(|byte| byte ^ 0xff));
        for (member, (_, _, number)) in (0..).zip(disks) {
            self.write_and_mark(*number, id, MarkGroup { attempt, member, members });
        }
        let is_complete = disks.len() == usize::from(members);
        for machine in [DB, WEB] {
            let held = disks.iter().filter(|(of, ..)| *of == machine);
            let image = |number: usize| self.world.volumes[number].image.clone();
            let disks: Vec<_> =
                held.map(|(_, index, number)| (*index, *number, image(*number))).collect();
            if !disks.is_empty() {
                self.points.push(KnownPoint { machine, id, is_complete, disks });
            }
        }
        self.world.commit(0).await;
    }

    fn draw(&mut self) -> PointId {
        self.marks += 1;
        PointId([self.marks; 16])
    }

    fn write_and_mark(&mut self, number: usize, point: PointId, group: MarkGroup) {
        self.seed += 100;
        let block = u64::from(self.seed / 100 * 7) % (BLOCKS - 8);
        self.world.write(number, block, 8, self.seed);
        let time_unix_ms = 1_700_000_000_000 + u64::from(self.marks) * 1000;
        let mark = move |_| Mark {
            point,
            kind: MarkKind::Crash,
            unknown_blocks: 0,
            is_prompt: false,
            time_unix_ms,
            group,
        };
        self.world.end_span_with(number, Some(mark));
    }
}
