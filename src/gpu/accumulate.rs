//! Gradients of several micro-batches, added up.

use super::{Bound, Optimizer, Tensors};
use crate::error::{BindError, OptionsError, StepError};
use crate::formats::Format;
use crate::layout::{Group, Layout};
use crate::options::{Master, Options};
use crate::rules::Sgd;

/// Adds the gradients of micro-batches into an accumulator that is laid out as the parameters are.
///
/// It starts with zeros, as a new buffer does. The accumulator then takes the gradients' place in
/// [`Optimizer::bind`](Optimizer::bind), with a [gradient scale](crate::Step::grad_scale) of the number of
/// micro-batches for their mean, and [`zero_gradients`](crate::Options::zero_gradients) to begin anew. `a +
/// g` is rounded once an addition.
///
/// ```no_run
/// # use wgpu_optim::{wgpu, AdamW, Group, Layout, Optimizer, Options, Step, Tensors, accumulate::Accumulator};
/// # fn f(device: &wgpu::Device, queue: &wgpu::Queue, params: &wgpu::Buffer, micro: &wgpu::Buffer, sum: &wgpu::Buffer) -> Result<(), wgpu_optim::Error> {
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
    /// An accumulator for the tensors of `layout`. It holds no memory in proportion to them.
    ///
    /// # Errors
    /// As [`Optimizer::new`].
    pub fn new(device: &wgpu::Device, layout: &Layout) -> Result<Self, OptionsError> {
        Self::stored(device, layout, Format::F32, Format::F32)
    }

    /// [`new`](Self::new) for sums and gradients that are stored so. Sums of 2 bytes lose what is below half
    /// a unit of their last place at every addition.
    ///
    /// # Errors
    /// As [`Optimizer::new`].
    pub fn stored(
        device: &wgpu::Device,
        layout: &Layout,
        sums: Format,
        grads: Format,
    ) -> Result<Self, OptionsError> {
        // a + g is an ascent with a learning rate of 1: exactly, for the products with 1 are.
        let ascent = Sgd { maximize: true, ..Sgd::default() };
        let group = layout.tensors().iter().fold(Group::new("all", ascent), |group, tensor| {
            group.tensor_at(&tensor.name, &tensor.shape, tensor.offset)
        });
        let options = Options { params: sums, grads, master: Master::None, ..Options::default() };
        let layout = Layout::new([group]).expect("the tensors of a layout are those of another one");
        Optimizer::with_options(device, layout, options).map(Self)
    }

    /// Checks and prepares the accumulator's tensors, in the place of parameters, and the micro-batches'
    /// gradients.
    ///
    /// # Errors
    /// As [`Optimizer::bind`].
    pub fn bind(&mut self, sums_and_gradients: &Tensors<'_>) -> Result<Bound, BindError> {
        self.0.bind(sums_and_gradients)
    }

    /// Records the addition.
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
