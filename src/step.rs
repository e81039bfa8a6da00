//! The arguments of one optimizer step.

use crate::error::StepError;
use crate::float::Float;

/// The arguments of one optimizer step: a learning rate, and two values that are rarely set.
///
/// A plain number converts to a step with that learning rate.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Step {
    /// Learning rate of this step, before a group's factor. A device may flush a scalar of the step below
    /// 1.2·10⁻³⁸ to zero.
    pub lr: f64,
    /// Replaces the rule's momentum (SGD, LARS, RMSprop) or β₁ (the Adam family, Lion, Adan) in this step, as
    /// a one-cycle schedule does.
    pub momentum: Option<f64>,
    /// Gradient scale: the gradients are divided by it before anything else. It is a loss scale, the number
    /// of summed micro-batches, or the product of both. Default 1.
    pub grad_scale: f64,
}

impl Step {
    /// Sets a momentum that replaces the rule's.
    #[must_use]
    pub fn with_momentum(self, momentum: f64) -> Self {
        Self { momentum: Some(momentum), ..self }
    }

    /// Sets the gradient scale, by which the gradients are divided.
    #[must_use]
    pub fn with_grad_scale(self, grad_scale: f64) -> Self {
        Self { grad_scale, ..self }
    }

    /// The factor of the gradients, before clipping.
    pub(crate) fn unscale(&self) -> Result<f64, StepError> {
        let value = self.grad_scale;
        let unscale = 1.0 / value;
        if value > 0.0 && f32::from_f64(unscale).is_normal() {
            return Ok(unscale);
        }
        Err(StepError::GradScale { value, bound: "above 0, with a reciprocal in f32" })
    }

    /// Refuses a gradient scale other than 1.
    pub(crate) fn refuse_grad_scale(&self) -> Result<(), StepError> {
        let value = self.grad_scale;
        if value == 1.0 {
            return Ok(());
        }
        Err(StepError::GradScale { value, bound: "1 for the reference" })
    }
}

impl From<f64> for Step {
    fn from(lr: f64) -> Self {
        Self { lr, momentum: None, grad_scale: 1.0 }
    }
}
