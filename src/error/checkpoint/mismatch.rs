//! Differences between a checkpoint and an optimizer.

use crate::error::Number;
use std::fmt;

/// A difference between a checkpoint and an optimizer.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Mismatch {
    /// The optimizer has another rule.
    Rule {
        /// The rule in the file.
        found: String,
        /// The optimizer's rule.
        expected: &'static str,
    },
    /// The file lacks a tensor of the layout.
    MissingTensor {
        /// The tensor's name.
        tensor: String,
    },
    /// The layout lacks a tensor of the file.
    ExtraTensor {
        /// The tensor's name.
        tensor: String,
    },
    /// The file lacks a state slot, or the parameters, of a tensor.
    MissingSlot {
        /// The slot's name.
        slot: String,
        /// The tensor's name.
        tensor: String,
    },
    /// The optimizer does not keep a slot of the file.
    ExtraSlot {
        /// The slot's name.
        slot: String,
        /// The number of tensors that have the slot.
        tensors: usize,
    },
    /// A tensor has another shape.
    Shape {
        /// Slot and tensor, as named in the file.
        tensor: String,
        /// The shape in the file.
        found: Vec<u64>,
        /// The shape in the layout.
        expected: Vec<u64>,
    },
    /// A tensor is in another group.
    Group {
        /// The tensor's name.
        tensor: String,
        /// The group in the file.
        found: String,
        /// The group in the layout.
        expected: String,
    },
    /// A hyperparameter or the learning-rate factor of a group has another value.
    Hyperparameter {
        /// The group's name.
        group: String,
        /// The field's name, or the names of all fields if the file's cannot be read.
        field: String,
        /// The value in the file.
        found: String,
        /// The optimizer's value.
        expected: String,
    },
    /// An option has another value.
    Option {
        /// The option's name.
        field: String,
        /// The value in the file.
        found: String,
        /// The optimizer's value.
        expected: String,
    },
    /// A slot is stored in another format.
    Format {
        /// The slot's name.
        slot: String,
        /// The type in the file.
        found: String,
        /// The optimizer's type.
        expected: String,
    },
    /// State that the file lacks would start in a group that has taken steps, and the group's scalars depend
    /// on their number.
    Age {
        /// The tensor's name.
        tensor: String,
        /// The group's name.
        group: String,
        /// The number of steps that the group has taken.
        steps: u64,
    },
    /// The optimizer uses stochastic rounding, and the file has no seed.
    Seed,
    /// The optimizer has a dynamic loss scale, and cannot take the file's.
    LossScale {
        /// The loss scale in the file, if it has one.
        found: Option<f64>,
        /// The range of the loss scale.
        bound: &'static str,
    },
    /// The good steps in the file reach the optimizer's growth interval.
    GoodSteps {
        /// The number of good steps in the file.
        found: u32,
        /// The optimizer's [`growth_interval`](crate::LossScale::growth_interval), the exclusive bound.
        bound: u32,
    },
    /// More differences than the list holds.
    More {
        /// A lower bound of their number: at most 1 000 tensors that only the file has are counted.
        count: usize,
    },
}

impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule { found, expected } => write!(f, "rule {found:?}, here {expected:?}"),
            Self::MissingTensor { tensor } => write!(f, "no tensor {tensor:?} in the file"),
            Self::ExtraTensor { tensor } => write!(f, "no tensor {tensor:?} here"),
            Self::MissingSlot { slot, tensor } => write!(f, "no {slot} of tensor {tensor:?} in the file"),
            Self::ExtraSlot { slot, tensors } => {
                write!(f, "no {slot} here, of {tensors} tensors in the file")
            }
            Self::Shape { tensor, found, expected } => {
                write!(f, "{tensor:?} of shape {found:?}, here {expected:?}")
            }
            Self::Group { tensor, found, expected } => {
                write!(f, "tensor {tensor:?} in group {found:?}, here in {expected:?}")
            }
            Self::Hyperparameter { group, field, found, expected } => {
                write!(f, "{field} of group {group:?} = {found}, here {expected}")
            }
            Self::Option { field, found, expected } => write!(f, "option {field} = {found}, here {expected}"),
            Self::Format { slot, found, expected } => {
                write!(f, "{slot} stored as {found}, here as {expected}")
            }
            Self::Age { tensor, group, steps } => write!(
                f,
                "tensor {tensor:?} has not taken the {steps} steps of group {group:?}, and its scalars \
                 depend on their number: put it in a group of its own"
            ),
            Self::More { count } => write!(f, "and at least {count} more"),
            Self::Seed => f.write_str("no seed, and rounding is stochastic here"),
            Self::LossScale { found: Some(found), bound } => {
                write!(f, "loss scale {}, must be {bound}", Number(*found))
            }
            Self::GoodSteps { found, bound } => {
                write!(f, "{found} good steps of the loss scale, must be below growth_interval = {bound}")
            }
            Self::LossScale { found: None, .. } => f.write_str("no loss scale, and there is one here"),
        }
    }
}

/// All mismatches in one line.
pub(super) struct Listed<'a>(pub(super) &'a [Mismatch]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, mismatch) in self.0.iter().enumerate() {
            write!(f, "{}{mismatch}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}
