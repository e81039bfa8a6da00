//! The average of the weights.

use super::*;

/// The average against its sum in f64, in the mean of all weights so far and in PyTorch's form.
#[test]
fn the_average_of_the_weights() {
    let Some(gpu) = harness::test_gpu() else { return };
    for debias in [false, true] {
        let decay = 0.8f64;
        let layout = odd(Sgd::default());
        let len = layout.len() as usize;
        let mut random = Random::new(2);
        let start: Vec<f32> = (0..len).map(|_| random.unit() as f32).collect();
        let options = Options { ema: Some(Ema { decay, debias }), ..Options::default() };
        let mut run = GpuRun::new(&gpu, layout.clone(), options, &start);
        let mut history = Vec::new();
        for t in 0..9 {
            let grads: Vec<f32> = (0..len).map(|_| random.unit() as f32 - 0.5).collect();
            run.step(&grads, lr(t));
            history.push(run.snapshot().params);
        }
        for tensor in layout.tensors() {
            for (got, i) in run.state("ema", &tensor.name).iter().zip(tensor.range()) {
                let weight = |t: usize| match (debias, t) {
                    (false, 0) => decay.powi(8),
                    (false, _) => (1.0 - decay) * decay.powi(8 - t as i32),
                    (true, _) => (1.0 - decay) * decay.powi(8 - t as i32) / (1.0 - decay.powi(9)),
                };
                let want: f64 = (0..9).map(|t| weight(t) * f64::from(history[t][i])).sum();
                // Nine steps of three roundings of numbers below 1.5.
                approx::assert_abs_diff_eq!(f64::from(*got), want, epsilon = 27.0 * f64::from(f32::EPSILON));
            }
        }
        assert_eq!(run.optimizer.state_bytes(), 4 * layout.len().next_multiple_of(4));
    }
}
