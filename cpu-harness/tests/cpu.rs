//! The CPU engine: the same bits whoever does the work. Neither a GPU nor threads are needed.

use cpu_harness::{
    Cases, Form, Random, all, assert_same_bits, check_cpu, cpu_slot, cpu_snapshot, lr, many, single, step,
};
use wgpu_optim::{
    AdamW, Clip, Ema, Error, Format, Group, Lamb, Layout, Master, Options, Rounding, Rule, Sgd, Step, Twin,
    cpu, for_each_rule,
};

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
            let want = end(&layout, options, Form::Flat);
            #[cfg(feature = "rayon")]
            for threads in [1, 2, 8] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                let got = pool.install(|| end(&layout, options, Form::Flat));
                assert!(got == want, "{} on {threads} threads, {options:?}", R::NAME);
            }
            let forms = [Form::Undispatched, Form::Each { backwards: false }, Form::Each { backwards: true }];
            for form in forms {
                assert!(end(&layout, options, form) == want, "{} {form:?}, {options:?}", R::NAME);
            }
        }
    }
    test::<AdamW>();
    test::<Sgd>();
    test::<Lamb>();
}

/// So much work that a thread takes several blocks at a time, and others take fewer.
#[cfg(feature = "rayon")]
#[test]
fn whoever_does_much_work() {
    // A leaf of up to three blocks on one thread; small tensors are kept apart from others where the options say so.
    let lens = [77, 49_999, 16_384, 130_003].into_iter().cycle().take(34);
    let tensors = lens.enumerate().map(|(nth, len)| (format!("{nth}"), [len]));
    let group =
        tensors.fold(Group::new("all", AdamW::default()), |group, (name, shape)| group.tensor(name, shape));
    let layout = Layout::new([group]).unwrap();
    let stochastic = Rounding::Stochastic { seed: 5 };
    for options in [
        Options { divide: true, ..Options::default() },
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
#[cfg(feature = "rayon")]
#[test]
fn a_pool_of_zero_threads() {
    let layout = many(AdamW::default());
    let options = Options { divide: true, ..Options::default() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(0).build().unwrap();
    assert!(pool.current_num_threads() > 0);
    assert!(pool.install(|| end(&layout, options, Form::Flat)) == end(&layout, options, Form::Flat));
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

/// What is reported of groups, of what is not finite and of norms, by hand.
#[test]
fn reports_say_what_was() {
    let close = |got: f32, want: f32| approx::assert_relative_eq!(got, want, max_relative = 1e-5);
    // Of a layer-wise rule, whose tensors are groups of their own to it and not to the clip. The first group's norm is 5.
    let first = Group::new("first", Lamb::default()).tensor("a", [1]).tensor("b", [1]);
    let layout = Layout::new([first, Group::new("second", Lamb::default()).tensor("c", [1])]).unwrap();
    let options = Options { clip: Some(Clip::GroupNorm(1.0)), report: true, ..Options::default() };
    let mut optimizer = cpu::Optimizer::with_options(layout, options).unwrap();
    let mut params = [1.0; 3];
    let report = optimizer.step(cpu::Tensors::flat(&mut params, &[3.0, 4.0, 0.5]), 0.1).unwrap().unwrap();
    close(report.clip_factor, 0.2);
    // What is not finite and not to be skipped is no skipped step.
    let report =
        optimizer.step(cpu::Tensors::flat(&mut params, &[3.0, f32::NAN, 0.5]), 0.1).unwrap().unwrap();
    assert_eq!((report.finite, report.skipped), (false, 0));
    // Norms, and those of a step that is skipped.
    let options = Options { norms: true, skip_nonfinite: true, ..Options::default() };
    let mut optimizer = cpu::Optimizer::with_options(single(Sgd::default(), 2), options).unwrap();
    let mut params = [3.0, 4.0];
    for (grad, update_norm) in [(f32::NAN, 0.0), (0.6, 1.0)] {
        let report = optimizer.step(cpu::Tensors::flat(&mut params, &[grad, 0.8]), 1.0).unwrap().unwrap();
        close(report.param_norm.unwrap(), 5.0);
        close(report.update_norm.unwrap(), update_norm);
    }
}

/// The average is of what the caller reads, not of what was rounded to it.
#[test]
fn an_average_of_stored_parameters() {
    let ema = Some(Ema { decay: 0.0, debias: false });
    let options = Options { params: Format::Bf16, master: Master::None, ema, ..Options::default() };
    let mut optimizer = cpu::Optimizer::with_options(single(Sgd::default(), 1), options).unwrap();
    let mut params = [Format::Bf16.encode(1.0) as u16];
    optimizer.step(cpu::Tensors::flat(&mut params, &[-1e-3f32]), 1.0).unwrap();
    assert_eq!(optimizer.state("ema", "w").unwrap().unwrap().as_f32(), Some(&[1.0][..]));
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

/// State that there is no memory for is refused before anything of that size is planned: the plan of so many elements would have 25 GB.
#[test]
fn too_little_memory() {
    let error = cpu::Optimizer::new(single(AdamW::default(), 1 << 42)).unwrap_err();
    assert_eq!(error, Error::Memory { bytes: 4 << 42 });
    // Without state it is the plan that there is no memory for.
    let error = cpu::Optimizer::new(single(Sgd::default(), 1 << 52)).unwrap_err();
    assert!(matches!(error, Error::Memory { .. }), "{error}");
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
    let error = refused(each(of("a", &mut [], &g[..3]), of("b", &mut b, &g[..2])));
    assert_eq!(error, Error::Length { what: "parameters of tensor \"a\"".into(), found: 0, expected: 3 });
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

    // Codes of 2 bytes, tensor by tensor.
    let options = Options {
        params: Format::Bf16,
        grads: Format::F16,
        states: Format::Bf16,
        master: Master::None,
        ..Options::default()
    };
    let codes = |x: &[f32], format: Format| x.iter().map(|&x| format.encode(x) as u16).collect::<Vec<_>>();
    let run = |first: usize| {
        let mut optimizer = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
        let (mut p, mut g) = (vec![0; first], vec![0; 2 * first]);
        p.extend(codes(&params, options.params));
        g.extend(codes(&grads, options.grads));
        let name = layout.tensors()[0].name.as_str();
        let tensors = cpu::Tensors::each([(name, &mut p[first..], &g[2 * first..])]);
        optimizer.step(tensors, 0.1).unwrap();
        cpu_snapshot(&optimizer, cpu::State::U16(&p[first..]))
    };
    (1..9).for_each(|first| assert_same_bits(&run(first), &run(0), "an offset of codes"));
}

/// A NaN stays in its element, its block of 8 bits excepted, in all that is kept and in every part of the work.
#[test]
fn a_nan_stays_where_it_is() {
    const LEN: usize = 40_000;
    const BAD: [usize; 5] = [0, 31, 16_383, 16_384, LEN - 1];
    let layout = single(AdamW::default(), LEN as u64);
    let bf16 = Options { params: Format::Bf16, states: Format::Bf16, ..Options::default() };
    let ema = Some(Ema { decay: 0.5, debias: false });
    for options in [Options { ema, ..Options::default() }, Options { ema, ..bf16 }] {
        let run = |bad: &[usize]| {
            let mut optimizer = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
            let mut random = Random::new(8);
            let mut values = random.values(LEN);
            let codes = |x: &[f32]| x.iter().map(|&x| options.params.encode(x)).collect::<Vec<_>>();
            let mut params = codes(&values);
            values = random.values(LEN);
            bad.iter().for_each(|&i| values[i] = f32::NAN);
            let mut grads: Vec<u32> = values.iter().map(|x| x.to_bits()).collect();
            step(&mut optimizer, [&mut params, &mut grads], Form::Flat, Step::from(0.1));
            let slots = ["exp_avg", "exp_avg_sq", "ema", "master"];
            let slots = slots.map(|slot| cpu_slot(&optimizer, slot).unwrap_or_default());
            [vec![params], slots.to_vec()].concat()
        };
        for (got, want) in run(&BAD).iter().zip(run(&[])) {
            let differ: Vec<usize> = (0..want.len()).filter(|&i| got[i] != want[i]).collect();
            assert!(want.is_empty() || differ == BAD, "{options:?}: {differ:?}");
        }
    }
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

macro_rules! checked {
    ($($rule:ty),*) => { $(for (name, rule) in <$rule>::cases() {
        check_cpu(&many(rule), 41, 3, name);
    })* };
}

/// Every rule is within its budget of the reference, wherever this runs.
#[test]
fn every_rule_is_within_its_budget() {
    for_each_rule!(checked);
}

/// The same bits on every processor: a digest of a run of few operations that a compiler could have fused, reordered or approximated.
#[test]
fn every_processor_has_the_same_bits() {
    /// Another only where the engine's arithmetic has been changed on purpose.
    const DIGEST: u64 = 0xba43_c821_aaf4_6126;
    let layout = many(AdamW { weight_decay: 0.1, ..AdamW::default() });
    let mut digest = 0xcbf2_9ce4_8422_2325u64;
    for options in variants() {
        // What a NaN carries may differ.
        let end = end(&layout, Options { skip_nonfinite: true, ..options }, Form::Flat);
        let slots = end.slots.into_iter().flatten().flatten();
        // FNV-1a, of words.
        for word in end.params.into_iter().chain(slots) {
            digest = (digest ^ u64::from(word)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    assert_eq!(digest, DIGEST, "{digest:#x}");
}
