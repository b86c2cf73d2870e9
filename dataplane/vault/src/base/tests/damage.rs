//! Bases that are damaged, lost or refused, and maps of theirs that are.

use super::*;
use crate::testing::{Call, OthersPut, counted};
use farshore_codec::map::{MapPlace, seal_manifest};
use farshore_proto::map::MapFields;
use std::fs;
use std::path::PathBuf;

/// Base 1 keeps points 1 and 3 at point 3, base 2 point 3 at point 4.
async fn based() -> World {
    let world = marked().await;
    assert_eq!(base_at(&world, 3, &[1, 3]).await.unwrap(), 1);
    assert_eq!(base_at(&world, 4, &[3]).await.unwrap(), 2);
    check(&world).await;
    world
}

fn base_file(world: &World, number: u64) -> PathBuf {
    world.file(&ObjectName::base(world.volumes[0].id, number))
}

/// What all readers of the volume say, the same of each.
async fn refused(world: &World) -> String {
    let vault = world.reopen().await;
    let volume = world.volumes[0].id;
    let mut errors = vec![
        newest(&vault, volume).await.unwrap_err(),
        catalog::end_of_volume(&vault, volume).await.unwrap_err(),
        catalog::list_points(&vault, volume).await.unwrap_err(),
        end_of_stream(&vault, volume).await.unwrap_err(),
        map::write(&vault, volume).await.unwrap_err(),
        MarkTail::open(&vault, volume).await.unwrap().into_broken().unwrap(),
    ];
    for point in world.committed_points() {
        let selectors = [PointSelector::Latest, PointSelector::Point(point.id)];
        for selector in selectors.into_iter().chain([PointSelector::Seq(point.seq)]) {
            errors.push(VolumeView::open(&vault, volume, selector).await.unwrap_err());
        }
        assert_eq!(find_mark(&vault, volume, point.id).await.unwrap(), None);
    }
    for error in &errors {
        assert_eq!(error.to_string(), errors[0].to_string());
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    }
    errors[0].to_string()
}

#[tokio::test]
async fn a_base_that_does_not_open_is_said_by_name() {
    let world = based().await;
    let (file, name) = (base_file(&world, 2), ObjectName::base(world.volumes[0].id, 2));
    let whole = fs::read(&file).unwrap();
    for at in [0, 20, 100, 155, 160, 300, whole.len() - 1] {
        let mut bad = whole.clone();
        bad[at] ^= 0x10;
        fs::write(&file, bad).unwrap();
        let error = refused(&world).await;
        assert!(error.contains(&name.to_string()), "byte {at}: {error}");
    }
    for length in [0, 100, 160, whole.len() - 1] {
        fs::write(&file, &whole[..length]).unwrap();
        let error = refused(&world).await;
        assert!(error.contains(&name.to_string()), "{length} bytes: {error}");
        let report = crate::verify::verify(&world.vault, false, |_| {}).await.unwrap();
        assert!(report.problems.iter().any(|problem| problem.object == name), "{report:?}");
    }
    // The one before in its place, and one of another volume.
    fs::write(&file, fs::read(base_file(&world, 1)).unwrap()).unwrap();
    assert!(refused(&world).await.contains("is the base 1 of volume"));
    let mut other = World::new(2, 1).await;
    for number in [1, 0] {
        other.write(number, 0, 8, 1000);
        other.end_span(number, true);
        other.commit(0).await;
    }
    let volume = other.volumes[1].id;
    let at = write_shaped(&other.vault, volume, small()).await.unwrap().unwrap().at;
    let map = map_at(&other, 1, at).await.unwrap();
    write(&other.vault, volume, at, map, Vec::new()).await.unwrap();
    let (from, to) = (other.volumes[1].id, other.volumes[0].id);
    let moved = other.file(&ObjectName::base(to, 1));
    fs::create_dir_all(moved.parent().unwrap()).unwrap();
    fs::copy(other.file(&ObjectName::base(from, 1)), moved).unwrap();
    let error = newest(&other.vault, to).await.unwrap_err();
    assert!(error.to_string().contains(&format!("base 1 of volume {from}")), "{error}");
}

#[tokio::test]
async fn a_base_that_is_lost_is_said_by_name() {
    let world = marked().await;
    let volume = world.volumes[0].id;
    base_at(&world, 3, &[3]).await.unwrap();
    let BaseBody { at, map, points, .. } =
        newest(&world.vault, volume).await.unwrap().unwrap().body;
    let make = || write(&world.vault, volume, at, map, points.clone());
    for number in 2..=12 {
        assert_eq!(make().await.unwrap(), number);
        assert_eq!(newest(&world.vault, volume).await.unwrap().unwrap().number, number);
    }
    for lost in 1..12 {
        let (file, name) = (base_file(&world, lost), ObjectName::base(volume, lost));
        let whole = fs::read(&file).unwrap();
        fs::remove_file(&file).unwrap();
        let report = crate::verify::verify(&world.vault, false, |_| {}).await.unwrap();
        assert!(report.problems.iter().any(|problem| problem.object == name), "{lost}: {report:?}");
        // The newest says all that counts.
        let found = newest(&world.vault, volume).await.unwrap().unwrap();
        assert_eq!(found.number, 12, "{lost} was lost");
        check(&world).await;
        assert_eq!(make().await.unwrap(), 13);
        fs::remove_file(base_file(&world, 13)).unwrap();
        fs::write(&file, whole).unwrap();
    }
    let report = crate::verify::verify(&world.vault, false, |_| {}).await.unwrap();
    assert!(report.is_whole() && report.bases == 12, "{report:?}");
}

#[tokio::test]
async fn bases_name_the_one_before_as_it_is_stored() {
    let world = based().await;
    let (first, second) = (base_file(&world, 1), ObjectName::base(world.volumes[0].id, 2));
    // Another attempt at the first says the same.
    let body = read(&world.vault, world.volumes[0].id, 1).await.unwrap().body;
    let volume = world.volumes[0].id;
    let keys = world.vault.seal_keys();
    let again = farshore_codec::base::seal_base(world.vault.id(), volume, 1, keys, &body);
    fs::write(first, again.unwrap()).unwrap();
    check(&world).await;
    let report = crate::verify::verify(&world.vault, false, |_| {}).await.unwrap();
    let problems: Vec<_> = report.problems.iter().map(|p| (&p.object, &p.what[..])).collect();
    assert_eq!(problems, [(&second, "does not name the base that is in front of it")]);
}

/// Whoever needs a map that a base names says so, and names both; whoever does not goes on.
#[tokio::test]
async fn a_map_of_a_base_that_is_lost_is_said_by_name() {
    let mut world = based().await;
    let volume = world.volumes[0].id;
    sweep(&mut world, 0).await;
    let base = newest(&world.vault, volume).await.unwrap().unwrap();
    let points = world.committed_points();
    let kept = base.body.points[0];
    let (own, others) = ((base.body.at, base.body.map), (kept.at, kept.map));
    for (name, needs, others) in [(own, &points[5], &points[3]), (others, &points[3], &points[5])] {
        let object = ObjectName::map(volume, name.0, name.1);
        let (file, away) = (world.file(&object), world.folder.path().join("away"));
        let whole = fs::read(&file).unwrap();
        for damage in 0..3 {
            match damage {
                0 => fs::rename(&file, &away).unwrap(),
                1 => fs::write(&file, &whole[..whole.len() - 1]).unwrap(),
                _ => {
                    let mut bad = whole.clone();
                    bad[220] ^= 1;
                    fs::write(&file, bad).unwrap();
                }
            }
            let vault = world.reopen().await;
            for selector in [PointSelector::Point(needs.id), PointSelector::Seq(needs.seq)] {
                let error = VolumeView::open(&vault, volume, selector).await.unwrap_err();
                assert!(matches!(error, VaultError::BaseMap { .. }), "{error}");
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                let text = error.to_string();
                let names = [object.to_string(), base.object().to_string()];
                assert!(names.iter().all(|name| text.contains(name)), "{text}");
                assert!(std::error::Error::source(&error).is_some());
            }
            let view = VolumeView::open(&vault, volume, PointSelector::Point(others.id)).await;
            let bytes = flatten(&view.unwrap().read(WHOLE).await.unwrap());
            assert!(bytes == image_bytes(&others.image));
            // Where the stream ends is known all the same, and which points there are.
            let end = catalog::end_of_volume(&vault, volume).await.unwrap();
            assert_eq!(end.last_seq, points[5].seq);
            assert_eq!(catalog::list_points(&vault, volume).await.unwrap().len(), 2);
            assert_eq!(end_of_stream(&vault, volume).await.unwrap().last_seq, points[5].seq);
            let report = crate::verify::verify(&vault, false, |_| {}).await.unwrap();
            let is_it = |p: &crate::verify::Problem| p.object == base.object();
            assert!(report.problems.iter().any(is_it), "{report:?}");
            if damage == 0 {
                fs::rename(&away, &file).unwrap();
            } else {
                fs::write(&file, &whole).unwrap();
            }
        }
    }
    check(&world).await;
}

/// The base's map is the one that it was made of, not another that opens in its place.
#[tokio::test]
async fn another_map_in_the_place_of_a_bases_is_not_read() {
    let world = based().await;
    let (vault, volume) = (&world.vault, world.volumes[0].id);
    let epochs = read_epochs(vault, volume).await.unwrap();
    let body = newest(vault, volume).await.unwrap().unwrap().body;
    let kept = body.points[0];
    // The same again under another salt; and, of a kept point, one that says that it is of another.
    for (at, attempt, id) in [(body.at, body.map, None), (kept.at, kept.map, Some([9; 16]))] {
        let map = map::load(vault, volume, &epochs, (at, attempt)).await.unwrap();
        let place = MapPlace { vault: vault.id(), volume, at, attempt };
        let point = id.map(PointId).or(map.point.map(|point| point.id));
        let fields = MapFields { attempt, point, ordinal: at.ordinal };
        let keys = vault.seal_keys();
        let again = seal_manifest(&place, &fields, keys, &map.manifest, 1).unwrap();
        let file = world.file(&ObjectName::map(volume, at, attempt));
        let whole = fs::read(&file).unwrap();
        fs::write(&file, again).unwrap();
        let selector = id.map_or(PointSelector::Latest, |_| PointSelector::Seq(at.seq));
        let error = VolumeView::open(&world.reopen().await, volume, selector).await.unwrap_err();
        assert!(matches!(error, VaultError::BaseMap { cause: None, .. }), "{error}");
        let report = crate::verify::verify(vault, false, |_| {}).await.unwrap();
        assert_eq!(report.problems.len(), 1, "{report:?}");
        assert_eq!(report.problems[0].object, ObjectName::base(volume, 2));
        fs::write(file, whole).unwrap();
    }
}

/// A page that is lost after the view was opened: there is no other map to read the point by.
#[tokio::test]
async fn a_page_that_is_lost_later_is_said_by_name() {
    let mut world = based().await;
    let volume = world.volumes[0].id;
    sweep(&mut world, 0).await;
    for point in [3, 5] {
        let point = &world.committed_points()[point];
        let selector = PointSelector::Point(point.id);
        let view = VolumeView::open(&world.vault, volume, selector).await.unwrap();
        let (pages, away) =
            (world.folder.path().join("vault/pages"), world.folder.path().join("away"));
        fs::rename(&pages, &away).unwrap();
        let error = match view.read(WHOLE).await {
            // All was written behind the base's map.
            Ok(pieces) => {
                assert!(flatten(&pieces) == image_bytes(&point.image));
                fs::rename(&away, &pages).unwrap();
                continue;
            }
            Err(error) => error,
        };
        fs::rename(&away, &pages).unwrap();
        assert!(matches!(error, VaultError::BaseMap { .. }), "{error}");
        let cause = std::error::Error::source(&error).unwrap().to_string();
        assert!(cause.contains("pages/"), "{cause}");
    }
}

#[tokio::test]
async fn what_the_rules_forbid_is_refused() {
    let mut world = marked().await;
    let volume = world.volumes[0].id;
    let refused = |made: Result<u64, VaultError>, text: &str| {
        let error = made.unwrap_err();
        assert!(matches!(error, VaultError::BaseRefused { .. }), "{error}");
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.to_string().contains(text), "{error}");
    };
    refused(base_at(&world, 2, &[3]).await, "lie above its place");
    refused(base_at(&world, 4, &[3, 1]).await, "not in order");
    base_at(&world, 3, &[1, 2]).await.unwrap();
    refused(base_at(&world, 2, &[1]).await, "in front of that of the base before");
    let list = |points: &[ModelPoint]| points.iter().map(|point| point.id).collect::<Vec<_>>();
    let points = world.committed_points();
    let listed = catalog::list_points(&world.vault, volume).await.unwrap();
    let there: Vec<_> = listed.iter().map(|point| point.id).collect();
    assert_eq!(there, list(&[&points[1..3], &points[4..]].concat()));
    // One that was left out does not come back, nor does what is said of one change.
    let epochs = read_epochs(&world.vault, volume).await.unwrap();
    let place = |number: usize| place_of(&epochs, points[number].seq);
    let map = map_at(&world, 0, place(4)).await.unwrap();
    let first = newest(&world.vault, volume).await.unwrap().unwrap().body.points;
    let mut back = first[0];
    (back.at, back.map) = (place(0), map_at(&world, 0, place(0)).await.unwrap());
    let made = write(&world.vault, volume, place(4), map, vec![back]).await;
    refused(made, "a point that the base before left out");
    let mut other = first[0];
    other.mark.group.attempt = farshore_proto::MarkAttempt([1; 16]);
    other.mark.group.members = 2;
    let made = write(&world.vault, volume, place(4), map, vec![other]).await;
    refused(made, "something else of a point than the base before");
    let mut new = kept_of(&world, &points[4], map).await;
    new.mark.time_unix_ms += 1;
    let made = write(&world.vault, volume, place(4), map, vec![new]).await;
    refused(made, "something else of a point than the map");
    // A place on a branch that the volume has left.
    world.go_on_from(0, 1, &points[4]).await;
    let made = write(&world.vault, volume, place(4), map, Vec::new()).await;
    refused(made, "not on the volume's newest branch");
    let none = Place { ordinal: 0, seq: Seq(1) };
    refused(write(&world.vault, volume, none, map, Vec::new()).await, "newest branch");
    let error = write(&world.vault, VolumeId([9; 16]), place(4), map, Vec::new()).await;
    assert!(matches!(error, Err(VaultError::NoVolume { .. })), "{error:?}");
    assert_eq!(newest(&world.vault, volume).await.unwrap().unwrap().number, 1);
}

#[tokio::test]
async fn a_map_that_does_not_open_whole_is_no_base() {
    let world = marked().await;
    let pages = world.folder.path().join("vault/pages");
    let mut parts = Vec::new();
    let mut folders = vec![pages];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() { folders.push(path) } else { parts.push(path) }
        }
    }
    assert!(parts.len() > 5, "each map has several");
    let mut refused = 0;
    for part in &parts {
        let whole = fs::read(part).unwrap();
        let mut bad = whole.clone();
        *bad.last_mut().unwrap() ^= 1;
        fs::write(part, bad).unwrap();
        let made = base_at(&world, 4, &[0, 1, 2, 3]).await;
        fs::write(part, whole).unwrap();
        let error = made.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
        refused += 1;
    }
    assert_eq!(refused, parts.len());
    assert_eq!(base_at(&world, 4, &[0, 1, 2, 3]).await.unwrap(), 1);
}

#[tokio::test]
async fn a_lost_answer_is_no_other_base() {
    let world = marked().await;
    let (store, hooks) = counted(&world.vault);
    hooks.lose_answers();
    let vault = Vault::open(&store, &world.recovery).await.unwrap();
    let volume = world.volumes[0].id;
    let epochs = read_epochs(&vault, volume).await.unwrap();
    let at = place_of(&epochs, world.points[2].seq);
    let map = map_at(&world, 0, at).await.unwrap();
    assert_eq!(write(&vault, volume, at, map, Vec::new()).await.unwrap(), 1);
    // Somebody else's is.
    let (store, hooks) = counted(&world.vault);
    let vault = Vault::open(&store, &world.recovery).await.unwrap();
    base_at(&world, 2, &[]).await.unwrap();
    let (file, name) = (base_file(&world, 2), ObjectName::base(volume, 2));
    let theirs = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    hooks.outrun(&name, file, theirs);
    let error = write(&vault, volume, at, map, Vec::new()).await.unwrap_err();
    assert!(matches!(error, VaultError::BaseRefused { .. }), "{error}");
}

/// A volume without bases costs a few requests more, beside those for its epochs; the newest of many is found by few.
#[tokio::test]
async fn few_bases_are_asked_for() {
    let world = marked().await;
    let volume = world.volumes[0].id;
    let asked = || async {
        let (store, hooks) = counted(&world.vault);
        let vault = Vault::open(&store, &world.recovery).await.unwrap();
        let found = newest(&vault, volume).await.unwrap().map_or(0, |base| base.number);
        let is_base = |(call, path): &(Call, object_store::path::Path)| {
            *call == Call::Get && path.as_ref().contains("/bases/")
        };
        (found, hooks.trail().iter().filter(|entry| is_base(entry)).count())
    };
    assert_eq!(asked().await, (0, 4));
    for number in 1..=70 {
        assert_eq!(base_at(&world, 2, &[]).await.unwrap(), number);
        let (found, asked) = asked().await;
        assert_eq!(found, number);
        assert!(asked <= 40, "{asked} for base {number}");
    }
}

/// Rule 16 of ADR 0014: what is missing is lost only if the base is the same as before the miss.
#[tokio::test]
async fn what_is_gone_by_a_base_that_was_made_meanwhile_is_not_lost() {
    let world = based().await;
    let (volume, file) = (world.volumes[0].id, base_file(&world, 2));
    let points = world.committed_points();
    let kept = read(&world.vault, volume, 1).await.unwrap().body.points[0];
    assert_eq!(kept.mark.point, points[1].id, "base 2 leaves it out");
    fs::remove_file(world.file(&ObjectName::map(volume, kept.at, kept.map))).unwrap();
    let bytes = fs::read(&file).unwrap();
    fs::remove_file(&file).unwrap();
    let (mut call, mut calls, mut gone, mut lost) = (0, 1, 0, 0);
    while call < calls {
        let (store, hooks) = counted(&world.vault);
        let vault = Vault::open(&store, &world.recovery).await.unwrap();
        let put = OthersPut { call, file: file.clone(), bytes: bytes.clone(), won: None };
        hooks.others_put(vec![put]);
        let error = VolumeView::open(&vault, volume, PointSelector::Seq(points[1].seq)).await;
        match error.unwrap_err() {
            VaultError::PointGone { .. } => gone += 1,
            VaultError::BaseMap { .. } => {
                let won = hooks.what_others_put().1[0].won;
                lost += usize::from(won.is_some());
            }
            error => panic!("call {call}: {error}"),
        }
        calls = calls.max(hooks.what_others_put().0);
        let _ = fs::remove_file(&file);
        call += 1;
    }
    // Behind the last look nobody knows.
    assert!(gone > 12 && lost < 8, "{gone} times gone, {lost} times lost");
}
