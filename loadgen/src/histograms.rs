//! Distributions as HdrHistogram's percentile text, which its plotters read.

use crate::tally::Latencies;
use std::io::{self, Write};
use std::path::Path;

/// Steps in each half of what is left to 100 %.
const TICKS_PER_HALF: u32 = 5;

/// Writes a histogram of microseconds as a `.hgrm` file of milliseconds. Blocks.
///
/// # Errors
/// What the system says.
pub fn write(path: &Path, times: &Latencies) -> io::Result<()> {
    let mut out = io::BufWriter::new(std::fs::File::create(path)?);
    format(&mut out, times)?;
    out.flush()
}

#[expect(clippy::cast_precision_loss, reason = "times are below 2^53 microseconds")]
fn format(out: &mut impl Write, times: &Latencies) -> io::Result<()> {
    writeln!(
        out,
        "{:>12} {:>14} {:>10} {:>14}\n",
        "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
    )?;
    let mut total = 0;
    for step in times.iter_quantiles(TICKS_PER_HALF) {
        total += step.count_since_last_iteration();
        let (value, quantile) =
            (step.value_iterated_to() as f64 / 1e3, step.quantile_iterated_to());
        if quantile < 1.0 {
            let odds = 1.0 / (1.0 - quantile);
            writeln!(out, "{value:>12.3} {quantile:>2.12} {total:>10} {odds:>14.2}")?;
        } else {
            writeln!(out, "{value:>12.3} {quantile:>2.12} {total:>10}")?;
        }
    }
    let (mean, deviation) = (times.mean() / 1e3, times.stdev() / 1e3);
    writeln!(out, "#[Mean    = {mean:>12.3}, StdDeviation   = {deviation:>12.3}]")?;
    let max = times.max() as f64 / 1e3;
    writeln!(out, "#[Max     = {max:>12.3}, Total count    = {:>12}]", times.len())?;
    let (buckets, sub) = (times.buckets(), 2048);
    writeln!(out, "#[Buckets = {buckets:>12}, SubBuckets     = {sub:>12}]")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_rises_to_the_maximum_and_counts_everything() {
        let mut times = crate::tally::latencies();
        for micros in 1..=10_000_u64 {
            times.record(micros).unwrap();
        }
        let mut out = Vec::new();
        format(&mut out, &times).unwrap();
        let text = String::from_utf8(out).unwrap();
        let rows: Vec<Vec<f64>> = text
            .lines()
            .skip(2)
            .take_while(|line| !line.starts_with('#'))
            .map(|line| line.split_whitespace().map(|word| word.parse().unwrap()).collect())
            .collect();
        assert!(rows.windows(2).all(|pair| pair[0][0] <= pair[1][0] && pair[0][1] <= pair[1][1]));
        let last = rows.last().unwrap();
        assert!((last[0] - 10.0).abs() < 0.01 && (last[1] - 1.0).abs() < 1e-12, "{last:?}");
        assert!((last[2] - 10_000.0).abs() < 0.5, "{last:?}");
        assert!(text.contains("Total count    =        10000]"), "{text}");
    }
}
