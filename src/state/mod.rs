//! State between steps in a form that both engines share: streams of stored values, and counters. Checkpoints
//! write it, and an optimizer for another layout takes it over.

pub(crate) mod ages;
pub(crate) mod take_over;
pub(crate) mod values;

use crate::formats::Format;
use crate::layout::VECTOR;
#[cfg(feature = "checkpoint")]
use crate::layout::{Carry, Tensor};

/// Values that an engine keeps for some of its tensors, all stored in one way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stream {
    /// The name of the state slot.
    pub slot: String,
    /// The kind of its values.
    pub content: Content,
    /// The tensors, as indices in the order of the flat space, in the engine's order.
    pub tensors: Vec<usize>,
}

/// The kind of the values of a [`Stream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// Numbers, one for each element; not [`Format::Q8`].
    Numbers(Format),
    /// The lower halves of numbers; the parameters are the upper halves.
    Remainders,
    /// The codes of [`q8`].
    Codes,
    /// The scales of the blocks of [`q8`].
    Scales,
}

impl Content {
    /// Bytes per value.
    #[must_use]
    #[cfg(any(feature = "gpu", feature = "checkpoint"))]
    pub fn value_bytes(self) -> u64 {
        match self {
            Self::Numbers(format) => format.bytes(),
            Self::Remainders => 2,
            Self::Codes => 1,
            Self::Scales => 4,
        }
    }

    /// The number of values of a tensor.
    #[must_use]
    #[cfg(feature = "checkpoint")]
    pub fn values(self, tensor: &Tensor) -> u64 {
        if self == Self::Scales { blocks(tensor.offset, tensor.len) } else { tensor.len }
    }
}

impl Stream {
    /// Bytes of a tensor's values.
    #[cfg(feature = "checkpoint")]
    pub fn bytes(&self, tensor: &Tensor) -> u64 {
        self.content.values(tensor) * self.content.value_bytes()
    }

    #[cfg(feature = "checkpoint")]
    pub fn shape(&self, tensor: &Tensor) -> Vec<u64> {
        if self.content == Content::Scales { vec![self.content.values(tensor)] } else { tensor.shape.clone() }
    }
}

/// The index in its first block of the first element of a tensor at `offset`.
pub(crate) fn lead(offset: u64) -> u64 {
    offset % VECTOR
}

#[cfg(feature = "checkpoint")]
/// Blocks of a tensor of `len` elements.
pub(crate) fn blocks(offset: u64, len: u64) -> u64 {
    (lead(offset) + len).div_ceil(crate::formats::q8::BLOCK as u64)
}

#[cfg(feature = "checkpoint")]
/// All counts and carries of an optimizer, beside its slots.
#[derive(Clone, Debug, PartialEq)]
pub struct Counters {
    /// Steps recorded.
    pub steps: u64,
    /// Steps taken: recorded and not skipped.
    pub taken: u64,
    /// The counts and carried numbers of each group.
    pub carries: Vec<Carry>,
    /// The dynamic loss scale, if there is one.
    pub loss_scale: Option<LossScaleState>,
}

#[cfg(feature = "checkpoint")]
/// The state of a dynamic loss scale.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LossScaleState {
    /// The scale of the next step.
    pub scale: f32,
    /// Good steps in a row.
    pub good_steps: u32,
}
