//! The outcome of a step.

/// The outcome of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The step's number in the order of recording, from 0.
    pub step: u64,
    /// Whether all steps so far ran in the order in which they were recorded.
    ///
    /// If not, the commands were submitted in another order: parameters and counts are wrong from that step
    /// on, and the run has to resume from a checkpoint.
    pub in_order: bool,
    /// Whether all gradients of the step were finite.
    pub finite: bool,
    /// Steps not taken so far, including this one: skipped steps, and steps recorded into commands that were
    /// never submitted.
    pub skipped: u64,
    /// 2-norm of the gradients of all tensors, after division by gradient scale and loss scale, before
    /// clipping.
    pub grad_norm: f32,
    /// Factor of the gradients that bounds their norm. With a bound per group it is the least factor of the
    /// groups, or NaN if one of them is NaN.
    pub clip_factor: f32,
    /// Dynamic loss scale of the gradients; 1 without one.
    pub loss_scale: f32,
    /// The loss scale of the next step.
    pub next_loss_scale: f32,
    /// Consecutive good steps, as the loss scale counts them.
    pub good_steps: u32,
    /// 2-norm of the parameters of all tensors before the step; with
    /// [`Options::norms`](crate::Options::norms).
    pub param_norm: Option<f32>,
    /// 2-norm of the change of all parameters, 0 in a skipped step; with
    /// [`Options::norms`](crate::Options::norms). A device may take it before the parameters are rounded.
    pub update_norm: Option<f32>,
}
