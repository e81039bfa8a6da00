//! Options around the update: unscaling, clipping, skipping, loss scale, averages.

use crate::error::{ChangeError, OptionsError};
use crate::float::Float;
use crate::formats::Format;

#[cfg(feature = "serde")]
mod bound;
mod storage;

pub(crate) use storage::Storage;
#[cfg(test)]
pub(crate) use storage::every_format;

/// Options for gradients and weights around the update.
///
/// All of them run on the device, and no call waits for them. Everything is off by default. A disabled option
/// adds no code to the kernels.
///
/// The order in a step: the step is skipped if any stored gradient is not finite; gradients are divided by
/// [`Step::grad_scale`](crate::Step::grad_scale) and by the dynamic loss scale; gradients are clipped; the
/// rule updates parameters and state; the average of the weights is updated; gradients are set to zero.
///
/// Minor releases add fields. A literal therefore ends with `..Options::default()`, a constant with
/// `..Options::DEFAULT`, and a pattern with `..`.
///
/// ```
/// use wgpu_optim::{Clip, LossScale, Options};
/// const SKIP: Options = Options { skip_nonfinite: true, ..Options::DEFAULT };
/// assert!(SKIP.skips() && !Options::default().skips());
/// let options = Options {
///     clip: Some(Clip::GlobalNorm(1.0)),
///     loss_scale: Some(LossScale::default()),
///     ..Options::default()
/// };
/// assert!(options.validate().is_ok());
/// assert!(Options { clip: Some(Clip::Value(-1.0)), ..options }.validate().is_err());
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct Options {
    /// Bounds the gradients.
    ///
    /// A norm takes a pass over the gradients: one gradient read per parameter and two dispatches. A loss
    /// scale, skipping and reports share that pass. Norms per group take one more dispatch.
    pub clip: Option<Clip>,
    /// Skips a step in which any gradient of any tensor is infinite or NaN.
    ///
    /// A skipped step changes no bit of parameters, state and average, and the rule's count of steps does not
    /// advance. Learning rates follow the count of recorded steps, which includes skipped ones. Commands have
    /// to be submitted in the order in which steps were recorded into them.
    ///
    /// A rule may carry a number that depends on the momentum: NAdam does, and SGD does if the momentum is 0
    /// at times. If such a momentum changes between steps, take reports before recording further steps: see
    /// [`UncertainMomentum`](crate::StepError::UncertainMomentum). Each step in flight uploads one set of
    /// scalars per step without a report: see [`Unreported`](crate::StepError::Unreported).
    pub skip_nonfinite: bool,
    /// Scales the loss dynamically. Implies `skip_nonfinite`.
    pub loss_scale: Option<LossScale>,
    /// Sets gradients to zero after they are read, also in skipped steps: one gradient written per parameter.
    pub zero_gradients: bool,
    /// Keeps a running average of the weights, as state `"ema"`: 4 bytes per parameter, read and written. It
    /// is 0 before the first taken step.
    pub ema: Option<Ema>,
    /// Delivers a [`Report`](crate::Report) of every step, some steps later. Skipping and a loss scale imply
    /// it.
    pub report: bool,
    /// Reports the norms of parameters and updates too; implies `report`. The update's pass takes them, and
    /// one dispatch follows it.
    pub norms: bool,
    /// Format of the caller's parameters.
    pub params: Format,
    /// Format of the caller's gradients.
    pub grads: Format,
    /// Format of the rule's state: f32, bf16 or 8 bits, [block-wise](crate::q8).
    ///
    /// Rounding to nearest can stop a slow running mean. In bf16 the mean stops if the weight of a new value
    /// is below 1/256, as with β₂ = 0.999; in 8 bits it stops below 1/32. [Stochastic
    /// rounding](Rounding::Stochastic) avoids this.
    pub states: Format,
    /// Keeps the state of tensors with fewer elements than this in f32, for any value of `states`. Default 0.
    ///
    /// It is meant for biases and gains, and takes one more dispatch on the GPU. State in 8 bits takes whole
    /// blocks of 32 elements, and so does other state of the same tensors: f32 is smaller for tensors of up
    /// to 8 elements.
    pub f32_states_below: u64,
    /// Precision kept beside parameters of 2 bytes.
    pub master: Master,
    /// Rounding of values with fewer than 4 bytes: the rule's state, and parameters with [`Master::None`].
    pub rounding: Rounding,
}

/// Precision kept beside parameters that the caller stores in 2 bytes, so that small steps are not lost. It
/// has no effect on parameters of 4 bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum Master {
    /// An f32 master weight, as state `"master"`: 4 bytes per parameter. The first step takes it from the
    /// caller's parameters. A later write to the parameters has no effect, except where the master is 0.
    #[default]
    F32,
    /// The 16 bits that a bf16 parameter lacks of an f32, as state `"remainder"`: 2 bytes per parameter.
    ///
    /// The parameter is the rounded upper half of an f32, and the remainder is the lower half. A run equals
    /// the run with f32 parameters bit for bit, on a device that compiles both kernels to the same
    /// arithmetic; only NaN payloads may differ. If the caller writes a parameter later, the old remainder is
    /// added to it: at most half a unit of its last place, and nothing to a zero. The caller sees infinity
    /// for a parameter beyond 3.39·10³⁸, which f32 holds and bf16 does not.
    Remainder,
    /// Nothing. Steps below half a unit of the parameter's last place are lost without [stochastic
    /// rounding](Rounding::Stochastic).
    None,
}

impl Master {
    /// All variants.
    pub const ALL: [Self; 3] = [Self::F32, Self::Remainder, Self::None];
}

/// Rounding of a number to fewer digits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
#[non_exhaustive]
pub enum Rounding {
    /// Round to nearest. A tie goes to the even number, in [8 bits](crate::q8) to the larger one.
    #[default]
    Nearest,
    /// Stochastic rounding: up or down at random, with the number itself as the mean, and never beyond the
    /// largest finite number.
    ///
    /// The random numbers are a function of the seed, the count of steps taken, the tensor's name, the
    /// element's index and the state slot. A run can be repeated. Buffers, chunks, offsets, groups and
    /// skipped steps make no difference, except for the start of blocks of [8 bits](crate::q8). Tensors that
    /// share a vector of four with others take dispatches of their own, four at most.
    Stochastic {
        /// Seed of the random numbers.
        seed: u64,
    },
}

/// Bound of the gradients.
///
/// The bound of a norm may be infinite, `"inf"` in JSON: the norm is then measured and reported, and no
/// gradient changes.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case", deny_unknown_fields))]
#[non_exhaustive]
pub enum Clip {
    /// `g · min(1, c / (‖g‖ + 10⁻⁶))`, where `‖g‖` is the 2-norm over all tensors of all groups: PyTorch's
    /// `clip_grad_norm_`. The result is right even if the norm or the factor is beyond the range of an f32; a
    /// report then has an infinite norm.
    GlobalNorm(#[cfg_attr(feature = "serde", serde(with = "bound"))] f64),
    /// `g · min(1, c / (‖g‖ + 10⁻⁶))` per group, where `‖g‖` is the 2-norm over the group's tensors.
    GroupNorm(#[cfg_attr(feature = "serde", serde(with = "bound"))] f64),
    /// Clamps each element to `[−c, c]`: PyTorch's `clip_grad_value_`.
    Value(f64),
}

impl Clip {
    /// The kind's name.
    fn name(&self) -> &'static str {
        match self {
            Self::GlobalNorm(_) => "global_norm",
            Self::GroupNorm(_) => "group_norm",
            Self::Value(_) => "value",
        }
    }
}

/// A dynamic loss scale, with the semantics and defaults of PyTorch's `GradScaler`.
///
/// ```text
/// a gradient is not finite:    scale = max(scale · backoff_factor, min), good = 0
/// else:                        good += 1
/// good = growth_interval:      scale = min(scale · growth_factor, max), good = 0
/// ```
///
/// The engine multiplies its loss by the scale, which it reads from
/// [`Optimizer::loss_scale`](crate::Optimizer::loss_scale) on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(default, deny_unknown_fields))]
pub struct LossScale {
    /// The first scale. Default 2¹⁶.
    pub initial: f64,
    /// Factor by which the scale grows, at least 1. Default 2.
    pub growth_factor: f64,
    /// Factor of the scale after an overflow, `(0, 1]`. Default 0.5.
    pub backoff_factor: f64,
    /// Consecutive good steps before the scale grows, at least 1. Default 2 000.
    pub growth_interval: u32,
    /// Lower bound of the scale. Default: the least normal f32.
    pub min: f64,
    /// Upper bound of the scale. Default 2⁶⁴.
    pub max: f64,
}

impl Default for LossScale {
    fn default() -> Self {
        Self {
            initial: 65_536.0,
            growth_factor: 2.0,
            backoff_factor: 0.5,
            growth_interval: 2_000,
            min: f32::MIN_POSITIVE.into(),
            max: 64f64.exp2(),
        }
    }
}

impl LossScale {
    /// Whether a scale lies between the bounds. All three are compared in f32, in which the scale is
    /// multiplied.
    pub(crate) fn contains(&self, scale: f32) -> bool {
        (f32::from_f64(self.min)..=f32::from_f64(self.max)).contains(&scale)
    }
}

/// An exponential moving average of the weights, in the pass that updates them.
///
/// ```text
/// e = e + w (p − e)      w = 1 at the first step taken, then 1 − decay
/// debias:                w = (1 − decay) / (1 − decayᵗ)
/// ```
///
/// Without `debias` it is PyTorch's `AveragedModel` with `get_ema_multi_avg_fn(decay)`. With `debias` it is
/// the mean of all weights so far, weighted by `decay^(t − i)`.
#[derive(Clone, Copy, Debug, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
pub struct Ema {
    /// Weight of the old average, `[0, 1)`.
    pub decay: f64,
    /// Removes the extra weight of the first steps.
    #[cfg_attr(feature = "serde", serde(default))]
    pub debias: bool,
}

impl Ema {
    /// The weight of the parameters in the average, at step `t` from 1.
    #[must_use]
    pub fn weight(&self, t: u64) -> f64 {
        match (self.debias, t) {
            (_, ..=1) => 1.0,
            (false, _) => 1.0 - self.decay,
            (true, _) => (1.0 - self.decay) / (1.0 - self.decay.powf(t as f64)),
        }
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::DEFAULT
    }
}

impl Options {
    /// The defaults as a constant: everything off, and everything in f32. Equals [`Default`].
    pub const DEFAULT: Self = Self {
        clip: None,
        skip_nonfinite: false,
        loss_scale: None,
        zero_gradients: false,
        ema: None,
        report: false,
        norms: false,
        params: Format::F32,
        grads: Format::F32,
        states: Format::F32,
        f32_states_below: 0,
        master: Master::F32,
        rounding: Rounding::Nearest,
    };

    /// Checks every field.
    ///
    /// # Errors
    /// An [`OptionsError`] if a field is out of range.
    pub fn validate(&self) -> Result<(), OptionsError> {
        let check = |field, value: f64, good: bool, bound| {
            // The device receives an f32.
            let finite = f32::from_f64(value).is_finite() && value.is_finite();
            if good && finite { Ok(()) } else { Err(OptionsError::Field { field, value, bound }) }
        };
        let normal = |x: f64| x >= f32::MIN_POSITIVE.into();
        let bound = "a normal f32 above 0";
        let of_norm = |field, c: f64| {
            if c == f64::INFINITY {
                return Ok(());
            }
            check(field, c, normal(c), "a normal f32 above 0, or infinite to measure the norm alone")
        };
        match self.clip {
            Some(Clip::GlobalNorm(c)) => of_norm("clip.global_norm", c)?,
            Some(Clip::GroupNorm(c)) => of_norm("clip.group_norm", c)?,
            Some(Clip::Value(c)) => check("clip.value", c, normal(c), bound)?,
            None => {}
        }
        if let Some(scale) = self.loss_scale {
            check("loss_scale.min", scale.min, normal(scale.min), bound)?;
            check("loss_scale.max", scale.max, scale.max >= scale.min, "at least min and finite as f32")?;
            let inside = (scale.min..=scale.max).contains(&scale.initial);
            check("loss_scale.initial", scale.initial, inside, "from min to max")?;
            let growth = scale.growth_factor;
            check("loss_scale.growth_factor", growth, growth >= 1.0, "at least 1 and finite as f32")?;
            let backoff = scale.backoff_factor;
            check("loss_scale.backoff_factor", backoff, normal(backoff) && backoff <= 1.0, "in (0, 1]")?;
            let interval = scale.growth_interval;
            check("loss_scale.growth_interval", interval.into(), interval > 0, "at least 1")?;
        }
        let refuse =
            |field, format: Format, bound| Err(OptionsError::Format { field, format: format.name(), bound });
        if !Format::STATES.contains(&self.states) {
            return refuse("states", self.states, "f32, bf16 or q8: squares of small gradients are no f16");
        }
        for (field, format) in [("params", self.params), ("grads", self.grads)] {
            if !Format::TENSORS.contains(&format) {
                return refuse(field, format, "f32, f16 or bf16: blocks are for state");
            }
        }
        if self.master == Master::Remainder && self.params == Format::F16 {
            return refuse("params", self.params, "bf16 for a remainder");
        }
        self.ema
            .map_or(Ok(()), |ema| check("ema.decay", ema.decay, (0.0..1.0).contains(&ema.decay), "in [0, 1)"))
    }

    /// Whether steps may be skipped.
    #[must_use]
    pub fn skips(&self) -> bool {
        self.skip_nonfinite || self.loss_scale.is_some()
    }

    /// Whether a pass scans the gradients before the update.
    pub(crate) fn looks_first(&self) -> bool {
        self.skips() || self.reports() || self.bounds_norms()
    }

    /// Whether norms bound the gradients.
    pub(crate) fn bounds_norms(&self) -> bool {
        matches!(self.clip, Some(Clip::GlobalNorm(_) | Clip::GroupNorm(_)))
    }

    /// Gives the clip another bound.
    pub(crate) fn set_clip(&mut self, clip: Clip) -> Result<(), ChangeError> {
        let expected = self.clip.map_or("none", |clip| clip.name());
        if self.clip.map(|clip| clip.name()) != Some(clip.name()) {
            return Err(ChangeError::OtherClip { found: clip.name(), expected });
        }
        Self { clip: Some(clip), ..*self }.validate()?;
        self.clip = Some(clip);
        Ok(())
    }

    /// Refuses a loss scale that cannot have been saved under these options.
    pub(crate) fn check_loss_scale(&self, scale: f64, good_steps: u32) -> Result<(), OptionsError> {
        let refuse = |field, value, bound| Err(OptionsError::Field { field, value, bound });
        let Some(options) = self.loss_scale else {
            return refuse("loss_scale", scale, "unset without Options::loss_scale");
        };
        if !options.contains(f32::from_f64(scale)) {
            return refuse("loss_scale", scale, "from min to max");
        }
        if good_steps >= options.growth_interval {
            return refuse("good_steps", good_steps.into(), "below growth_interval");
        }
        Ok(())
    }

    /// Format of the state of a tensor of `len` elements.
    #[must_use]
    pub fn states_of(&self, len: u64) -> Format {
        if len < self.f32_states_below { Format::F32 } else { self.states }
    }

    /// Storage with state in the format [`states`](Self::states).
    pub(crate) fn storage(&self) -> Storage {
        let Self { params, grads, states, master, rounding, .. } = *self;
        let storage = Storage { params, grads, states, master, stochastic: false };
        let rounds = states != Format::F32 || params != Format::F32 && storage.master().is_none();
        Storage { stochastic: rounds && rounding != Rounding::Nearest, ..storage }
    }

    /// Whether every step is reported.
    pub(crate) fn reports(&self) -> bool {
        self.skips() || self.report || self.norms
    }
}
