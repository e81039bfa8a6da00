//! Learning-rate schedules as numbers and as pictures.

use plotters::prelude::*;
use serde::Serialize;
use std::io;
use wgpu_optim::{Schedule, ScheduleError, schedule};

/// Number of panels per row in a picture of many.
const COLUMNS: usize = 4;
/// Width and height of a panel among many, in pixels.
const SMALL: (u32, u32) = (300, 200);
/// Width and height of a panel in a picture of one or two, in pixels.
const LARGE: (u32, u32) = (640, 360);

/// A step's values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Point {
    /// The step, counted from 0.
    pub step: u64,
    /// Learning rate.
    pub lr: f64,
    /// The momentum, if the schedule sets one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub momentum: Option<f64>,
}

/// The first `steps` values of a schedule.
///
/// # Errors
/// The errors of the schedule.
pub fn points(schedule: &Schedule, steps: u64) -> Result<Vec<Point>, ScheduleError> {
    // A field that these steps do not use can be wrong too.
    schedule.validate()?;
    let point = |step| schedule.at(step).map(|at| Point { step, lr: at.lr, momentum: at.momentum });
    (0..steps).map(point).collect()
}

/// A schedule of every kind that can be written in JSON, for some hundred steps.
#[must_use]
pub fn examples() -> Vec<Schedule> {
    vec![
        0.1.into(),
        schedule::linear(0.1, 0.01, 80),
        schedule::polynomial(0.1, 0.0, 80, 2.0),
        schedule::exponential(0.1, 0.96),
        schedule::step(0.1, 0.5, 20),
        schedule::multi_step(0.1, 0.3, [30, 60, 90]),
        schedule::inverse_sqrt(0.1, 20),
        schedule::cosine(0.1, 0.001, 100),
        schedule::cosine_restarts(0.1, 0.001, 15, 2),
        schedule::one_cycle(0.1, 100),
        schedule::cosine(0.1, 0.001, 90).warmup(10),
        Schedule::from(0.1).then(70, schedule::linear(0.1, 0.0, 30)),
        schedule::cosine(0.1, 0.0, 100).times(schedule::step(1.0, 0.5, 25)),
        schedule::linear(0.1, 0.0, 100).with_momentum(schedule::linear(0.85, 0.95, 100)),
    ]
}

/// One curve of a picture, with a panel of its own.
#[derive(Clone, Debug)]
pub struct Curve {
    title: String,
    /// One value per step.
    values: Vec<f64>,
}

/// The learning rate of `points`, and the momentum if there is one.
#[must_use]
pub fn curves(name: &str, points: &[Point]) -> Vec<Curve> {
    let lr = Curve { title: name.into(), values: points.iter().map(|p| p.lr).collect() };
    let momentum: Vec<_> = points.iter().filter_map(|p| p.momentum).collect();
    let momentum =
        (!momentum.is_empty()).then(|| Curve { title: format!("{name}: momentum"), values: momentum });
    [Some(lr), momentum].into_iter().flatten().collect()
}

/// The text of an SVG picture of all curves.
///
/// # Errors
/// The errors of the drawing library.
pub fn draw(curves: &[Curve]) -> Result<String, DrawingAreaErrorKind<io::Error>> {
    let few = curves.len() <= 2;
    let (columns, (width, height)) = if few { (1, LARGE) } else { (COLUMNS, SMALL) };
    let rows = curves.len().div_ceil(columns);
    let mut picture = String::new();
    {
        let size = (width * columns as u32, height * rows as u32);
        let root = SVGBackend::with_string(&mut picture, size).into_drawing_area();
        root.fill(&WHITE)?;
        for (panel, curve) in root.split_evenly((rows, columns)).iter().zip(curves) {
            let top = curve.values.iter().fold(0.0, |top: f64, &value| top.max(value));
            let top = if top > 0.0 { 1.05 * top } else { 1.0 };
            let mut chart = ChartBuilder::on(panel)
                .caption(&curve.title, ("sans-serif", 16))
                .margin(8)
                .x_label_area_size(24)
                .y_label_area_size(56)
                .build_cartesian_2d(0..curve.values.len(), 0.0..top)?;
            chart.configure_mesh().light_line_style(TRANSPARENT).x_labels(5).y_labels(5).draw()?;
            chart.draw_series(LineSeries::new(curve.values.iter().copied().enumerate(), BLUE))?;
        }
        root.present()?;
    }
    Ok(picture)
}
