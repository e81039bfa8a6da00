//! What is usually chosen: a rule and a schedule to begin with.

use crate::options::{Clip, Options};
use crate::rules::{AdamW, Lion, Sgd};
use crate::schedule::{self, Schedule};

/// Steps that [`llm`] warms up for, in a long run.
const LLM_WARMUP: u64 = 2_000;
/// The learning rate of [`vision`] at this batch size.
const VISION_LR: f64 = 0.1;
const VISION_BATCH: f64 = 256.0;
const VISION_EPOCHS: u64 = 90;
const FINE_TUNING_LR: f64 = 1e-3;
const LION_LR: f64 = 1e-4;

/// Hyperparameters and the learning rates that go with them. Both are plain values: change what does not fit.
///
/// ```
/// use wgpu_optim::{AdamW, Group, Layout, cpu, recipes};
/// let recipe = recipes::llm(3e-4, 100_000);
/// let layout = Layout::new([
///     Group::new("decay", recipe.rule).tensor("w", [8, 8]),
///     Group::new("no_decay", AdamW { weight_decay: 0.0, ..recipe.rule }).tensor("b", [8]),
/// ])?;
/// let mut optimizer = cpu::Optimizer::<AdamW>::new(layout)?;
/// let (mut params, grads) = ([0.0; 72], [1.0; 72]);
/// for t in 0..10 {
///     optimizer.step(cpu::Tensors::flat(&mut params, &grads), recipe.schedule.at(t)?)?;
/// }
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe<R> {
    /// The hyperparameters.
    pub rule: R,
    /// What stands around the update: what gradients are clipped by, if they are. For `Optimizer::with_options`.
    pub options: Options,
    /// The learning rate of every step.
    pub schedule: Schedule,
}

/// Large language models, from scratch: AdamW with β₁ 0.9, β₂ 0.95, ε 1e-8 and weight decay 0.1; `peak_lr` after a warm-up of 2 000 steps, or
/// of a tenth of a run that is shorter than 20 000; then half a cosine to a tenth of `peak_lr` at `total_steps`, and on at that;
/// gradients clipped at a global norm of 1.
///
/// `peak_lr` is commonly 1e-4 to 3e-4, the smaller the larger the model. Vectors (biases, gains of norms) are usually kept from decay, in a group
/// of their own. `total_steps` is at least 1; the schedule refuses 0.
///
/// Reference: Brown et al., *Language Models are Few-Shot Learners*, 2020, appendix B; Touvron et al., *LLaMA*, 2023, section 2.3.
#[must_use]
pub fn llm(peak_lr: f64, total_steps: u64) -> Recipe<AdamW> {
    let warmup = LLM_WARMUP.min(total_steps / 10);
    Recipe {
        rule: AdamW { beta2: 0.95, weight_decay: 0.1, ..AdamW::default() },
        options: Options { clip: Some(Clip::GlobalNorm(1.0)), ..Options::default() },
        schedule: falling(peak_lr, 0.1 * peak_lr, total_steps - warmup).warmup(warmup),
    }
}

/// Image classification by a convolutional network, from scratch: SGD with momentum 0.9 and weight decay 1e-4; learning rate 0.1 at a batch of
/// 256 images and in proportion for others, a tenth of that after 30 of 90 epochs, a hundredth after 60, a thousandth after 90.
///
/// Reference: PyTorch's ImageNet example; Goyal et al., *Accurate, Large Minibatch SGD*, 2017, for the proportion and for a warm-up of five
/// epochs where batches are large: `schedule.warmup(…)`.
#[must_use]
pub fn vision(batch: u64, steps_per_epoch: u64) -> Recipe<Sgd> {
    let milestones = [30, 60, 90].map(|epoch| steps_per_epoch.saturating_mul(epoch));
    unclipped(vision_rule(), schedule::multi_step(vision_lr(batch), 0.1, milestones))
}

/// [`vision`] with half a cosine to 0 over its 90 epochs instead of steps. `steps_per_epoch` is at least 1; the schedule refuses 0.
#[must_use]
pub fn vision_cosine(batch: u64, steps_per_epoch: u64) -> Recipe<Sgd> {
    let steps = steps_per_epoch.saturating_mul(VISION_EPOCHS);
    unclipped(vision_rule(), falling(vision_lr(batch), 0.0, steps))
}

/// Fine-tuning and quick experiments: AdamW with its defaults, weight decay 0.01 among them, at a constant 1e-3.
#[must_use]
pub fn fine_tuning() -> Recipe<AdamW> {
    unclipped(AdamW::default(), FINE_TUNING_LR)
}

/// [`fine_tuning`] with half a cosine from 1e-3 to 0 over `total_steps` steps, which are at least 1; the schedule refuses 0.
#[must_use]
pub fn fine_tuning_cosine(total_steps: u64) -> Recipe<AdamW> {
    unclipped(AdamW::default(), falling(FINE_TUNING_LR, 0.0, total_steps))
}

/// [`fine_tuning`] by Lion: weight decay 0.01 at a constant 1e-4, since its steps are larger.
#[must_use]
pub fn fine_tuning_lion() -> Recipe<Lion> {
    unclipped(lion(), LION_LR)
}

/// [`fine_tuning_lion`] with half a cosine from 1e-4 to 0 over `total_steps` steps, which are at least 1; the schedule refuses 0.
#[must_use]
pub fn fine_tuning_lion_cosine(total_steps: u64) -> Recipe<Lion> {
    unclipped(lion(), falling(LION_LR, 0.0, total_steps))
}

fn unclipped<R>(rule: R, schedule: impl Into<Schedule>) -> Recipe<R> {
    Recipe { rule, options: Options::default(), schedule: schedule.into() }
}

fn lion() -> Lion {
    Lion { weight_decay: 0.01, ..Lion::default() }
}

fn vision_rule() -> Sgd {
    Sgd { momentum: 0.9, weight_decay: 1e-4, ..Sgd::default() }
}

fn vision_lr(batch: u64) -> f64 {
    VISION_LR * batch as f64 / VISION_BATCH
}

/// Half a cosine that stays at its end.
fn falling(start: f64, end: f64, steps: u64) -> Schedule {
    schedule::cosine(start, end, steps).then(steps, end)
}
