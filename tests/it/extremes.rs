//! Extreme integers: each an error or a result, never an overflow.

use crate::common::single;
use wgpu_optim::{
    AdamW, AnyRule, BindError, Clip, Ema, Format, Group, Lamb, Layout, Master, Optimizer, Options, Schedule,
    StateError, Tensors, View, schedule,
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
