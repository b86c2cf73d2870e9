//! The peers as a plot: CPU time against stored bytes. Down and to the left is better.

use std::path::Path;

use anyhow::{Result, anyhow};
use plotters::prelude::*;

use crate::peers::Row;

const SIZE: (u32, u32) = (900, 560);

/// Draws it.
///
/// # Errors
/// If the file cannot be written.
pub(crate) fn peers(rows: &[Row], path: &Path) -> Result<()> {
    let mib = |row: &Row| row.stored_bytes as f64 / f64::from(1 << 20);
    let most = |of: fn(&Row) -> f64| rows.iter().map(of).fold(0.0, f64::max);
    let (x_max, y_max) =
        (most(|row| row.stored_bytes as f64) / f64::from(1 << 20), most(|row| row.cpu_s_per_gib));
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    let failed = |error: &dyn std::fmt::Display| anyhow!("draw {}: {error}", path.display());
    area.fill(&WHITE).map_err(|error| failed(&error))?;
    let mut chart = ChartBuilder::on(&area)
        .caption("One disk image: CPU time against stored bytes", ("sans-serif", 22))
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(56)
        .build_cartesian_2d(0.0..x_max * 1.35, 0.0..y_max * 1.15)
        .map_err(|error| failed(&error))?;
    chart
        .configure_mesh()
        .x_desc("stored, MiB")
        .y_desc("CPU-seconds per GiB of image")
        .draw()
        .map_err(|error| failed(&error))?;
    for row in rows {
        let is_ours = row.tool.starts_with("Farshore");
        let color = if is_ours { RED } else { BLUE };
        let at = (mib(row), row.cpu_s_per_gib);
        let label = format!("{}: {:.1} s, {:.0} MiB", row.tool, at.1, at.0);
        let point = EmptyElement::at(at)
            + Circle::new((0, 0), 6, color.filled())
            + Text::new(label, (10, -8), ("sans-serif", 15).into_font());
        chart.draw_series(std::iter::once(point)).map_err(|error| failed(&error))?;
    }
    area.present().map_err(|error| failed(&error))
}
