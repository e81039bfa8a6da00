//! Names that rules, options and kernels share.

/// The state slot of the running average of the weights.
pub(crate) const EMA: &str = "ema";
/// The state slot of the f32 master weights.
pub(crate) const MASTER: &str = "master";
/// The state slot of the 16 bits that a bf16 parameter lacks.
pub(crate) const REMAINDER: &str = "remainder";
/// The scalar with the factor of a group's gradients, after the rule's own scalars.
pub(crate) const GROUP_FACTOR: &str = "gradient_factor";
/// The weight of the parameters in their running average, after the rule's own scalars.
pub(crate) const AVERAGE_WEIGHT: &str = "average_weight";

/// Slot names that a rule cannot use.
pub(super) const RESERVED_SLOTS: [&str; 6] = ["p", "g", "param", EMA, MASTER, REMAINDER];
