//! Which point of a volume is meant, where only the vault is there to say.

use std::collections::BTreeSet;
use std::time::Duration;

use farshore_api::Exit;
use farshore_api::point::PointSelector;
use farshore_proto::{PointId, VolumeId};
use farshore_vault::machine::MachinePoint;
use farshore_vault::{Point, PointSelector as VaultSelector, Vault, catalog};
use uuid::Uuid;

use crate::failure::{Failure, Outcome};
use crate::output::{now_unix_ms, time};

use super::open::vault_failure;

/// Points named when the first digits of an id name several.
const NAMED_MAX: usize = 5;

/// Finds out what a selector names among a volume's points. A time is compared with the agent's
/// clock: the vault knows no other; if those times do not grow from point to point, a warning says so.
pub(super) async fn select(
    vault: &Vault,
    volume: Uuid,
    point: PointSelector,
) -> Outcome<VaultSelector> {
    match point {
        PointSelector::Latest => return Ok(VaultSelector::Latest),
        PointSelector::Id(point) => return Ok(VaultSelector::Point(PointId::from(point))),
        PointSelector::Prefix(_) | PointSelector::NotAfter(_) | PointSelector::Ago(_) => {}
    }
    let list = catalog::list_points_to_damage(vault, VolumeId::from(volume)).await;
    let list = list.map_err(|error| vault_failure(&error))?;
    if let Some(broken) = &list.broken {
        farshore_program::tell!(
            "warning: only the points in front of the damage are looked at: {broken}"
        );
    }
    let candidates: Vec<Candidate> = list.points.iter().map(Candidate::from).collect();
    let (none, hint) = of_volume(volume);
    let chosen = choose(&candidates, &none, &hint, point, now_unix_ms())?;
    if let Some(warning) = chosen.warning {
        farshore_program::tell!("warning: {warning}");
    }
    Ok(VaultSelector::Point(chosen.point))
}

/// How it is said of a volume that it has no such point, and what to do about it.
fn of_volume(volume: Uuid) -> (String, String) {
    let hint = format!("`farshore vault points --volume {volume}` shows what there is");
    (format!("volume {volume} has no recovery point"), hint)
}

/// A point that may be meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Candidate {
    id: PointId,
    time_unix_ms: u64,
}

impl From<&Point> for Candidate {
    fn from(point: &Point) -> Self {
        Self { id: point.id, time_unix_ms: point.time_unix_ms }
    }
}

impl From<&MachinePoint> for Candidate {
    fn from(point: &MachinePoint) -> Self {
        Self { id: point.id, time_unix_ms: point.time_unix_ms() }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Chosen {
    point: PointId,
    /// Which of the candidates it is.
    pub(super) at: usize,
    pub(super) warning: Option<String>,
}

/// Chooses among points, in their order. If none is meant, `none` begins the sentence that says so, and `hint` says
/// where to look for others.
///
/// # Errors
/// `NotFound` if none is meant; `Usage` if several may be.
pub(super) fn choose(
    points: &[Candidate],
    none: &str,
    hint: &str,
    selector: PointSelector,
    now_unix_ms: u64,
) -> Outcome<Chosen> {
    let is_meant = |point: &Candidate| match (selector, selector.not_after(now_unix_ms)) {
        (PointSelector::Prefix(prefix), _) => prefix.is_of(point.id.into()),
        (PointSelector::Id(id), _) => point.id == PointId::from(id),
        (_, Some(unix_ms)) => point.time_unix_ms <= unix_ms,
        (_, None) => true,
    };
    let meant: Vec<(usize, &Candidate)> =
        points.iter().enumerate().filter(|(_, point)| is_meant(point)).collect();
    let Some((at, newest)) = meant.last().copied() else {
        let message = match selector {
            PointSelector::Prefix(prefix) => format!("{none} whose id begins with {prefix}"),
            PointSelector::Id(id) => format!("{none} {id}"),
            PointSelector::Latest => none.to_owned(),
            PointSelector::Ago(ms) => {
                let old = humantime::format_duration(Duration::from_millis(ms));
                format!("{none} that is at least {old} old")
            }
            PointSelector::NotAfter(_) => format!("{none} that is not after {selector}"),
        };
        return Err(Failure::new(Exit::NotFound, message).hint(hint));
    };
    let ids: BTreeSet<PointId> = meant.iter().map(|(_, point)| point.id).collect();
    if let (PointSelector::Prefix(prefix), 2..) = (selector, ids.len()) {
        let ids: Vec<String> = meant
            .iter()
            .rev()
            .take(NAMED_MAX)
            .map(|(_, point)| Uuid::from(point.id).to_string())
            .collect();
        let more = if meant.len() > NAMED_MAX { ", and others" } else { "" };
        let message = format!(
            "`{prefix}` begins the ids of several recovery points: {}{more}",
            ids.join(", ")
        );
        return Err(Failure::new(Exit::Usage, message).hint("give more digits of the id"));
    }
    let is_by_time = selector.not_after(now_unix_ms).is_some();
    let warning = is_by_time.then(|| disorder(points)).flatten();
    Ok(Chosen { point: newest.id, at, warning })
}

/// What to know if the times of the points do not grow with their order.
fn disorder(points: &[Candidate]) -> Option<String> {
    let pair = points.windows(2).find(|pair| pair[0].time_unix_ms > pair[1].time_unix_ms)?;
    Some(format!(
        "the agent's clock was set back: point {} says {}, the later point {} says {}; the newest \
         point in the order of the stream whose time is not after the one given was taken",
        Uuid::from(pair[0].id),
        time(pair[0].time_unix_ms),
        Uuid::from(pair[1].id),
        time(pair[1].time_unix_ms),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;
    use farshore_proto::{Epoch, MarkKind, Seq};

    fn point(seq: u64, time_unix_ms: u64) -> Point {
        let id = Uuid::from_u128(0x0189_0a5d_0000_7000_8000_0000_0000_0000 + u128::from(seq));
        Point {
            id: PointId::from(id),
            seq: Seq(seq),
            epoch: Epoch(1),
            kind: MarkKind::Crash,
            unknown_blocks: 0,
            time_unix_ms,
            size_bytes: 4096,
        }
    }

    fn chosen(points: &[Point], selector: &str) -> Outcome<Chosen> {
        let candidates: Vec<Candidate> = points.iter().map(Candidate::from).collect();
        let (none, hint) = of_volume(Uuid::nil());
        choose(&candidates, &none, &hint, selector.parse().unwrap(), 100_000)
    }

    #[test]
    fn the_newest_point_not_after_a_time_is_taken() {
        let points = [point(1, 10_000), point(2, 20_000), point(3, 30_000)];
        for (selector, seq) in [
            ("1970-01-01T00:00:20Z", 2),
            ("1970-01-01 00:00:29.999", 2),
            ("70 seconds ago", 3),
            ("2026-01-31 12:00", 3),
        ] {
            let found = chosen(&points, selector).unwrap();
            let expected = Chosen { point: points[seq - 1].id, at: seq - 1, warning: None };
            assert_eq!(found, expected, "{selector}");
        }
        let failure = chosen(&points, "91 seconds ago").unwrap_err();
        assert_eq!(failure.code, Exit::NotFound.code());
    }

    /// One mark was set while the clock was two hours ahead.
    #[test]
    fn a_clock_that_was_set_back_is_told_and_the_stream_decides() {
        let points = [point(1, 10_000), point(2, 7_220_000), point(3, 30_000)];
        let found = chosen(&points, "1970-01-01T00:00:40Z").unwrap();
        assert_eq!(found.point, points[2].id);
        let warning = found.warning.unwrap();
        assert!(warning.contains("1970-01-01T02:00:20Z"), "{warning}");
        let found = chosen(&points, "1970-01-01T03:00:00Z").unwrap();
        assert_eq!(found.point, points[2].id, "newest by its place in the stream");
    }

    #[test]
    fn the_first_digits_of_an_id_must_name_one_point() {
        let points = [point(1, 1), point(2, 2)];
        let whole = Uuid::from(points[1].id).to_string();
        let found = chosen(&points, &whole[..35]);
        assert_eq!(found.unwrap_err().code, Exit::Usage.code(), "ids differ in the last digit");
        let failure = chosen(&points, "0189").unwrap_err();
        assert!(failure.message.contains(&whole), "{failure}");
        let other = [points[0], Point { id: PointId([0xab; 16]), ..points[1] }];
        assert_eq!(chosen(&other, "ABAB").unwrap().point, other[1].id);
        assert_eq!(chosen(&points, "ffff").unwrap_err().code, Exit::NotFound.code());
    }
}
