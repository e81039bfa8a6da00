//! One optimizer on any device.

use crate::device::{Error, fits, guarded};
use harness::{Gpu, Stored, wgpu};
use wgpu_optim::check::Snapshot;
use wgpu_optim::{Bound, Layout, Optimizer, Options, OptionsError, Step, StepError, Tensors, cpu};

/// Largest number of steps in flight before the program waits for the device: each keeps a copy of its
/// gradients.
const IN_FLIGHT: u64 = 16;

/// Parameters and state, flat; state as [`Snapshot`] has it.
pub(crate) struct Values<T> {
    pub(crate) params: Vec<T>,
    pub(crate) state: Vec<Vec<T>>,
}

impl From<Values<f32>> for Snapshot {
    fn from(values: Values<f32>) -> Self {
        Self { params: values.params, state: values.state }
    }
}

/// An optimizer with its parameters, in the arithmetic of `T`.
pub(crate) trait Engine<T> {
    /// The layout.
    fn layout(&self) -> &Layout;
    /// Takes a step.
    fn step(&mut self, grads: &[T], step: Step) -> Result<(), StepError>;
    /// The current parameters and state.
    fn values(&mut self) -> Values<T>;
    /// The current parameters.
    fn params(&mut self) -> Vec<T>;
}

/// The reference in f64.
pub(crate) struct Reference {
    optimizer: cpu::Reference,
    params: Vec<f64>,
}

impl Reference {
    pub(crate) fn new(layout: Layout, params: &[f32]) -> Result<Self, OptionsError> {
        let params = params.iter().map(|&p| p.into()).collect();
        Ok(Self { optimizer: cpu::Reference::new(layout)?, params })
    }
}

impl Engine<f64> for Reference {
    fn layout(&self) -> &Layout {
        self.optimizer.layout()
    }

    fn step(&mut self, grads: &[f64], step: Step) -> Result<(), StepError> {
        self.optimizer.step(&mut self.params, grads, step)
    }

    fn values(&mut self) -> Values<f64> {
        Values { params: self.params.clone(), state: self.optimizer.slots().to_vec() }
    }

    fn params(&mut self) -> Vec<f64> {
        self.params.clone()
    }
}

/// The engine on the CPU.
pub(crate) struct Host {
    optimizer: cpu::Optimizer,
    params: Stored,
}

impl Host {
    pub(crate) fn new(layout: Layout, params: &[f32], options: Options) -> Result<Self, OptionsError> {
        let params = Stored::new(options.params, params);
        Ok(Self { optimizer: cpu::Optimizer::with_options(layout, options)?, params })
    }
}

impl Engine<f32> for Host {
    fn layout(&self) -> &Layout {
        self.optimizer.layout()
    }

    fn step(&mut self, grads: &[f32], step: Step) -> Result<(), StepError> {
        let grads = Stored::new(self.optimizer.options().grads, grads);
        self.optimizer.step(cpu::Tensors::flat(self.params.params(), grads.grads()), step).map(drop)
    }

    fn values(&mut self) -> Values<f32> {
        let Snapshot { params, state } = harness::cpu_snapshot(&self.optimizer, self.params.state());
        Values { params, state }
    }

    fn params(&mut self) -> Vec<f32> {
        self.values().params
    }
}

/// The engine on an adapter.
pub(crate) struct Device<'a> {
    gpu: &'a Gpu,
    optimizer: Optimizer,
    params: wgpu::Buffer,
    grads: wgpu::Buffer,
    bound: Bound,
}

impl<'a> Device<'a> {
    pub(crate) fn new(gpu: &'a Gpu, layout: Layout, params: &[f32], options: Options) -> Result<Self, Error> {
        let bytes = layout.buffer_size();
        fits(gpu, bytes / 4)?;
        let (params, grads) = guarded(gpu, || (gpu.upload_as(options.params, params), gpu.buffer(bytes)))?;
        let mut optimizer = Optimizer::with_options(&gpu.device, layout, options)?;
        let bound = optimizer.bind(&Tensors::flat(&params, &grads))?;
        Ok(Self { gpu, optimizer, params, grads, bound })
    }
}

impl Engine<f32> for Device<'_> {
    fn layout(&self) -> &Layout {
        self.optimizer.layout()
    }

    fn step(&mut self, grads: &[f32], step: Step) -> Result<(), StepError> {
        let mut encoder = self.gpu.encoder();
        let mut recorded = self.optimizer.step(&self.gpu.queue, &mut encoder, &self.bound, step);
        if let Err(StepError::UncertainMomentum { .. }) = recorded {
            // The scalars depend on which steps in flight are skipped.
            self.gpu.wait();
            recorded = self.optimizer.step(&self.gpu.queue, &mut encoder, &self.bound, step);
        }
        recorded?;
        // Writes take effect in order with submissions, so earlier steps keep their own gradients.
        self.gpu.write_as(self.optimizer.options().grads, &self.grads, grads);
        self.gpu.queue.submit([encoder.finish()]);
        if self.optimizer.steps().is_multiple_of(IN_FLIGHT) {
            self.gpu.wait();
        }
        Ok(())
    }

    fn values(&mut self) -> Values<f32> {
        let Snapshot { params, state } = harness::snapshot(self.gpu, &self.optimizer, &self.params, 0);
        Values { params, state }
    }

    fn params(&mut self) -> Vec<f32> {
        self.values().params
    }
}
