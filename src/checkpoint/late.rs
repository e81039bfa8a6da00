//! State that a file lacks and that starts late.

use super::convert::{From, Source};
use super::fit::{Mismatches, OF_PARAMS, Place};
use super::{Load, Missing};
use crate::error::checkpoint::Mismatch;
use crate::layout::{Carry, Layout, Tensor};
use crate::options::Options;
use crate::state::Stream;
use crate::state::ages::Ages;

/// The state of each tensor in a file.
pub(super) struct Late<'a> {
    /// The layout, with the values that it takes from the file.
    pub(super) layout: &'a Layout,
    pub(super) options: &'a Options,
    pub(super) streams: &'a [Stream],
    pub(super) sources: &'a [Vec<Source>],
    /// The place in the file of each tensor of the flat space.
    pub(super) present: &'a [Option<Place>],
}

impl Late<'_> {
    /// Refuses state that starts at zero, unless its updates equal those in a new optimizer. `carries` are
    /// the file's carries; a group of only new state starts at zero.
    pub(super) fn begin(self, carries: &mut [Carry], load: &Load, wrong: &mut Mismatches) {
        let Self { layout, options, present, .. } = self;
        let (found, saved) = (self.found(), carries.to_vec());
        let from = |i: usize, tensor: &Tensor| {
            let [old, new] = found[i];
            (present[i].is_some() && (old || !new)).then_some(tensor.group)
        };
        let tensors = || layout.by_offset().enumerate();
        let sets = [&saved[..]];
        let mut ages = Ages::new(layout, options, &sets, tensors().map(|(i, t)| (t.group, from(i, t))));
        for (i, tensor) in tensors() {
            // A missing slot is a mismatch of its own, or starts now.
            let whole = from(i, tensor).filter(|_| !found[i][1]);
            let joined = ages.join(tensor.group, whole);
            if let (Missing::Zero, Err(steps)) = (load.missing, joined) {
                let group = layout.groups()[tensor.group].name().into();
                wrong.add(|| Mismatch::Age { tensor: tensor.name.clone(), group, steps });
            }
            if ages.groups[tensor.group].is_none() {
                carries[tensor.group] = Carry::default();
            }
        }
    }

    /// For each tensor, whether some of its state is present and whether some is missing. The master is left
    /// out, since it is taken from the parameters.
    fn found(&self) -> Vec<[bool; 2]> {
        let mut found = vec![[false; 2]; self.present.len()];
        for (stream, sources) in self.streams.iter().zip(self.sources) {
            if !OF_PARAMS.contains(&stream.slot.as_str()) {
                for &i in &stream.tensors {
                    found[i][usize::from(matches!(sources[i].from, From::Zero))] = true;
                }
            }
        }
        found
    }
}
