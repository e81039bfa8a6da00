//! The fixture of the GPU: an optimizer with its buffers.

use crate::state::numbers;
use crate::{Gpu, packed, param_codes, slot, snapshot, wgpu};
use wgpu_optim::check::Snapshot;
use wgpu_optim::kernel::Target;
use wgpu_optim::{Bound, Format, Layout, Optimizer, Options, Report, Step, StepError, Tensors, View};

/// The places of a run's tensors in its two buffers.
#[derive(Clone, Debug)]
pub enum Places {
    /// The places of the flat space, with an offset in bytes in the parameters' and the gradients' buffer.
    Flat([u64; 2]),
    /// The tensors of the flat buffers, bound one by one.
    Each([u64; 2]),
    /// Each tensor at a place of its own: the first elements of its parameters and gradients, in the order of
    /// the layout. Numbers are f32, and memory between the tensors is not written.
    Pooled(Vec<[u64; 2]>),
}

/// An optimizer with its parameters and gradients in the options' formats. A refusal by the library is a
/// panic, except in [`record`](Self::record).
#[derive(Debug)]
pub struct GpuRun<'a> {
    /// The device.
    pub gpu: &'a Gpu,
    /// The optimizer.
    pub optimizer: Optimizer,
    /// The parameters' buffer.
    pub params: wgpu::Buffer,
    /// The gradients' buffer.
    pub grads: wgpu::Buffer,
    /// The binding for the steps.
    pub bound: Bound,
    places: Places,
}

impl<'a> GpuRun<'a> {
    /// Makes a run in flat buffers, from parameters in the flat space.
    #[must_use]
    pub fn new(gpu: &'a Gpu, layout: Layout, options: Options, start: &[f32]) -> Self {
        Self::padded(gpu, layout, options, start, Places::Flat([0; 2]))
    }

    /// Binds the same buffers tensor by tensor.
    #[must_use]
    pub fn each(gpu: &'a Gpu, layout: Layout, options: Options, start: &[f32]) -> Self {
        Self::padded(gpu, layout, options, start, Places::Each([0; 2]))
    }

    fn padded(gpu: &'a Gpu, layout: Layout, options: Options, start: &[f32], places: Places) -> Self {
        let params = gpu.upload_as(options.params, start);
        let grads = gpu.upload_as(options.grads, &vec![0.0; start.len()]);
        Self::over(gpu, layout, options, [params, grads], places)
    }

    /// Makes a run over the caller's buffers for parameters and gradients.
    #[must_use]
    pub fn over(
        gpu: &'a Gpu,
        layout: Layout,
        options: Options,
        [params, grads]: [wgpu::Buffer; 2],
        places: Places,
    ) -> Self {
        let mut optimizer = Optimizer::with_options(&gpu.device, layout, options).unwrap();
        let bound = bind(&mut optimizer, &params, &grads, &places);
        Self { gpu, optimizer, params, grads, bound, places }
    }

    /// The run before its first step, with kernels for `target`.
    #[must_use]
    pub fn for_target(self, target: Target) -> Self {
        let (layout, options) = (self.optimizer.layout().clone(), *self.optimizer.options());
        let mut optimizer = Optimizer::with_target(&self.gpu.device, layout, options, target).unwrap();
        let bound = bind(&mut optimizer, &self.params, &self.grads, &self.places);
        Self { optimizer, bound, ..self }
    }

    /// A binding of the run's parameters with other gradients at the same places.
    pub fn bind(&mut self, grads: &wgpu::Buffer) -> Bound {
        bind(&mut self.optimizer, &self.params, grads, &self.places)
    }

    /// Records a step on the contents of the gradients' buffer.
    ///
    /// # Errors
    /// The errors of [`Optimizer::step`].
    pub fn record(
        &mut self,
        encoder: &mut wgpu::CommandEncoder,
        step: impl Into<Step>,
    ) -> Result<(), StepError> {
        self.optimizer.step(&self.gpu.queue, encoder, &self.bound, step)
    }

    /// Takes a step on the contents of the gradients' buffer, and waits for it.
    pub fn again(&mut self, step: impl Into<Step>) -> Option<Report> {
        let mut encoder = self.gpu.encoder();
        self.record(&mut encoder, step).unwrap();
        self.gpu.run(encoder);
        self.optimizer.take_report()
    }

    /// Takes a step on gradients in the flat space, and does not wait for it. Its report stays with the
    /// optimizer.
    pub fn submit(&mut self, grads: &[f32], step: impl Into<Step>) {
        self.write_grads(grads);
        let mut encoder = self.gpu.encoder();
        self.record(&mut encoder, step).unwrap();
        self.gpu.queue.submit([encoder.finish()]);
    }

    /// Takes a step on gradients in the flat space, and waits for it.
    pub fn step(&mut self, grads: &[f32], step: impl Into<Step>) -> Option<Report> {
        self.submit(grads, step);
        self.gpu.wait();
        self.optimizer.take_report()
    }

    /// Writes parameters from the flat space.
    pub fn write_params(&self, flat: &[f32]) {
        self.write(0, &self.params, self.optimizer.options().params, flat);
    }

    /// Writes gradients from the flat space.
    pub fn write_grads(&self, flat: &[f32]) {
        self.write(1, &self.grads, self.optimizer.options().grads, flat);
    }

    fn write(&self, which: usize, buffer: &wgpu::Buffer, format: Format, flat: &[f32]) {
        match &self.places {
            Places::Flat(before) | Places::Each(before) => {
                self.gpu.write(buffer, before[which], bytemuck::cast_slice(&packed(format, flat)));
            }
            Places::Pooled(places) => {
                for (tensor, place) in self.optimizer.layout().tensors().iter().zip(places) {
                    self.gpu.write(buffer, place[which] * 4, &flat[tensor.range()]);
                }
            }
        }
    }

    /// The parameters in the flat space, stored in f32.
    #[must_use]
    pub fn params(&self) -> Vec<f32> {
        self.read(0, &self.params)
    }

    /// The gradients in the flat space, stored in f32.
    #[must_use]
    pub fn grads(&self) -> Vec<f32> {
        self.read(1, &self.grads)
    }

    fn read(&self, which: usize, buffer: &wgpu::Buffer) -> Vec<f32> {
        let layout = self.optimizer.layout();
        let len = layout.len() as usize;
        match &self.places {
            Places::Flat(before) | Places::Each(before) => self.gpu.read(buffer, before[which], len),
            Places::Pooled(places) => {
                let (all, mut flat) = (self.gpu.download(buffer), vec![0.0; len]);
                for (tensor, place) in layout.tensors().iter().zip(places) {
                    let from = place[which] as usize;
                    flat[tensor.range()].copy_from_slice(&all[from..from + tensor.len as usize]);
                }
                flat
            }
        }
    }

    /// The codes of the parameters in the flat space.
    #[must_use]
    pub fn codes(&self) -> Vec<u32> {
        let (Places::Flat([before, _]) | Places::Each([before, _])) = self.places else {
            panic!("parameters are in a pool")
        };
        param_codes(self.gpu, &self.optimizer, &self.params, before)
    }

    /// The numbers of a state slot of a tensor, decoded by the library.
    #[must_use]
    pub fn state(&self, slot: &str, tensor: &str) -> Vec<f32> {
        let range = self.optimizer.layout().tensor(tensor).unwrap().range();
        numbers(self.gpu, &self.optimizer, slot).unwrap()[range].to_vec()
    }

    /// The stored values of a slot, by [`slot`](crate::slot()).
    #[must_use]
    pub fn slot(&self, name: &str) -> Vec<u32> {
        slot(self.gpu, &self.optimizer, name).unwrap()
    }

    /// Parameters and state, as [`snapshot`](crate::snapshot()) has them. Elements between pooled tensors are
    /// 0.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        match self.places {
            Places::Flat([before, _]) | Places::Each([before, _]) => {
                snapshot(self.gpu, &self.optimizer, &self.params, before)
            }
            Places::Pooled(_) => {
                // Any buffer of the right length does for the parameters, which are gathered.
                let zeros = self.gpu.buffer(self.optimizer.layout().buffer_size());
                Snapshot { params: self.params(), ..snapshot(self.gpu, &self.optimizer, &zeros, 0) }
            }
        }
    }
}

/// Binds an optimizer's tensors at their places.
fn bind(optimizer: &mut Optimizer, params: &wgpu::Buffer, grads: &wgpu::Buffer, places: &Places) -> Bound {
    let layout = optimizer.layout().clone();
    let bytes = [optimizer.options().params, optimizer.options().grads].map(Format::bytes);
    let each = layout.tensors().iter().enumerate().map(|(nth, tensor)| {
        let at = |side: usize| match places {
            Places::Flat(before) | Places::Each(before) => before[side] + tensor.offset * bytes[side],
            Places::Pooled(places) => places[nth][side] * 4,
        };
        (tensor.name.as_str(), View::new(params, at(0)), View::new(grads, at(1)))
    });
    let tensors = match *places {
        Places::Flat([p, g]) => Tensors::flat(View::new(params, p), View::new(grads, g)),
        _ => Tensors::each(each),
    };
    optimizer.bind(&tensors).unwrap()
}
