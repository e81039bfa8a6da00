//! Results have equal bits on all threads, in all forms of slices, with all instructions and on all
//! processors.

use cpu_harness::{Case, CpuRun, Form, Random, all, cases, cases_of, cpu_slot, lr, many};
#[cfg(feature = "rayon")]
use wgpu_optim::Group;
use wgpu_optim::{AdamW, Clip, Format, Layout, Master, Options, Rounding, Step, cpu};

/// The results of a run of some steps. The options decide whether one of them is skipped.
#[derive(Debug, PartialEq)]
struct End {
    params: Vec<u32>,
    slots: Vec<Option<Vec<u32>>>,
    reports: Vec<Option<String>>,
}

fn end(layout: &Layout, options: Options, form: Form) -> End {
    end_of(layout, options, form, |optimizer| optimizer)
}

/// The results without a choice of instructions.
fn baseline_end(layout: &Layout, options: Options) -> End {
    end_of(layout, options, Form::Flat, cpu::Optimizer::baseline_instructions)
}

fn end_of(
    layout: &Layout,
    options: Options,
    form: Form,
    choose: impl Fn(cpu::Optimizer) -> cpu::Optimizer,
) -> End {
    let mut random = Random::new(11);
    let len = layout.len() as usize;
    let mut run = CpuRun { form, ..CpuRun::new(layout.clone(), options, &random.values(len)) };
    run.optimizer = choose(run.optimizer);
    let mut reports = Vec::new();
    for t in 0..4 {
        let mut grads = random.values(len);
        if t == 1 {
            grads[layout.tensors()[1].range().end - 1] = f32::NAN;
        }
        let report = run.step(&grads, Step::from(lr(t)).with_grad_scale(4.0));
        reports.push(report.map(|report| format!("{report:?}")));
        if options.zero_gradients {
            let grads = run.grads.codes();
            let left = |t: &wgpu_optim::Tensor| grads[t.range()].iter().any(|&g| g != 0);
            assert!(!layout.tensors().iter().any(left), "{form:?} step {t}");
        }
    }
    let names = layout.slot_names().into_iter().chain(["ema", "master", "remainder"]);
    let slots = names.map(|slot| cpu_slot(&run.optimizer, slot)).collect();
    End { params: run.codes(), slots, reports }
}

/// Formats of everything, and options around it.
fn variants() -> Vec<Options> {
    let bf16 =
        Options { params: Format::Bf16, grads: Format::F16, states: Format::Bf16, ..Options::default() };
    let stochastic = Rounding::Stochastic { seed: 5 };
    vec![
        Options::default(),
        all(Clip::GlobalNorm(1.0)),
        all(Clip::GroupNorm(0.5)),
        all(Clip::Value(0.25)),
        Options { params: Format::Bf16, grads: Format::F16, ..all(Clip::GlobalNorm(1.0)) },
        Options { master: Master::Remainder, zero_gradients: true, ..bf16 },
        Options { master: Master::None, rounding: stochastic, norms: true, ..bf16 },
        Options { states: Format::Q8, ..all(Clip::GlobalNorm(1.0)) },
        Options { states: Format::Q8, master: Master::None, rounding: stochastic, ..bf16 },
        // Sixteen thousand small elements: blocks that have none, some or nothing else.
        Options { states: Format::Q8, f32_states_below: 128, ..all(Clip::GroupNorm(0.5)) },
        Options { states: Format::Bf16, f32_states_below: 20_000, ..all(Clip::GlobalNorm(1.0)) },
        Options { master: Master::None, rounding: stochastic, f32_states_below: 40, ..bf16 },
    ]
}

/// Threads and forms of slices make no difference to any bit, nor do instructions.
#[test]
fn whoever_does_the_work() {
    for rule in ["adamw", "sgd", "lamb"] {
        let layout = many(cases_of(rule)[1].rule.clone());
        for options in variants() {
            let want = end(&layout, options, Form::Flat);
            #[cfg(feature = "rayon")]
            for threads in [1, 2, 8] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let got = pool.install(|| end(&layout, options, Form::Flat));
                assert!(got == want, "{rule} on {threads} threads, {options:?}");
            }
            assert!(baseline_end(&layout, options) == want, "{rule} on the baseline, {options:?}");
            for form in [false, true].map(|backwards| Form::Each { backwards }) {
                assert!(end(&layout, options, form) == want, "{rule} {form:?}, {options:?}");
            }
        }
    }
}

/// Enough work that a thread takes several tasks at a time, and others take fewer.
#[cfg(feature = "rayon")]
#[test]
fn whoever_does_much_work() {
    // A leaf of up to three blocks on one thread. Some options keep small tensors apart from others.
    let lens = [77, 49_999, 16_384, 130_003].into_iter().cycle().take(34);
    let tensors = lens.enumerate().map(|(nth, len)| (format!("{nth}"), [len]));
    let group =
        tensors.fold(Group::new("all", AdamW::default()), |group, (name, shape)| group.tensor(name, shape));
    let layout = Layout::packed([group]).unwrap();
    let stochastic = Rounding::Stochastic { seed: 5 };
    for options in [
        Options::default(),
        all(Clip::GlobalNorm(1.0)),
        Options {
            params: Format::Bf16,
            states: Format::Q8,
            f32_states_below: 100,
            rounding: stochastic,
            ..all(Clip::GlobalNorm(1.0))
        },
    ] {
        let on = |threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            pool.install(|| end(&layout, options, Form::Flat))
        };
        let want = on(8);
        for threads in [1, 2] {
            assert!(on(threads) == want, "{threads} threads, {options:?}");
        }
        assert!(end(&layout, options, Form::Each { backwards: true }) == want, "{options:?}");
    }
}

/// The instructions that are chosen make no difference to any rule: none of them fuses or approximates.
#[test]
fn instructions_make_no_difference() {
    for Case { name, rule } in cases() {
        let layout = many(rule.clone());
        let want = end(&layout, Options::default(), Form::Flat);
        assert!(baseline_end(&layout, Options::default()) == want, "{} {name}", rule.name());
    }
}

/// The start of slices makes no difference: elements before a cache line are updated as a copy.
#[test]
fn wherever_slices_begin() {
    let layout = many(AdamW::default());
    let len = layout.len() as usize;
    for options in
        [Options::default(), all(Clip::GlobalNorm(1.0)), Options { norms: true, ..Options::default() }]
    {
        let run = |shift: usize| {
            let mut random = Random::new(3);
            let mut optimizer = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
            let mut params = vec![0.0; shift];
            params.extend(random.values(len));
            let mut reports = Vec::new();
            for t in 0..2 {
                let mut grads = vec![0.0; 2 * shift];
                grads.extend(random.values(len));
                let tensors = cpu::Tensors::flat(&mut params[shift..], &mut grads[2 * shift..]);
                reports.push(optimizer.step(tensors, lr(t)).unwrap().map(|report| format!("{report:?}")));
            }
            let bits: Vec<u32> = params[shift..].iter().map(|x| x.to_bits()).collect();
            let slots = ["exp_avg", "exp_avg_sq"].map(|slot| cpu_slot(&optimizer, slot));
            (bits, slots, reports)
        };
        let want = run(0);
        for shift in 1..16 {
            assert!(run(shift) == want, "{shift} elements behind, {options:?}");
        }
    }
}

/// A pool of 0 threads has one thread per core.
#[cfg(feature = "rayon")]
#[test]
fn a_pool_of_zero_threads() {
    let layout = many(AdamW::default());
    let options = Options { ..Options::default() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(0).build().unwrap();
    assert!(pool.current_num_threads() > 0);
    assert!(pool.install(|| end(&layout, options, Form::Flat)) == end(&layout, options, Form::Flat));
}

/// Results have equal bits on every processor: a digest of runs with operations that a compiler could fuse,
/// reorder or approximate.
#[test]
fn every_processor_has_the_same_bits() {
    /// The digest changes only with an intended change of the engine's arithmetic.
    const DIGEST: u64 = 0xba43_c821_aaf4_6126;
    let layout = many(AdamW { weight_decay: 0.1, ..AdamW::default() });
    let mut digest = 0xcbf2_9ce4_8422_2325u64;
    for options in variants() {
        // The digits that a NaN carries may differ.
        let end = end(&layout, Options { skip_nonfinite: true, ..options }, Form::Flat);
        let slots = end.slots.into_iter().flatten().flatten();
        // FNV-1a, of words.
        for word in end.params.into_iter().chain(slots) {
            digest = (digest ^ u64::from(word)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    assert_eq!(digest, DIGEST, "{digest:#x}");
}
