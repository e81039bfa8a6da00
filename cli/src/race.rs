//! Rosenbrock's function with every rule: the paths and their ends.

use crate::device::{Device, Error, Label};
use crate::engine::{self, Engine};
use plotters::prelude::*;
use serde::Serialize;
use std::io;
use wgpu_optim::float::Float;
use wgpu_optim::{AnyRule, DynRule, Group, Layout, Options, Step};

/// The start of every rule.
const START: [f64; 2] = [-1.0, 1.0];
/// The rules that must end where the reference ends.
const JUDGED: [&str; 2] = ["sgd", "adam"];
/// Largest distance from the reference's end in each coordinate. The valley contracts the rounding errors of
/// SGD and Adam: 5 000 steps measured 2·10⁻⁶. Rules with steps by signs, or with steps that do not shrink,
/// jump around the minimum, and f32 soon jumps differently from f64.
pub const TOLERANCE: f64 = 1e-5;
/// The part of the plane that the picture shows.
const X: std::ops::Range<f64> = -1.5..1.5;
const Y: std::ops::Range<f64> = -0.3..1.5;
/// Values of the function with a level line.
const LEVELS: [f64; 8] = [0.02, 0.2, 1.0, 4.0, 15.0, 50.0, 130.0, 300.0];
/// Number of panels per row.
const COLUMNS: usize = 4;
/// Width and height of a panel, in pixels.
const PANEL: (u32, u32) = (320, 260);
/// Largest number of drawn points per path.
const DRAWN: usize = 500;

/// `(1 − x)² + 100 (y − x²)²`.
fn value([x, y]: [f64; 2]) -> f64 {
    (1.0 - x).powi(2) + 100.0 * (y - x * x).powi(2)
}

fn gradient([x, y]: [f64; 2]) -> [f64; 2] {
    [-2.0 * (1.0 - x) - 400.0 * x * (y - x * x), 200.0 * (y - x * x)]
}

/// Settings of a run.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Steps.
    pub steps: u64,
    /// Learning rate of all rules; `None` for each rule's default.
    pub lr: Option<f64>,
}

/// One rule's run.
#[derive(Clone, Debug, Serialize)]
pub struct Path {
    /// The rule.
    pub rule: &'static str,
    /// The device.
    #[serde(flatten)]
    pub label: Label,
    /// Learning rate.
    pub lr: f64,
    /// Steps.
    pub steps: u64,
    /// The final point.
    pub end: [f64; 2],
    /// The function at the final point.
    pub value: f64,
    /// The final point of the f64 reference.
    pub reference: [f64; 2],
    /// The larger coordinate of the distance of both points.
    pub distance: f64,
    /// Whether both runs diverged.
    pub diverged: bool,
    /// For rules that contract rounding errors and have not diverged: whether the distance is within bounds.
    pub pass: Option<bool>,
    #[serde(skip)]
    points: Vec<[f64; 2]>,
}

/// Runs a rule; `tick` is called after every step.
///
/// # Errors
/// An [`Error`] if the device cannot take the steps.
pub fn run(rule: AnyRule, device: &Device, request: Request, tick: &mut dyn FnMut()) -> Result<Path, Error> {
    let rule = DynRule::from(rule);
    let layout = Layout::new([Group::new("all", rule.clone()).tensor("xy", [2])])?;
    let start = START.map(|x| x as f32);
    let lr = request.lr.unwrap_or(rule.spec().default_lr);
    let steps = request.steps;
    let reference = path(&mut engine::Reference::new(layout.clone(), &start)?, lr, steps, &mut || ())?;
    let mut engine: Box<dyn Engine<f32> + '_> = match device {
        Device::Gpu(gpu) => Box::new(engine::Device::new(gpu, layout, &start, Options::default())?),
        Device::Cpu => Box::new(engine::Host::new(layout, &start, Options::default())?),
    };
    let points = path(&mut *engine, lr, steps, tick)?;
    let last = |points: &[[f64; 2]]| points.last().copied().unwrap_or(START);
    let (end, reference) = (last(&points), last(&reference));
    let finite = |point: [f64; 2]| point.iter().all(|x| x.is_finite());
    let diverged = !finite(end) && !finite(reference);
    // The distance is infinite if only one run diverged.
    let apart = |i: usize| {
        if finite(end) == finite(reference) { (end[i] - reference[i]).abs() } else { f64::INFINITY }
    };
    let distance = apart(0).max(apart(1));
    Ok(Path {
        rule: rule.name(),
        label: device.label(),
        lr,
        steps,
        end,
        value: value(end),
        reference,
        distance,
        pass: (JUDGED.contains(&rule.name()) && !diverged).then_some(distance <= TOLERANCE),
        diverged,
        points,
    })
}

/// The points of a run, including the start. Gradients are taken in f64 at the engine's own point.
fn path<T: Float>(
    engine: &mut dyn Engine<T>,
    lr: f64,
    steps: u64,
    tick: &mut dyn FnMut(),
) -> Result<Vec<[f64; 2]>, Error> {
    let mut points = vec![START];
    let mut at = START;
    for _ in 0..steps {
        engine.step(&gradient(at).map(T::from_f64), Step::from(lr))?;
        let params = engine.params();
        at = [params[0].to_f64(), params[1].to_f64()];
        points.push(at);
        tick();
    }
    Ok(points)
}

/// The text of an SVG picture. Every path has its own panel over the function's level lines, because all
/// paths lie in one valley.
///
/// # Errors
/// The errors of the drawing library.
pub fn draw(paths: &[Path]) -> Result<String, DrawingAreaErrorKind<io::Error>> {
    let columns = paths.len().clamp(1, COLUMNS);
    let rows = paths.len().div_ceil(columns).max(1);
    let mut picture = String::new();
    {
        let size = (PANEL.0 * columns as u32, PANEL.1 * rows as u32);
        let root = SVGBackend::with_string(&mut picture, size).into_drawing_area();
        root.fill(&WHITE)?;
        for (panel, path) in root.split_evenly((rows, columns)).iter().zip(paths) {
            let mut chart = ChartBuilder::on(panel)
                .caption(path.rule, ("sans-serif", 16))
                .margin(8)
                .x_label_area_size(20)
                .y_label_area_size(30)
                .build_cartesian_2d(X, Y)?;
            chart.configure_mesh().disable_mesh().x_labels(4).y_labels(4).draw()?;
            let lines = LEVELS.iter().flat_map(|&level| [level_line(level, -1.0), level_line(level, 1.0)]);
            for piece in lines.flat_map(pieces) {
                chart.draw_series(LineSeries::new(piece, BLACK.mix(0.2)))?;
            }
            let every = path.points.len().div_ceil(DRAWN).max(1);
            let points = path.points.iter().step_by(every).chain(path.points.last());
            for piece in pieces(points.map(|&[x, y]| (x, y))) {
                chart.draw_series(LineSeries::new(piece, BLUE.stroke_width(2)))?;
            }
            let ends = [(START, BLACK), (path.end, RED)];
            let inside = ends.into_iter().filter(|([x, y], _)| X.contains(x) && Y.contains(y));
            chart.draw_series(inside.map(|([x, y], color)| Circle::new((x, y), 3, color.filled())))?;
        }
        root.present()?;
    }
    Ok(picture)
}

/// One branch of the line on which the function is `level`: `y = x² ± √(level − (1 − x)²) / 10`.
fn level_line(level: f64, branch: f64) -> impl Iterator<Item = (f64, f64)> {
    const POINTS: usize = 200;
    (0..=POINTS).map(move |i| {
        let x = X.start + (X.end - X.start) * i as f64 / POINTS as f64;
        // NaN, and so not part of the line, if there is no such y.
        (x, x * x + branch * (level - (1.0 - x).powi(2)).sqrt() / 10.0)
    })
}

/// The parts of a line inside the picture.
fn pieces(line: impl Iterator<Item = (f64, f64)>) -> Vec<Vec<(f64, f64)>> {
    let mut pieces = vec![Vec::new()];
    for (x, y) in line {
        if X.contains(&x) && Y.contains(&y) {
            if let Some(piece) = pieces.last_mut() {
                piece.push((x, y));
            }
        } else if pieces.last().is_some_and(|piece| !piece.is_empty()) {
            pieces.push(Vec::new());
        }
    }
    pieces.retain(|piece| !piece.is_empty());
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gradient_is_the_derivative_of_the_value() {
        let at = [-0.7, 0.4];
        let h = 1e-6;
        for i in 0..2 {
            let (mut up, mut down) = (at, at);
            up[i] += h;
            down[i] -= h;
            let slope = (value(up) - value(down)) / (2.0 * h);
            assert!((slope - gradient(at)[i]).abs() < 1e-6, "{slope} and {:?}", gradient(at));
        }
    }

    #[test]
    fn level_lines_have_their_level() {
        for level in LEVELS {
            for point in level_line(level, 1.0).filter(|(_, y)| y.is_finite()) {
                assert!((value(point.into()) - level).abs() < 1e-9 * level.max(1.0));
            }
        }
    }
}
