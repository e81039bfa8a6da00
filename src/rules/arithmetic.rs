//! Arithmetic that several rules share, and the checks of their hyperparameters.

use crate::error::RuleError;
use crate::float::Float;

/// `w · x`, and 0 where `w` is 0, even if `x` is infinite.
#[inline(always)]
pub fn weighted<T: Float>(w: T, x: T) -> T {
    if w > T::ZERO { w * x } else { T::ZERO }
}

/// The running mean `w · new + (1 − w) · old`, in the form without cancellation for `w` near 0 and near 1.
///
/// `rest` is `1 − w`, rounded by itself. PyTorch's `lerp` has the same two forms.
#[inline(always)]
pub fn toward<T: Float>(old: T, new: T, w: T, rest: T) -> T {
    let d = new - old;
    if w < T::from_f64(0.5) { old + w * d } else { new - rest * d }
}

/// Refuses a hyperparameter outside `[0, ∞)`.
pub(super) fn non_negative(rule: &'static str, field: &'static str, value: f64) -> Result<(), RuleError> {
    check(rule, field, value, value >= 0.0, "finite and at least 0")
}

/// Refuses a hyperparameter outside `[0, 1)`.
pub(super) fn below_one(rule: &'static str, field: &'static str, value: f64) -> Result<(), RuleError> {
    check(rule, field, value, (0.0..1.0).contains(&value), "in [0, 1)")
}

/// Refuses a negative ε, and an ε that a device could flush to zero: the update would then divide zero by
/// zero. `factor` is the least factor of ε before it is sent to the device.
pub(super) fn epsilon(
    rule: &'static str,
    field: &'static str,
    value: f64,
    factor: f64,
) -> Result<(), RuleError> {
    non_negative(rule, field, value)?;
    let bound = "0, or large enough to be a normal f32 when it is multiplied by its bias correction";
    check(rule, field, value, value == 0.0 || value * factor >= f32::MIN_POSITIVE.into(), bound)
}

/// −1 to maximize, else 1.
pub(super) fn sign(maximize: bool) -> f64 {
    if maximize { -1.0 } else { 1.0 }
}

/// The coefficients `(L2, decoupled)` of a weight decay; the second is multiplied by the learning rate.
pub(super) fn decays(weight_decay: f64, decoupled: bool, lr: f64) -> (f64, f64) {
    if decoupled { (0.0, lr * weight_decay) } else { (weight_decay, 0.0) }
}

/// `1 − βᵗ`.
pub(super) fn bias_correction(beta: f64, t: u64) -> f64 {
    1.0 - beta.powf(t as f64)
}

pub(super) fn check(
    rule: &'static str,
    field: &'static str,
    value: f64,
    good: bool,
    bound: &'static str,
) -> Result<(), RuleError> {
    if good && value.is_finite() {
        Ok(())
    } else {
        Err(RuleError::Hyperparameter { rule, field, value, bound })
    }
}
