//! The picture of a run.

use crate::digits::Done;
use crate::{Run, STEPS};
use plotters::prelude::*;
use std::path::Path;

/// Draws the losses and the loss scale of all steps as an SVG.
pub(crate) fn draw(device: &Run, mixed: &Run, double: &Run, path: &Path) -> Done {
    let root = SVGBackend::new(path, (640, 600)).into_drawing_area();
    root.fill(&WHITE)?;
    let (above, below) = root.split_vertically(400);
    let mut chart = ChartBuilder::on(&above)
        .caption("AdamW on handwritten digits, in mixed precision", ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(20)
        .y_label_area_size(50)
        .build_cartesian_2d(0..STEPS, (0.02..4.0).log_scale())?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .y_desc("mean cross-entropy, nats")
        .y_label_formatter(&|loss| format!("{loss:.2}"))
        .draw()?;
    // Each covers the one before, so it is thinner.
    let curves = [
        ("device", device, BLUE.mix(0.3).stroke_width(5)),
        ("CPU, rounding to f16", mixed, BLACK.stroke_width(2)),
        ("CPU, f64", double, RED.stroke_width(1)),
    ];
    for (name, run, style) in curves {
        chart
            .draw_series(LineSeries::new((0..).zip(run.losses.iter().copied()), style))?
            .label(name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 20, y)], style));
    }
    chart.configure_series_labels().background_style(WHITE).border_style(BLACK).draw()?;

    let bits = |scale: &f64| scale.log2();
    let ends = device.scales.iter().map(bits).fold((f64::MAX, f64::MIN), |(a, b), x| (a.min(x), b.max(x)));
    let mut chart = ChartBuilder::on(&below)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(50)
        .build_cartesian_2d(0..STEPS, ends.0 - 1.0..ends.1 + 1.0)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .x_desc("step; dots overflow")
        .y_desc("log₂ of loss scale")
        .y_labels(5)
        .draw()?;
    chart.draw_series(LineSeries::new((0..).zip(device.scales.iter().map(bits)), BLUE))?;
    let overflows = device.skipped.iter().map(|&step| (step, bits(&device.scales[step])));
    chart.draw_series(overflows.map(|at| Circle::new(at, 2, RED.filled())))?;
    root.present()?;
    Ok(())
}
