//! `vault machines`, and the points of a machine: from store and key alone.

use std::collections::BTreeSet;

use farshore_proto::group::GroupBody;
use farshore_proto::machine::{Disk, MachineBody};
use farshore_proto::{GroupId, MachineId, VolumeId};
use farshore_vault::VaultError;
use farshore_vault::catalog::{self, FoundVolume};
use farshore_vault::machine::{self, Found, MachinePoint};
use serde::Serialize;
use uuid::Uuid;

use crate::args::Global;
use crate::failure::Outcome;
use crate::output::{size, time};
use crate::point::promise;
use crate::table::Table;

use super::find::{Points, find_machine, lacking, list_points};
use super::open::{Source, told, vault_failure};
use super::{VolumeRow, ended_by};

/// What a machine's listing shows of one that cannot be read.
const UNKNOWN: &str = "?";

/// Result of `vault machines`.
#[derive(Debug, Serialize)]
struct MachineList {
    machines: Vec<MachineRow>,
    /// Volumes that no machine names.
    volumes: Vec<VolumeRow>,
    /// Groups that cannot be read as they are now: what points lack may be known to them alone.
    damaged_groups: Vec<DamagedGroup>,
}

#[derive(Debug, Serialize)]
struct DamagedGroup {
    group: Uuid,
    /// As an older revision has it.
    name: Option<String>,
    damage: String,
}

impl DamagedGroup {
    fn of((id, found): &(GroupId, Found<GroupBody>)) -> Option<Self> {
        Some(Self {
            group: (*id).into(),
            name: found.revision.as_ref().map(|revision| revision.body.name.clone()),
            damage: told(found.broken.as_ref()?),
        })
    }
}

#[derive(Debug, Serialize)]
struct MachineRow {
    machine: Uuid,
    name: Option<String>,
    /// The newest revision; what is said of the machine is of it, if there is no damage.
    revision: u64,
    firmware: Option<&'static str>,
    secure_boot: bool,
    operating_system: String,
    processors: u32,
    memory_bytes: u64,
    groups: Vec<String>,
    disks: Vec<DiskRow>,
    /// Nothing where points were not asked for.
    #[serde(flatten)]
    points: Option<PointCounts>,
    /// What of it cannot be read.
    damage: Option<String>,
}

/// What is said of a machine's points.
#[derive(Debug, Serialize)]
struct PointCounts {
    points: u64,
    incomplete_points: u64,
    newest_complete: Option<PointRow>,
}

impl PointCounts {
    fn new(points: &Points) -> Self {
        let is_whole = |point: &&MachinePoint| point.is_complete();
        let (all, complete) = (points.list.len(), points.list.iter().filter(is_whole).count());
        Self {
            points: all as u64,
            incomplete_points: (all - complete) as u64,
            newest_complete: points.list.iter().rev().find(is_whole).map(PointRow::from),
        }
    }
}

#[derive(Debug, Serialize)]
struct DiskRow {
    index: u16,
    volume: Option<Uuid>,
    name: String,
    label: String,
    serial: String,
    size_bytes: u64,
    /// 0 if that is not known.
    sector_bytes: u32,
    role: &'static str,
    state: &'static str,
    boot_rank: u16,
}

/// A recovery point of a machine.
#[derive(Debug, Serialize)]
pub(super) struct PointRow {
    point: Uuid,
    time_unix_ms: u64,
    kind: &'static str,
    unknown_blocks: u32,
    complete: bool,
    /// Indexes of the disks that have it.
    disks: Vec<u16>,
    /// What it lacks, in words.
    lacking: Vec<String>,
}

impl From<&Disk> for DiskRow {
    fn from(disk: &Disk) -> Self {
        Self {
            index: disk.index,
            volume: disk.volume.map(Into::into),
            name: disk.name.clone(),
            label: disk.label.clone(),
            serial: disk.serial.clone(),
            size_bytes: disk.size_bytes,
            sector_bytes: if disk.sector_log2 == 0 { 0 } else { 1 << disk.sector_log2 },
            role: disk.role.word(),
            state: disk.state.word(),
            boot_rank: disk.boot_rank,
        }
    }
}

impl From<&MachinePoint> for PointRow {
    fn from(point: &MachinePoint) -> Self {
        Self {
            point: point.id.into(),
            time_unix_ms: point.time_unix_ms(),
            kind: point.kind().word(),
            unknown_blocks: point.unknown_blocks(),
            complete: point.is_complete(),
            disks: point.disks.iter().map(|disk| disk.index).collect(),
            lacking: lacking(point),
        }
    }
}

impl MachineRow {
    fn new(
        id: MachineId,
        found: &Found<MachineBody>,
        points: Option<&Points>,
        groups: Vec<String>,
    ) -> Self {
        let body = found.revision.as_ref().map(|revision| &revision.body);
        let broken = points.and_then(|points| points.broken.first()).map(|(_, error)| error);
        Self {
            machine: id.into(),
            name: body.map(|body| body.name.clone()),
            revision: found.newest,
            firmware: body.map(|body| body.firmware.word()),
            secure_boot: body.is_some_and(|body| body.is_secure_boot),
            operating_system: body.map(|body| body.system.clone()).unwrap_or_default(),
            processors: body.map_or(0, |body| body.processors),
            memory_bytes: body.map_or(0, |body| body.memory_bytes),
            groups,
            disks: body
                .map_or_else(Vec::new, |body| body.disks.iter().map(DiskRow::from).collect()),
            points: points.map(PointCounts::new),
            damage: found.broken.as_ref().or(broken).map(|error| told(error)),
        }
    }

    fn add_to(&self, table: &mut Table) {
        let newest = match (&self.points, &self.damage) {
            (_, Some(_)) => "damaged".to_owned(),
            (None, None) => String::new(),
            (Some(PointCounts { newest_complete: Some(point), .. }), None) => {
                format!(
                    "{} {}",
                    time(point.time_unix_ms),
                    promise(point.kind, point.unknown_blocks)
                )
            }
            (Some(_), None) => "none".to_owned(),
        };
        let mut front = [
            self.name.clone().unwrap_or_else(|| UNKNOWN.to_owned()),
            self.machine.to_string(),
            self.firmware.unwrap_or(UNKNOWN).to_owned(),
        ];
        let mut newest = Some(newest);
        for disk in &self.disks {
            let state = if disk.state == "protected" { "" } else { disk.state };
            let [name, id, firmware] = std::mem::take(&mut front);
            table.row([
                name,
                id,
                firmware,
                format!("{} {}", disk.index, disk.name),
                if disk.size_bytes == 0 { UNKNOWN.to_owned() } else { size(disk.size_bytes) },
                [disk.role, state].join(" ").trim_end().to_owned(),
                newest.take().unwrap_or_default(),
            ]);
        }
        if let Some(newest) = newest {
            let [name, id, firmware] = front;
            let none = String::new;
            table.row([name, id, firmware, none(), none(), none(), newest]);
        }
    }
}

/// Lists the machines of a vault, and the volumes that no machine names. Points cost their whole streams.
pub(super) async fn machines(global: &Global, source: &Source, with_points: bool) -> Outcome {
    let vault = source.open(global).await?;
    let failed = |error: VaultError| vault_failure(&error);
    let found = machine::find_all::<MachineBody>(&vault).await.map_err(failed)?;
    let groups = machine::find_all::<GroupBody>(&vault).await.map_err(failed)?;
    let mut list = MachineList {
        machines: Vec::new(),
        volumes: Vec::new(),
        damaged_groups: groups.iter().filter_map(DamagedGroup::of).collect(),
    };
    let mut named: BTreeSet<VolumeId> = BTreeSet::new();
    let mut broken = None;
    for (id, found) in found {
        let points = match &found.revision {
            Some(revision) if with_points => Some(list_points(&vault, id, revision).await?),
            _ => None,
        };
        let body = found.revision.as_ref().map(|revision| &revision.body);
        named.extend(body.into_iter().flat_map(MachineBody::volumes).map(|(_, volume)| volume));
        let of = groups.iter().filter_map(|(_, group)| group.revision.as_ref());
        let of = of.filter(|group| group.body.members.iter().any(|member| member.machine == id));
        let of = of.map(|group| group.body.name.clone()).collect();
        list.machines.push(MachineRow::new(id, &found, points.as_ref(), of));
        broken = broken.or(found.broken).or(points.and_then(Points::into_damage));
    }
    let broken = broken.or_else(|| groups.into_iter().find_map(|(_, group)| group.broken));
    let volumes = catalog::find_volumes(&vault).await.map_err(failed)?;
    let is_stray = |found: &&FoundVolume| !named.contains(&found.info.volume);
    list.volumes = volumes.iter().filter(is_stray).map(VolumeRow::from).collect();
    global.output.unwrap_or_default().print(&list, MachineList::text)?;
    ended_by(broken, || {
        "the others are whole as far as they are listed; `farshore vault verify` says more, and each volume can be \
         restored by itself with `farshore vault restore --volume ID`"
            .to_owned()
    })
}

impl MachineList {
    fn text(&self) -> String {
        let has_points = self.machines.iter().any(|row| row.points.is_some());
        let last = if has_points { "NEWEST COMPLETE POINT" } else { "" };
        let heading = ["NAME", "MACHINE", "FIRMWARE", "DISK", "SIZE", "ROLE", last];
        let mut table = Table::new(&heading, "no machines");
        self.machines.iter().for_each(|row| row.add_to(&mut table));
        let mut text = table.render();
        if !self.volumes.is_empty() {
            let mut table = Table::new(&["VOLUME", "LABEL", "SIZE"], "");
            for row in &self.volumes {
                table.row([row.volume.to_string(), row.label.clone(), size(row.size_bytes)]);
            }
            text.push_str("\nVolumes that no machine names:\n");
            text.push_str(&table.render());
        }
        if !self.damaged_groups.is_empty() {
            let mut table = Table::new(&["GROUP", "NAME", "DAMAGE"], "");
            for row in &self.damaged_groups {
                let name = row.name.clone().unwrap_or_else(|| UNKNOWN.to_owned());
                table.row([row.group.to_string(), name, row.damage.clone()]);
            }
            text.push_str(
                "\nGroups that are damaged; points of their machines may lack members for it:\n",
            );
            text.push_str(&table.render());
        }
        text
    }
}

/// Result of `vault points --machine`.
#[derive(Debug, Serialize)]
struct MachinePointList {
    machine: Uuid,
    name: String,
    points: Vec<PointRow>,
    /// What is damaged or missing behind these points.
    damage: Option<String>,
}

/// Lists the points of a machine, those that lack something too.
pub(super) async fn points(global: &Global, source: &Source, wanted: &str) -> Outcome {
    let vault = source.open(global).await?;
    let machine = find_machine(&vault, wanted).await?;
    let points = list_points(&vault, machine.id, &machine.revision).await?;
    points.warn();
    let list = points.list.clone();
    let broken = points.into_damage();
    let is_any = list.iter().any(MachinePoint::is_complete);
    let list = MachinePointList {
        machine: machine.id.into(),
        name: machine.name().to_owned(),
        points: list.iter().map(PointRow::from).collect(),
        damage: broken.as_ref().map(|error| told(error)),
    };
    global.output.unwrap_or_default().print(&list, |list| {
        let mut table = Table::new(&["POINT", "TIME", "KIND", "DISKS", "LACKS"], "no points yet");
        for row in &list.points {
            let disks: Vec<String> = row.disks.iter().map(ToString::to_string).collect();
            table.row([
                row.point.to_string(),
                time(row.time_unix_ms),
                promise(row.kind, row.unknown_blocks),
                disks.join(","),
                row.lacking.join("; "),
            ]);
        }
        table.render()
    })?;
    ended_by(broken, || {
        match is_any {
        true => "the complete points above are in front of the damage: restore one by its id with `farshore vault \
                 restore --machine`"
            .to_owned(),
        false => "`farshore vault verify --read-data` says what else is damaged".to_owned(),
    }
    })
}
