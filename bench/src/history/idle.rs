//! What volumes cost that nobody writes to: alone, and beside one that somebody does.

use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};

use super::Options;
use super::load::{Added, Found, INTERVAL, Plan, Site};
use super::report::{Figure, Unit};

/// The busy volume's.
const RATE_BYTES: u64 = 256 << 10;
const WRITE_BYTES: u64 = 16 << 10;
/// By then what was written once is in the vault, under a mark.
const WARMUP: Duration = Duration::from_secs(60);

/// # Errors
/// If the processes do not do what they are to, or nothing was measured.
pub(super) fn measure(options: &Options, folder: &Path) -> Result<Vec<Figure>> {
    let counted = Duration::from_secs(options.load_minutes * 60);
    // Each with content of its own: what an earlier run wrote would be known.
    let plan = |seed: u64, (busy, idle): (u32, u32)| {
        let (rate_bytes, write_bytes) = (RATE_BYTES, WRITE_BYTES);
        Plan { busy, idle, rate_bytes, write_bytes, warmup: WARMUP, counted, seed }
    };
    let site = Site::start(folder)?;
    let run = |seed, members| {
        let found = site.load(&plan(seed, members))?;
        let added = site.added(&found)?;
        Ok::<_, anyhow::Error>((found, added))
    };
    let alone = run(1, (1, 0))?;
    let idle = run(2, (0, options.idle_volumes))?;
    let among = run(3, (1, options.idle_volumes))?;
    site.stop()?;
    ensure!(alone.1.slots() > 0 && alone.0.writes() > 0, "the busy volume wrote nothing");
    Ok(figures(options.idle_volumes, &alone, &idle, &among))
}

fn bytes_each(added: &Added) -> f64 {
    added.bytes() as f64 / added.slots().max(1) as f64
}

fn figures(
    volumes: u32,
    alone: &(Found, Added),
    idle: &(Found, Added),
    among: &(Found, Added),
) -> Vec<Figure> {
    let minutes = alone.0.counted_ms() as f64 / 60_000.0;
    let each = format!("marks every {} s, {minutes} minutes", INTERVAL.as_secs());
    let remark = |(found, added): &(Found, Added)| {
        let [p50, p99, most] = found.committed_seconds();
        format!(
            "{each}; {:.0} bytes a slot; {}; write to committed p50 {p50:.2} s, p99 {p99:.2} s, most {most:.2} s",
            bytes_each(added),
            added.others_text()
        )
    };
    let (slots_alone, slots_among) = (alone.1.slots() as f64, among.1.slots() as f64);
    vec![
        Figure::of(format!("objects of {volumes} idle volumes"), Unit::Objects, idle.1.objects() as f64)
            .held_to(0.0)
            .with_remark(format!(
                "{each}, {} logs; every volume has a session, what it wrote once, and a mark; {} sessions ended",
                idle.1.logs(),
                idle.0.reconnects
            )),
        Figure::of("slots of one busy volume", Unit::Objects, slots_alone).with_remark(remark(alone)),
        // Where the time that counts begins between two slots may add one.
        Figure::of(format!("slots of one busy among {volumes} idle"), Unit::Objects, slots_among)
            .held_to(slots_alone + 1.0)
            .with_remark(remark(among)),
        Figure::of("bytes of its slots beside alone", Unit::Ratio, bytes_each(&among.1) / bytes_each(&alone.1)),
    ]
}

#[cfg(test)]
mod tests {
    use super::super::load::example;
    use super::*;

    #[test]
    fn any_object_of_idle_volumes_is_too_many_and_beside_a_busy_one_no_slot_is_theirs() {
        let short = |idle: (Found, Added), among: (Found, Added)| -> Vec<bool> {
            let figures = figures(9, &example(12, 100, 0), &idle, &among);
            figures.iter().map(Figure::is_short).collect()
        };
        let none = || example(0, 0, 0);
        assert_eq!(short(none(), example(13, 100, 4)), [false; 4]);
        assert_eq!(short(example(0, 0, 1), example(14, 100, 0)), [true, false, true, false]);
        let figures = figures(9, &example(12, 100, 0), &none(), &example(12, 150, 0));
        assert!((figures[3].measured - 1.5).abs() < 1e-9);
    }
}
