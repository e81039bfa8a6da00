//! The decision between the gradient scan and the update: clip factors, skip, loss scale, report.

use super::Optimizer;
use crate::float::Float;
use crate::options::Clip;
use crate::report::Report;
use crate::rules::loops::Factor;

/// Added to a norm before it divides a bound, as PyTorch's `clip_grad_norm_` does.
const NORM_EPS: f64 = 1e-6;

/// The decision about a step.
pub(crate) struct Decision {
    pub(crate) skip: bool,
    pub(crate) report: Report,
}

impl Optimizer {
    /// Decides about the current step, and sets the scalars of all groups and tensors. `unscale` is the
    /// factor of the gradients before clipping.
    pub(crate) fn decide(&mut self, unscale: f64) -> Decision {
        self.group_sums.fill(0.0);
        let mut total = 0.0;
        if self.options.looks_first() {
            for share in &self.shares {
                share.add_sums(|group, sum| {
                    total += sum;
                    self.group_sums[group] += sum;
                });
            }
        }
        // A sum is finite if all of its terms are.
        let finite = f64::is_finite(total);
        let norm = |sum: f64| sum.sqrt() * unscale;
        let bounded = |sum: f64, bound: f64| {
            // An infinite bound only measures the norm.
            if bound == f64::INFINITY {
                return 1.0;
            }
            let factor = bound / (norm(sum) + NORM_EPS);
            // A NaN makes all gradients NaN, as in PyTorch.
            if factor < 1.0 || factor.is_nan() { factor } else { 1.0 }
        };
        let clip = self.options.clip;
        let factor = |sum: f64| match clip {
            Some(Clip::GlobalNorm(bound)) => bounded(total, bound),
            Some(Clip::GroupNorm(bound)) => bounded(sum, bound),
            _ => 1.0,
        };
        let (sums, scalars, stride) = (&self.group_sums, &self.scalars, self.layout.most_scalars());
        let (ema, next) = (self.options.ema, &self.next);
        for share in &mut self.shares {
            share.set_scalars(
                |group, i| scalars[group * stride + i],
                |group| Factor::new(unscale * factor(sums[group])),
                |group| ema.map_or(0.0, |ema| f32::from_f64(ema.weight(next[group].taken))),
            );
        }
        let clip_factor =
            sums.iter().map(|&sum| factor(sum)).fold(1.0, |a, b| if b < a || b.is_nan() { b } else { a });
        let skip = self.options.skips() && !finite;
        self.skipped += u64::from(skip);
        let used = self.loss_scale;
        if let Some(scale) = &self.options.loss_scale {
            if finite {
                self.good_steps += 1;
                if self.good_steps == scale.growth_interval {
                    self.loss_scale =
                        (used * f32::from_f64(scale.growth_factor)).min(f32::from_f64(scale.max));
                    self.good_steps = 0;
                }
            } else {
                self.loss_scale = (used * f32::from_f64(scale.backoff_factor)).max(f32::from_f64(scale.min));
                self.good_steps = 0;
            }
        }
        let report = Report {
            step: self.steps,
            in_order: true,
            finite,
            skipped: self.skipped,
            grad_norm: f32::from_f64(norm(total)),
            clip_factor: f32::from_f64(clip_factor),
            loss_scale: used,
            next_loss_scale: self.loss_scale,
            good_steps: self.good_steps,
            param_norm: None,
            update_norm: None,
        };
        Decision { skip, report }
    }
}
