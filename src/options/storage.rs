//! Storage of parameters, gradients and state. Options set it, and kernels are specialised for it.

use super::Master;
#[cfg(test)]
use super::Options;
use crate::formats::Format;
use crate::rules::names::{MASTER, REMAINDER};

/// Formats of parameters, gradients and state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Storage {
    /// Format of the caller's parameters.
    pub(crate) params: Format,
    /// Format of the caller's gradients.
    pub(crate) grads: Format,
    /// Format of the rule's state.
    pub(crate) states: Format,
    /// Precision kept beside parameters of 2 bytes.
    pub(crate) master: Master,
    /// Whether values of fewer than 4 bytes are rounded stochastically.
    pub(crate) stochastic: bool,
}

impl Storage {
    /// The slot kept beside the parameters, and a format with the same number of bytes.
    #[must_use]
    pub(crate) fn master(&self) -> Option<(&'static str, Format)> {
        match self.master {
            _ if self.params == Format::F32 => None,
            Master::F32 => Some((MASTER, Format::F32)),
            Master::Remainder => Some((REMAINDER, Format::Bf16)),
            Master::None => None,
        }
    }
}

/// All combinations of formats that options allow.
#[cfg(test)]
pub(crate) fn every_format() -> Vec<Options> {
    let mut all = Vec::new();
    for params in Format::TENSORS {
        for master in [Master::F32, Master::Remainder, Master::None] {
            for grads in Format::TENSORS {
                for states in Format::STATES {
                    let options = Options { params, grads, states, master, ..Options::default() };
                    if options.validate().is_ok() && (params != Format::F32 || master == Master::F32) {
                        all.push(options);
                    }
                }
            }
        }
    }
    all
}
