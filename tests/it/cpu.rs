//! The CPU engine: the same bits whoever does the work, and the same semantics as on the GPU.

use crate::common::{Cases, Random, assert_same_bits, lr, single};
use harness::{cpu_slot, cpu_snapshot, snapshot};
use wgpu_optim::check::{Checker, Snapshot};
use wgpu_optim::{
    AdamW, Clip, Ema, Error, Format, Group, Lamb, Layout, LossScale, Master, NAdam, Optimizer, Options,
    Report, Rounding, Rule, Sgd, Step, Tensors, Twin, cpu, for_each_rule,
};

/// Enough for some ten blocks, in tensors of all sizes, two groups by turns, with gaps.
fn many<R: Rule>(rule: R) -> Layout<R> {
    let mut groups = [Group::new("first", rule), Group::new("second", rule).lr_factor(0.5)];
    let sizes = [1, 40_001, 3, 127, 128, 129, 7, 16_384, 77_777, 2];
    let mut offset = 3;
    for (i, size) in sizes.into_iter().chain((0..600).map(|i| 1 + i % 50)).enumerate() {
        let group = &mut groups[i % 2];
        *group = group.clone().tensor_at(format!("t{i}"), [size], offset);
        offset += size + u64::from(i % 3 == 0);
    }
    Layout::new(groups).unwrap()
}

/// All that can stand around an update, in f32.
fn all(clip: Clip) -> Options {
    Options {
        divide: true,
        clip: Some(clip),
        loss_scale: Some(LossScale { initial: 8.0, growth_interval: 2, ..LossScale::default() }),
        zero_gradients: true,
        ema: Some(Ema { decay: 0.9, debias: true }),
        norms: true,
        ..Options::default()
    }
}

/// How a run is made.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Flat,
    /// Slices of tensors, in the order of the flat space or backwards.
    Each {
        backwards: bool,
    },
    Undispatched,
}

/// Everything there is after some steps, of which one is skipped.
#[derive(Debug, PartialEq)]
struct End {
    params: Vec<u32>,
    slots: Vec<Option<Vec<u32>>>,
    reports: Vec<Option<String>>,
}

fn end<R: Twin>(layout: &Layout<R>, options: Options, form: Form) -> End {
    let mut optimizer = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
    if form == Form::Undispatched {
        optimizer = optimizer.without_dispatch();
    }
    let mut random = Random::new(11);
    let len = layout.len() as usize;
    let encode = |format: Format, x: &[f32]| x.iter().map(|&x| format.encode(x)).collect::<Vec<_>>();
    let mut params = encode(options.params, &random.values(len));
    let mut reports = Vec::new();
    for t in 0..4 {
        let mut grads = random.values(len);
        if t == 1 {
            grads[layout.tensors()[1].range().end - 1] = f32::NAN;
        }
        let mut grads = encode(options.grads, &grads);
        let report = step(&mut optimizer, [&mut params, &mut grads], form, Step::from(lr(t)).divided_by(4.0));
        reports.push(report.map(|report| format!("{report:?}")));
        if options.zero_gradients {
            let left = |t: &wgpu_optim::Tensor| grads[t.range()].iter().any(|&g| g != 0);
            assert!(!layout.tensors().iter().any(left), "{form:?} step {t}");
        }
    }
    let names = wgpu_optim::rules::slots::<R>().iter().chain(&["ema", "master", "remainder"]);
    End { params, slots: names.map(|slot| cpu_slot(&optimizer, slot)).collect(), reports }
}

/// A step over codes of whatever format.
fn step<R: Twin>(
    optimizer: &mut cpu::Optimizer<R>,
    [params, grads]: [&mut Vec<u32>; 2],
    form: Form,
    step: Step,
) -> Option<Report> {
    let (layout, options) = (optimizer.layout().clone(), *optimizer.options());
    let mut stored = [(options.params, &*params), (options.grads, &*grads)].map(|(format, codes)| {
        let bits = codes.iter().map(|&code| f32::from_bits(code)).collect::<Vec<_>>();
        let halves = codes.iter().map(|&code| code as u16).collect::<Vec<_>>();
        (format, bits, halves)
    });
    let report = {
        let [(p, p4, p2), (g, g4, g2)] = &mut stored;
        let tensors = match form {
            Form::Each { backwards } => {
                let mut pieces = Vec::new();
                let (mut p4, mut p2, mut g4, mut g2) = (&mut p4[..], &mut p2[..], &mut g4[..], &mut g2[..]);
                let mut at = 0;
                for tensor in layout.by_offset() {
                    let (gap, len) = (tensor.offset as usize - at, tensor.len as usize);
                    at = tensor.end() as usize;
                    macro_rules! take {
                        ($slice:ident) => {{
                            let (piece, rest) = std::mem::take(&mut $slice)[gap..].split_at_mut(len);
                            $slice = rest;
                            piece
                        }};
                    }
                    let (p4, p2, g4, g2) = (take!(p4), take!(p2), take!(g4), take!(g2));
                    let p = if *p == Format::F32 { cpu::Params::from(p4) } else { p2.into() };
                    let g = if *g == Format::F32 { cpu::Grads::from(g4) } else { g2.into() };
                    pieces.push((tensor.name.as_str(), p, g));
                }
                if backwards {
                    pieces.reverse();
                }
                cpu::Tensors::each(pieces)
            }
            _ => {
                let p = if *p == Format::F32 { cpu::Params::from(p4) } else { p2.into() };
                let g = if *g == Format::F32 { cpu::Grads::from(g4) } else { g2.into() };
                cpu::Tensors::flat(p, g)
            }
        };
        optimizer.step(tensors, step).unwrap()
    };
    for ((format, bits, halves), codes) in stored.into_iter().zip([params, grads]) {
        *codes = match format {
            Format::F32 => bits.into_iter().map(f32::to_bits).collect(),
            _ => halves.into_iter().map(u32::from).collect(),
        };
    }
    report
}

/// Formats of everything, options around it, and what is left of them.
fn variants() -> Vec<Options> {
    let bf16 =
        Options { params: Format::Bf16, grads: Format::F16, states: Format::Bf16, ..Options::default() };
    let stochastic = Rounding::Stochastic { seed: 5 };
    vec![
        Options { divide: true, ..Options::default() },
        all(Clip::GlobalNorm(1.0)),
        all(Clip::GroupNorm(0.5)),
        all(Clip::Value(0.25)),
        Options { params: Format::Bf16, grads: Format::F16, ..all(Clip::GlobalNorm(1.0)) },
        Options { master: Master::Remainder, zero_gradients: true, divide: true, ..bf16 },
        Options { master: Master::None, rounding: stochastic, divide: true, norms: true, ..bf16 },
        Options { states: Format::Q8, ..all(Clip::GlobalNorm(1.0)) },
        Options { states: Format::Q8, master: Master::None, rounding: stochastic, divide: true, ..bf16 },
        // Sixteen thousand small elements: blocks that have none, some or nothing else.
        Options { states: Format::Q8, f32_states_below: 128, ..all(Clip::GroupNorm(0.5)) },
        Options { states: Format::Bf16, f32_states_below: 20_000, ..all(Clip::GlobalNorm(1.0)) },
        Options { master: Master::None, rounding: stochastic, f32_states_below: 40, divide: true, ..bf16 },
    ]
}

/// Threads and forms of slices make no difference to any bit, nor do instructions.
#[test]
fn whoever_does_the_work() {
    fn test<R: Cases>() {
        let rules = R::cases();
        let layout = many(rules[1 % rules.len()].1);
        for options in variants() {
            let pool = |threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            let want = pool(1).install(|| end(&layout, options, Form::Flat));
            for threads in [2, 8] {
                let got = pool(threads).install(|| end(&layout, options, Form::Flat));
                assert!(got == want, "{} on {threads} threads, {options:?}", R::NAME);
            }
            let forms = [Form::Undispatched, Form::Each { backwards: false }, Form::Each { backwards: true }];
            for form in forms {
                // In the global pool.
                assert!(end(&layout, options, form) == want, "{} {form:?}, {options:?}", R::NAME);
            }
        }
    }
    test::<AdamW>();
    test::<Sgd>();
    test::<Lamb>();
}

/// So much work that a thread takes several blocks at a time, and others take fewer.
#[test]
fn whoever_does_much_work() {
    let tensors = (0..36).map(|nth| (format!("{nth}"), [if nth % 3 == 0 { 77 } else { 49_999 }]));
    let group =
        tensors.fold(Group::new("all", AdamW::default()), |group, (name, shape)| group.tensor(name, shape));
    let layout = Layout::new([group]).unwrap();
    for options in [Options { divide: true, ..Options::default() }, all(Clip::GlobalNorm(1.0))] {
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

macro_rules! undispatched {
    ($($rule:ty),*) => {
        $(for (name, rule) in <$rule>::cases() {
            let layout = many(rule);
            let options = Options { divide: true, ..Options::default() };
            let [want, got] = [Form::Flat, Form::Undispatched].map(|form| end(&layout, options, form));
            assert!(got == want, "{} {name}", <$rule>::NAME);
        })*
    };
}

/// The instructions that are chosen make no difference to any rule: none of them fuses or approximates.
#[test]
fn instructions_make_no_difference() {
    for_each_rule!(undispatched);
}

/// A pool of 0 threads is one of as many as there are cores.
#[test]
fn a_pool_of_zero_threads() {
    let layout = many(AdamW::default());
    let options = Options { divide: true, ..Options::default() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(0).build().unwrap();
    assert!(pool.current_num_threads() > 0);
    assert!(pool.install(|| end(&layout, options, Form::Flat)) == end(&layout, options, Form::Flat));
}

/// Gradients as the options leave them, in f64; what is divided, clipped and averaged is within the budget beside the GPU.
#[test]
fn options_are_those_of_the_gpu() {
    /// What may lie between the devices, in terms of the largest parameter: both round the factor of the gradients and the update.
    const TOLERANCE: f32 = 1e-6;
    fn test<R: Cases>(rule: R) {
        let Some(gpu) = harness::test_gpu() else { return };
        let layout = many(rule);
        let len = layout.len() as usize;
        // Gradients are 0.02 at most by then.
        let clips = [Clip::GlobalNorm(1.0), Clip::GroupNorm(0.5), Clip::Value(0.005)];
        for options in clips.map(all) {
            let mut random = Random::new(12);
            // A step of the learning rate is a hundredth of the largest parameter.
            let start: Vec<f32> = (0..len).map(|_| 2.0 * random.unit() as f32 - 1.0).collect();
            let mut params = start.clone();
            let (device_params, device_grads) = (gpu.upload(&start), gpu.buffer(layout.buffer_size()));
            let mut device = Optimizer::with_options(&gpu.device, layout.clone(), options).unwrap();
            let bound = device.bind(&Tensors::flat(&device_params, &device_grads)).unwrap();
            let mut host = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
            for t in 0..6 {
                let mut grads: Vec<f32> = (0..len).map(|_| random.unit() as f32 - 0.5).collect();
                if t % 3 == 1 {
                    grads[layout.tensors()[4].range().start] = f32::NEG_INFINITY;
                }
                let step = Step::from(lr(t)).divided_by(3.0);
                gpu.write(&device_grads, 0, &grads);
                let mut encoder = gpu.encoder();
                device.step(&gpu.queue, &mut encoder, &bound, step).unwrap();
                gpu.run(encoder);
                let want = device.take_report().unwrap();
                let got = host.step(cpu::Tensors::flat(&mut params, &mut grads), step).unwrap().unwrap();
                let exact =
                    |r: &Report| (r.step, r.finite, r.skipped, r.loss_scale, r.next_loss_scale, r.good_steps);
                assert_eq!(exact(&got), exact(&want), "{} {options:?}", R::NAME);
                for (got, want, tolerance) in [
                    (got.grad_norm, want.grad_norm, 1e-6),
                    (got.clip_factor, want.clip_factor, 1e-6),
                    (got.param_norm.unwrap(), want.param_norm.unwrap(), 1e-6),
                    // Of a thousandth of some parameters, which are rounded.
                    (got.update_norm.unwrap(), want.update_norm.unwrap(), 1e-5),
                ] {
                    approx::assert_relative_eq!(got, want, max_relative = tolerance);
                }
                assert_eq!(host.loss_scale(), Some(got.next_loss_scale));
            }
            let want = snapshot(&gpu, &device, &device_params, 0);
            let got = cpu_snapshot(&host, cpu::State::F32(&params));
            let close = |what: &str, got: &[f32], want: &[f32]| {
                let size = want.iter().fold(0f32, |most, x| most.max(x.abs()));
                for i in layout.tensors().iter().flat_map(|tensor| tensor.range()).filter(|&i| i < got.len())
                {
                    let off = (got[i] - want[i]).abs();
                    assert!(off <= TOLERANCE * size, "{} {what}[{i}] = {} and {}", R::NAME, got[i], want[i]);
                }
            };
            close("param", &got.params, &want.params);
            got.state.iter().zip(&want.state).for_each(|(got, want)| close("state", got, want));
            let ema =
                |codes: Option<Vec<u32>>| codes.unwrap().into_iter().map(f32::from_bits).collect::<Vec<_>>();
            close("ema", &ema(cpu_slot(&host, "ema")), &ema(harness::slot(&gpu, &device, "ema")));
        }
    }
    test(AdamW::default());
    test(Lamb { weight_decay: 0.1, ..Lamb::default() });
    test(NAdam::default());
}

/// What is stored in 2 bytes is rounded as on the GPU, at random too: the same random numbers for the same elements.
#[test]
fn formats_are_those_of_the_gpu() {
    let Some(gpu) = harness::test_gpu() else { return };
    // Sums and products of few digits, exact on every device; what is rounded is what is stored.
    let rule = Sgd { momentum: 0.5, ..Sgd::default() };
    let layout = many(rule);
    let len = layout.len() as usize;
    let bf16 =
        Options { params: Format::Bf16, grads: Format::Bf16, states: Format::Bf16, ..Options::default() };
    let stochastic = Rounding::Stochastic { seed: 77 };
    for options in [
        bf16,
        Options { master: Master::Remainder, ..bf16 },
        Options { master: Master::None, ..bf16 },
        Options { master: Master::None, rounding: stochastic, ..bf16 },
        Options { states: Format::Q8, ..Options::default() },
        Options { states: Format::Q8, rounding: stochastic, ..bf16 },
        Options { states: Format::Q8, rounding: stochastic, f32_states_below: 128, ..bf16 },
        Options { states: Format::Q8, f32_states_below: 45, ..Options::default() },
        Options { master: Master::None, rounding: stochastic, f32_states_below: 17_000, ..bf16 },
        Options { f32_states_below: u64::MAX, ..bf16 },
        Options {
            params: Format::F16,
            grads: Format::F16,
            master: Master::None,
            rounding: stochastic,
            ..bf16
        },
    ] {
        let mut random = Random::new(13);
        let start = random.values(len);
        let device_params = gpu.upload_as(options.params, &start);
        let device_grads = gpu.upload_as(options.grads, &start);
        let mut device = Optimizer::with_options(&gpu.device, layout.clone(), options).unwrap();
        let bound = device.bind(&Tensors::flat(&device_params, &device_grads)).unwrap();
        let mut host = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
        let mut params: Vec<u32> = start.iter().map(|&p| options.params.encode(p)).collect();
        for _ in 0..3 {
            let grads: Vec<f32> = (0..len).map(|_| (random.below(9) as f32 - 4.0) * 0.0625).collect();
            gpu.write_as(options.grads, &device_grads, &grads);
            let mut encoder = gpu.encoder();
            device.step(&gpu.queue, &mut encoder, &bound, 0.125).unwrap();
            gpu.run(encoder);
            let mut grads = grads.iter().map(|&g| options.grads.encode(g)).collect();
            step(&mut host, [&mut params, &mut grads], Form::Flat, 0.125.into());
        }
        let want = harness::param_codes(&gpu, &device, &device_params, 0);
        for tensor in layout.tensors() {
            assert_eq!(params[tensor.range()], want[tensor.range()], "{} {options:?}", tensor.name);
        }
        for slot in ["momentum_buffer", "master", "remainder"] {
            assert_eq!(cpu_slot(&host, slot), harness::slot(&gpu, &device, slot), "{slot}, {options:?}");
        }
    }
}

/// State of small tensors has 4 bytes an element, that of the others what the options say, and none has both.
#[test]
fn small_tensors_stay_f32() {
    let tensors = [("a", 100u64), ("b", 10), ("c", 33), ("d", 5)];
    let group =
        tensors.iter().fold(Group::new("g", AdamW::default()), |g, (name, len)| g.tensor(*name, [*len]));
    let layout = Layout::new([group]).unwrap();
    let new = |states, f32_states_below| {
        let options = Options { states, f32_states_below, ..Options::default() };
        cpu::Optimizer::with_options(layout.clone(), options).unwrap()
    };
    // Two slots.
    assert_eq!(new(Format::Bf16, 20).state_bytes(), 2 * (2 * 133 + 4 * 15));
    assert_eq!(new(Format::F32, 20).state_bytes(), 2 * 4 * 148);
    assert_eq!(new(Format::Q8, u64::MAX).state_bytes(), 2 * 4 * 148);
    // 100 elements in 4 blocks, and 33 from lane 2 on in 2.
    assert_eq!(new(Format::Q8, 20).state_bytes(), 2 * ((4 + 2) * (32 + 4) + 4 * 15));
    let mut optimizer = new(Format::Q8, 20);
    optimizer.step(cpu::Tensors::flat(&mut [0.5; 148], &[0.25; 148]), 0.1).unwrap();
    for (name, len) in tensors {
        match optimizer.state("exp_avg", name).unwrap().unwrap() {
            cpu::State::F32(x) => assert!(len < 20 && x.len() == len as usize && x[0] > 0.0, "{name}"),
            cpu::State::Q8(x, scales) => {
                assert!(len > 20 && x.len() == len as usize && scales.iter().all(|&s| s != 0), "{name}");
            }
            cpu::State::U16(_) => panic!("{name}"),
        }
    }
    assert!(matches!(
        optimizer.state_mut("exp_avg_sq", "d").unwrap(),
        Some(cpu::StateMut::F32([_, _, _, _, _]))
    ));
}

/// A skipped step leaves no bit of parameters, state or average, and counts for nothing.
#[test]
fn skipped_steps_leave_no_trace() {
    fn test<R: Cases>() {
        for (seed, (name, rule)) in R::cases().into_iter().enumerate() {
            let layout = many(rule);
            let options = Options {
                skip_nonfinite: true,
                ema: Some(Ema { decay: 0.9, debias: true }),
                clip: [None, Some(Clip::GlobalNorm(1.0)), Some(Clip::GroupNorm(1.0))][seed % 3],
                ..Options::default()
            };
            let run = |dirty: bool| {
                let mut optimizer = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
                let mut random = Random::new(seed as u64);
                let len = layout.len() as usize;
                let mut params = random.values(len);
                for t in 0..4 {
                    let mut grads = random.values(len);
                    // Nobody's.
                    grads[0] = f32::NAN;
                    let at = layout.tensors()[random.below(600) as usize].range().start;
                    let good = std::mem::replace(&mut grads[at], [f32::NAN, f32::INFINITY][t % 2]);
                    if dirty {
                        let tensors = cpu::Tensors::flat(&mut params, &grads);
                        let report = optimizer.step(tensors, lr(t)).unwrap().unwrap();
                        assert_eq!((report.finite, report.skipped), (false, t as u64 + 1));
                    }
                    grads[at] = good;
                    let report =
                        optimizer.step(cpu::Tensors::flat(&mut params, &grads), lr(t)).unwrap().unwrap();
                    assert!(report.finite);
                }
                (cpu_snapshot(&optimizer, cpu::State::F32(&params)), cpu_slot(&optimizer, "ema"))
            };
            let [(a, a_ema), (b, b_ema)] = [run(true), run(false)];
            assert_same_bits(&a, &b, &format!("{} {name}", R::NAME));
            assert!(a_ema == b_ema, "{} {name}: ema", R::NAME);
        }
    }
    macro_rules! every {
        ($($rule:ty),*) => { $(test::<$rule>();)* };
    }
    for_each_rule!(every);
}

/// Squares of gradients that f32 has no room for, and the semantics of what is not finite where nothing is skipped.
#[test]
fn norms_at_the_edges() {
    let options = Options { clip: Some(Clip::GlobalNorm(1.0)), report: true, ..Options::default() };
    for (g, norm) in [(1e-30, 2e-30), (1e30, 2e30), (0.25, 0.5), (f32::MAX, f32::INFINITY)] {
        let mut optimizer = cpu::Optimizer::with_options(single(Sgd::default(), 4), options).unwrap();
        let mut params = [0.0; 4];
        let report = optimizer.step(cpu::Tensors::flat(&mut params, &[g; 4]), 1.0).unwrap().unwrap();
        approx::assert_relative_eq!(report.grad_norm, norm, max_relative = 1e-6);
        approx::assert_relative_eq!(params[0], -g.min(0.5), max_relative = 1e-5);
    }
    for (bad, rest) in [(f32::INFINITY, 0.0), (f32::NAN, f32::NAN)] {
        let mut optimizer = cpu::Optimizer::with_options(single(Sgd::default(), 3), options).unwrap();
        let mut params = [0.0; 3];
        let report = optimizer.step(cpu::Tensors::flat(&mut params, &[1.0, bad, 1.0]), 1.0).unwrap().unwrap();
        // PyTorch's: c / ∞ of the others, and NaN of all.
        assert!(!report.finite && params[1].is_nan(), "{params:?}");
        assert_eq!(params[0].is_nan(), rest.is_nan());
        assert!(params[2] == rest || rest.is_nan(), "{params:?}");
    }
}

/// What a bound does to what is no number: nothing.
#[test]
fn a_bounded_nan_stays_one() {
    let options = Options { clip: Some(Clip::Value(1.0)), ..Options::default() };
    let mut optimizer = cpu::Optimizer::with_options(single(Sgd::default(), 3), options).unwrap();
    let mut params = [0.0; 3];
    optimizer.step(cpu::Tensors::flat(&mut params, &[f32::NAN, f32::INFINITY, -3.0]), 1.0).unwrap();
    assert!(params[0].is_nan());
    assert_eq!(params[1..], [-1.0, 1.0]);
}

#[test]
fn bad_tensors() {
    let layout = Layout::new([Group::new("g", AdamW::default()).tensor("a", [3]).tensor("b", [2])]).unwrap();
    let zeroing = Options { zero_gradients: true, ..Options::default() };
    let mut optimizer = cpu::Optimizer::new(layout.clone()).unwrap();
    let mut writing = cpu::Optimizer::with_options(layout.clone(), zeroing).unwrap();
    let (mut a, mut b, mut all) = ([1.0f32; 3], [1.0f32; 2], [1.0f32; 5]);
    let mut refused = |tensors: cpu::Tensors<'_>| optimizer.step(tensors, 0.1).unwrap_err();
    type Piece<'a> = (&'a str, &'a mut [f32], &'a [f32]);
    fn of<'a>(name: &'a str, p: &'a mut [f32], g: &'a [f32]) -> Piece<'a> {
        (name, p, g)
    }
    fn each<'a>(a: Piece<'a>, b: Piece<'a>) -> cpu::Tensors<'a> {
        cpu::Tensors::each([a, b])
    }
    let g = [1.0f32; 5];
    let error = refused(each(of("a", &mut a, &g[..2]), of("b", &mut b, &g[..2])));
    assert_eq!(error, Error::Length { what: "gradients of tensor \"a\"".into(), found: 2, expected: 3 });
    let error = refused(each(of("a", &mut b, &g[..3]), of("b", &mut a, &g[..2])));
    assert_eq!(error, Error::Length { what: "parameters of tensor \"a\"".into(), found: 2, expected: 3 });
    let error = refused(each(of("a", &mut a, &g[..3]), of("c", &mut b, &g[..2])));
    assert_eq!(error, Error::Unknown { what: "tensor", name: "c".into() });
    let error = refused(each(of("a", &mut a, &g[..3]), of("a", &mut all[..3], &g[..3])));
    assert_eq!(error, Error::Duplicate { what: "tensor", name: "a".into() });
    let error = refused(cpu::Tensors::each([of("b", &mut b, &g[..2])]));
    assert_eq!(error, Error::Mismatch { what: "tensors", found: 1, expected: 2 });
    let three = [of("a", &mut a, &g[..3]), of("b", &mut b, &g[..2]), of("b", &mut all[..2], &g[..2])];
    assert_eq!(
        refused(cpu::Tensors::each(three)),
        Error::Mismatch { what: "tensors", found: 3, expected: 2 }
    );
    let none: [(&str, &mut [f32], &[f32]); 0] = [];
    assert_eq!(refused(cpu::Tensors::each(none)), Error::Mismatch { what: "tensors", found: 0, expected: 2 });
    let error = refused(cpu::Tensors::flat(&mut [0f32; 0], &[0f32; 0]));
    assert_eq!(error, Error::Mismatch { what: "parameters", found: 0, expected: 5 });
    let error = refused(cpu::Tensors::flat(&mut [0u16; 5], &g));
    assert!(matches!(error, Error::Format { field: "params", format: "u16", .. }), "{error}");
    let error = refused(cpu::Tensors::flat(&mut all, &[0u16; 5]));
    assert!(matches!(error, Error::Format { field: "grads", format: "u16", .. }), "{error}");
    assert_eq!((optimizer.steps(), a, b, all), (0, [1.0; 3], [1.0; 2], [1.0; 5]));
    let error = writing.step(cpu::Tensors::flat(&mut all, &g), 0.1).unwrap_err();
    assert!(matches!(error, Error::ReadOnly { .. }), "{error}");
    let error = writing.state("momentum_buffer", "a").unwrap_err();
    assert_eq!(error, Error::Unknown { what: "slot", name: "momentum_buffer".into() });
    let refused = Options { clip: Some(Clip::Value(-1.0)), ..Options::default() };
    assert!(matches!(cpu::Optimizer::with_options(layout, refused), Err(Error::Options { .. })));
}

/// Slices that start anywhere in memory.
#[test]
fn slices_of_any_alignment() {
    let layout = single(AdamW::default(), 1_001);
    let mut random = Random::new(21);
    let (params, grads) = (random.values(1_001), random.values(1_001));
    let run = |first: usize| {
        let mut optimizer = cpu::Optimizer::new(layout.clone()).unwrap();
        let mut shifted = vec![f32::NAN; first];
        shifted.extend(&params);
        let mut gradients = vec![f32::NAN; 2 * first];
        gradients.extend(&grads);
        optimizer.step(cpu::Tensors::flat(&mut shifted[first..], &gradients[2 * first..]), 0.1).unwrap();
        cpu_snapshot(&optimizer, cpu::State::F32(&shifted[first..]))
    };
    (1..9).for_each(|first| assert_same_bits(&run(first), &run(0), "an offset"));
}

/// A run that goes on on the CPU from the GPU's state: every step is within the budget of the reference.
#[test]
fn a_run_changes_devices() {
    let Some(gpu) = harness::test_gpu() else { return };
    let layout = many(AdamW::default());
    let len = layout.len() as usize;
    let mut random = Random::new(31);
    let buffer = gpu.upload(&random.values(len));
    let mut device = Optimizer::new(&gpu.device, layout.clone()).unwrap();
    let grads = random.values(len);
    let device_grads = gpu.upload(&grads);
    let bound = device.bind(&Tensors::flat(&buffer, &device_grads)).unwrap();
    let mut encoder = gpu.encoder();
    device.step(&gpu.queue, &mut encoder, &bound, 0.1).unwrap();
    gpu.run(encoder);
    let before = snapshot(&gpu, &device, &buffer, 0);

    // The first step is the device's, the second the host's, which has counted one of its own.
    let mut host = cpu::Optimizer::new(layout.clone()).unwrap();
    host.step(cpu::Tensors::flat(&mut vec![0.0; len], &grads), 0.1).unwrap();
    let mut params = before.params.clone();
    for (slot, values) in ["exp_avg", "exp_avg_sq"].iter().zip(&before.state) {
        for tensor in layout.tensors() {
            let Some(cpu::StateMut::F32(to)) = host.state_mut(slot, &tensor.name).unwrap() else { panic!() };
            to.copy_from_slice(&values[tensor.range()]);
        }
    }
    host.step(cpu::Tensors::flat(&mut params, &grads), 0.1).unwrap();
    let after = cpu_snapshot(&host, cpu::State::F32(&params));
    let mut checker = Checker::new(layout);
    let start = Snapshot { params: vec![0.0; len], state: vec![vec![0.0; len], vec![0.0; len], vec![]] };
    checker.step(&start, &grads, 0.1, &before).unwrap();
    let worst = checker.step(&before, &grads, 0.1, &after).unwrap();
    crate::common::assert_within_budget::<AdamW>(&worst, "the second step");
}

/// What a rule of one's own may ask for.
mod slots {
    use super::*;
    use wgpu_optim::fields;
    use wgpu_optim::float::Float;

    fields! {
        /// Scalars of [`Nine`].
        struct NineScalars { lr }
    }
    fields! {
        /// State of [`Nine`].
        struct NineState { s1, s2, s3, s4, s5, s6, s7, s8, s9 }
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Nine;

    impl Rule for Nine {
        const NAME: &'static str = "nine";
        const DEFAULT_LR: f64 = 1.0;
        const WGSL: &'static str = "";
        type Scalars<T: Float> = NineScalars<T>;
        type State<T: Float> = NineState<T>;
        fn validate(&self) -> Result<(), Error> {
            Ok(())
        }
        fn scalars(&self, lr: f64, _: u64, _: &mut f64) -> NineScalars<f64> {
            NineScalars { lr }
        }
    }

    impl Twin for Nine {
        const MAX_ULPS: f64 = 1.0;
        fn update<T: Float>(s: &NineScalars<T>, p: &mut T, g: T, _: &mut NineState<T>) {
            *p = *p - s.lr * g;
        }
    }

    #[test]
    fn too_many() {
        let error = cpu::Optimizer::new(single(Nine, 1)).unwrap_err();
        assert_eq!(error, Error::TooManySlots { rule: "nine", slots: 9, bound: 8 });
    }
}
