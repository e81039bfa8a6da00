//! State that a file lacks, and that begins late.

use super::convert::{From, Source};
use super::fit::{Mismatches, OF_PARAMS, Place};
use super::{Load, Missing};
use crate::error::checkpoint::Mismatch;
use crate::layout::{Carry, Layout, Tensor};
use crate::options::Options;
use crate::state::Stream;
use crate::state::ages::Ages;

/// The state of each tensor, as a file has it.
pub(super) struct Late<'a> {
    /// The layout, with the values that it takes from the file.
    pub(super) layout: &'a Layout,
    pub(super) options: &'a Options,
    pub(super) streams: &'a [Stream],
    pub(super) sources: &'a [Vec<Source>],
    /// For each tensor of the flat space, its place in the file.
    pub(super) present: &'a [Option<Place>],
}

impl Late<'_> {
    /// Refuses state that begins at zero where it would be updated otherwise than in a new optimizer.
    /// `carries` are those of the file; a group all of whose state is new starts anew.
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
            // A missing slot is a mismatch of its own, or begins now.
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

    /// For each tensor, whether some of its state is there and whether some is missing; without its master,
    /// which is taken from the parameters.
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
