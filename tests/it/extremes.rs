//! Extreme integers: each an error or a result, never an overflow.

use crate::common::single;
use cpu_harness::CpuRun;
use harness::GpuRun;
use wgpu_optim::offload::{Offload, Transfers};
use wgpu_optim::schedule::{OneCycle, ReduceOnPlateau};
use wgpu_optim::{
    AdaBelief, Adadelta, Adagrad, Adam, AdamW, Adamax, Adan, AnyRule, BindError, Clip, DynRule, Ema, Format,
    Group, Lamb, Lars, Layout, Lion, LossScale, Master, NAdam, OffloadError, Optimizer, Options,
    OptionsError, RAdam, RmsProp, Rounding, Rule, Schedule, Sgd, StateError, Tensors, View, cpu, q8, recipes,
    schedule,
};

/// Around zero, the halves of a word, the integers that an f64 tells apart, and the end.
fn extremes() -> Vec<u64> {
    let powers = [0, 1, 2, 8, 31, 32, 33, 53, 54, 61, 63].map(|power| 1u64 << power);
    let near = powers.into_iter().flat_map(|n| [n - 1, n, n + 1]);
    near.chain((0..9).map(|n| u64::MAX - n)).collect()
}

/// Bytes of layouts as large as there can be.
#[test]
fn bytes_of_the_largest_layouts() {
    let all = Options {
        clip: Some(Clip::GlobalNorm(1.0)),
        zero_gradients: true,
        ema: Some(Ema { decay: 0.9, debias: true }),
        ..Options::default()
    };
    for rule in AnyRule::all() {
        for len in extremes() {
            let Ok(layout) = Layout::new([Group::new("g", rule).tensor("t", [len])]) else {
                assert!(len > 1 << 61, "{len}");
                continue;
            };
            assert_eq!(u128::from(layout.buffer_size()), u128::from(len).next_multiple_of(4) * 4);
            let moved = layout.bytes_moved(&all);
            let least = u128::from(len) * 24;
            assert!(u128::from(moved) >= least.min(u64::MAX.into()), "{} {len}: {moved}", rule.name());
            for formats in [Format::Bf16, Format::F16] {
                let half = Options { params: formats, master: Master::Remainder, states: Format::Q8, ..all };
                // A block of few elements has a scale of 4 bytes.
                assert!(layout.bytes_moved(&half) <= moved || len < 32);
            }
        }
    }
    // Offsets and lengths together.
    for offset in extremes() {
        for len in extremes() {
            let layout = Layout::new([Group::new("g", Lamb::default()).tensor_at("t", [len], offset)]);
            let fits = len == 0 && offset <= 1 << 61 || u128::from(offset) + u128::from(len) <= 1 << 61;
            assert_eq!(layout.is_ok(), fits, "{offset} {len}");
            layout.map(|layout| layout.buffer_size()).ok();
        }
    }
}

#[test]
fn offsets_of_buffers() {
    let Some(gpu) = harness::test_gpu() else { return };
    let (p, g) = (gpu.buffer(1_024), gpu.buffer(1_024));
    let mut optimizer = Optimizer::new(&gpu.device, single(AdamW::default(), 256)).unwrap();
    for offset in extremes().into_iter().filter(|&offset| offset > 0) {
        let far = View::new(&p, offset);
        let tensors =
            [Tensors::flat(far, &g), Tensors::flat(&g, far), Tensors::each([("t", far, View::new(&g, 0))])];
        for tensors in tensors {
            let error = optimizer.bind(&tensors).unwrap_err();
            let named = matches!(
                error,
                BindError::Misaligned { .. }
                    | BindError::OutOfBounds { .. }
                    | BindError::UnknownTensor { .. }
            );
            assert!(named, "{offset}: {error}");
        }
        let name = optimizer.layout().tensors()[0].name.clone();
        let error = optimizer.copy_state(&mut gpu.encoder(), "exp_avg", &name, far).unwrap_err();
        assert!(matches!(error, StateError::Bind(_)), "{offset}: {error}");
    }
}

#[test]
fn steps_and_lengths_of_schedules() {
    for length in extremes() {
        let lengths = [length, length.saturating_add(1)];
        let schedules: Vec<Schedule> = vec![
            schedule::linear(1.0, 0.5, length),
            schedule::polynomial(1.0, 0.5, length, 2.0),
            schedule::exponential(1.0, 0.5),
            schedule::step(1.0, 0.5, length),
            schedule::multi_step(1.0, 0.5, lengths),
            schedule::inverse_sqrt(1.0, length),
            schedule::cosine(1.0, 0.5, length),
            schedule::cosine_restarts(1.0, 0.5, length, 1),
            schedule::cosine_restarts(1.0, 0.5, length, 2),
            schedule::cosine_restarts(1.0, 0.5, length, u64::MAX),
            schedule::one_cycle(1.0, length),
            schedule::linear(1.0, 0.5, length).warmup(length),
            schedule::linear(1.0, 0.5, length).then(length, schedule::cosine(0.5, 0.1, length)),
            schedule::step(1.0, 0.5, length).times(schedule::cosine(0.5, 0.1, length)),
            Schedule::from(1.0).with_momentum(schedule::linear(0.8, 0.9, length)),
        ];
        for schedule in schedules {
            for t in extremes() {
                // An error names what is refused; a rate is one.
                if let Ok(step) = schedule.at(t) {
                    assert!((0.0..=1.0).contains(&step.lr), "{schedule:?} at {t}: {}", step.lr);
                }
            }
        }
    }
}

/// Extremes of 32 bits.
fn words() -> Vec<u32> {
    let near = (0..32).flat_map(|power| [(1u32 << power) - 1, 1 << power, (1 << power) + 1]);
    near.chain((0..9).map(|n| u32::MAX - n)).collect()
}

fn sizes() -> impl Iterator<Item = usize> {
    extremes().into_iter().filter_map(|n| usize::try_from(n).ok())
}

#[test]
fn formats_and_codes() {
    for format in [Format::F32, Format::F16, Format::Bf16, Format::Q8] {
        for len in extremes() {
            let scales = format.block().map_or(0, |block| u128::from(len).div_ceil(block.into()) * 4);
            let want = u128::from(len) * u128::from(format.bytes()) + scales;
            assert_eq!(u128::from(format.tensor_bytes(len)), want.min(u64::MAX.into()), "{format:?} {len}");
        }
        for bits in words() {
            let x = format.decode(bits);
            if format != Format::Q8 && x.is_finite() {
                assert_eq!(format.decode(format.encode(x)), x, "{format:?} {bits:#x}");
                for random in words() {
                    assert_eq!(format.decode(format.encode_stochastic(x, random)), x, "{format:?} {bits:#x}");
                }
            }
        }
    }
    for scale in words() {
        let _ = q8::is_lost(scale);
        for bits in words() {
            let x = f32::from_bits(bits);
            assert!(x.is_nan() || q8::spacing(x.into(), scale) >= 0.0, "{x} {scale:#x}");
            let code = q8::encode(x, scale);
            let _ = q8::decode(code, scale);
            for random in words() {
                let _ = q8::decode(q8::encode_stochastic(x, scale, random), scale);
            }
        }
        for code in 0..=u8::MAX {
            let _ = q8::decode(code, scale);
        }
    }
}

/// Scalars of any step, asked of the rule itself.
fn scalars_of_any_step<R: Rule>(rule: R) {
    for t in extremes() {
        for carry in [0.0, 0.5, 1.0] {
            let _ = rule.scalars(1e-3, t, &mut carry.clone());
        }
    }
}

#[test]
fn steps_of_rules() {
    scalars_of_any_step(Sgd { momentum: 0.9, ..Sgd::default() });
    scalars_of_any_step(Adam::default());
    scalars_of_any_step(AdamW::default());
    scalars_of_any_step(Adagrad { lr_decay: 0.1, ..Adagrad::default() });
    scalars_of_any_step(RmsProp::default());
    scalars_of_any_step(Adadelta::default());
    scalars_of_any_step(Adamax::default());
    scalars_of_any_step(NAdam::default());
    scalars_of_any_step(RAdam::default());
    scalars_of_any_step(Lion::default());
    scalars_of_any_step(AdaBelief::default());
    scalars_of_any_step(Adan::default());
    scalars_of_any_step(Lamb::default());
    scalars_of_any_step(Lars::default());
}

/// A rate of 0 stays 0 in every kind of schedule, however large a factor becomes.
#[test]
fn nothing_grows_from_zero() {
    for t in extremes() {
        for schedule in [
            schedule::exponential(0.0, 2.0),
            schedule::step(0.0, 10.0, 1),
            schedule::multi_step(0.0, 1e300, [0, 1]),
            Schedule::from(1e200).times(1e200).times(0.0),
            Schedule::from(0.0).times(1e200).times(1e200),
        ] {
            assert_eq!(schedule.at(t).unwrap().lr, 0.0, "{schedule:?} at {t}");
        }
    }
}

#[test]
fn counts_of_options_and_rules() {
    for t in extremes() {
        for (decay, debias) in [(0.0, true), (0.999, true), (0.999, false), (1.0 - f64::EPSILON, true)] {
            let weight = Ema { decay, debias }.weight(t);
            assert!((0.0..=1.0).contains(&weight), "{decay} {debias} {t}: {weight}");
        }
        for below in extremes() {
            let options = Options { states: Format::Q8, f32_states_below: below, ..Options::default() };
            let expected = if t < below { Format::F32 } else { Format::Q8 };
            assert_eq!(options.states_of(t), expected, "{t} {below}");
        }
    }
    for rule in AnyRule::all() {
        let rule = DynRule::from(rule);
        for slot in sizes() {
            assert!(!rule.keeps_slot(slot) || slot < rule.spec().slots.len(), "{} {slot}", rule.name());
        }
    }
    // A tensor of the caller's own making.
    let layout = single(AdamW::default(), 8);
    for (group, offset) in sizes().zip(extremes()) {
        let mut tensor = layout.tensors()[0].clone();
        (tensor.group, tensor.offset, tensor.len) = (group, offset, offset);
        assert_eq!(layout.kept_slots(&tensor).count(), if group == 0 { 2 } else { 0 }, "{group}");
        assert_eq!(tensor.end(), offset.saturating_mul(2));
        let _ = tensor.range();
    }
    // Shapes whose product is beyond what can be counted.
    for (a, b) in extremes().into_iter().zip(extremes().into_iter().rev()) {
        let fits = u128::from(a) * u128::from(b) <= 1 << 61;
        let layout = Layout::new([Group::new("g", AdamW::default()).tensor("t", [a, b])]);
        assert_eq!(layout.is_ok(), fits, "{a} {b}");
        // A 0 among them is a tensor without elements.
        Layout::new([Group::new("g", AdamW::default()).tensor("t", [a, b, 0])]).unwrap();
    }
}

#[test]
fn options_with_any_integer_step() {
    let gpu = harness::test_gpu();
    for n in extremes() {
        let bf16 = Options { params: Format::Bf16, states: Format::Q8, ..Options::default() };
        let options = Options { f32_states_below: n, rounding: Rounding::Stochastic { seed: n }, ..bf16 };
        CpuRun::new(single(AdamW::default(), 40), options, &[1.0; 40]).step(&[1.0; 40], 0.1);
        if let Some(gpu) = gpu.as_ref().filter(|_| n > u64::MAX - 2) {
            GpuRun::new(gpu, single(AdamW::default(), 40), options, &[1.0; 40]).step(&[1.0; 40], 0.1);
        }
    }
    for growth_interval in words() {
        let scale = LossScale { initial: 2.0, growth_interval, ..LossScale::default() };
        let options = Options { loss_scale: Some(scale), ..Options::default() };
        if growth_interval == 0 {
            assert!(cpu::Optimizer::with_options(single(AdamW::default(), 4), options).is_err());
            continue;
        }
        let mut run = CpuRun::new(single(AdamW::default(), 4), options, &[1.0; 4]);
        for good in words() {
            let set = run.optimizer.set_loss_scale(2.0, good);
            assert_eq!(set.is_ok(), good < growth_interval, "{good} {growth_interval}");
            if set.is_ok() {
                let report = run.step(&[1.0; 4], 0.1).unwrap();
                let grows = good + 1 == growth_interval;
                assert_eq!(report.next_loss_scale, if grows { 4.0 } else { 2.0 });
                assert_eq!(report.good_steps, if grows { 0 } else { good + 1 });
            }
        }
    }
    let Some(gpu) = gpu else { return };
    let scale = LossScale { initial: 2.0, growth_interval: u32::MAX, ..LossScale::default() };
    let options = Options { loss_scale: Some(scale), ..Options::default() };
    let mut run = GpuRun::new(&gpu, single(AdamW::default(), 4), options, &[1.0; 4]);
    for good in words() {
        let set = run.optimizer.set_loss_scale(&gpu.queue, 2.0, good);
        assert_eq!(set.is_ok(), good < u32::MAX, "{good}");
        if set.is_ok() {
            let report = run.step(&[2.0; 4], 0.1).unwrap();
            let grows = good + 1 == u32::MAX;
            assert_eq!(report.next_loss_scale, if grows { 4.0 } else { 2.0 });
            assert_eq!(report.good_steps, if grows { 0 } else { good + 1 });
        }
    }
}

#[test]
fn chunks_of_an_offloaded_run() {
    let Some(gpu) = harness::test_gpu() else { return };
    let (p, g) = (gpu.buffer(4_096), gpu.buffer(4_096));
    for chunk_blocks in sizes() {
        let staged_chunks = chunk_blocks;
        for transfers in
            [Transfers { chunk_blocks, staged_chunks }, Transfers { chunk_blocks, ..Transfers::default() }]
        {
            let layout = single(AdamW::default(), 1_024);
            let offload =
                Offload::with_transfers(&gpu.device, layout, Options::default(), transfers, vec![1.0; 1_024]);
            if chunk_blocks == 0 {
                assert!(matches!(offload, Err(OptionsError::Field { .. })));
                continue;
            }
            let mut offload = offload.unwrap();
            for chunk in sizes().filter(|&chunk| chunk > 0) {
                let error = offload.request(&mut gpu.encoder(), &g, chunk).unwrap_err();
                assert!(matches!(error, OffloadError::UnknownChunk { bound: 1, .. }), "{error}");
            }
            crate::offload::step(&gpu, &mut offload, &p, &g, 0.1);
        }
    }
}

#[test]
fn counts_of_schedules_and_recipes() {
    for n in extremes() {
        let at = |schedule: &Schedule| {
            for t in extremes() {
                schedule.at(t).ok();
            }
        };
        recipes::llm(1e-3, n).map(|recipe| at(&recipe.schedule)).ok();
        recipes::fine_tuning_cosine(n).map(|recipe| at(&recipe.schedule)).ok();
        recipes::fine_tuning_lion_cosine(n).map(|recipe| at(&recipe.schedule)).ok();
        for other in extremes() {
            recipes::vision(n, other).map(|recipe| at(&recipe.schedule)).ok();
            recipes::vision_cosine(n, other).map(|recipe| at(&recipe.schedule)).ok();
            for pct_start in [0.0, 0.3, 1.0] {
                let cycle = OneCycle { max_lr: 1.0, total_steps: n, pct_start, ..OneCycle::default() };
                for three_phase in [false, true] {
                    Schedule::from(OneCycle { three_phase, ..cycle }).at(other).ok();
                }
            }
            let mut plateau = ReduceOnPlateau {
                patience: n,
                cooldown: other,
                num_bad_epochs: other,
                cooldown_counter: n,
                best: Some(1.0),
                ..ReduceOnPlateau::default()
            };
            for _ in 0..3 {
                plateau.observe(2.0).unwrap();
            }
        }
    }
}
