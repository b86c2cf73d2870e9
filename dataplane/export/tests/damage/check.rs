//! Damages one object, looks at what is left, and puts it back.

use crate::needs::{At, Piece, needs, pieces};
use crate::world::{VOID, World, memory, open};
use crate::write::{Point, image_bytes};
use bytes::Bytes;
use farshore_proto::BlockRange;
use farshore_vault::verify::{Report, verify};
use farshore_vault::view::flatten;
use farshore_vault::{PointSelector, StoreError, Vault, VaultError, VolumeView};
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is wrong with an object now.
#[derive(Debug, Clone)]
pub(crate) enum Damage {
    /// Its bytes are these.
    Bytes(Bytes),
    /// It is gone.
    Gone,
}

/// What happened, over many damages.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    pub(crate) tried: usize,
    pub(crate) named_by_verify: usize,
    pub(crate) points_read: usize,
    pub(crate) points_refused: usize,
    /// What is not as it should be, the first of each sort.
    pub(crate) wrong: BTreeMap<String, String>,
}

impl Tally {
    pub(crate) fn blame(&mut self, sort: &str, detail: impl FnOnce() -> String) {
        self.wrong.entry(sort.to_owned()).or_insert_with(detail);
    }

    /// Prints the counts and fails if anything was wrong.
    pub(crate) fn finish(self, what: &str) {
        let Self { tried, named_by_verify, points_read, points_refused, wrong } = self;
        println!(
            "{what}: {tried} damages, {named_by_verify} named by verify, \
             {points_read} points read, {points_refused} refused"
        );
        assert!(tried > 0);
        assert!(wrong.is_empty(), "{what}: {wrong:#?}");
    }
}

/// A copy of a world's vault, open since before any damage.
pub(crate) struct Side {
    memory: Arc<InMemory>,
    pub(crate) vault: Vault,
}

impl Side {
    async fn new(objects: &BTreeMap<String, Bytes>) -> Self {
        let memory = memory(objects).await;
        let vault = open(&memory).await;
        Self { memory, vault }
    }

    pub(crate) async fn apply(&self, name: &str, damage: &Damage) {
        let path = Path::from(name);
        match damage {
            Damage::Bytes(bytes) => {
                drop(self.memory.put(&path, bytes.clone().into()).await.unwrap())
            }
            Damage::Gone => self.memory.delete(&path).await.unwrap(),
        }
    }

    /// Opens the vault as it is now.
    pub(crate) async fn reopen(&self) -> Result<Vault, VaultError> {
        Vault::open(self.vault.store(), &crate::world::recovery_key()).await
    }

    pub(crate) async fn verify(&self) -> Report {
        verify(&self.vault, true, |_| {}).await.unwrap()
    }
}

/// A world and two copies of its vault: with maps and index runs, and without.
pub(crate) struct Bench {
    pub(crate) world: World,
    pub(crate) full: Side,
    pub(crate) bare: Side,
    images: Vec<Vec<u8>>,
    pub(crate) tally: Tally,
    turn: usize,
}

/// Nobody ever reads the frames of a void slot, `verify` neither.
fn is_unread(world: &World, name: &str, piece: Piece) -> bool {
    name == world.slot(0, VOID.0) && matches!(piece, Piece::Frame(_))
}

fn is_derived(name: &str) -> bool {
    ["maps/", "pages/", "index/"].iter().any(|folder| name.starts_with(folder))
        || name.contains("/checkpoints/")
}

/// Reads all of a point; what comes back is right.
pub(crate) async fn read(
    world: &World,
    vault: &Vault,
    point: &Point,
    image: &[u8],
) -> Result<(), VaultError> {
    let by_id = PointSelector::Point(point.id);
    let view = VolumeView::open(vault, world.volume(point.volume), by_id).await?;
    assert_eq!((view.point().id, view.point().seq), (point.id, point.seq));
    let whole = BlockRange { block: 0, count: point.image.len() as u64 };
    assert!(flatten(&view.read(whole).await?) == image, "wrong bytes of {point:?}");
    Ok(())
}

impl Bench {
    pub(crate) async fn new() -> Self {
        let world = World::new().await;
        let full = Side::new(&world.objects).await;
        let without = world.objects.iter().filter(|(name, _)| !is_derived(name));
        let without = without.map(|(name, bytes)| (name.clone(), bytes.clone())).collect();
        let bare = Side::new(&without).await;
        let images = world.writer.points.iter().map(|point| image_bytes(&point.image)).collect();
        let mut bench = Self { world, full, bare, images, tally: Tally::default(), turn: 0 };
        let report = bench.full.verify().await;
        assert!(report.is_whole() && report.holes.is_empty(), "{report:#?}");
        assert_eq!((report.points, report.maps, report.index_runs), (13, 3, 1));
        assert_eq!(report.checkpoints, 2);
        bench.read_all(|_| false, "nothing", None).await;
        bench.tally = Tally::default();
        bench
    }

    /// Damages an object as `how` says: the damage lies in `piece` and is found at `offset`.
    pub(crate) async fn check(
        &mut self,
        name: &str,
        damage: &Damage,
        found: (Piece, usize),
        how: &str,
    ) {
        let (piece, offset) = found;
        let what = format!("{how} of {name}");
        self.apply(name, damage).await;
        self.tally.tried += 1;
        let report = self.full.verify().await;
        let is_it = |problem: &farshore_vault::verify::Problem| {
            problem.object.to_string() == name && problem.offset == offset as u64
        };
        if report.problems.iter().any(is_it) {
            self.tally.named_by_verify += 1;
        } else if !is_unread(&self.world, name, piece) {
            let sort = format!("verify does not name {piece:?} of {}", kind_of(name));
            self.tally.blame(&sort, || format!("{what}, expected at {offset}: {report:#?}"));
        }
        if name == "vault" || name.starts_with("keys/") || name.starts_with("revisions/") {
            self.check_opening(name, &what).await;
        }
        let world_needs: Vec<bool> =
            self.world.writer.points.iter().map(|p| needs(&self.world, p, name, piece)).collect();
        self.read_all(|at| world_needs[at], &what, Some((name, offset))).await;
        let whole = Damage::Bytes(self.world.objects[name].clone());
        self.apply(name, &whole).await;
    }

    pub(crate) async fn apply(&self, name: &str, damage: &Damage) {
        self.full.apply(name, damage).await;
        if !is_derived(name) {
            self.bare.apply(name, damage).await;
        }
    }

    /// The vault as it is does not open, and the error names the object.
    async fn check_opening(&mut self, name: &str, what: &str) {
        match self.full.reopen().await {
            Ok(_) => self.tally.blame("the vault opens", || what.to_owned()),
            Err(error) if error.to_string().contains(&format!("object {name} ")) => {}
            Err(error) => self.tally.blame("opening does not name", || format!("{what}: {error}")),
        }
    }

    /// Reads points: those that need what is damaged without maps, where they must be refused, and
    /// with maps, where they may be; a part of the others, which must read, in turn.
    pub(crate) async fn read_all(
        &mut self,
        is_needed: impl Fn(usize) -> bool,
        what: &str,
        found: Option<(&str, usize)>,
    ) {
        self.turn += 1;
        for at in 0..self.world.writer.points.len() {
            let is_turn = found.is_none() || (at + self.turn).is_multiple_of(4);
            if !is_needed(at) && !is_turn {
                continue;
            }
            for is_full in [false, true] {
                // With maps some of what is needed is not.
                if is_full && is_needed(at) && !is_turn {
                    continue;
                }
                self.read_one(at, is_full, is_needed(at), what, found).await;
            }
        }
    }

    async fn read_one(
        &mut self,
        at: usize,
        is_full: bool,
        is_needed: bool,
        what: &str,
        found: Option<(&str, usize)>,
    ) {
        let point = &self.world.writer.points[at];
        let side = if is_full { &self.full } else { &self.bare };
        let result = read(&self.world, &side.vault, point, &self.images[at]).await;
        let place = format!("point {:?} seq {} {what}", point.volume, point.seq);
        let kind = found.map_or("", |(name, _)| kind_of(name));
        match (result, is_needed) {
            (Ok(()), true) if !is_full => {
                self.tally.blame(&format!("{kind}: reads what it cannot"), || place);
            }
            (Ok(()), _) => self.tally.points_read += 1,
            (Err(error), false) => {
                let detail = || format!("{place}: {error}");
                self.tally.blame(&format!("{kind}: a point that needs nothing of it"), detail);
            }
            (Err(error), true) => {
                self.tally.points_refused += 1;
                let (name, offset) = found.unwrap();
                // By a map a frame is read without what lies in front of it in the segment.
                let is_named = match is_full {
                    true => error.to_string().contains(&format!("object {name} ")),
                    false => names(&error, name, offset),
                };
                if !is_named {
                    let detail = || format!("{place}: expected {offset}: {error}");
                    self.tally.blame(&format!("{kind}: the error does not name it"), detail);
                }
            }
        }
    }
}

/// The first part of an object's name.
pub(crate) fn kind_of(name: &str) -> &str {
    match name.contains("/checkpoints/") {
        true => "checkpoints",
        false => name.split('/').next().unwrap(),
    }
}

/// Whether the error names object and offset.
pub(crate) fn names(error: &VaultError, name: &str, offset: usize) -> bool {
    let text = error.to_string();
    match error {
        VaultError::Version { .. } => offset == 0 && text.contains(&format!("object {name} ")),
        VaultError::Store(StoreError::TooLarge { .. }) => {
            text.contains(&format!("object {name} has "))
        }
        _ => text.contains(&format!("object {name} is damaged at byte {offset}: ")),
    }
}

/// The piece that a byte lies in.
pub(crate) fn piece_at(pieces: &[At], byte: usize) -> &At {
    pieces.iter().find(|at| at.range.contains(&byte)).unwrap()
}

/// All objects of the world with their pieces, whose names begin so.
pub(crate) async fn objects(world: &World, prefix: &str) -> Vec<(String, Vec<At>)> {
    let mut found = Vec::new();
    for name in world.names(prefix) {
        let at = pieces(world, &name).await;
        found.push((name, at));
    }
    assert!(!found.is_empty(), "nothing is named {prefix}");
    found
}
