//! The fixture of the CPU engine: an optimizer with its slices.

use crate::{cpu_slot, cpu_snapshot};
use wgpu_optim::check::Snapshot;
use wgpu_optim::{Format, Layout, Options, Report, Step, cpu};

/// Numbers in stored form.
#[derive(Clone, Debug)]
pub enum Stored {
    /// Numbers of 4 bytes.
    F32(Vec<f32>),
    /// Codes of 2 bytes.
    U16(Vec<u16>),
}

impl Stored {
    /// Numbers in a format.
    #[must_use]
    pub fn new(format: Format, numbers: &[f32]) -> Self {
        match format {
            Format::F32 => Self::F32(numbers.to_vec()),
            _ => Self::U16(numbers.iter().map(|&x| format.encode(x) as u16).collect()),
        }
    }

    /// Codes of 2 bytes, or the bits of numbers of 4.
    #[must_use]
    pub fn codes(&self) -> Vec<u32> {
        match self {
            Self::F32(x) => x.iter().map(|x| x.to_bits()).collect(),
            Self::U16(x) => x.iter().map(|&x| x.into()).collect(),
        }
    }

    /// The numbers as state for [`cpu_snapshot`].
    #[must_use]
    pub fn state(&self) -> cpu::State<'_> {
        match self {
            Self::F32(x) => cpu::State::F32(x),
            Self::U16(x) => cpu::State::U16(x),
        }
    }

    /// The numbers as parameters.
    pub fn params(&mut self) -> cpu::Params<'_> {
        match self {
            Self::F32(x) => x.into(),
            Self::U16(x) => x.into(),
        }
    }

    /// The numbers as gradients for reading.
    #[must_use]
    pub fn grads(&self) -> cpu::Grads<'_> {
        match self {
            Self::F32(x) => x.into(),
            Self::U16(x) => x.into(),
        }
    }

    /// The numbers as gradients that may be set to zero.
    pub fn grads_mut(&mut self) -> cpu::Grads<'_> {
        match self {
            Self::F32(x) => x.into(),
            Self::U16(x) => x.into(),
        }
    }

    /// The slices of parameters and gradients of each tensor, in the order of the flat space; then those of
    /// tensors without elements.
    fn each<'a>(
        layout: &'a Layout,
        params: &'a mut Self,
        grads: &'a mut Self,
    ) -> Vec<(&'a str, cpu::Params<'a>, cpu::Grads<'a>)> {
        let params: Vec<cpu::Params<'_>> = match params {
            Self::F32(x) => pieces(layout, x).map(Into::into).collect(),
            Self::U16(x) => pieces(layout, x).map(Into::into).collect(),
        };
        let grads: Vec<cpu::Grads<'_>> = match grads {
            Self::F32(x) => pieces(layout, x).map(Into::into).collect(),
            Self::U16(x) => pieces(layout, x).map(Into::into).collect(),
        };
        let empty = layout.tensors().iter().filter(|tensor| tensor.len == 0);
        let names = layout.by_offset().chain(empty).map(|tensor| tensor.name.as_str());
        names.zip(params).zip(grads).map(|((name, p), g)| (name, p, g)).collect()
    }
}

/// The part of each tensor of a slice in the flat space.
fn pieces<'a, T>(layout: &'a Layout, mut rest: &'a mut [T]) -> impl Iterator<Item = &'a mut [T]> {
    let mut at = 0;
    let pieces = layout.by_offset().map(move |tensor| {
        let (_, own) = std::mem::take(&mut rest).split_at_mut((tensor.offset - at) as usize);
        let (piece, others) = own.split_at_mut(tensor.len as usize);
        (rest, at) = (others, tensor.end());
        piece
    });
    pieces.chain(layout.tensors().iter().filter(|tensor| tensor.len == 0).map(|_| Default::default()))
}

/// The form in which a run passes its tensors.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// One slice for all tensors.
    Flat,
    /// One slice per tensor, in the order of the flat space or backwards.
    Each {
        /// Whether the order is backwards.
        backwards: bool,
    },
}

/// An optimizer with its parameters and gradients in the options' formats. A refusal by the library is a
/// panic.
#[derive(Clone, Debug)]
pub struct CpuRun {
    /// The optimizer.
    pub optimizer: cpu::Optimizer,
    /// The parameters, in the flat space.
    pub params: Stored,
    /// The gradients after the last step.
    pub grads: Stored,
    /// The form of the tensors; [`Form::Flat`] by default.
    pub form: Form,
}

impl CpuRun {
    /// Makes a run from parameters in the flat space.
    #[must_use]
    pub fn new(layout: Layout, options: Options, start: &[f32]) -> Self {
        let optimizer = cpu::Optimizer::with_options(layout, options).unwrap();
        let [params, grads] = [options.params, options.grads].map(|format| Stored::new(format, start));
        Self { optimizer, params, grads, form: Form::Flat }
    }

    /// Takes a step on gradients in the flat space.
    pub fn step(&mut self, grads: &[f32], step: impl Into<Step>) -> Option<Report> {
        self.grads = Stored::new(self.optimizer.options().grads, grads);
        let layout = self.optimizer.layout().clone();
        let tensors = match self.form {
            Form::Flat => cpu::Tensors::flat(self.params.params(), self.grads.grads_mut()),
            Form::Each { backwards } => {
                let mut each = Stored::each(&layout, &mut self.params, &mut self.grads);
                if backwards {
                    each.reverse();
                }
                cpu::Tensors::each(each)
            }
        };
        self.optimizer.step(tensors, step).unwrap()
    }

    /// Writes parameters from the flat space.
    pub fn write_params(&mut self, flat: &[f32]) {
        self.params = Stored::new(self.optimizer.options().params, flat);
    }

    /// The codes of the parameters.
    #[must_use]
    pub fn codes(&self) -> Vec<u32> {
        self.params.codes()
    }

    /// The parameters in the flat space.
    #[must_use]
    pub fn params(&self) -> Vec<f32> {
        let format = self.optimizer.options().params;
        self.codes().into_iter().map(|code| format.decode(code)).collect()
    }

    /// The numbers of a state slot of a tensor, decoded by the library; none if it is not kept.
    #[must_use]
    pub fn state(&self, slot: &str, tensor: &str) -> Vec<f32> {
        let kept = self.optimizer.state(slot, tensor).unwrap().is_some();
        if kept { self.optimizer.read_state(slot, tensor).unwrap() } else { Vec::new() }
    }

    /// The stored values of a slot, by [`cpu_slot`].
    #[must_use]
    pub fn slot(&self, slot: &str) -> Vec<u32> {
        cpu_slot(&self.optimizer, slot).unwrap()
    }

    /// Parameters and state, by [`cpu_snapshot`].
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        cpu_snapshot(&self.optimizer, self.params.state())
    }
}
