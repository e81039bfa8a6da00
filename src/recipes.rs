//! Recipes: common combinations of a rule, options and a schedule.

use crate::error::ScheduleError;
use crate::options::{Clip, Options};
use crate::rules::{AdamW, Lion, Sgd};
use crate::schedule::{self, Schedule};

/// The most warm-up steps of [`llm`].
const LLM_WARMUP: u64 = 2_000;
/// The learning rate of [`vision`] at a batch of [`VISION_BATCH`] images.
const VISION_LR: f64 = 0.1;
const VISION_BATCH: f64 = 256.0;
const VISION_EPOCHS: u64 = 90;
const FINE_TUNING_LR: f64 = 1e-3;
const LION_LR: f64 = 1e-4;

/// A rule's hyperparameters with options and a schedule. All fields are plain values to read or change.
///
/// ```
/// use wgpu_optim::{AdamW, Group, Layout, cpu, recipes};
/// let recipe = recipes::llm(3e-4, 100_000)?;
/// let layout = Layout::new([
///     Group::new("decay", recipe.rule).tensor("w", [8, 8]),
///     Group::new("no_decay", AdamW { weight_decay: 0.0, ..recipe.rule }).tensor("b", [8]),
/// ])?;
/// let mut optimizer = cpu::Optimizer::new(layout)?;
/// let (mut params, grads) = ([0.0; 72], [1.0; 72]);
/// for t in 0..10 {
///     optimizer.step(cpu::Tensors::flat(&mut params, &grads), recipe.schedule.at(t)?)?;
/// }
/// # Ok::<(), wgpu_optim::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Recipe<R> {
    /// The hyperparameters of the rule.
    pub rule: R,
    /// The options around the update, such as clipping, for `Optimizer::with_options`.
    pub options: Options,
    /// The learning rate of every step.
    pub schedule: Schedule,
}

/// Large language models from scratch: AdamW with warm-up, half a cosine and clipping.
///
/// - Rule: AdamW with β₁ 0.9, β₂ 0.95, ε 1e-8 and weight decay 0.1.
/// - Options: clipping at a global norm of 1.
/// - Schedule: a line up to `peak_lr` in 2 000 steps, or in a tenth of a run shorter than 20 000 steps. Then
///   half a cosine down to a tenth of `peak_lr` at `total_steps`, which it keeps.
///
/// `peak_lr` is commonly 1e-4 to 3e-4, lower for larger models. Vectors (biases, gains of norms) usually get
/// no decay, in a group of their own.
///
/// Reference: Brown et al., *Language Models are Few-Shot Learners*, 2020, appendix B; Touvron et al.,
/// *LLaMA*, 2023, section 2.3.
///
/// # Errors
/// A [`ScheduleError`] if `peak_lr` is negative or not finite, or `total_steps` is 0.
pub fn llm(peak_lr: f64, total_steps: u64) -> Result<Recipe<AdamW>, ScheduleError> {
    let arguments = Arguments("llm");
    arguments.non_negative("peak_lr", peak_lr)?;
    arguments.at_least_1("total_steps", total_steps)?;
    let warmup = LLM_WARMUP.min(total_steps / 10);
    Ok(Recipe {
        rule: AdamW { beta2: 0.95, weight_decay: 0.1, ..AdamW::default() },
        options: Options { clip: Some(Clip::GlobalNorm(1.0)), ..Options::default() },
        schedule: falling(peak_lr, 0.1 * peak_lr, total_steps - warmup).warmup(warmup),
    })
}

/// Image classification from scratch with a convolutional network: SGD with steps of the learning rate.
///
/// - Rule: SGD with momentum 0.9 and weight decay 1e-4.
/// - Schedule: 0.1 per 256 images in a batch. A tenth of that after 30 of 90 epochs, a hundredth after 60, a
///   thousandth after 90.
///
/// For large batches, Goyal et al. add a warm-up of five epochs: `schedule.warmup(…)`.
///
/// Reference: PyTorch's ImageNet example; Goyal et al., *Accurate, Large Minibatch SGD*, 2017, for the
/// proportion to the batch.
///
/// # Errors
/// A [`ScheduleError`] if `batch` or `steps_per_epoch` is 0.
pub fn vision(batch: u64, steps_per_epoch: u64) -> Result<Recipe<Sgd>, ScheduleError> {
    let peak_lr = vision_lr("vision", batch, steps_per_epoch)?;
    let milestones = [30, 60, 90].map(|epoch| steps_per_epoch.saturating_mul(epoch));
    Ok(unclipped(vision_rule(), schedule::multi_step(peak_lr, 0.1, milestones)))
}

/// The recipe [`vision`] with half a cosine to 0 over its 90 epochs instead of steps.
///
/// # Errors
/// A [`ScheduleError`] if `batch` or `steps_per_epoch` is 0.
pub fn vision_cosine(batch: u64, steps_per_epoch: u64) -> Result<Recipe<Sgd>, ScheduleError> {
    let peak_lr = vision_lr("vision_cosine", batch, steps_per_epoch)?;
    let steps = steps_per_epoch.saturating_mul(VISION_EPOCHS);
    Ok(unclipped(vision_rule(), falling(peak_lr, 0.0, steps)))
}

/// Fine-tuning and quick experiments: AdamW with its defaults (weight decay 0.01) at a constant 1e-3.
#[must_use]
pub fn fine_tuning() -> Recipe<AdamW> {
    unclipped(AdamW::default(), FINE_TUNING_LR)
}

/// The recipe [`fine_tuning`] with half a cosine from 1e-3 to 0 over `total_steps` steps.
///
/// # Errors
/// A [`ScheduleError`] if `total_steps` is 0.
pub fn fine_tuning_cosine(total_steps: u64) -> Result<Recipe<AdamW>, ScheduleError> {
    Arguments("fine_tuning_cosine").at_least_1("total_steps", total_steps)?;
    Ok(unclipped(AdamW::default(), falling(FINE_TUNING_LR, 0.0, total_steps)))
}

/// Fine-tuning by Lion: weight decay 0.01 at a constant 1e-4, since Lion's steps are larger than AdamW's.
#[must_use]
pub fn fine_tuning_lion() -> Recipe<Lion> {
    unclipped(lion(), LION_LR)
}

/// The recipe [`fine_tuning_lion`] with half a cosine from 1e-4 to 0 over `total_steps` steps.
///
/// # Errors
/// A [`ScheduleError`] if `total_steps` is 0.
pub fn fine_tuning_lion_cosine(total_steps: u64) -> Result<Recipe<Lion>, ScheduleError> {
    Arguments("fine_tuning_lion_cosine").at_least_1("total_steps", total_steps)?;
    Ok(unclipped(lion(), falling(LION_LR, 0.0, total_steps)))
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

/// Checks the arguments of both vision recipes and returns their first learning rate.
fn vision_lr(recipe: &'static str, batch: u64, steps_per_epoch: u64) -> Result<f64, ScheduleError> {
    Arguments(recipe).at_least_1("batch", batch)?;
    Arguments(recipe).at_least_1("steps_per_epoch", steps_per_epoch)?;
    Ok(VISION_LR * batch as f64 / VISION_BATCH)
}

/// Makes half a cosine that keeps its end.
fn falling(start: f64, end: f64, steps: u64) -> Schedule {
    schedule::cosine(start, end, steps).then(steps, end)
}

/// Checks of single arguments, for the recipe of this name.
#[derive(Clone, Copy)]
struct Arguments(&'static str);

impl Arguments {
    fn at_least_1(self, argument: &'static str, value: u64) -> Result<(), ScheduleError> {
        self.check(argument, value as f64, value >= 1, "at least 1")
    }

    fn non_negative(self, argument: &'static str, value: f64) -> Result<(), ScheduleError> {
        self.check(argument, value, value.is_finite() && value >= 0.0, "finite and at least 0")
    }

    fn check(
        self,
        argument: &'static str,
        value: f64,
        good: bool,
        bound: &'static str,
    ) -> Result<(), ScheduleError> {
        if good { Ok(()) } else { Err(ScheduleError::Recipe { recipe: self.0, argument, value, bound }) }
    }
}
