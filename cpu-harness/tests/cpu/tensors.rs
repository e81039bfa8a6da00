//! Tensors in host memory: their slices, their state, and those that are refused.

use cpu_harness::{Random, assert_same_bits, cpu_snapshot, single};
use wgpu_optim::{
    AdamW, BindError, Clip, Format, Group, Layout, Master, Options, OptionsError, Sgd, StateError, StepError,
    cpu,
};

/// State of small tensors has 4 bytes per element, state of the others has the options' format, and no tensor
/// has both.
#[test]
fn small_tensors_stay_f32() {
    let tensors = [("a", 100u64), ("b", 10), ("c", 33), ("d", 5)];
    let group =
        tensors.iter().fold(Group::new("g", AdamW::default()), |g, (name, len)| g.tensor(*name, [*len]));
    let layout = Layout::packed([group]).unwrap();
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

/// State beyond the memory is refused before anything of that size is planned: the plan of so many elements
/// would have 25 GB.
#[test]
fn too_little_memory() {
    let error = cpu::Optimizer::new(single(AdamW::default(), 1 << 42)).unwrap_err();
    assert_eq!(error, OptionsError::Memory { bytes: 4 << 42 });
    // Without state there is no memory for the plan.
    let error = cpu::Optimizer::new(single(Sgd::default(), 1 << 52)).unwrap_err();
    assert!(matches!(error, OptionsError::Memory { .. }), "{error}");
}

#[test]
fn bad_tensors() {
    let layout =
        Layout::packed([Group::new("g", AdamW::default()).tensor("a", [3]).tensor("b", [2])]).unwrap();
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
    let bind = StepError::Bind;
    let g = [1.0f32; 5];
    let error = refused(each(of("a", &mut a, &g[..2]), of("b", &mut b, &g[..2])));
    assert_eq!(
        error,
        bind(BindError::Length { what: "gradients of tensor \"a\"".into(), found: 2, expected: 3 })
    );
    let error = refused(each(of("a", &mut b, &g[..3]), of("b", &mut a, &g[..2])));
    assert_eq!(
        error,
        bind(BindError::Length { what: "parameters of tensor \"a\"".into(), found: 2, expected: 3 })
    );
    let error = refused(each(of("a", &mut [], &g[..3]), of("b", &mut b, &g[..2])));
    assert_eq!(
        error,
        bind(BindError::Length { what: "parameters of tensor \"a\"".into(), found: 0, expected: 3 })
    );
    let error = refused(each(of("a", &mut a, &g[..3]), of("c", &mut b, &g[..2])));
    assert_eq!(error, bind(BindError::UnknownTensor { tensor: "c".into() }));
    let error = refused(each(of("a", &mut a, &g[..3]), of("a", &mut all[..3], &g[..3])));
    assert_eq!(error, bind(BindError::DuplicateTensor { tensor: "a".into() }));
    let error = refused(cpu::Tensors::each([of("b", &mut b, &g[..2])]));
    assert_eq!(error, bind(BindError::TensorCount { found: 1, expected: 2 }));
    let three = [of("a", &mut a, &g[..3]), of("b", &mut b, &g[..2]), of("b", &mut all[..2], &g[..2])];
    assert_eq!(refused(cpu::Tensors::each(three)), bind(BindError::TensorCount { found: 3, expected: 2 }));
    let none: [(&str, &mut [f32], &[f32]); 0] = [];
    assert_eq!(refused(cpu::Tensors::each(none)), bind(BindError::TensorCount { found: 0, expected: 2 }));
    let error = refused(cpu::Tensors::flat(&mut [0f32; 0], &[0f32; 0]));
    assert_eq!(error, bind(BindError::TooShort { what: "parameters", found: 0, bound: 5 }));
    let error = refused(cpu::Tensors::flat(&mut [0u16; 5], &g));
    assert!(
        matches!(error, StepError::Bind(BindError::Format { field: "params", format: "u16", .. })),
        "{error}"
    );
    let error = refused(cpu::Tensors::flat(&mut all, &[0u16; 5]));
    assert!(
        matches!(error, StepError::Bind(BindError::Format { field: "grads", format: "u16", .. })),
        "{error}"
    );
    assert_eq!((optimizer.steps(), a, b, all), (0, [1.0; 3], [1.0; 2], [1.0; 5]));
    let error = writing.step(cpu::Tensors::flat(&mut all, &g), 0.1).unwrap_err();
    assert!(matches!(error, StepError::Bind(BindError::ReadOnly)), "{error}");
    let error = writing.state("momentum_buffer", "a").unwrap_err();
    assert_eq!(error, StateError::UnknownSlot { tensor: "a".into(), slot: "momentum_buffer".into() });
    let refused = Options { clip: Some(Clip::Value(-1.0)), ..Options::default() };
    assert!(matches!(
        cpu::Optimizer::with_options(layout, refused),
        Err(OptionsError::Field { field: "clip.value", .. })
    ));
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

/// The largest state of a user-defined rule.
mod slots {
    use cpu_harness::single;
    use wgpu_optim::float::Float;
    use wgpu_optim::{CpuRule, OptionsError, Rule, RuleError, cpu, fields};

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
        fn validate(&self) -> Result<(), RuleError> {
            Ok(())
        }
        fn scalars(&self, lr: f64, _: u64, _: &mut f64) -> NineScalars<f64> {
            NineScalars { lr }
        }
    }

    impl CpuRule for Nine {
        const MAX_ULPS: f64 = 1.0;
        fn update<T: Float>(s: &NineScalars<T>, p: &mut T, g: T, _: &mut NineState<T>) {
            *p = *p - s.lr * g;
        }
    }

    fields! {
        /// State of [`Spills`].
        struct SpillsState { sum }
    }

    /// A rule that writes to a slot it does not keep.
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Spills;

    impl Rule for Spills {
        const NAME: &'static str = "spills";
        const DEFAULT_LR: f64 = 1.0;
        const WGSL: &'static str = "";
        type Scalars<T: Float> = NineScalars<T>;
        type State<T: Float> = SpillsState<T>;
        fn validate(&self) -> Result<(), RuleError> {
            Ok(())
        }
        fn keeps_slot(&self, _: usize) -> bool {
            false
        }
        fn scalars(&self, lr: f64, _: u64, _: &mut f64) -> NineScalars<f64> {
            NineScalars { lr }
        }
    }

    impl CpuRule for Spills {
        const MAX_ULPS: f64 = 1.0;
        fn update<T: Float>(s: &NineScalars<T>, p: &mut T, g: T, state: &mut SpillsState<T>) {
            state.sum = state.sum + g;
            *p = *p - s.lr * state.sum;
        }
    }

    /// An update reads zero from a slot that is not kept, whatever it has written there for other elements.
    #[test]
    fn dropped_values_are_not_read() {
        for len in [1, 31, 32, 33, 1_000, 40_000] {
            for baseline in [true, false] {
                let mut optimizer = cpu::Optimizer::new(single(Spills, len)).unwrap();
                if baseline {
                    optimizer = optimizer.baseline_instructions();
                }
                let (mut p, mut g) = (vec![0.0; len as usize], vec![1.0; len as usize]);
                optimizer.step(cpu::Tensors::flat(&mut p, &mut g), 1.0).unwrap();
                optimizer.step(cpu::Tensors::flat(&mut p, &mut g), 1.0).unwrap();
                assert_eq!(p.iter().position(|&p| p != -2.0), None, "{len} {baseline}");
            }
        }
    }

    #[test]
    fn too_many() {
        let error = cpu::Optimizer::new(single(Nine, 1)).unwrap_err();
        assert_eq!(error, OptionsError::Rule(RuleError::TooManySlots { rule: "nine", slots: 9, bound: 8 }));
    }
}
