//! Objects that are gone.

use crate::check::{Bench, Damage, kind_of};
use crate::world::{A, B, C, key_name};
use crate::write::image_bytes;
use farshore_vault::Vault;
use std::collections::BTreeSet;

/// What a loss does, by the number of the point of its volume, from 0.
struct Loss {
    name: String,
    /// Whether `verify` names it, as a problem or as a hole that a crash explains.
    is_named: bool,
    /// Points that do not read any more.
    lost: [Vec<usize>; 3],
    /// Volumes whose lost points are only not found: nothing in the vault tells that they were there.
    is_silent: [bool; 3],
}

fn all(points: usize) -> Vec<usize> {
    (0..points).collect()
}

fn from(first: usize, points: usize) -> Vec<usize> {
    (first..points).collect()
}

/// Points of volumes a, b and c: 6, 4 and 3.
fn losses(bench: &Bench) -> Vec<Loss> {
    let world = &bench.world;
    let loss = |name: String, is_named, a: Vec<usize>, b: Vec<usize>, c: Vec<usize>| Loss {
        name,
        is_named,
        lost: [a, b, c],
        is_silent: [false; 3],
    };
    let silent = |loss: Loss, is_silent| Loss { is_silent, ..loss };
    let none = Vec::new;
    let mut losses = vec![
        loss("vault".to_owned(), true, none(), none(), none()),
        loss(key_name(1), true, none(), none(), none()),
        loss(key_name(2), true, none(), none(), none()),
        loss(key_name(3), true, none(), none(), none()),
        loss(key_name(4), true, none(), none(), none()),
        // Who has the vault open knows what it said.
        loss(world.names("revisions/").remove(0), true, none(), none(), none()),
        loss(world.epoch(A, 1), true, all(6), none(), none()),
        // Without it the end of epoch 1 is not known.
        loss(world.epoch(A, 2), true, all(6), none(), none()),
        // The newest one: what it put in the logs tells, but only who reads all of them.
        silent(loss(world.epoch(A, 3), true, vec![5], none(), none()), [true; 3]),
        loss(world.epoch(B, 1), true, none(), all(4), none()),
        silent(loss(world.epoch(B, 2), true, none(), from(2, 4), none()), [true; 3]),
        silent(loss(world.epoch(C, 1), true, none(), none(), all(3)), [true; 3]),
        loss(world.slot(0, 0), true, all(6), all(4), all(3)),
        loss(world.slot(0, 1), true, from(1, 6), from(1, 4), from(1, 3)),
        loss(world.slot(0, 2), true, from(2, 6), from(1, 4), from(1, 3)),
        // A void slot counts for nothing, but a reader cannot know that it was one.
        loss(world.slot(0, 3), true, from(2, 6), from(2, 4), from(2, 3)),
        loss(world.slot(0, 4), true, from(2, 6), from(2, 4), from(2, 3)),
        // Nothing is behind the seal that could miss it; the epochs bound what the log may hold.
        loss(world.slot(0, 5), false, none(), none(), none()),
        loss(world.slot(1, 0), true, from(3, 6), from(2, 4), none()),
        loss(world.slot(1, 1), true, from(4, 6), from(3, 4), none()),
        // The newest slot of a log without a seal: the map of volume a tells, nothing else.
        silent(loss(world.slot(1, 2), false, vec![5], vec![3], none()), [true; 3]),
        loss(world.names("index/").remove(0), false, none(), none(), none()),
    ];
    for name in world.names("maps/") {
        // A map whose manifest is missing is none: an attempt to write one may end so.
        losses.push(loss(name, false, none(), none(), none()));
    }
    for name in world.names("pages/") {
        losses.push(loss(name, true, none(), none(), none()));
    }
    for name in world.names("logs/").into_iter().filter(|name| kind_of(name) == "checkpoints") {
        // A log is read without.
        losses.push(loss(name, false, none(), none(), none()));
    }
    assert_eq!(losses.len(), world.objects.len(), "every object is lost once");
    losses
}

#[tokio::test]
async fn a_missing_object_is_named_or_known_not_to_be() {
    let mut bench = Bench::new().await;
    for loss in losses(&bench) {
        let Loss { name, is_named, lost, is_silent } = loss;
        bench.apply(&name, &Damage::Gone).await;
        bench.tally.tried += 1;
        let report = bench.full.verify().await;
        let objects: BTreeSet<String> =
            report.problems.iter().map(|problem| problem.object.to_string()).collect();
        let holes = report
            .holes
            .iter()
            .map(|hole| farshore_vault::layout::ObjectName::slot(hole.log, hole.slot).to_string());
        let found = objects.contains(&name) || holes.into_iter().any(|hole| hole == name);
        assert_eq!(found, is_named, "{name}: {report:#?}");
        bench.tally.named_by_verify += usize::from(found);
        let mut numbers = [0; 3];
        for point in &bench.world.writer.points {
            let number = numbers[point.volume];
            numbers[point.volume] += 1;
            let image = image_bytes(&point.image);
            let read = crate::check::read(&bench.world, &bench.bare.vault, point, &image).await;
            let what = format!("{name}: point {number} of volume {}", point.volume);
            match read {
                Ok(()) => {
                    bench.tally.points_read += 1;
                    assert!(!lost[point.volume].contains(&number), "{what} reads");
                }
                Err(error) => {
                    bench.tally.points_refused += 1;
                    assert!(lost[point.volume].contains(&number), "{what}: {error}");
                    let is_told = error.to_string().contains(&format!("object {name}"));
                    let is_missed = error.kind() == farshore_proto::ErrorKind::NotFound;
                    let is_right = is_told || (is_missed && is_silent[point.volume]);
                    assert!(is_right, "{what}: {error}");
                }
            }
        }
        let whole = Damage::Bytes(bench.world.objects[&name].clone());
        bench.apply(&name, &whole).await;
    }
    bench.tally.finish("missing objects");
}

#[tokio::test]
async fn a_vault_without_its_identity_is_told_from_none_and_gets_it_back() {
    let bench = Bench::new().await;
    bench.full.apply("vault", &Damage::Gone).await;
    let error = bench.full.reopen().await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&format!("object vault is missing although {} is there", key_name(1))),
        "{text}"
    );
    assert!(text.contains("farshore vault init"), "{text}");
    Vault::init(bench.full.vault.store(), &bench.world.recovery).await.unwrap();
    let vault = bench.full.reopen().await.unwrap();
    assert_eq!(vault.id(), bench.full.vault.id());
    assert!(bench.full.verify().await.is_whole(), "byte by byte as it was");
}

#[tokio::test]
async fn without_a_data_key_what_it_opens_is_refused_by_its_name_and_the_rest_reads() {
    let bench = Bench::new().await;
    bench.full.apply(&key_name(4), &Damage::Gone).await;
    let vault = bench.full.reopen().await.unwrap();
    let mut read = Vec::new();
    for (at, point) in bench.world.writer.points.iter().enumerate() {
        let image = image_bytes(&point.image);
        match crate::check::read(&bench.world, &vault, point, &image).await {
            Ok(()) => read.push(at),
            Err(error) => {
                let text = error.to_string();
                assert!(text.contains(&format!("object {} is missing; ", key_name(4))), "{text}");
            }
        }
    }
    // Those of before the key was added: two of volume a, one of each other. Epochs are the vault's own.
    let volumes = read.iter().map(|at| bench.world.writer.points[*at].volume);
    assert_eq!(volumes.collect::<BTreeSet<_>>(), BTreeSet::from([A, B, C]));
    assert_eq!(read.len(), 4);
    let report = farshore_vault::verify::verify(&vault, true, |_| {}).await.unwrap();
    let problems = report.problems.iter();
    let named = problems.filter(|problem| problem.object.to_string() == key_name(4)).count();
    assert!(named > 0, "{report:#?}");
}

#[tokio::test]
async fn points_before_the_damage_are_listed_with_what_is_damaged() {
    use farshore_vault::catalog::{PointList, list_points, list_points_to_damage};
    let bench = Bench::new().await;
    let volume = bench.world.volume(A);
    let all = list_points(&bench.bare.vault, volume).await.unwrap();
    assert_eq!(all.len(), 6);
    for (name, left) in [
        (bench.world.slot(0, 1), 1),
        (bench.world.slot(0, 4), 2),
        (bench.world.epoch(A, 3), 3),
        (bench.world.epoch(A, 1), 0),
    ] {
        bench.bare.apply(&name, &Damage::Bytes(bytes::Bytes::from_static(b"x"))).await;
        let PointList { points, broken } =
            list_points_to_damage(&bench.bare.vault, volume).await.unwrap();
        assert_eq!(points, all[..left], "{name}");
        let text = broken.unwrap().to_string();
        assert!(text.contains(&format!("object {name} is damaged at byte 0")), "{text}");
        assert!(list_points(&bench.bare.vault, volume).await.is_err());
        bench.bare.apply(&name, &Damage::Bytes(bench.world.objects[&name].clone())).await;
    }
}

/// The newest slot of a log that is not sealed is missed by nothing but a map at a point in it.
#[tokio::test]
async fn the_latest_point_is_refused_when_a_map_shows_that_there_was_a_later_one() {
    use farshore_vault::{PointSelector, VolumeView};
    let bench = Bench::new().await;
    let newest = bench.world.slot(1, 2);
    bench.apply(&newest, &Damage::Gone).await;
    let latest = async |vault: &Vault, volume: usize| {
        VolumeView::open(vault, bench.world.volume(volume), PointSelector::Latest).await
    };
    let error = latest(&bench.full.vault, A).await.unwrap_err().to_string();
    assert!(error.contains(&format!("object {newest} is missing; maps/")), "{error}");
    // Without the map nobody knows; volume b has an older one only.
    for (vault, volume, seq) in [(&bench.bare.vault, A, 12), (&bench.full.vault, B, 8)] {
        assert_eq!(latest(vault, volume).await.unwrap().point().seq.0, seq);
    }
}
