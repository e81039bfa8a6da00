//! Devices of small limits: each refusal names the limit and the need, and none comes through wgpu.

use crate::common::watch;
use harness::wgpu::{Adapter, Limits};
use wgpu_optim::accumulate::Accumulator;
use wgpu_optim::{
    Adam, AdamW, Adan, AnyRule, BindError, Clip, DeviceError, DynRule, Ema, Format, Group, Lamb, Layout,
    LossScale, Master, Optimizer, Options, OptionsError, Rounding, Sgd, Tensors,
};

/// Every kind of option, alone, and then together.
fn options() -> Vec<Options> {
    let plain = Options::default();
    let ema = Some(Ema { decay: 0.9, debias: true });
    let bf16 = Options { params: Format::Bf16, ..plain };
    let together =
        Options { norms: true, clip: Some(Clip::GroupNorm(1.0)), ema, zero_gradients: true, ..plain };
    vec![
        plain,
        Options { skip_nonfinite: true, ..plain },
        Options { clip: Some(Clip::GlobalNorm(1.0)), ..plain },
        Options { clip: Some(Clip::GroupNorm(1.0)), ..plain },
        Options { clip: Some(Clip::Value(1.0)), zero_gradients: true, ..plain },
        Options { loss_scale: Some(LossScale::default()), ..plain },
        Options { norms: true, ..plain },
        Options { ema, ..plain },
        Options { master: Master::F32, ..bf16 },
        Options { master: Master::Remainder, states: Format::Q8, ..bf16 },
        Options { states: Format::Bf16, rounding: Rounding::Stochastic { seed: 1 }, ..plain },
        together,
        Options { params: Format::Bf16, master: Master::F32, states: Format::Q8, ..together },
    ]
}

/// Two groups by turns, whose tensors share vectors, so that a table has many segments.
fn many(rule: &DynRule, groups: usize, tensors: u64) -> Layout {
    let mut all: Vec<_> = (0..groups).map(|i| Group::new(format!("g{i}"), rule.clone())).collect();
    for i in 0..tensors {
        let group = &mut all[i as usize % groups];
        *group = group.clone().tensor_at(format!("t{i}"), [6], 8 * i);
    }
    Layout::new(all).unwrap()
}

fn is_layer_wise(rule: &DynRule) -> bool {
    ["lamb", "lars"].contains(&rule.name())
}

/// Runs a step, or returns the limit that does not suffice, with the need.
fn runs(adapter: &Adapter, layout: &Layout, options: Options, set: impl FnOnce(&mut Limits)) -> Need {
    let gpu = harness::open_on(adapter, set).unwrap();
    let uncaught = watch(&gpu);
    let step = || -> Result<(), wgpu_optim::Error> {
        let mut optimizer = Optimizer::with_options(&gpu.device, layout.clone(), options)?;
        let mut accumulator = Accumulator::stored(&gpu.device, layout, options.grads, options.grads)?;
        let (p, g) = (gpu.buffer(layout.buffer_size()), gpu.buffer(layout.buffer_size()));
        let bound = optimizer.bind(&Tensors::flat(&p, &g))?;
        let sums = accumulator.bind(&Tensors::flat(&g, &p))?;
        let mut encoder = gpu.encoder();
        accumulator.add(&gpu.queue, &mut encoder, &sums)?;
        optimizer.step(&gpu.queue, &mut encoder, &bound, 0.1)?;
        gpu.run(encoder);
        Ok(())
    };
    let need = match step() {
        Ok(()) => None,
        Err(
            wgpu_optim::Error::Options(OptionsError::Device(DeviceError::Limit { limit, value, bound }))
            | wgpu_optim::Error::Bind(BindError::Device(DeviceError::Limit { limit, value, bound })),
        ) => {
            assert!(value < bound, "{limit} = {value}, {bound}");
            Some((limit, bound))
        }
        // A workgroup each.
        Err(wgpu_optim::Error::Options(
            OptionsError::TooManyGroups { groups: count, bound }
            | OptionsError::TooManyTensors { tensors: count, bound, .. },
        )) => {
            assert!(bound < count);
            Some(("max_compute_workgroups_per_dimension", count as u64))
        }
        Err(error) => panic!("{error}"),
    };
    uncaught.is_empty();
    need
}

/// The limit that does not suffice, and what would; `None` if all suffice.
type Need = Option<(&'static str, u64)>;

/// Raises a limit to each need in turn. Each need suffices, and one less does not.
fn least(
    adapter: &Adapter,
    layout: &Layout,
    options: Options,
    name: &str,
    set: impl Fn(&mut Limits, u64),
) -> u64 {
    let mut value = 0;
    while let Some((limit, bound)) = runs(adapter, layout, options, |limits| set(limits, value)) {
        assert_eq!(limit, name, "{options:?}");
        assert!(bound > value, "{limit}: {bound} after {value}");
        value = bound;
    }
    if value > 0 {
        let one_less = runs(adapter, layout, options, |limits| set(limits, value - 1));
        assert_eq!(one_less, Some((limit_name(name), value)));
    }
    value
}

/// A name that lives as long as the program.
fn limit_name(name: &str) -> &'static str {
    LIMITS.iter().find(|(own, _)| *own == name).unwrap().0
}

type Set = fn(&mut Limits, u64);

/// All limits that compute kernels meet.
const LIMITS: [(&str, Set); 16] = [
    ("max_bind_groups", |l, n| l.max_bind_groups = n as u32),
    ("max_bindings_per_bind_group", |l, n| l.max_bindings_per_bind_group = n as u32),
    ("max_dynamic_uniform_buffers_per_pipeline_layout", |l, n| {
        l.max_dynamic_uniform_buffers_per_pipeline_layout = n as u32;
    }),
    ("max_dynamic_storage_buffers_per_pipeline_layout", |l, n| {
        l.max_dynamic_storage_buffers_per_pipeline_layout = n as u32;
    }),
    ("max_storage_buffers_per_shader_stage", |l, n| l.max_storage_buffers_per_shader_stage = n as u32),
    ("max_uniform_buffers_per_shader_stage", |l, n| l.max_uniform_buffers_per_shader_stage = n as u32),
    ("max_buffers_and_acceleration_structures_per_shader_stage", |l, n| {
        l.max_buffers_and_acceleration_structures_per_shader_stage = n as u32;
    }),
    ("max_uniform_buffer_binding_size", |l, n| l.max_uniform_buffer_binding_size = n),
    ("max_storage_buffer_binding_size", |l, n| l.max_storage_buffer_binding_size = n),
    ("max_buffer_size", |l, n| l.max_buffer_size = n),
    ("max_compute_workgroup_storage_size", |l, n| l.max_compute_workgroup_storage_size = n as u32),
    ("max_compute_invocations_per_workgroup", |l, n| l.max_compute_invocations_per_workgroup = n as u32),
    ("max_compute_workgroup_size_x", |l, n| l.max_compute_workgroup_size_x = n as u32),
    ("max_compute_workgroup_size_y", |l, n| l.max_compute_workgroup_size_y = n as u32),
    ("max_compute_workgroup_size_z", |l, n| l.max_compute_workgroup_size_z = n as u32),
    ("max_compute_workgroups_per_dimension", |l, n| l.max_compute_workgroups_per_dimension = n as u32),
];

const STORAGE: Set = |limits, n| limits.max_storage_buffers_per_shader_stage = n as u32;

/// A step alone binds parameters, gradients and state. With options that look at gradients first, a kernel
/// binds four.
#[test]
fn storage_buffers_of_every_rule_and_option() {
    let Some(adapter) = harness::test_adapter() else { return };
    let name = "max_storage_buffers_per_shader_stage";
    for rule in AnyRule::all() {
        let rule: DynRule = rule.into();
        let layout = many(&rule, 2, 4);
        let kept = layout.kept_slots(&layout.tensors()[0]).count() as u64;
        let layers = u64::from(is_layer_wise(&rule));
        let plain = least(&adapter, &layout, Options::default(), name, STORAGE);
        assert_eq!(plain, (2 + kept + layers).max(4 * layers), "{}", rule.name());
    }
    let rules: [DynRule; 3] = [Sgd::default().into(), AdamW::default().into(), Lamb::default().into()];
    for rule in &rules {
        for options in options() {
            let need = least(&adapter, &many(rule, 2, 4), options, name, STORAGE);
            assert!(need <= 8, "{need} {options:?}");
        }
    }
}

/// Tables of segments and rows of scalars that a uniform binding does not hold lie in storage.
#[test]
fn storage_buffers_of_tables_and_rows() {
    let Some(adapter) = harness::test_adapter() else { return };
    let name = "max_storage_buffers_per_shader_stage";
    let small = |limits: &mut Limits, n| {
        limits.max_uniform_buffer_binding_size = 1 << 10;
        STORAGE(limits, n);
    };
    let together = *options().last().unwrap();
    for rule in [DynRule::from(Sgd::default()), Adan::default().into(), Lamb::default().into()] {
        let plain = least(&adapter, &many(&rule, 2, 4), Options::default(), name, STORAGE);
        for (groups, tensors, more) in [(2, 4, 0), (2, 200, 1), (100, 4, 1), (100, 200, 2)] {
            let layout = many(&rule, groups, tensors);
            let need = least(&adapter, &layout, Options::default(), name, small);
            let layers = is_layer_wise(&rule);
            assert!(need == plain + more || layers && need > plain, "{} {need} {plain} {more}", rule.name());
            least(&adapter, &layout, together, name, small);
        }
    }
}

/// Each limit alone, from nothing on.
#[test]
fn every_limit() {
    let Some(adapter) = harness::test_adapter() else { return };
    let all = options();
    for rule in [DynRule::from(Adam::default()), Lamb::default().into()] {
        for options in [all[0], all[11], all[12]] {
            for (name, set) in LIMITS {
                least(&adapter, &many(&rule, 2, 4), options, name, set);
            }
        }
    }
}
