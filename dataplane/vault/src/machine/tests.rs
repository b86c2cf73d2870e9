use super::*;
use crate::testing::World;
use crate::testing::machines::{
    CACHE, DB, KnownPoint, Machines, SHOP, WEB, disk, machine, put_next,
};
use crate::view::{PointSelector, VolumeView, flatten};
use farshore_proto::bugs::{Bug, switch_on};
use farshore_proto::limits::{BLOCK_BYTES, blocks_of};
use farshore_proto::machine::{DiskRole, DiskState, Firmware};
use farshore_proto::mark::{Mark, MarkGroup};
use farshore_proto::{BlockRange, Epoch, ErrorKind, MarkAttempt, MarkKind, PointId, Seq, VolumeId};

fn file(world: &World, name: &ObjectName) -> std::path::PathBuf {
    world.file(name)
}

fn remove(world: &World, name: &ObjectName) {
    std::fs::remove_file(file(world, name)).unwrap();
}

fn damage(world: &World, name: &ObjectName) {
    let path = file(world, name);
    let mut bytes = std::fs::read(&path).unwrap();
    // In the sealed body of every kind.
    bytes[260] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

async fn newest(vault: &Vault, id: MachineId) -> Revision<MachineBody> {
    find::<MachineBody>(vault, id).await.unwrap().unwrap().into_newest().unwrap().unwrap()
}

async fn points(all: &Machines, id: MachineId) -> MachinePoints {
    let vault = all.world.reopen().await;
    list_points(&vault, id, &newest(&vault, id).await).await.unwrap()
}

/// Which disks each point has, and what it lacks.
fn told(points: &MachinePoints) -> Vec<(u8, Vec<u16>, Vec<Lack>)> {
    let told = |point: &MachinePoint| {
        let disks = point.disks.iter().map(|disk| disk.index).collect();
        (point.id.0[0], disks, point.lacking.clone())
    };
    points.points.iter().map(told).collect()
}

async fn sized(revisions: u64) -> World {
    let world = World::new(1, 1).await;
    for held in 0..revisions {
        let body = of_revision(&world, held + 1);
        put_next(&world, CACHE, held, &body).await;
    }
    world
}

fn of_revision(world: &World, revision: u64) -> MachineBody {
    let disks = vec![disk(0, Some(world.volumes[0].id), DiskRole::Boot)];
    let body = machine("m", Firmware::Unknown, disks);
    MachineBody { time_unix_ms: revision, ..body }
}

#[tokio::test]
async fn what_was_put_is_found_in_its_newest_revision() {
    let all = Machines::new().await;
    let vault = all.world.reopen().await;
    let machines = find_all::<MachineBody>(&vault).await.unwrap();
    let named: Vec<_> = machines
        .iter()
        .map(|(id, found)| {
            let revision = found.revision.as_ref().unwrap();
            (*id, found.newest, revision.number, revision.body.name.as_str())
        })
        .collect();
    assert_eq!(named, [(DB, 2, 2, "db-1"), (WEB, 1, 1, "web-1"), (CACHE, 1, 1, "cache-1")]);
    let states: Vec<_> =
        newest(&vault, WEB).await.body.disks.iter().map(|disk| disk.state).collect();
    let (is, is_not) = (DiskState::Protected, DiskState::Excluded);
    assert_eq!(states, [is, is, is_not, is]);
    let groups = find_all::<GroupBody>(&vault).await.unwrap();
    assert_eq!(groups.len(), 1);
    assert_eq!(groups[0].0, SHOP);
    assert_eq!(groups[0].1.revision.as_ref().unwrap().body.members.len(), 5);
    let nobody = find::<MachineBody>(&vault, MachineId([9; 16])).await.unwrap();
    assert!(nobody.is_none());
}

#[tokio::test]
async fn a_second_writer_of_a_revision_loses_and_the_same_one_does_not() {
    let world = sized(1).await;
    let vault = &world.vault;
    let same = put(vault, CACHE, 0, &of_revision(&world, 1)).await.unwrap();
    assert_eq!(same, Revise::Put { revision: 1 });
    let other = put(vault, CACHE, 0, &of_revision(&world, 7)).await.unwrap();
    assert_eq!(other, Revise::Lost);
    assert_eq!(newest(vault, CACHE).await.body.time_unix_ms, 1);
    let nameless = MachineBody { name: String::new(), ..of_revision(&world, 2) };
    let error = put(vault, CACHE, 1, &nameless).await.unwrap_err();
    assert!(matches!(error, VaultError::Seal { .. }), "{error}");
}

/// A listing may lag: the search begins wherever it ends.
#[tokio::test]
async fn the_newest_is_searched_behind_the_listing() {
    for revisions in [1, 2, 3, 4, 5, 8, 9, 17] {
        let world = sized(revisions).await;
        let found = last_number::<MachineBody>(&world.vault, CACHE).await.unwrap();
        assert_eq!(found, revisions);
        for listed in 0..=revisions {
            let found = revisions::gallop::<MachineBody>(&world.vault, CACHE, listed).await;
            assert_eq!(found.unwrap(), revisions, "{listed} of them are listed");
        }
    }
}

#[tokio::test]
async fn a_lost_revision_hides_no_later_one() {
    for lost in 1..=4 {
        let world = sized(5).await;
        remove(&world, &ObjectName::machine(CACHE, lost));
        let found = newest(&world.vault, CACHE).await;
        assert_eq!((found.number, found.body.time_unix_ms), (5, 5), "{lost} is lost");
        // Nor where the listing ends in front of it.
        let searched = revisions::search::<MachineBody>(&world.vault, CACHE, lost - 1).await;
        assert_eq!(searched.unwrap(), 5, "{lost} is lost");
    }
}

#[tokio::test]
async fn a_newest_that_does_not_open_is_an_error_and_the_one_before_is_shown() {
    let world = sized(3).await;
    damage(&world, &ObjectName::machine(CACHE, 3));
    let found = find::<MachineBody>(&world.vault, CACHE).await.unwrap().unwrap();
    assert_eq!((found.newest, found.revision.as_ref().unwrap().number), (3, 2));
    let error = found.into_newest().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(&ObjectName::machine(CACHE, 3).to_string()), "{error}");
    // An older one put back under the newest's name.
    let older = std::fs::read(file(&world, &ObjectName::machine(CACHE, 2))).unwrap();
    std::fs::write(file(&world, &ObjectName::machine(CACHE, 3)), older).unwrap();
    let found = find::<MachineBody>(&world.vault, CACHE).await.unwrap().unwrap();
    assert_eq!(found.into_newest().unwrap_err().kind(), ErrorKind::Corrupt);
    // Another machine's.
    let other = MachineId([8; 16]);
    put_next(&world, other, 0, &of_revision(&world, 1)).await;
    let foreign = std::fs::read(file(&world, &ObjectName::machine(CACHE, 2))).unwrap();
    std::fs::write(file(&world, &ObjectName::machine(other, 1)), foreign).unwrap();
    let found = find::<MachineBody>(&world.vault, other).await.unwrap().unwrap();
    assert!(found.revision.is_none() && found.broken.is_some());
    // The others are listed all the same.
    assert_eq!(find_all::<MachineBody>(&world.vault).await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_number_that_nobody_gives_out_hides_no_other_machine() {
    let world = sized(1).await;
    let stray = ObjectName::machine(MachineId([8; 16]), 9_999_999_999);
    let path = file(&world, &stray);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, "x").unwrap();
    let found = find_all::<MachineBody>(&world.vault).await.unwrap();
    assert_eq!(found.len(), 2);
    assert!(found[0].1.broken.as_ref().is_some_and(|error| error.kind() == ErrorKind::Limit));
    assert!(found[1].1.revision.is_some());
}

/// Of each machine: complete or not, with which disks, and each disk restores to what it was.
#[tokio::test]
async fn a_point_of_several_disks_is_complete_or_not_by_the_vault_alone() {
    let all = Machines::new().await;
    let vault = all.world.reopen().await;
    for id in [DB, WEB, CACHE] {
        let found = points(&all, id).await;
        assert!(found.broken.is_empty());
        let known = all.points_of(id);
        let summary = |point: &MachinePoint| (point.id, point.is_complete());
        let expected = |point: &KnownPoint| (point.id, point.is_complete);
        assert_eq!(
            found.points.iter().map(summary).collect::<Vec<_>>(),
            known.iter().map(expected).collect::<Vec<_>>()
        );
        for (point, known) in found.points.iter().zip(&known) {
            assert_eq!(point.disks.len(), known.disks.len());
            for (disk, (index, number, image)) in point.disks.iter().zip(&known.disks) {
                assert_eq!((disk.index, disk.volume), (*index, all.volume(*number)));
                let selector = PointSelector::Seq(disk.point.seq);
                let view = VolumeView::open(&vault, disk.volume, selector).await.unwrap();
                let range = BlockRange { block: 0, count: blocks_of(view.size_bytes()) };
                let bytes = flatten(&view.read(range).await.unwrap());
                assert_eq!(bytes.len(), image.len() * BLOCK_BYTES);
                assert!(bytes == crate::testing::image_bytes(image), "{:?} {index}", point.id);
            }
        }
    }
}

#[tokio::test]
async fn what_an_incomplete_point_lacks_is_named() {
    let all = Machines::new().await;
    let member = |member, members| Lack::Member { member, members };
    let second = Lack::Disk { index: 1, volume: all.volume(1) };
    assert_eq!(
        told(&points(&all, DB).await),
        [
            (1, vec![0], vec![]),
            (2, vec![0, 1], vec![]),
            (5, vec![0], vec![member(1, 2), second.clone()]),
            (6, vec![0, 1], vec![]),
            (7, vec![0, 1], vec![member(4, 5)]),
            (8, vec![0], vec![second]),
        ]
    );
    let third = Lack::Disk { index: 3, volume: all.volume(4) };
    assert_eq!(
        told(&points(&all, WEB).await),
        [
            (3, vec![0, 1, 3], vec![]),
            (6, vec![0, 1, 3], vec![]),
            (7, vec![0, 1], vec![member(4, 5), third]),
        ]
    );
}

/// Without its group nobody knows where the other members are: that is never taken for complete.
#[tokio::test]
async fn a_lost_group_makes_points_incomplete_and_none_complete() {
    let all = Machines::new().await;
    remove(&all.world, &ObjectName::group(SHOP, 1));
    let found = told(&points(&all, DB).await);
    let missing = |from: u16| (from..5).map(|member| Lack::Member { member, members: 5 }).collect();
    assert_eq!(found[3], (6, vec![0, 1], missing(2)));
    let complete: Vec<u8> =
        found.iter().filter(|(_, _, lacking)| lacking.is_empty()).map(|(id, ..)| *id).collect();
    assert_eq!(complete, [1, 2]);
}

/// A group that is there and cannot be read is told, where it may matter.
#[tokio::test]
async fn a_damaged_group_is_told_with_points_that_lack_members() {
    let all = Machines::new().await;
    let group = ObjectName::group(SHOP, 1);
    damage(&all.world, &group);
    let found = points(&all, WEB).await;
    assert!(found.points.iter().any(|point| !point.is_complete()));
    let [error] = found.unread.as_slice() else { panic!("{:?}", found.unread) };
    assert!(error.to_string().contains(&group.to_string()), "{error}");
    assert!(points(&all, CACHE).await.unread.is_empty(), "nothing of it lacks anything");
}

#[tokio::test]
async fn a_lost_revision_makes_the_points_of_its_time_incomplete() {
    let all = Machines::new().await;
    let first = ObjectName::machine(DB, 1);
    remove(&all.world, &first);
    let found = told(&points(&all, DB).await);
    assert_eq!(found[0], (1, vec![0], vec![Lack::Revision { object: first }]));
    assert_eq!(found[1], (2, vec![0, 1], vec![]), "those of later times are as they were");
}

/// The stream of a disk that ends in damage: points in front of it stay, later ones lack the disk.
#[tokio::test]
async fn damage_to_a_disk_is_told_and_makes_later_points_incomplete() {
    let all = Machines::new().await;
    let known = all.world.points.iter().find(|point| point.id == PointId([6; 16])).unwrap();
    damage(&all.world, &ObjectName::slot(all.world.logs[0].id, known.slot));
    let found = points(&all, WEB).await;
    assert_eq!(told(&found), [(3, vec![0, 1, 3], vec![])]);
    let volumes: Vec<VolumeId> = found.broken.iter().map(|(volume, _)| *volume).collect();
    assert_eq!(volumes, [2, 3, 4].map(|number| all.volume(number)));
    assert_eq!(found.broken[0].1.kind(), ErrorKind::Corrupt);
}

#[tokio::test]
async fn a_disk_whose_volume_is_not_there_has_no_points() {
    let all = Machines::new().await;
    let gone = VolumeId([0x77; 16]);
    let mut body = newest(&all.world.vault, CACHE).await.body;
    body.disks.push(disk(1, Some(gone), DiskRole::Data));
    put_next(&all.world, CACHE, 1, &body).await;
    let found = points(&all, CACHE).await;
    let lack = vec![Lack::Disk { index: 1, volume: gone }];
    assert!(found.broken.is_empty());
    assert_eq!(told(&found), [(4, vec![0], lack.clone()), (9, vec![0], lack)]);
}

/// The next revision of `db-1`: disks are removed, and that is said of some from here on.
pub(super) async fn revise_db(all: &Machines, removed: &[usize], said_of: &[usize]) {
    let mut body = newest(&all.world.vault, DB).await.body;
    for number in removed {
        body.disks[*number].state = DiskState::Removed;
    }
    for number in said_of {
        let volume = &all.world.volumes[*number];
        body.disks[*number].since = (volume.epoch, volume.seq.next());
    }
    put_next(&all.world, DB, 2, &body).await;
}

#[tokio::test]
async fn a_disk_that_was_removed_is_not_missed_behind_its_place() {
    let mut all = Machines::new().await;
    revise_db(&all, &[1], &[0, 1]).await;
    all.alone(DB, 0, true).await;
    let found = told(&points(&all, DB).await);
    assert_eq!(found.last().unwrap(), &(10, vec![0], vec![]), "one disk is all there is");
    assert_eq!(found[1], (2, vec![0, 1], vec![]), "of the time when there were two");
    let second = Lack::Disk { index: 1, volume: all.volume(1) };
    assert_eq!(found[5], (8, vec![0], vec![second]), "it was protected then");
}

/// A mark that comes behind the end of the protection is not all of the machine because nothing is protected then.
#[tokio::test]
async fn a_revision_without_a_protected_disk_is_never_in_force() {
    let mut all = Machines::new().await;
    revise_db(&all, &[0, 1], &[0, 1]).await;
    all.alone(DB, 0, false).await;
    let second = Lack::Disk { index: 1, volume: all.volume(1) };
    assert_eq!(told(&points(&all, DB).await).last().unwrap(), &(10, vec![0], vec![second]));
    all.together(&[(DB, 0, 0), (DB, 1, 1)], 2).await;
    let revision = newest(&all.world.vault, DB).await;
    let found = find_newest(&all.world.vault, DB, &revision).await.unwrap();
    assert_eq!(found.point.unwrap().id.0[0], 11);
    // There never was one that protected a disk.
    let id = MachineId([0x44; 16]);
    let mut body = newest(&all.world.vault, CACHE).await.body;
    body.disks[0].state = DiskState::Removed;
    put_next(&all.world, id, 0, &body).await;
    let found = points(&all, id).await;
    assert!(found.points.iter().all(|point| point.lacking == [Lack::NoneProtected]), "{found:?}");
    let revision = newest(&all.world.vault, id).await;
    assert!(find_newest(&all.world.vault, id, &revision).await.unwrap().point.is_none());
}

/// Why a change of states moves *since* on every disk: said of the removed one alone, what lacked it before looks whole.
#[tokio::test]
async fn a_set_of_disks_that_does_not_say_since_when_on_each_reaches_back() {
    for is_moved in [true, false] {
        let mut all = Machines::new().await;
        revise_db(&all, &[1], if is_moved { &[0, 1] } else { &[1] }).await;
        all.alone(DB, 0, true).await;
        let found = told(&points(&all, DB).await);
        let (id, disks, lacking) = &found[5];
        assert_eq!((*id, disks.as_slice()), (8, [0].as_slice()), "disk 1 was protected then");
        assert_eq!(lacking.is_empty(), !is_moved, "{lacking:?}");
        assert!(found.last().unwrap().2.is_empty());
    }
}

/// Two volumes that say the same member, other numbers of members, or other points.
#[tokio::test]
async fn members_that_contradict_each_other_make_no_complete_point() {
    let attempt = MarkAttempt([0x3c; 16]);
    let mark = |point: u8, member: u16, members: u16| {
        move |_: Seq| Mark {
            point: PointId([point; 16]),
            kind: MarkKind::App,
            unknown_blocks: 1,
            is_prompt: false,
            time_unix_ms: 5,
            group: MarkGroup { attempt, member, members },
        }
    };
    for (first, second, expected) in [
        (
            (0x51, 0, 2),
            (0x51, 0, 2),
            vec![Lack::Member { member: 1, members: 2 }, Lack::Twice { member: 0 }],
        ),
        ((0x52, 0, 2), (0x53, 1, 2), vec![Lack::Contradiction]),
        (
            (0x54, 0, 2),
            (0x54, 1, 3),
            vec![Lack::Member { member: 2, members: 3 }, Lack::Contradiction],
        ),
        ((0x55, 0, 2), (0x55, 1, 2), vec![]),
    ] {
        let mut all = Machines::new().await;
        for (number, (point, member, members)) in [(0, first), (1, second)] {
            all.world.end_span_with(number, Some(mark(point, member, members)));
        }
        all.world.commit(0).await;
        let found = points(&all, DB).await;
        let last = found.points.last().unwrap();
        assert_eq!((&last.lacking, last.attempt), (&expected, Some(attempt)));
        switch_on(&[Bug::MembersCounted]);
        let counted = points(&all, DB).await;
        switch_on(&[]);
        let is_twice = expected.iter().any(|lack| matches!(lack, Lack::Twice { .. }));
        assert!(!is_twice || counted.points.last().unwrap().is_complete(), "the bug shows");
        assert_eq!(
            (last.kind(), last.unknown_blocks(), last.time_unix_ms()),
            (MarkKind::App, 2, 5)
        );
    }
}

/// Streams that go past each other: a point that a disk lacks stands in front of its next that others have.
#[tokio::test]
async fn points_are_in_the_order_of_the_streams() {
    let mut all = Machines::new().await;
    let before = points(&all, DB).await.points.len();
    // Volume 1 alone twice, then both, then volume 1 alone.
    all.alone(DB, 1, false).await;
    all.alone(DB, 1, false).await;
    all.together(&[(DB, 0, 0), (DB, 1, 1)], 2).await;
    all.alone(DB, 1, false).await;
    all.alone(DB, 0, false).await;
    let found = told(&points(&all, DB).await);
    let ids: Vec<u8> = found[before..].iter().map(|(id, ..)| *id).collect();
    assert_eq!(ids, [10, 11, 12, 14, 13]);
}

#[tokio::test]
async fn a_place_is_compared_by_epoch_first() {
    let mut all = Machines::new().await;
    // The first disk goes on under another epoch; the next set of disks begins there.
    all.world.claim(0, 0).await;
    let mut body = newest(&all.world.vault, DB).await.body;
    body.disks[1].state = DiskState::Removed;
    body.disks[0].since = (Epoch(2), Seq(1));
    put_next(&all.world, DB, 2, &body).await;
    all.alone(DB, 0, true).await;
    let found = told(&points(&all, DB).await);
    assert!(found.last().unwrap().2.is_empty());
    assert!(!found[5].2.is_empty(), "seq 1 of epoch 2 is behind every seq of epoch 1");
}
