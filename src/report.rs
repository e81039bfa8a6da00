//! What became of a step.

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The step, counted from 0 as it was recorded.
    pub step: u64,
    /// Whether all steps until then ran in the order in which they were recorded. If one did not, the
    /// commands were submitted in another order: parameters and counts are wrong from that step on, and a run
    /// goes on from a checkpoint.
    pub in_order: bool,
    /// Whether all of its gradients were finite.
    pub finite: bool,
    /// Steps not taken so far, this one included: those skipped, and those recorded into commands that were
    /// never submitted.
    pub skipped: u64,
    /// 2-norm of the gradients of all tensors, divided by divisor and loss scale and not yet clipped.
    pub grad_norm: f32,
    /// What the gradients were multiplied by to bound their norm; of groups that are bounded each by itself,
    /// the least, or NaN if one of them is NaN.
    pub clip_factor: f32,
    /// The dynamic loss scale that the gradients had; 1 without one.
    pub loss_scale: f32,
    /// The loss scale of the next step.
    pub next_loss_scale: f32,
    /// Good steps in a row, as the loss scale counts them.
    pub good_steps: u32,
    /// 2-norm of the parameters of all tensors before the step; with
    /// [`Options::norms`](crate::Options::norms).
    pub param_norm: Option<f32>,
    /// 2-norm of what the step has added to them, 0 where it was skipped; a device may take it before the
    /// parameters are rounded. With [`Options::norms`](crate::Options::norms).
    pub update_norm: Option<f32>,
}
