//! One optimizer, wherever it runs.

use crate::device::guarded;
use crate::trajectory::{Error, Target};
use harness::{Gpu, wgpu};
use wgpu_optim::check::Snapshot;
use wgpu_optim::float::Float;
use wgpu_optim::rules::slots;
use wgpu_optim::{Bound, Layout, Optimizer, Step, Tensors, Twin, cpu};

/// Steps that may be under way on the device before it is waited for: each keeps a copy of its gradients.
const IN_FLIGHT: u64 = 16;

/// An optimizer with its parameters, in the arithmetic of `T`.
pub(super) trait Engine<T> {
    /// Takes a step.
    fn step(&mut self, grads: &[T], step: Step) -> Result<(), wgpu_optim::Error>;
    /// The final values, a vector for each target.
    fn finish(self, targets: &[Target]) -> Result<Vec<Vec<f64>>, Error>;
}

/// On the CPU.
pub(super) struct Host<R, T> {
    optimizer: cpu::Optimizer<R, T>,
    params: Vec<T>,
}

impl<R: Twin, T: Float> Host<R, T> {
    pub(super) fn new(layout: Layout<R>, params: &[f32]) -> Self {
        let params = params.iter().map(|&p| T::from_f64(p.into())).collect();
        Self { optimizer: cpu::Optimizer::new(layout), params }
    }
}

impl<R: Twin, T: Float> Engine<T> for Host<R, T> {
    fn step(&mut self, grads: &[T], step: Step) -> Result<(), wgpu_optim::Error> {
        self.optimizer.step(&mut self.params, grads, step)
    }

    fn finish(mut self, targets: &[Target]) -> Result<Vec<Vec<f64>>, Error> {
        let state = self.optimizer.state_mut().to_vec();
        pick(self.optimizer.layout(), &self.params, &state, targets)
    }
}

/// On an adapter.
pub(super) struct Device<'a, R> {
    gpu: &'a Gpu,
    optimizer: Optimizer<R>,
    params: wgpu::Buffer,
    grads: wgpu::Buffer,
    bound: Bound,
}

impl<'a, R: Twin> Device<'a, R> {
    pub(super) fn new(gpu: &'a Gpu, layout: Layout<R>, params: &[f32]) -> Result<Self, Error> {
        let bytes = layout.buffer_size();
        let buffers = guarded(gpu, || (gpu.upload(params), gpu.buffer(bytes)));
        let (params, grads) = buffers.map_err(Error::Device)?;
        let mut optimizer = Optimizer::new(&gpu.device, layout).map_err(Error::Setup)?;
        let bound = optimizer.bind(&Tensors::flat(&params, &grads)).map_err(Error::Setup)?;
        Ok(Self { gpu, optimizer, params, grads, bound })
    }
}

impl<R: Twin> Engine<f32> for Device<'_, R> {
    fn step(&mut self, grads: &[f32], step: Step) -> Result<(), wgpu_optim::Error> {
        let mut encoder = self.gpu.encoder();
        self.optimizer.step(&self.gpu.queue, &mut encoder, &self.bound, step)?;
        // Writes take effect in order with submissions, so earlier steps keep their own gradients.
        self.gpu.write(&self.grads, 0, grads);
        self.gpu.queue.submit([encoder.finish()]);
        if self.optimizer.steps().is_multiple_of(IN_FLIGHT) {
            self.gpu.wait();
        }
        Ok(())
    }

    fn finish(self, targets: &[Target]) -> Result<Vec<Vec<f64>>, Error> {
        let Snapshot { params, state } = harness::snapshot(self.gpu, &self.optimizer, &self.params, 0);
        pick(self.optimizer.layout(), &params, &state, targets)
    }
}

/// Each target's part of the flat vectors.
fn pick<R: Twin, T: Float>(
    layout: &Layout<R>,
    params: &[T],
    state: &[Vec<T>],
    targets: &[Target],
) -> Result<Vec<Vec<f64>>, Error> {
    let values = targets.iter().map(|target| {
        let tensor = layout.tensor(&target.tensor).map_err(Error::Setup)?;
        let slot = slots::<R>().iter().position(|slot| *slot == target.slot);
        let flat = slot.map_or(params, |slot| &state[slot]);
        let part = &flat[tensor.offset as usize..tensor.end() as usize];
        Ok(part.iter().map(|x| x.to_f64()).collect())
    });
    values.collect()
}
