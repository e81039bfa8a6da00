//! Accumulation of gradients over micro-batches.

use super::{Bound, Optimizer, Tensors};
use crate::error::{BindError, OptionsError, StepError};
use crate::formats::Format;
use crate::layout::{Group, Layout};
use crate::options::{Master, Options};
use crate::rules::Sgd;

/// Adds the gradients of micro-batches into an accumulator with the layout of the parameters.
///
/// The accumulator's buffer starts at zero, like a new buffer. Pass it to
/// [`Optimizer::bind`](Optimizer::bind) in place of the gradients. A [gradient
/// scale](crate::Step::grad_scale) of the number of micro-batches gives their mean, and
/// [`zero_gradients`](crate::Options::zero_gradients) resets the sums. Each addition rounds `a + g` once.
///
/// ```no_run
/// # use wgpu_optim::wgpu::{self, Buffer, Device, Queue};
/// # use wgpu_optim::{AdamW, Error, Group, Layout, Optimizer, Options, Step, Tensors};
/// # use wgpu_optim::accumulate::Accumulator;
/// # fn f(device: &Device, queue: &Queue, buffers: [&Buffer; 3]) -> Result<(), Error> {
/// # let [params, micro, sum] = buffers;
/// let layout = Layout::new([Group::new("all", AdamW::default()).tensor("w", [64, 32])])?;
/// let mut accumulator = Accumulator::new(device, &layout)?;
/// let add = accumulator.bind(&Tensors::flat(sum, micro))?;
/// let options = Options { zero_gradients: true, ..Options::default() };
/// let mut optimizer = Optimizer::with_options(device, layout, options)?;
/// let tensors = optimizer.bind(&Tensors::flat(params, sum))?;
/// let mut encoder = device.create_command_encoder(&Default::default());
/// for _ in 0..4 {
///     // … forward and backward passes of a micro-batch write `micro` …
///     accumulator.add(queue, &mut encoder, &add)?;
/// }
/// optimizer.step(queue, &mut encoder, &tensors, Step::from(1e-3).with_grad_scale(4.0))?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Accumulator(Optimizer);

impl Accumulator {
    /// Makes an accumulator for the tensors of `layout`. Its memory does not grow with them.
    ///
    /// # Errors
    /// The errors of [`Optimizer::new`].
    pub fn new(device: &wgpu::Device, layout: &Layout) -> Result<Self, OptionsError> {
        Self::stored(device, layout, Format::F32, Format::F32)
    }

    /// Makes an accumulator for sums and gradients in these formats. Each addition to a sum of 2 bytes loses
    /// digits below half a unit of its last place.
    ///
    /// # Errors
    /// The errors of [`Optimizer::new`].
    pub fn stored(
        device: &wgpu::Device,
        layout: &Layout,
        sums: Format,
        grads: Format,
    ) -> Result<Self, OptionsError> {
        // a + g is an ascent with learning rate 1. It is exact, because products with 1 are exact.
        let ascent = Sgd { maximize: true, ..Sgd::default() };
        let group = layout.tensors().iter().fold(Group::new("all", ascent), |group, tensor| {
            group.tensor_at(&tensor.name, &tensor.shape, tensor.offset)
        });
        let options = Options { params: sums, grads, master: Master::None, ..Options::default() };
        let layout = Layout::new([group]).expect("the tensors of a layout are those of another one");
        Optimizer::with_options(device, layout, options).map(Self)
    }

    /// Checks and prepares the accumulator's tensors, in place of parameters, and the micro-batches'
    /// gradients.
    ///
    /// # Errors
    /// The errors of [`Optimizer::bind`].
    pub fn bind(&mut self, sums_and_gradients: &Tensors<'_>) -> Result<Bound, BindError> {
        self.0.bind(sums_and_gradients)
    }

    /// Records one addition.
    ///
    /// # Errors
    /// A [`StepError`] if another accumulator bound the tensors, or if the device has no memory for scalars.
    pub fn add(
        &mut self,
        queue: &wgpu::Queue,
        encoder: &mut wgpu::CommandEncoder,
        bound: &Bound,
    ) -> Result<(), StepError> {
        self.0.step(queue, encoder, bound, 1.0)
    }
}
