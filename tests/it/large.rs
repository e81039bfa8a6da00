//! Sizes at which others stop: past 65 535 × 256 elements, and past a 128 MiB binding.

use crate::common::{Random, assert_within_budget, single};
use harness::GpuRun;
use wgpu_optim::check::{Checker, Snapshot};
use wgpu_optim::{AdamW, DynRule, Options, Sgd};

fn check(rule: DynRule, len: usize, binding: Option<u64>, dispatches: usize) {
    let adjust = |limits: &mut wgpu::Limits| {
        if let Some(binding) = binding {
            limits.max_storage_buffer_binding_size = binding;
        }
    };
    let Some(gpu) = harness::test_gpu_with(adjust) else { return };
    let layout = single(rule, len as u64);
    // A thousand random values repeated with a prime period: every vec4 differs from its neighbours.
    let period = Random::new(len as u64).values(1_009);
    let repeat = |from: usize| -> Vec<f32> { (from..from + len).map(|i| period[i % 1_009]).collect() };
    let (old, grads) = (repeat(0), repeat(500));
    let mut run = GpuRun::new(&gpu, layout.clone(), Options::DEFAULT, &old);
    assert_eq!(run.bound.dispatches(), dispatches);
    run.step(&grads, 0.01);
    let after = run.snapshot();
    let state = after.state.iter().map(|slot| vec![0.0; slot.len()]).collect();
    let before = Snapshot { params: old, state };
    let deviation = Checker::new(layout.clone()).step(&before, &grads, 0.01, &after).unwrap();
    assert_within_budget(&layout, &deviation, &format!("{len} elements"));
    let moved = before.params.iter().zip(&after.params).filter(|(a, b)| a.to_bits() != b.to_bits()).count();
    // Zero gradients, and gradients too small for their parameter, move nothing; all else has moved.
    assert!(moved * 2 > len, "{moved} of {len} moved");
}

#[test]
fn just_past_65_535_workgroups_of_256_elements() {
    check(AdamW::default().into(), 65_535 * 256 + 1, None, 1);
}

#[test]
fn just_past_a_128_mib_binding() {
    check(Sgd { momentum: 0.9, ..Sgd::default() }.into(), (128 << 20) / 4 + 1, Some(128 << 20), 2);
}
