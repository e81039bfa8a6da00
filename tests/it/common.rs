//! Cases, data and runners that the tests share.

pub use cpu_harness::{
    Case, Random, assert_same_bits, assert_within_budget, cases, cases_of, check_cpu, lr, single,
};
use harness::{Gpu, snapshot};
use wgpu_optim::check::{Checker, Snapshot};
use wgpu_optim::{Layout, Optimizer, Step, Tensors};

/// A flat run on the GPU.
pub struct Run<'a> {
    pub gpu: &'a Gpu,
    pub optimizer: Optimizer,
    pub params: wgpu::Buffer,
}

impl<'a> Run<'a> {
    pub fn new(gpu: &'a Gpu, layout: Layout, params: &[f32]) -> Self {
        let optimizer = Optimizer::new(&gpu.device, layout).unwrap();
        Self { gpu, optimizer, params: gpu.upload(params) }
    }

    /// One submitted step.
    pub fn step(&mut self, grads: &[f32], step: impl Into<Step>) {
        let grads = self.gpu.upload(grads);
        let tensors = self.optimizer.bind(&Tensors::flat(&self.params, &grads)).unwrap();
        let mut encoder = self.gpu.encoder();
        self.optimizer.step(&self.gpu.queue, &mut encoder, &tensors, step).unwrap();
        self.gpu.run(encoder);
    }

    pub fn snapshot(&self) -> Snapshot {
        snapshot(self.gpu, &self.optimizer, &self.params, 0)
    }
}

/// Runs `steps` steps on random gradients; every element of every step must be within the rules' budget.
/// Returns the worst.
pub fn check_gpu(gpu: &Gpu, layout: &Layout, seed: u64, steps: usize, context: &str) -> f64 {
    let mut random = Random::new(seed);
    let len = layout.len() as usize;
    let mut run = Run::new(gpu, layout.clone(), &random.values(len));
    let mut checker = Checker::new(layout.clone());
    let (mut before, mut worst) = (run.snapshot(), 0f64);
    for t in 0..steps {
        let grads = random.values(len);
        run.step(&grads, lr(t));
        let after = run.snapshot();
        let deviation = checker.step(&before, &grads, lr(t), &after).unwrap();
        assert_within_budget(layout, &deviation, &format!("{context}, step {}", t + 1));
        worst = worst.max(deviation.ulps);
        before = after;
    }
    worst
}
