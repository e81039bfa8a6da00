//! Formats that are converted as a checkpoint is loaded on the GPU.

use crate::common::{Directory, Saves, counters, mismatches, values};
use crate::gpu::{layout, numbers, on_gpu};
use cpu_harness::CpuRun;
use wgpu_optim::checkpoint::{self, Extra, Formats, Load, Mismatch, Missing, Save};
use wgpu_optim::{Format, Master, Options, q8};

const CONVERT: Load = Load {
    missing: Missing::Error,
    extra: Extra::Error,
    formats: Formats::Convert,
    hyperparameters: checkpoint::Differing::Error,
    options: checkpoint::Differing::Error,
};

/// From every format of state to every other: the nearest numbers, with blocks at the new places.
#[test]
fn states_are_converted() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("states");
    for from in Format::STATES {
        let path = directory.file(&format!("{}.safetensors", from.name()));
        let options = |states| Options { states, ..Options::default() };
        let mut saved = on_gpu(&gpu, layout(0), options(from)).after(3);
        saved.save(&path, &Save::default()).unwrap();
        let want = numbers(&saved);
        for to in Format::STATES {
            for shift in [0, 2] {
                let mut run = on_gpu(&gpu, layout(shift), options(to));
                let context = format!("{from:?} to {to:?}, shifted by {shift}");
                if from != to || from == Format::Q8 && shift > 0 {
                    let found = mismatches(run.load(&path, &Load::default()));
                    let state = |mismatch: &&Mismatch| match mismatch {
                        Mismatch::Format { slot, .. } => slot.starts_with("exp_avg"),
                        _ => false,
                    };
                    assert_eq!(found.iter().filter(state).count(), 2, "{context}: {found:?}");
                }
                run.load(&path, &CONVERT).unwrap();
                assert_eq!(run.optimizer.steps(), 3);
                for ((name, got), (_, want)) in numbers(&run).iter().zip(&want) {
                    let tensor = run.optimizer.layout().tensor(name.split('/').next_back().unwrap()).unwrap();
                    let expected: Vec<f32> = if name.starts_with("param") || from == to && shift == 0 {
                        want.clone()
                    } else if to == Format::Q8 {
                        // Blocks begin where the tensor's first vector does.
                        let first = q8::BLOCK - (tensor.offset % 4) as usize;
                        let (head, tail) = want.split_at(first.min(want.len()));
                        std::iter::once(head)
                            .chain(tail.chunks(q8::BLOCK))
                            .flat_map(|block| {
                                let scale = q8::scale(block);
                                block.iter().map(move |x| q8::decode(q8::encode(*x, scale), scale))
                            })
                            .collect()
                    } else {
                        want.iter().map(|x| to.decode(to.encode(*x))).collect()
                    };
                    assert_eq!(*got, expected, "{context}: {name}");
                }
            }
        }
    }
}

/// Tolerance of a parameter that both engines have updated from the same numbers: a few units of the last
/// place below 2, because a device may round divisions and roots in any direction.
const ENGINES_APART: f32 = 4.0 * f32::EPSILON;

/// From f32 to every other format of state, and further steps from there: bit for bit as from a checkpoint in
/// that format, on both engines.
#[test]
fn a_converted_run_goes_on() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("converted");
    let [path, own] = ["f32.safetensors", "own.safetensors"].map(|name| directory.file(name));
    let skips = Options { skip_nonfinite: true, ..Options::default() };
    let mut saved = on_gpu(&gpu, layout(0), skips).after(3);
    saved.save(&path, &Save::default()).unwrap();
    for states in Format::STATES {
        let options = Options { states, ..skips };
        let mut converted = on_gpu(&gpu, layout(0), options);
        converted.load(&path, &CONVERT).unwrap();
        converted.save(&own, &Save::default()).unwrap();
        let mut again = on_gpu(&gpu, layout(0), options);
        again.load(&own, &Load::default()).unwrap();
        let len = layout(0).len() as usize;
        let mut host = CpuRun::new(layout(0), options, &vec![0.25; len]);
        host.load(&path, &CONVERT).unwrap();
        for slot in ["exp_avg", "exp_avg_sq"] {
            assert!(converted.slot(slot) == host.slot(slot), "{states:?}");
        }
        let [mut converted, again] = [converted.after(1), again.after(1)];
        host.step(&values(0, len), 0.01);
        let theirs = converted.snapshot().params;
        for (i, (ours, theirs)) in host.params().iter().zip(&theirs).enumerate() {
            assert!((ours - theirs).abs() <= ENGINES_APART, "{states:?}: {ours:e} and {theirs:e} at {i}");
        }
        let found = counters(&converted.bytes());
        assert_eq!(found, counters(&host.bytes()), "{states:?}");
        assert_eq!(found.taken, 4);
        let [converted, again] = [converted.after(4), again.after(4)];
        assert_eq!(numbers(&converted), numbers(&again), "{states:?}");
    }
}

/// Parameters with master or remainder, from every kind to every other.
#[test]
fn parameters_are_converted() {
    let Some(gpu) = harness::test_gpu() else { return };
    let directory = Directory::new("masters");
    use Format::{Bf16, F16, F32};
    let ways = [
        (F32, Master::F32),
        (F16, Master::F32),
        (Bf16, Master::F32),
        (Bf16, Master::Remainder),
        (Bf16, Master::None),
    ];
    let options = |(params, master)| Options { params, master, grads: params, ..Options::default() };
    for from in ways {
        let path = directory.file("run.safetensors");
        let mut saved = on_gpu(&gpu, layout(0), options(from)).after(3);
        saved.save(&path, &Save::default()).unwrap();
        let want = numbers(&saved);
        for to in ways {
            let mut run = on_gpu(&gpu, layout(1), options(to));
            run.load(&path, &CONVERT).unwrap();
            for ((name, got), (_, want)) in numbers(&run).iter().zip(&want) {
                let whole = to.0 == F32 || to.1 != Master::None || name.starts_with("exp");
                let expected: Vec<f32> = if whole {
                    want.clone()
                } else {
                    want.iter().map(|x| Bf16.decode(Bf16.encode(*x))).collect()
                };
                assert_eq!(*got, expected, "{from:?} to {to:?}: {name}");
            }
            // The caller gets the nearest number of the kept one, or its upper half.
            let codes = run.codes();
            for (tensor, (_, want)) in run.optimizer.layout().tensors().iter().zip(want.iter().skip(8)) {
                for (code, x) in codes[tensor.range()].iter().zip(want) {
                    let split = (x.to_bits() + 0x8000) >> 16;
                    assert_eq!(
                        *code,
                        if to.1 == Master::Remainder { split } else { to.0.encode(*x) },
                        "{from:?} to {to:?}"
                    );
                }
            }
        }
    }
}
