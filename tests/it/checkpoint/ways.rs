//! The options of resumed runs.

use super::*;

/// Options around the rule. A test below checks that every option is in one of them, or in `stored`.
pub(super) fn arounds() -> [Options; 5] {
    let none = Options::default();
    [
        Options {
            skip_nonfinite: true,
            ema: Some(Ema { decay: 0.9, debias: true }),
            f32_states_below: 20,
            ..none
        },
        Options {
            loss_scale: Some(LossScale { growth_interval: 3, ..LossScale::default() }),
            clip: Some(Clip::GlobalNorm(1.0)),
            norms: true,
            zero_gradients: true,
            ..none
        },
        Options {
            clip: Some(Clip::GroupNorm(1.0)),
            ema: Some(Ema { decay: 0.5, debias: false }),
            report: true,
            ..none
        },
        Options { clip: Some(Clip::Value(0.01)), skip_nonfinite: true, ..none },
        Options {
            loss_scale: Some(LossScale { growth_interval: 4, ..LossScale::default() }),
            ema: Some(Ema { decay: 0.9, debias: true }),
            clip: Some(Clip::GlobalNorm(0.5)),

            ..none
        },
    ]
}

/// Ways to store that differ in the format of the gradients and in rounding alone.
const ALIKE: usize = Format::TENSORS.len() * 2;

/// All ways to store, by the lists of the crate; `ALIKE` side by side.
fn stored() -> Vec<Options> {
    let mut all = Vec::new();
    for (params, master) in Format::TENSORS.into_iter().flat_map(|p| Master::ALL.map(|master| (p, master))) {
        for (states, grads) in
            Format::STATES.into_iter().flat_map(|s| Format::TENSORS.map(|grads| (s, grads)))
        {
            for rounding in [Rounding::Nearest, SEED] {
                let options = Options { params, grads, states, master, rounding, ..Options::default() };
                // Parameters of 4 bytes have no digits to keep beside them.
                let other = params != Format::F32 || master == Master::default();
                if other && options.validate().is_ok() {
                    all.push(options);
                }
            }
        }
    }
    all
}

/// The `i`th way to store, with options around the rule.
fn with_around(i: usize, stored: Options) -> Options {
    let arounds = arounds();
    let Options { params, grads, states, master, rounding, .. } = stored;
    Options { params, grads, states, master, rounding, ..arounds[i % arounds.len()] }
}

/// For the `rule`th rule on the CPU: all options around it, and all ways to store.
pub(super) fn host_options(rule: usize) -> Vec<Options> {
    let stored = stored().into_iter().enumerate().map(|(i, stored)| with_around(i + rule, stored));
    arounds().into_iter().chain(stored).collect()
}

/// For the `rule`th rule on the GPU, where each takes kernels that have to be compiled: of ways that are
/// alike one, and of those every other, by turns.
pub(super) fn device_options(rule: usize) -> Vec<Options> {
    let stored = stored();
    let of_alike = stored.chunks(ALIKE).enumerate().skip(rule % 2).step_by(2);
    let ways = of_alike.map(|(i, of)| with_around(i + rule, of[(i / 2 + rule) % of.len()]));
    arounds().into_iter().chain(ways).collect()
}

/// Every field of the options has to be in a run: otherwise no test would resume it.
#[test]
fn every_option_is_in_a_resumed_run() {
    let fields = |options: &Options| match serde_json::to_value(options).unwrap() {
        Value::Object(fields) => fields,
        other => panic!("{other}"),
    };
    let plain = fields(&Options::default());
    // Two rules in a row have all turns of the second.
    for all in [host_options(0), device_options(0), device_options(1)] {
        for (name, value) in &plain {
            assert!(all.iter().any(|options| fields(options)[name] != *value), "{name} is always {value}");
            assert!(all.iter().any(|options| fields(options)[name] == *value), "{name} is never {value}");
        }
        let all = || all.iter();
        for format in Format::ALL {
            let used = |o: &Options| [o.params, o.grads, o.states].contains(&format);
            assert!(all().any(used), "{format:?}");
        }
        assert!(
            Master::ALL.iter().all(|master| all().any(|o| o.master == *master && o.params == Format::Bf16))
        );
    }
}
