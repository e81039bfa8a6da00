//! Buffers of another device: every call that takes one returns an error, and nothing reaches an error
//! handler.

use crate::common::{Uncaught, single, watch};
use harness::Gpu;
use wgpu_optim::accumulate::Accumulator;
use wgpu_optim::checkpoint::{self, Load, Parameters, Save};
use wgpu_optim::offload::Offload;
use wgpu_optim::{
    AdamW, BindError, Clip, Format, Group, Lamb, Layout, LossScale, Master, OffloadError, Optimizer, Options,
    StateError, StateMismatch, Tensors, View, wgpu,
};

/// Two devices of one instance, whose handlers list what reaches them.
fn watched() -> Option<([Gpu; 2], [Uncaught; 2])> {
    let adapter = harness::test_adapter()?;
    let gpus = [(); 2].map(|()| harness::open_on(&adapter, |_| ()).unwrap());
    let uncaught = [watch(&gpus[0]), watch(&gpus[1])];
    Some((gpus, uncaught))
}

fn layout() -> Layout {
    let (rule, lamb) = (AdamW::default(), Lamb::default());
    Layout::new([Group::new("a", rule).tensor("a", [600]), Group::new("b", lamb).tensor("b", [400])]).unwrap()
}

/// Plain, and with further buffers and kernels.
fn options() -> [Options; 4] {
    let plain = Options::default();
    let loss_scale = Some(LossScale { initial: 2.0, ..LossScale::default() });
    [
        plain,
        Options { norms: true, clip: Some(Clip::GroupNorm(1.0)), ..plain },
        Options { loss_scale, zero_gradients: true, ..plain },
        Options { params: Format::Bf16, master: Master::Remainder, states: Format::Q8, ..plain },
    ]
}

fn refused(error: &BindError, expected: &str) {
    let BindError::OtherDevice { what } = error else { panic!("{error}") };
    assert!(what.contains(expected), "{error}");
}

#[test]
fn bound_buffers() {
    let Some(([own, other], uncaught)) = watched() else { return };
    let unused = &wgpu::BufferDescriptor {
        label: None,
        size: 4_096,
        usage: wgpu::BufferUsages::STORAGE,
        mapped_at_creation: true,
    };
    // Mapped or destroyed, a buffer is of another device first.
    let (mapped, destroyed) = (other.device.create_buffer(unused), other.device.create_buffer(unused));
    destroyed.destroy();
    let far = [other.buffer(4_096), mapped, destroyed];
    for options in options() {
        let mut optimizer = Optimizer::with_options(&own.device, layout(), options).unwrap();
        let mut accumulator = Accumulator::new(&own.device, &layout()).unwrap();
        let (p, g, pooled) = (own.buffer(4_096), own.buffer(4_096), own.buffer(16_384));
        for far in &far {
            for (tensors, named) in
                [(Tensors::flat(far, &g), "parameters"), (Tensors::flat(&p, far), "gradients")]
            {
                refused(&optimizer.bind(&tensors).unwrap_err(), named);
                refused(&accumulator.bind(&tensors).unwrap_err(), named);
            }
            let places = [("parameters", "a"), ("gradients", "a"), ("parameters", "b"), ("gradients", "b")];
            for (foreign, (side, tensor)) in places.into_iter().enumerate() {
                let at = |i: usize| {
                    if i == foreign { View::from(far) } else { View::new(&pooled, 4_096 * i as u64) }
                };
                let tensors = Tensors::each([("a", at(0), at(1)), ("b", at(2), at(3))]);
                let named = format!("{side} of tensor {tensor:?}");
                refused(&optimizer.bind(&tensors).unwrap_err(), &named);
            }
        }
        optimizer.bind(&Tensors::flat(&p, &g)).unwrap();
    }
    // State of the other device lies where this one's does.
    let [mut optimizer, theirs] =
        [&own, &other].map(|gpu| Optimizer::new(&gpu.device, single(AdamW::default(), 1_000)).unwrap());
    let state = theirs.state("exp_avg", "w").unwrap()[0].buffer;
    refused(&optimizer.bind(&Tensors::flat(state, &own.buffer(4_096))).unwrap_err(), "parameters");
    refused(&optimizer.bind(&Tensors::flat(state, state)).unwrap_err(), "parameters");
    uncaught.iter().for_each(Uncaught::is_empty);
}

#[test]
fn state_and_checkpoints() {
    let Some(([own, other], uncaught)) = watched() else { return };
    for options in options() {
        let new = |gpu: &Gpu| Optimizer::with_options(&gpu.device, layout(), options).unwrap();
        let (mut optimizer, theirs) = (new(&own), new(&other));
        let (p, far) = (own.buffer(4_096), other.buffer(4_096));
        let mut encoder = own.encoder();
        let error = optimizer.copy_state(&mut encoder, "exp_avg", "a", &far).unwrap_err();
        let StateError::Bind(error) = error else { panic!("{error}") };
        refused(&error, "copy of exp_avg of tensor \"a\"");
        let error = optimizer.take_over(&own.queue, &mut encoder, &theirs).unwrap_err();
        let StateError::Mismatches(mismatches) = error else { panic!("{error}") };
        assert!(matches!(mismatches[..], [StateMismatch::Option { option: "device", .. }]), "{mismatches:?}");
        own.run(encoder);

        let mut file = Vec::new();
        let mut engine = checkpoint::Gpu::new(&mut optimizer, &own.queue).parameters(Parameters::flat(&p));
        checkpoint::save_to(&mut engine, &mut file, &Save::default()).unwrap();
        let named = "parameters of tensor \"b\"";
        for (foreign, named) in [
            (Parameters::flat(&far), "parameters of tensor"),
            (Parameters::each([("a", &p), ("b", &far)]), named),
        ] {
            let mut engine = checkpoint::Gpu::new(&mut optimizer, &own.queue).parameters(foreign);
            let saved = checkpoint::save_to(&mut engine, &mut Vec::new(), &Save::default()).unwrap_err();
            let loaded = checkpoint::load_from(&mut engine, std::io::Cursor::new(&file), &Load::default());
            for error in [saved, loaded.unwrap_err()] {
                let checkpoint::Error::Bind(error) = error else { panic!("{error}") };
                refused(&error, named);
            }
        }
    }
    uncaught.iter().for_each(Uncaught::is_empty);
}

#[test]
fn offloaded() {
    let Some(([own, other], uncaught)) = watched() else { return };
    let (p, g, far) = (own.buffer(4_096), own.buffer(4_096), other.buffer(4_096));
    for options in [Options::default(), Options { norms: true, ..Options::default() }] {
        let mut offload = Offload::new(&own.device, layout(), options, vec![0.0; 1_000]).unwrap();
        let is_foreign = |error: OffloadError, named| {
            let OffloadError::Bind(error) = error else { panic!("{error}") };
            refused(&error, named);
        };
        let chunk = offload.wanted().unwrap();
        is_foreign(offload.request(&mut own.encoder(), &far, chunk).unwrap_err(), "gradients");
        is_foreign(offload.upload(&own.queue, &far).unwrap_err(), "parameters");
        is_foreign(offload.advance(&own.queue, &far, 0.1).unwrap_err(), "parameters");
        // Nothing has changed.
        assert_eq!(offload.wanted(), Some(chunk));
        crate::offload::step(&own, &mut offload, &p, &g, 0.1);
    }
    uncaught.iter().for_each(Uncaught::is_empty);
}
