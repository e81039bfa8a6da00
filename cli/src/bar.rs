//! The bar for a replay: as close to the truth as the other implementation's own f32.

use crate::number::fixed;
use crate::trajectory::Target;
use serde::Serialize;
use wgpu_optim::float::ulp;

/// Largest ratio of our largest error to the other implementation's.
const PEER_FACTOR: f64 = 2.0;
/// The allowance in ulps, times √T, without another implementation.
const ALONE: f64 = 4.0;
/// Largest ratio of our pooled error to the other implementation's, and the allowance in ulps on top.
const POOLED: (f64, f64) = (1.25, 0.05);

/// One tensor of a replay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct TensorVerdict {
    /// `param/NAME` or `SLOT/NAME`.
    pub name: String,
    /// Our largest distance from the truth; infinite if it is not a number.
    pub max_abs_err: f64,
    /// The other implementation's.
    pub peer_max_abs_err: Option<f64>,
    /// The largest allowed distance.
    #[serde(skip)]
    pub bound: f64,
    /// Whether our distance is within the bound.
    #[serde(skip)]
    pub pass: bool,
}

/// A whole replay.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Verdict {
    /// Whether every tensor and the pooled error pass.
    pub pass: bool,
    /// The root mean square error of all parameters, in ulps of the largest of their tensor. If only some
    /// parameters have another implementation's value, it is over those.
    pub rms_ulps: f64,
    /// The other implementation's root mean square error of the same parameters.
    pub peer_rms_ulps: Option<f64>,
    /// Every tensor that was compared.
    pub tensors: Vec<TensorVerdict>,
}

impl Verdict {
    /// The failures as readable lines.
    #[must_use]
    pub fn failures(&self) -> Vec<String> {
        let mut failures: Vec<_> = (self.tensors.iter().filter(|t| !t.pass))
            .map(|t| format!("{}: error {:.3e}, allowed {:.3e}", t.name, t.max_abs_err, t.bound))
            .collect();
        if let Some(peer) = self.peer_rms_ulps
            && !pooled_pass(self.rms_ulps, peer)
        {
            let allowed = POOLED.0 * peer + POOLED.1;
            let [found, allowed] = [self.rms_ulps, allowed].map(|ulps| fixed(ulps, 4));
            failures.push(format!("pooled error {found} ulp, allowed {allowed}"));
        }
        failures
    }
}

/// Judges `ours`, one vector per target, after a run of `steps`.
#[must_use]
pub fn judge(targets: &[Target], ours: &[Vec<f64>], steps: usize) -> Verdict {
    let root = (steps as f64).sqrt();
    let mut tensors = Vec::new();
    let (mut all, mut paired, mut peers) = (Pool::default(), Pool::default(), Pool::default());
    for (target, ours) in targets.iter().zip(ours) {
        let errors = errors(ours, &target.expect);
        let max_abs_err = largest(&errors);
        let unit = unit(&target.expect);
        let peer = target.peer.as_ref().map(|peer| self::errors(peer, &target.expect));
        let peer_max_abs_err = peer.as_deref().map(largest);
        let bound = match peer_max_abs_err {
            Some(peer) => PEER_FACTOR * peer + root * unit,
            None => ALONE * root * unit,
        };
        if target.slot == "param" {
            all.add(&errors, unit);
            if let Some(peer) = &peer {
                paired.add(&errors, unit);
                peers.add(peer, unit);
            }
        }
        // Not just `<=`: infinite beside an infinite peer is still wrong.
        let pass = max_abs_err.is_finite() && max_abs_err <= bound;
        tensors.push(TensorVerdict { name: target.name(), max_abs_err, peer_max_abs_err, bound, pass });
    }
    let peer_rms_ulps = (peers.count > 0).then(|| peers.rms());
    let rms_ulps = if peers.count > 0 { paired.rms() } else { all.rms() };
    let pooled = peer_rms_ulps.is_none_or(|peer| pooled_pass(rms_ulps, peer));
    Verdict { pass: pooled && tensors.iter().all(|t| t.pass), rms_ulps, peer_rms_ulps, tensors }
}

fn pooled_pass(ours: f64, peer: f64) -> bool {
    ours.is_finite() && ours <= POOLED.0 * peer + POOLED.1
}

/// The ulp at the largest magnitude.
fn unit(expect: &[f64]) -> f64 {
    let largest = expect.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
    // Beyond f32's range there are no ulps, and an infinite unit would allow anything.
    ulp(largest.min(f32::MAX.into()))
}

fn errors(values: &[f64], expect: &[f64]) -> Vec<f64> {
    let distance = |(x, e): (&f64, &f64)| {
        let error = (x - e).abs();
        if error.is_finite() { error } else { f64::INFINITY }
    };
    values.iter().zip(expect).map(distance).collect()
}

fn largest(errors: &[f64]) -> f64 {
    errors.iter().copied().fold(0.0, f64::max)
}

#[derive(Default)]
struct Pool {
    squares: f64,
    count: usize,
}

impl Pool {
    fn add(&mut self, errors: &[f64], unit: f64) {
        self.squares += errors.iter().map(|e| (e / unit).powi(2)).sum::<f64>();
        self.count += errors.len();
    }

    fn rms(&self) -> f64 {
        (self.squares / self.count.max(1) as f64).sqrt()
    }
}
