//! The engine's state for checkpoints and other layouts.

use super::{Optimizer, State, StateMut};
#[cfg(feature = "checkpoint")]
use super::{cells::Cells, tensors::Params};
#[cfg(feature = "checkpoint")]
use crate::float::Float;
use crate::formats::Format;
use crate::rules::names::{EMA, REMAINDER};
use crate::state::{Content, Stream};
#[cfg(feature = "checkpoint")]
use crate::state::{Counters, LossScaleState};

impl Optimizer {
    /// The streams of all state, in the order of the slots.
    pub(crate) fn streams(&self) -> Vec<Stream> {
        let all: Vec<usize> = (0..self.layout.by_offset().len()).collect();
        let contents = match self.options.states {
            Format::Q8 => &[Content::Codes, Content::Scales][..],
            format => &[Content::Numbers(format)],
        };
        let mut streams = Vec::new();
        for slot in self.layout.slot_names() {
            let (mut large, mut small) = (Vec::new(), Vec::new());
            for share in &self.shares {
                let used = &self.layout.rules()[share.rule];
                if used.kept_slots().any(|kept| kept == slot) {
                    for span in &share.plan.spans {
                        if span.kind == 1 { small.push(span.tensor) } else { large.push(span.tensor) }
                    }
                }
            }
            large.sort_unstable();
            small.sort_unstable();
            let stream =
                |content, tensors: &[usize]| Stream { slot: slot.into(), content, tensors: tensors.into() };
            streams.extend(contents.iter().map(|content| stream(*content, &large)));
            streams.push(stream(Content::Numbers(Format::F32), &small));
        }
        streams.retain(|stream| !stream.tensors.is_empty());
        let of_all = |slot: &str, content| Stream { slot: slot.into(), content, tensors: all.clone() };
        streams.extend(self.options.storage().master().map(|(slot, format)| {
            let content = if slot == REMAINDER { Content::Remainders } else { Content::Numbers(format) };
            of_all(slot, content)
        }));
        streams.extend(self.options.ema.map(|_| of_all(EMA, Content::Numbers(Format::F32))));
        streams
    }

    /// All counts and carries.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn counters(&self) -> Counters {
        let state = LossScaleState { scale: self.loss_scale, good_steps: self.good_steps };
        Counters {
            steps: self.steps,
            taken: self.steps - self.skipped,
            carries: self.carries.clone(),
            loss_scale: self.options.loss_scale.map(|_| state),
        }
    }

    /// Takes the values of `layout` and `options` that may change between steps.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn configure(
        &mut self,
        layout: crate::Layout,
        options: crate::Options,
    ) -> Result<(), crate::error::OutOfMemory> {
        (self.layout, self.options) = (layout, options);
        self.shares.iter_mut().try_for_each(|share| share.divide(&self.layout))
    }

    /// Continues from `counters`, which have one entry per group.
    #[cfg(feature = "checkpoint")]
    pub(crate) fn restore(&mut self, counters: &Counters) {
        (self.steps, self.skipped) = (counters.steps, counters.steps - counters.taken);
        self.carries.clone_from(&counters.carries);
        let first = self.options.loss_scale.map_or(1.0, |scale| f32::from_f64(scale.initial));
        let state = counters.loss_scale.unwrap_or(LossScaleState { scale: first, good_steps: 0 });
        (self.loss_scale, self.good_steps) = (state.scale, state.good_steps);
    }
}

impl State<'_> {
    /// The bytes of a stream with this content.
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
    /// The bytes of a stream with this content, to be written.
    pub(crate) fn bytes_mut(&mut self, content: Content) -> &mut [u8] {
        match self {
            Self::F32(x) => bytemuck::cast_slice_mut(x),
            Self::U16(x) => bytemuck::cast_slice_mut(x),
            Self::Q8(_, scales) if content == Content::Scales => bytemuck::cast_slice_mut(scales),
            Self::Q8(codes, _) => codes,
        }
    }
}

#[cfg(feature = "checkpoint")]
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
            Cells::None | Cells::Read4(_) | Cells::Read2(_) | Cells::Write1(..) => {
                unreachable!("`Params` are made of exclusive slices of f32 or u16")
            }
        }
    }
}
