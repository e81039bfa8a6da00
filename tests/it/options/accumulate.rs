//! Micro-batches, and gradients that a step sets to zero.

use super::*;

/// Three micro-batches, their mean, and an accumulator that is zero again: the same as one batch with the
/// mean.
#[test]
fn micro_batches_add_up() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(AdamW::default());
    let len = layout.len() as usize;
    let mut random = Random::new(12);
    let batches: Vec<_> = (0..3).map(|_| random.values(len)).collect();
    let options = Options { zero_gradients: true, ..Options::default() };
    // Its gradients are the sum.
    let mut run = GpuRun::new(&gpu, layout.clone(), options, &vec![1.0; len]);
    let mut accumulator = Accumulator::new(&gpu.device, &layout).unwrap();
    let micro: Vec<_> = batches.iter().map(|batch| gpu.upload(batch)).collect();
    let bind = |m| accumulator.bind(&Tensors::flat(&run.grads, m)).unwrap();
    let bound: Vec<_> = micro.iter().map(bind).collect();
    let mut encoder = gpu.encoder();
    for bound in &bound {
        accumulator.add(&gpu.queue, &mut encoder, bound).unwrap();
    }
    run.record(&mut encoder, Step::from(0.1).with_grad_scale(4.0)).unwrap();
    gpu.run(encoder);
    assert_eq!(run.grads(), vec![0.0; len]);

    let mean: Vec<f32> = (0..len).map(|i| 0.25 * (batches[0][i] + batches[1][i] + batches[2][i])).collect();
    let mut whole = GpuRun::new(&gpu, layout, Options::default(), &vec![1.0; len]);
    whole.step(&mean, 0.1);
    assert_same_bits(&run.snapshot(), &whole.snapshot(), "micro-batches");
}

#[test]
fn gradients_are_set_to_zero_and_their_neighbours_are_not() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = odd(AdamW::default());
    let len = layout.len() as usize;
    for skip in [false, true] {
        let options = Options { zero_gradients: true, skip_nonfinite: skip, ..Options::default() };
        let mut run = GpuRun::new(&gpu, layout.clone(), options, &vec![1.0; len]);
        let mut grads = vec![7.0; len];
        grads[400] = if skip { f32::NAN } else { 7.0 };
        run.step(&grads, 0.1);
        let after = run.grads();
        let inside = |i: usize| layout.tensors().iter().any(|t| t.range().contains(&i));
        for (i, g) in after.iter().enumerate() {
            assert_eq!(*g, if inside(i) { 0.0 } else { 7.0 }, "gradient {i}, skip {skip}");
        }
        let moved = run.snapshot().params[0] != 1.0;
        assert_eq!(moved, !skip);
    }
    // In buffers that are read element by element too.
    let options = Options { zero_gradients: true, ..Options::default() };
    // Every lane is somewhere between two tensors.
    let places = [(1, 2), (5, 2), (8, 1), (10, 2), (12, 2), (15, 2)];
    let group = places.iter().fold(Group::new("all", Sgd::default()), |group, &(offset, len)| {
        group.tensor_at(format!("t{offset}"), [len], offset)
    });
    let buffers = [gpu.upload(&[0.0; 20]), gpu.upload(&[3.0; 20])];
    let layout = Layout::new([group]).unwrap();
    let mut run = GpuRun::over(&gpu, layout, options, buffers, Places::Flat([4, 8]));
    run.again(1.0);
    let (p, g) = (gpu.download(&run.params), gpu.download(&run.grads));
    for i in 0..18 {
        let inside = places.iter().any(|&(offset, len)| (offset..offset + len).contains(&(i as u64)));
        let (want_p, want_g) = if inside { (-3.0, 0.0) } else { (0.0, 3.0) };
        assert_eq!((p[i + 1], g[i + 2]), (want_p, want_g), "element {i}");
    }
}
