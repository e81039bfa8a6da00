//! Cases, data and checks that the tests share.

pub(crate) use cpu_harness::{
    Case, Random, assert_same_bits, assert_within_budget, cases, cases_of, check_cpu, lr, single,
};
use harness::{Gpu, GpuRun};
use std::sync::{Arc, Mutex};
use wgpu_optim::check::Checker;
use wgpu_optim::{Layout, Options, wgpu};

/// Runs `steps` steps on random gradients; every element of every step must be within the rules' budget.
/// Returns the worst.
pub(crate) fn check_gpu(gpu: &Gpu, layout: &Layout, seed: u64, steps: usize, context: &str) -> f64 {
    let mut random = Random::new(seed);
    let len = layout.len() as usize;
    let mut run = GpuRun::new(gpu, layout.clone(), Options::DEFAULT, &random.values(len));
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

/// Errors that reached a device's error handler.
#[derive(Clone, Default)]
pub(crate) struct Uncaught(Arc<Mutex<Vec<String>>>);

impl Uncaught {
    /// Asserts that there are none.
    #[track_caller]
    pub(crate) fn is_empty(&self) {
        assert_eq!(*self.0.lock().unwrap(), [""; 0]);
    }
}

/// Lists what reaches the handler of a device.
pub(crate) fn watch(gpu: &Gpu) -> Uncaught {
    let uncaught = Uncaught::default();
    let list = uncaught.clone();
    gpu.device.on_uncaptured_error(Arc::new(move |error: wgpu::Error| {
        list.0.lock().unwrap().push(error.to_string());
    }));
    uncaught
}
