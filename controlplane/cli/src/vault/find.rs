//! Which machine is meant, and which of its points.

use std::path::Path;

use farshore_api::Exit;
use farshore_api::point::PointSelector;
use farshore_proto::machine::{Disk, DiskState, MachineBody};
use farshore_proto::{MachineId, PointId, VolumeId};
use farshore_vault::layout::ObjectName;
use farshore_vault::machine::{self, DiskPoint, Found, Lack, MachinePoint, Newest, Revision};
use farshore_vault::{Hole, Vault, VaultError};
use serde::Serialize;
use uuid::Uuid;

use crate::failure::{Failure, Outcome};
use crate::output::{now_unix_ms, shell_word, time};
use crate::table::Table;

use super::open::{told, vault_failure};
use super::select::{self, Candidate, choose};

/// A machine, as its newest revision says.
#[derive(Debug)]
pub(super) struct Machine {
    pub(super) id: MachineId,
    pub(super) revision: Revision<MachineBody>,
}

impl Machine {
    /// Its name.
    pub(super) fn name(&self) -> &str {
        &self.revision.body.name
    }

    /// A disk that it has, or had.
    fn disk(&self, index: u16) -> Option<&Disk> {
        self.revision.body.disks.iter().find(|disk| disk.index == index)
    }

    /// Whether a volume is of a disk that is protected now.
    fn protects(&self, wanted: VolumeId) -> bool {
        let mut volumes = self.revision.body.volumes();
        volumes.any(|(disk, volume)| volume == wanted && disk.state == DiskState::Protected)
    }
}

/// Finds a machine by its name or its id.
///
/// # Errors
/// `NotFound` if there is none; `Usage` if several have the name; `Corrupt` if its newest revision does not open.
pub(super) async fn find_machine(vault: &Vault, wanted: &str) -> Outcome<Machine> {
    let failed = |error: VaultError| vault_failure(&error);
    let by_id = match wanted.parse() {
        Ok(id) => {
            machine::find::<MachineBody>(vault, id).await.map_err(failed)?.map(|found| (id, found))
        }
        Err(_) => None,
    };
    let found = match by_id {
        Some(found) => vec![found],
        None => machine::find_all::<MachineBody>(vault).await.map_err(failed)?,
    };
    let is_meant = |id: MachineId, found: &Found<MachineBody>| {
        let name = found.revision.as_ref().map(|revision| revision.body.name.as_str());
        name == Some(wanted) || wanted.parse() == Ok(id)
    };
    let mut meant: Vec<_> = found.into_iter().filter(|(id, found)| is_meant(*id, found)).collect();
    let Some((id, found)) = meant.pop() else {
        let message = format!("{}: there is no machine {wanted} in this vault", vault.url());
        return Err(Failure::new(Exit::NotFound, message).hint(
            "`farshore vault machines` shows what there is, volumes that no machine names included: those are \
             restored with --volume",
        ));
    };
    if !meant.is_empty() {
        let ids: Vec<String> =
            meant.iter().map(|(id, _)| *id).chain([id]).map(|id| id.to_string()).collect();
        let message = format!("several machines have the name {wanted}: {}", ids.join(", "));
        return Err(Failure::new(Exit::Usage, message).hint("give the id of one of them"));
    }
    let revision = found.into_newest().map_err(|error| {
        vault_failure(&error).hint(
            "put the object back from a copy of the store, or restore each disk by itself: `farshore vault machines \
             --output json` shows its volumes as an older revision has them",
        )
    })?;
    let missing = || Failure::new(Exit::NotFound, format!("machine {wanted} has no revision"));
    Ok(Machine { id, revision: revision.ok_or_else(missing)? })
}

/// The points of a machine, and why there may be more.
#[derive(Debug, Default)]
pub(super) struct Points {
    pub(super) list: Vec<MachinePoint>,
    pub(super) broken: Vec<(VolumeId, VaultError)>,
    holes: Vec<(VolumeId, Hole)>,
    /// Why they may lack less than they are said to.
    unread: Vec<VaultError>,
}

impl Points {
    /// Warns of groups and of other machines' volumes that cannot be read, and of slots that are missing.
    pub(super) fn warn(&self) {
        warn_of(&self.unread, &self.holes);
    }

    /// What is damaged: first of the disks that are protected now.
    pub(super) fn into_damage(self) -> Option<VaultError> {
        self.broken.into_iter().next().map(|(_, error)| error)
    }
}

fn warn_of(unread: &[VaultError], holes: &[(VolumeId, Hole)]) {
    for error in unread {
        farshore_program::tell!(
            "warning: members of points may be there that are called lacking: {}",
            told(error)
        );
    }
    for (volume, Hole { log, slot, later }) in holes {
        farshore_program::tell!(
            "warning: object {} is missing although slot {later} exists: there may have been newer points of volume \
             {volume}",
            ObjectName::slot(*log, *slot)
        );
    }
}

/// Lists the points of a machine, complete or not.
pub(super) async fn list_points(
    vault: &Vault,
    id: MachineId,
    revision: &Revision<MachineBody>,
) -> Outcome<Points> {
    let points = machine::list_points(vault, id, revision).await;
    let mut points = points.map_err(|error| vault_failure(&error))?;
    let body = &revision.body;
    points.broken.sort_by_key(|(broken, _)| {
        let mut volumes = body.volumes();
        !volumes.any(|(disk, volume)| volume == *broken && disk.state == DiskState::Protected)
    });
    let machine::MachinePoints { points: list, broken, unread, holes } = points;
    Ok(Points { list, broken, holes, unread })
}

/// What a point lacks, in words.
pub(super) fn lacking(point: &MachinePoint) -> Vec<String> {
    point.lacking.iter().map(ToString::to_string).collect()
}

/// A point of a machine that was chosen.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) machine: Machine,
    pub(super) point: MachinePoint,
    /// Points behind it that lack something, and so were passed over.
    newer_incomplete: usize,
}

impl Chosen {
    /// The disks that have the point, and where each has it.
    pub(super) fn disks(&self) -> impl Iterator<Item = (&Disk, &DiskPoint)> {
        self.point.disks.iter().filter_map(|at| Some((self.machine.disk(at.index)?, at)))
    }
}

/// What every result says of the point that was chosen.
#[derive(Debug, Serialize)]
pub(super) struct ChosenRow {
    machine: Uuid,
    name: String,
    point: Uuid,
    time_unix_ms: u64,
    complete: bool,
    lacking: Vec<String>,
    newer_incomplete: usize,
    pub(super) firmware: &'static str,
}

impl From<&Chosen> for ChosenRow {
    fn from(chosen: &Chosen) -> Self {
        let Chosen { machine, point, newer_incomplete } = chosen;
        Self {
            machine: machine.id.into(),
            name: machine.name().to_owned(),
            point: point.id.into(),
            time_unix_ms: point.time_unix_ms(),
            complete: point.is_complete(),
            lacking: lacking(point),
            newer_incomplete: *newer_incomplete,
            firmware: machine.revision.body.firmware.word(),
        }
    }
}

impl ChosenRow {
    /// Says it in a table of pairs, the machine under the name `what`.
    pub(super) fn add_to(&self, table: &mut Table, what: &str) {
        table
            .pair(what, format!("{} ({})", self.name, self.machine))
            .pair("point", format!("{} of {}", self.point, time(self.time_unix_ms)))
            .pair("firmware", self.firmware);
        if !self.complete {
            table.pair("lacking", self.lacking.join("; "));
        }
    }
}

/// The point of a machine that is meant.
///
/// # Errors
/// As [`find_machine`]. `NotFound` if there is no such point; `DataInvalid` if it lacks something and that was not
/// asked for; `Corrupt` if the stream of a disk that is protected ends in damage and the latest is meant, so that it is
/// not known, or if what is meant, or what it lacks, may be behind damage.
pub(super) async fn find_point(
    vault: &Vault,
    wanted: &str,
    selector: PointSelector,
    may_lack: bool,
) -> Outcome<Chosen> {
    let machine = find_machine(vault, wanted).await?;
    let failed = |error: VaultError| vault_failure(&error);
    let Machine { id, revision } = &machine;
    let found = match selector {
        PointSelector::Latest if !may_lack => {
            let newest = machine::find_newest(vault, *id, revision).await.map_err(failed)?;
            latest(&machine, newest)?
        }
        PointSelector::Id(point) => {
            let point = PointId::from(point);
            let found = machine::find_complete(vault, *id, revision, point).await;
            found.map_err(failed)?.map(|point| (point, 0))
        }
        _ => None,
    };
    match found {
        Some((point, newer_incomplete)) => Ok(Chosen { machine, point, newer_incomplete }),
        None => find_in_list(vault, machine, selector, may_lack).await,
    }
}

/// The newest complete point, if there is one, and how many behind it lack something.
fn latest(machine: &Machine, newest: Newest) -> Outcome<Option<(MachinePoint, usize)>> {
    let Newest { point, passed_over, broken, unread, holes } = newest;
    let Some(point) = point else { return Ok(None) };
    warn_of(&unread, &holes);
    let listing = listing(machine.name());
    check_damage(machine, &broken, PointSelector::Latest, &listing)?;
    if passed_over > 0 {
        warn_of_newer(passed_over, machine.name(), &point, &listing);
    }
    Ok(Some((point, passed_over)))
}

fn warn_of_newer(count: usize, name: &str, point: &MachinePoint, listing: &str) {
    farshore_program::tell!(
        "warning: {count} newer points of machine {name} lack something and are passed over: the one of {} is used; \
         {listing} shows what they lack",
        time(point.time_unix_ms())
    );
}

/// The point that is meant, by all that there are.
async fn find_in_list(
    vault: &Vault,
    machine: Machine,
    selector: PointSelector,
    may_lack: bool,
) -> Outcome<Chosen> {
    let points = list_points(vault, machine.id, &machine.revision).await?;
    points.warn();
    let name = machine.name();
    let listing = listing(name);
    check_damage(&machine, &points.broken, selector, &listing)?;
    // Who names a point means that one; who names a time, or the latest, means one that has all.
    let is_named = matches!(selector, PointSelector::Id(_) | PointSelector::Prefix(_));
    let is_meant = |point: &MachinePoint| is_named || may_lack || point.is_complete();
    let list = &points.list;
    let places: Vec<usize> = (0..list.len()).filter(|at| is_meant(&list[*at])).collect();
    let chosen = choose_of(name, list, &places, selector)
        .map_err(|failure| behind_damage(failure, &points.broken, &listing))?;
    if let Some(warning) = chosen.warning {
        farshore_program::tell!("warning: {warning}");
    }
    let at = places[chosen.at];
    let behind = list[at + 1..].iter().filter(|point| !point.is_complete()).count();
    let point = list[at].clone();
    if !point.is_complete() {
        check_incomplete(name, &point, may_lack)?;
        return Ok(Chosen { machine, point, newer_incomplete: 0 });
    }
    if behind > 0 && !is_named {
        warn_of_newer(behind, name, &point, &listing);
    }
    Ok(Chosen { machine, point, newer_incomplete: if is_named { 0 } else { behind } })
}

/// A point that was not found may be where nothing can be read.
fn behind_damage(failure: Failure, broken: &[(VolumeId, VaultError)], listing: &str) -> Failure {
    match broken.first() {
        Some((_, error)) if failure.code == Exit::NotFound.code() => Failure {
            message: format!("{} in front of the damage: {}", failure.message, told(error)),
            ..vault_failure(error).hint(format!(
                "put the object back from a copy of the store, or choose one of the points that {listing} shows"
            ))
        },
        _ => failure,
    }
}

/// Chooses among the points at `places`. If none of them is meant, it is said whether one that lacks something would be.
fn choose_of(
    name: &str,
    list: &[MachinePoint],
    places: &[usize],
    selector: PointSelector,
) -> Outcome<select::Chosen> {
    let now = now_unix_ms();
    let listing = listing(name);
    let none = match list.len() == places.len() {
        true => format!("machine {name} has no recovery point"),
        false => format!("machine {name} has no complete recovery point"),
    };
    let hint = match list {
        [] => "`farshore vault verify` says what the vault lacks".to_owned(),
        _ => format!("{listing} shows what there is"),
    };
    let of = |places: &[usize]| {
        let candidates: Vec<Candidate> =
            places.iter().map(|at| Candidate::from(&list[*at])).collect();
        choose(&candidates, &none, &hint, selector, now)
    };
    of(places).map_err(|failure| {
        let all: Vec<usize> = (0..list.len()).collect();
        let would_do = all.len() > places.len() && of(&all).is_ok();
        if !would_do {
            return failure;
        }
        failure.hint(format!(
            "there are points that lack something: {listing} shows what, --incomplete takes the newest of them"
        ))
    })
}

/// The command that lists the points of a machine.
fn listing(name: &str) -> String {
    format!("`farshore vault points --machine {}`", shell_word(Path::new(name)))
}

/// What lies behind damage is not known: the latest point is refused if a disk that is protected has some, of others
/// that is said.
fn check_damage(
    machine: &Machine,
    broken: &[(VolumeId, VaultError)],
    selector: PointSelector,
    listing: &str,
) -> Outcome {
    let of_protected = broken.iter().find(|(volume, _)| machine.protects(*volume));
    if let (Some((_, error)), PointSelector::Latest) = (of_protected, selector) {
        return Err(vault_failure(error)
            .hint(format!("name a point in front of the damage by its id: {listing} lists them")));
    }
    for (_, error) in broken {
        farshore_program::tell!(
            "warning: only the points in front of the damage are looked at: {}",
            told(error)
        );
    }
    Ok(())
}

/// What is not all of one instant is used only by who asked for that.
fn check_incomplete(name: &str, point: &MachinePoint, may_lack: bool) -> Outcome {
    let id = Uuid::from(point.id);
    let lacks = lacking(point).join("; ");
    let message = format!("point {id} of machine {name} is not complete: {lacks}");
    if may_lack {
        farshore_program::tell!("warning: {message}; what is there is not all of one instant");
        return Ok(());
    }
    if point.lacking.iter().any(Lack::is_hidden) {
        return Err(Failure::new(Exit::Corrupt, message).hint(
            "put the object back from a copy of the store, choose another point, or say --incomplete to have the disks \
             that it has: they need not fit together",
        ));
    }
    Err(Failure::new(Exit::DataInvalid, message).hint(
        "choose another point, or say --incomplete to have the disks that it has: they need not fit together",
    ))
}
