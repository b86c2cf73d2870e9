use super::*;
use crate::tally::{Stage, Window};

fn outcome(source: u32, committed: u64, failure: Option<&str>) -> Outcome {
    let failure = failure.map(str::to_owned);
    Outcome { source, due: 10, committed, journaled: 10, failure }
}

fn findings(outcomes: Vec<Outcome>) -> Findings {
    let asked = Asked {
        sources: 2,
        idle: 0,
        rate_bytes_per_second: 81_920,
        block_size: "4KiB".to_owned(),
        compressible: 50,
        duplicates: 0,
        zeros: 0,
        volume_bytes: 1 << 30,
        mark_interval_seconds: 5.0,
        warmup_seconds: 0.0,
        duration_seconds: 2.0,
        seed: 1,
    };
    let end = Snapshot {
        sent: 1 << 29,
        journaled: (40_960, 10),
        committed: (20_480, 5),
        cpu: Duration::from_secs(1),
    };
    Findings {
        asked,
        outcomes,
        unfinished: 0,
        is_interrupted: false,
        offered_writes: 20,
        writes_due: 20,
        window: (Snapshot::default(), end),
        backlog_of_all_max: 7,
        began_unix: Duration::from_secs(1_800_000_000),
        connect: Duration::from_secs(1),
        enrol: Duration::from_secs(2),
        wall: Duration::from_secs(30),
    }
}

fn tally() -> Tally {
    let tally = Tally::new(Window { begin: Duration::ZERO, end: Duration::from_secs(2) });
    for ms in 1..=1000 {
        let of_write = std::iter::once((Duration::ZERO, 4096));
        tally.note(Stage::Journaled, Duration::from_millis(ms), of_write);
    }
    tally
}

#[test]
fn numbers_stand_where_they_belong() {
    let report = Report::of(&findings(vec![outcome(0, 10, None), outcome(1, 10, None)]), &tally());
    assert!(report.is_good());
    assert!((report.journaled.bytes_per_second - 20_480.0).abs() < 1e-6);
    assert!((report.committed.writes_per_second - 2.5).abs() < 1e-6);
    assert!((report.offered.writes_per_second - 10.0).abs() < 1e-6);
    assert_eq!(report.cpu_seconds_per_gib, Some(2.0));
    assert_eq!(report.counted_from_unix_ms, 1_800_000_000_000);
    assert_eq!(report.counted_to_unix_ms, 1_800_000_002_000);
    let at = &report.journaled_latency;
    for (found, expected) in
        [(at.p50_ms, 500.0), (at.p90_ms, 900.0), (at.p99_ms, 990.0), (at.max_ms, 1000.0)]
    {
        assert!((found - expected).abs() < 2.0, "{found} for {expected}");
    }
    let text = report.text();
    assert!(text.contains("0.02 MB/s, 5.0 writes/s"), "{text}");
    assert!(text.contains("2.00 s/GiB"), "{text}");
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["journaled_latency"]["count"], 1000);
    assert_eq!(json["asked"]["block_size"], "4KiB");
}

#[test]
fn a_lost_write_or_a_failed_source_is_no_success() {
    let report = Report::of(&findings(vec![outcome(0, 10, None), outcome(1, 9, None)]), &tally());
    assert_eq!((report.writes_lost, report.is_good()), (1, false));
    let failed = vec![outcome(0, 10, None), outcome(1, 10, Some("fenced"))];
    let report = Report::of(&findings(failed), &tally());
    assert_eq!((report.failed, report.is_good()), (1, false));
    assert!(report.text().contains("load-00002: fenced"), "{}", report.text());
    let ended = Findings { is_interrupted: true, ..findings(vec![outcome(0, 20, None)]) };
    assert!(!Report::of(&ended, &tally()).is_good());
}
