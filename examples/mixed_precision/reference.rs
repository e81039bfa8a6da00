//! The training on the CPU in f64, with its rounding to f16.

use crate::digits::{CLASSES, PIXELS};
use crate::{BATCH, MAX_NORM, Run, Task, loss_scale};
use std::error::Error;
use wgpu_optim::cpu::Reference;

impl Task {
    /// The run on the CPU in f64, with `round` where the device rounds to f16. `skip` decides from a step's
    /// number and from whether its gradients have overflowed.
    pub(crate) fn reference(
        &self,
        round: fn(f64) -> f64,
        skip: impl Fn(usize, bool) -> bool,
    ) -> Result<Run, Box<dyn Error>> {
        let options = loss_scale();
        let (mut scale, mut good) = (options.initial, 0);
        let mut optimizer = Reference::new(self.layout.clone())?;
        let mut params: Vec<_> = self.params.iter().map(|&p| f64::from(p)).collect();
        let mut run = Run::default();
        for (step, batch) in self.examples.chunks(BATCH).enumerate() {
            let (loss, mut grads) = self.gradients(batch, &params, scale, round)?;
            let skipped = skip(step, grads.iter().any(|g| !g.is_finite()));
            run.losses.push(loss);
            run.scales.push(scale);
            if skipped {
                run.skipped.push(step);
                scale = (scale * options.backoff_factor).max(options.min);
                good = 0;
                continue;
            }
            let norm = grads.iter().map(|g| (g / scale).powi(2)).sum::<f64>().sqrt();
            let factor = (MAX_NORM / (norm + 1e-6)).min(1.0) / scale;
            grads.iter_mut().for_each(|g| *g *= factor);
            optimizer.step(&mut params, &grads, self.lr.at(step as u64)?)?;
            good += 1;
            if good == options.growth_interval {
                scale = (scale * options.growth_factor).min(options.max);
                good = 0;
            }
        }
        Ok(run)
    }

    /// The batch's mean loss, and the gradients of that times `scale`.
    fn gradients(
        &self,
        batch: &[[u32; 2]],
        params: &[f64],
        scale: f64,
        round: fn(f64) -> f64,
    ) -> Result<(f64, Vec<f64>), Box<dyn Error>> {
        let range = |name| self.layout.tensor(name).map(|t| t.range());
        let [w1, b1, w2, b2] = [range("W1")?, range("B1")?, range("W2")?, range("B2")?];
        let weights: Vec<_> = params.iter().map(|&p| round(p)).collect();
        let mut grads = vec![0.0; params.len()];
        let mut loss = 0.0;
        for &[image, label] in batch {
            let pixels: Vec<_> =
                self.pixels[image as usize * PIXELS..][..PIXELS].iter().map(|&x| f64::from(x)).collect();
            let mut hidden = product(&pixels, &weights[w1.clone()], &weights[b1.clone()]);
            hidden.iter_mut().for_each(|h| *h = round(h.max(0.0)));
            let mut scores = product(&hidden, &weights[w2.clone()], &weights[b2.clone()]);
            scores.iter_mut().for_each(|s| *s = round(*s));
            let largest = scores.iter().copied().fold(f64::MIN, f64::max);
            let total: f64 = scores.iter().map(|s| (s - largest).exp()).sum();
            loss += total.ln() - (scores[label as usize] - largest);
            let by_scores: Vec<_> = (0..)
                .zip(&scores)
                .map(|(digit, s)| (s - largest).exp() / total - f64::from(u8::from(digit == label)))
                .map(|gradient| round(scale / batch.len() as f64 * gradient))
                .collect();
            let by_hidden: Vec<_> = (hidden.iter().zip(weights[w2.clone()].chunks(CLASSES)))
                .map(|(&h, row)| if h > 0.0 { round(dot(row, &by_scores)) } else { 0.0 })
                .collect();
            add_outer(&mut grads[w1.clone()], &pixels, &by_hidden);
            add_outer(&mut grads[b1.clone()], &[1.0], &by_hidden);
            add_outer(&mut grads[w2.clone()], &hidden, &by_scores);
            add_outer(&mut grads[b2.clone()], &[1.0], &by_scores);
        }
        grads.iter_mut().for_each(|g| *g = round(*g));
        Ok((loss / batch.len() as f64, grads))
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// bias + x · matrix
fn product(x: &[f64], matrix: &[f64], bias: &[f64]) -> Vec<f64> {
    let mut sums = bias.to_vec();
    for (x, row) in x.iter().zip(matrix.chunks(bias.len())) {
        sums.iter_mut().zip(row).for_each(|(sum, w)| *sum += x * w);
    }
    sums
}

/// matrix + a bᵀ
fn add_outer(matrix: &mut [f64], a: &[f64], b: &[f64]) {
    for (row, a) in matrix.chunks_mut(b.len()).zip(a) {
        row.iter_mut().zip(b).for_each(|(m, b)| *m += a * b);
    }
}

/// The nearest f16, ties to even.
pub(crate) fn f16(x: f64) -> f64 {
    let exponent = (x.to_bits() >> 52 & 0x7ff) as i32 - 1_023;
    // Eleven binary digits, none of them below 2⁻²⁴.
    let quantum = f64::from(exponent.max(-14) - 10).exp2();
    let rounded = (x / quantum).round_ties_even() * quantum;
    if rounded.abs() > 65_504.0 { f64::INFINITY.copysign(x) } else { rounded }
}
