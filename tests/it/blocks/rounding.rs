//! Stochastic rounding in blocks.

use crate::common::single;
use crate::formats::chi_square;
use harness::GpuRun;
use wgpu_optim::q8::BLOCK;
use wgpu_optim::{AdamW, Format, Options, Rounding, Sgd};

/// Two slots of an element draw independent numbers.
#[test]
fn slots_draw_numbers_of_their_own() {
    let Some(gpu) = harness::test_gpu() else { return };
    for states in [Format::Bf16, Format::Q8] {
        let options = Options { states, rounding: Rounding::Stochastic { seed: 12 }, ..Options::default() };
        let rule = AdamW { beta1: 0.0, beta2: 0.0, ..AdamW::default() };
        let mut run = GpuRun::new(&gpu, single(rule, 1 << 16), options, &vec![0.0; 1 << 16]);
        // Of blocks whose first number sets the scale.
        let (outer, inner) = (1.0, 0.719);
        let mut grads = vec![inner; 1 << 16];
        grads.iter_mut().step_by(BLOCK).for_each(|x| *x = outer);
        run.step(&grads, 0.0);
        let ups = ["exp_avg", "exp_avg_sq"].map(|slot| {
            let exact = if slot == "exp_avg" { inner } else { inner * inner };
            let number =
                |bits: u32| if states == Format::Q8 { f32::from_bits(bits) } else { states.decode(bits) };
            run.slot(slot).into_iter().map(|bits| number(bits) > exact).collect::<Vec<_>>()
        });
        let mut table = [[0.0; 2]; 2];
        for i in (0..1 << 16).filter(|i| i % BLOCK > 0) {
            table[usize::from(ups[0][i])][usize::from(ups[1][i])] += 1.0;
        }
        assert!(table.iter().flatten().all(|&count| count > 100.0), "{states:?}: {table:?}");
        let chi_square = chi_square(table);
        // One degree of freedom: 15 is exceeded once in ten thousand.
        assert!(chi_square < 15.0, "{states:?}: {table:?}, {chi_square}");
    }
}

/// 10⁵ draws a value: their mean is the value within three standard errors. Beside a number that sets the
/// scale.
#[test]
fn random_rounding_in_blocks_is_unbiased() {
    let Some(gpu) = harness::test_gpu() else { return };
    // Without the numbers that set the scales.
    const DRAWS: usize = 100_000 * BLOCK / (BLOCK - 1) + BLOCK;
    for (value, signed) in [
        (0.7, true),
        (-0.013, true),
        (3.3e-5, true),
        (1.7e-6, true),
        (0.7, false),
        (0.013, false),
        (6e-6, false),
    ] {
        let options =
            Options { states: Format::Q8, rounding: Rounding::Stochastic { seed: 11 }, ..Options::default() };
        let layout = single(Sgd { momentum: 0.9, ..Sgd::default() }, DRAWS as u64);
        let mut run = GpuRun::new(&gpu, layout, options, &vec![0.0; DRAWS]);
        let mut grads = vec![value; DRAWS];
        grads.iter_mut().step_by(BLOCK).for_each(|x| *x = if signed { -1.0 } else { 1.0 });
        run.step(&grads, 0.0);
        let got = run.slot("momentum_buffer").into_iter().map(|bits| f64::from(f32::from_bits(bits)));
        let got: Vec<_> = got.enumerate().filter(|(i, _)| i % BLOCK > 0).map(|(_, x)| x).collect();
        let count = got.len() as f64;
        let mean = got.iter().sum::<f64>() / count;
        let variance = got.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / count;
        let error = (variance / count).sqrt();
        assert!(variance > 0.0, "{value:e} is a code");
        assert!(
            (mean - f64::from(value)).abs() <= 3.0 * error,
            "mean {mean:e} of {value:e}, standard error {error:e}"
        );
    }
}
