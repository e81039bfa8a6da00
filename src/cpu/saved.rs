//! What a checkpoint has of the engine.

use super::tensors::{Cells, Params};
use super::{Optimizer, State, StateMut};
use crate::checkpoint::{Content, Plane};
use crate::format::Format;
use crate::options::{EMA, REMAINDER};
use crate::rules::{Twin, slots};

impl<R: Twin> Optimizer<R> {
    /// The slots that are kept, and what their values are of which tensors.
    pub(crate) fn saved_slots(&self) -> Vec<Plane> {
        let all: Vec<usize> = (0..self.layout().tensors().len()).collect();
        let (small, large): (Vec<_>, Vec<_>) = all.iter().partition(|&&tensor| self.is_small(tensor));
        let plane = |slot: &str, content, tensors: &[usize]| Plane {
            slot: slot.into(),
            content,
            tensors: tensors.to_vec(),
        };
        let contents = match self.options().states {
            Format::Q8 => &[Content::Codes, Content::Scales][..],
            format => &[Content::Numbers(format)],
        };
        let mut planes = Vec::new();
        for (_, slot) in slots::<R>().iter().enumerate().filter(|(i, _)| self.layout().keeps_slot(*i)) {
            planes.extend(contents.iter().map(|content| plane(slot, *content, &large)));
            planes.push(plane(slot, Content::Numbers(Format::F32), &small));
        }
        planes.retain(|plane| !plane.tensors.is_empty());
        planes.extend(self.options().storage().master().map(|(slot, format)| {
            let content = if slot == REMAINDER { Content::Remainders } else { Content::Numbers(format) };
            plane(slot, content, &all)
        }));
        planes.extend(self.options().ema.map(|_| plane(EMA, Content::Numbers(Format::F32), &all)));
        planes
    }
}

impl State<'_> {
    /// The values of a plane of this content.
    pub(crate) fn bytes(&self, content: Content) -> &[u8] {
        match self {
            Self::F32(x) => bytemuck::cast_slice(x),
            Self::U16(x) => bytemuck::cast_slice(x),
            Self::Q8(_, scales) if content == Content::Scales => bytemuck::cast_slice(scales),
            Self::Q8(codes, _) => codes,
        }
    }
}

impl StateMut<'_> {
    /// The same, to be written.
    pub(crate) fn bytes_mut(&mut self, content: Content) -> &mut [u8] {
        match self {
            Self::F32(x) => bytemuck::cast_slice_mut(x),
            Self::U16(x) => bytemuck::cast_slice_mut(x),
            Self::Q8(_, scales) if content == Content::Scales => bytemuck::cast_slice_mut(scales),
            Self::Q8(codes, _) => codes,
        }
    }
}

impl Params<'_> {
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn element_bytes(&self) -> u64 {
        self.0.bytes()
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        match &mut self.0 {
            Cells::Write4(x) => bytemuck::cast_slice_mut(x),
            Cells::Write2(x) => bytemuck::cast_slice_mut(x),
            // Parameters are written.
            Cells::None | Cells::Read4(_) | Cells::Read2(_) | Cells::Write1(..) => &mut [],
        }
    }
}
