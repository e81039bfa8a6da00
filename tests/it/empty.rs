//! Tensors without elements and groups without tensors: a step ignores them, and they change nothing else.

use crate::common::{Random, assert_same_bits, lr, single};
use cpu_harness::{CpuRun, Form};
use harness::GpuRun;
use wgpu_optim::check::Checker;
use wgpu_optim::{
    Adam, AdamW, AnyRule, BindError, Clip, Ema, Format, Group, Lamb, Layout, LayoutError, Lion, Options, Sgd,
    StateError, cpu,
};

/// Two groups with tensors, with and without what is empty beside them.
fn layouts(rule: AnyRule) -> [Layout; 2] {
    let other = if rule.name() == "lion" { AnyRule::from(Lamb::default()) } else { Lion::default().into() };
    let [a, b] = ["a", "b"].map(|name| Group::new(name, rule));
    let full = Layout::packed([
        a.clone().tensor_at("a0", [5, 7], 3).tensor("a1", [40]),
        b.clone().tensor("b0", [3]).tensor_at("b1", [2_000], 100),
    ]);
    let with = Layout::packed([
        Group::new("none", rule),
        a.tensor_at("e0", [0], 3).tensor_at("a0", [5, 7], 3).tensor("e1", [0, 4]).tensor("a1", [40]),
        // Before its tensors, inside of one, and far behind all.
        Group::new("empty", other).tensor_at("e2", [0], 0).tensor_at("e3", [7, 0], 20).tensor_at(
            "e4",
            [u64::MAX, 0, u64::MAX],
            90_000,
        ),
        b.tensor_at("b0", [3], 78).tensor("e5", [0]).tensor_at("b1", [2_000], 100).tensor("e6", [0]),
    ]);
    [full.unwrap(), with.unwrap()]
}

fn options() -> Vec<Options> {
    let around = Options {
        clip: Some(Clip::GroupNorm(1.0)),
        norms: true,
        skip_nonfinite: true,
        zero_gradients: true,
        ema: Some(Ema { decay: 0.9, debias: true }),
        ..Options::default()
    };
    let stored = Options { states: Format::Q8, f32_states_below: 10, ..Options::default() };
    vec![Options::default(), around, stored]
}

#[test]
fn nothing_depends_on_them() {
    let gpu = harness::test_gpu();
    for (rule, options) in
        AnyRule::all().into_iter().flat_map(|rule| options().into_iter().map(move |o| (rule, o)))
    {
        let [full, with] = layouts(rule);
        assert_eq!((full.len(), full.parameters()), (with.len(), with.parameters()));
        assert_eq!(full.bytes_moved(&options), with.bytes_moved(&options));
        let mut random = Random::new(3);
        let start = random.values(full.len() as usize);
        let mut want = CpuRun::new(full.clone(), options, &start);
        let forms = [Form::Flat, Form::Each { backwards: false }, Form::Each { backwards: true }];
        let mut hosts = forms.map(|form| CpuRun { form, ..CpuRun::new(with.clone(), options, &start) });
        // A kernel for each rule would take long to compile.
        let compiled = ["adamw", "sgd", "lamb"].contains(&rule.name());
        let mut devices = gpu.iter().filter(|_| compiled).flat_map(|gpu| {
            let of = |layout: &Layout| GpuRun::new(gpu, layout.clone(), options, &start);
            [of(&full), of(&with), GpuRun::each(gpu, with.clone(), options, &start)]
        });
        let mut devices: Vec<_> = devices.by_ref().collect();
        for t in 0..3 {
            let grads = random.values(full.len() as usize);
            let report = want.step(&grads, lr(t));
            for host in &mut hosts {
                assert_eq!(host.step(&grads, lr(t)), report, "{}", rule.name());
            }
            let reports: Vec<_> = devices.iter_mut().map(|run| run.step(&grads, lr(t))).collect();
            assert!(reports.windows(2).all(|pair| pair[0] == pair[1]), "{}: {reports:?}", rule.name());
        }
        for host in &hosts {
            assert_eq!(host.params(), want.params(), "{}", rule.name());
            for tensor in full.tensors() {
                for slot in full.kept_slots(tensor) {
                    assert_eq!(host.state(slot, &tensor.name), want.state(slot, &tensor.name));
                }
            }
        }
        if let [one, others @ ..] = &devices[..] {
            let want = one.snapshot();
            for other in others {
                let mut got = other.snapshot();
                // The other group's rule may have slots of its own.
                got.state.truncate(want.state.len());
                if want.state.len() == got.state.len() && full.slot_names() == with.slot_names() {
                    assert_same_bits(&got, &want, rule.name());
                }
                assert_eq!(got.params, want.params, "{}", rule.name());
            }
        }
    }
}

/// All of it empty: steps are counted, and that is all.
#[test]
fn a_layout_may_be_empty_altogether() {
    let gpu = harness::test_gpu();
    for (rule, options) in
        AnyRule::all().into_iter().flat_map(|rule| options().into_iter().map(move |o| (rule, o)))
    {
        let group = |name: &str| Group::new(name, rule);
        for layout in [vec![group("g")], vec![group("g").tensor("e", [0])]] {
            let layout = Layout::new(layout).unwrap();
            assert_eq!((layout.len(), layout.buffer_size(), layout.bytes_moved(&options)), (0, 0, 0));
            for form in [Form::Flat, Form::Each { backwards: false }] {
                let mut host = CpuRun { form, ..CpuRun::new(layout.clone(), options, &[]) };
                let report = host.step(&[], 0.1);
                assert_eq!(
                    report.map(|report| (report.grad_norm, report.finite)),
                    options.norms.then_some((0.0, true))
                );
                assert_eq!(host.optimizer.steps(), 1);
            }
            let Some(gpu) = &gpu else { continue };
            let mut run = GpuRun::new(gpu, layout.clone(), options, &[0.0; 4]);
            let report = run.again(0.1);
            assert_eq!(
                report.map(|report| (report.grad_norm, report.finite)),
                options.norms.then_some((0.0, true))
            );
            assert_eq!((run.optimizer.steps(), run.optimizer.state_bytes()), (1, 0));
        }
    }
    assert_eq!(Layout::new([]).unwrap_err(), LayoutError::Empty);
}

/// A tensor without elements has a state of no numbers, and is handed over once.
#[test]
fn their_state_is_empty() {
    let amsgrad = Adam { amsgrad: true, ..Adam::default() };
    let layout = Layout::new([
        Group::new("a", AdamW::default()).tensor("a0", [5]).tensor("e", [0, 3]),
        Group::new("b", amsgrad).tensor("f", [0]),
    ])
    .unwrap();
    for options in options() {
        let mut host = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
        for slot in ["exp_avg", "exp_avg_sq"] {
            assert!(host.read_state(slot, "e").unwrap().is_empty());
            assert_eq!(host.write_state(slot, "e", &[]), Ok(()));
            let error = host.write_state(slot, "e", &[1.0]).unwrap_err();
            assert!(matches!(error, StateError::Length { found: 1, expected: 0, .. }), "{error}");
        }
        assert!(host.read_state("max_exp_avg_sq", "f").unwrap().is_empty());
        let not_kept = host.read_state("max_exp_avg_sq", "e").unwrap_err();
        assert!(matches!(not_kept, StateError::SlotNotKept { .. }), "{not_kept}");
        let unknown = host.read_state("momentum_buffer", "e").unwrap_err();
        assert!(matches!(unknown, StateError::UnknownSlot { .. }), "{unknown}");
        // Another layout's tensors of elements are no part of it.
        let mut next = cpu::Optimizer::with_options(layout.clone(), options).unwrap();
        assert_eq!(next.take_over(&host), Ok(()));

        let (mut p, mut g) = ([0.0; 5], [1.0; 5]);
        let mut step = |each: Vec<(&str, bool)>| {
            let (mut p, mut g): (&mut [f32], &mut [f32]) = (&mut p, &mut g);
            let each = each.into_iter().map(|(name, full)| {
                let len = if full { p.len() } else { 0 };
                let (own, rest) = std::mem::take(&mut p).split_at_mut(len);
                let (own_g, rest_g) = std::mem::take(&mut g).split_at_mut(len);
                (p, g) = (rest, rest_g);
                (name, own, own_g)
            });
            let each: Vec<_> = each.collect();
            host.step(cpu::Tensors::each(each), 0.1).map(drop)
        };
        assert_eq!(step(vec![("e", false), ("a0", true), ("f", false)]), Ok(()));
        let twice = step(vec![("e", false), ("a0", true), ("e", false)]).unwrap_err();
        assert_eq!(twice, BindError::DuplicateTensor { tensor: "e".into() }.into());
        let few = step(vec![("e", false), ("a0", true)]).unwrap_err();
        assert_eq!(few, BindError::TensorCount { found: 2, expected: 3 }.into());
        let long = step(vec![("e", true), ("a0", false), ("f", false)]).unwrap_err();
        assert!(long.to_string().contains("length 5, must be 0"), "{long}");

        let Some(gpu) = harness::test_gpu() else { continue };
        let mut run = GpuRun::new(&gpu, layout.clone(), options, &[0.0; 5]);
        run.step(&[1.0; 5], 0.1);
        for slot in ["exp_avg", "exp_avg_sq"] {
            assert!(run.optimizer.state(slot, "e").unwrap().is_empty());
            assert!(run.optimizer.stored_state(slot, "e").unwrap().decode(&[]).unwrap().is_empty());
            assert_eq!(run.optimizer.write_state(&gpu.queue, slot, "e", &[]), Ok(()));
        }
        assert_eq!(run.optimizer.stored_state("max_exp_avg_sq", "f").unwrap().bytes(), 0);
        let not_kept = run.optimizer.stored_state("max_exp_avg_sq", "e").unwrap_err();
        assert!(matches!(not_kept, StateError::SlotNotKept { .. }), "{not_kept}");
        let unknown = run.optimizer.stored_state("momentum_buffer", "e").unwrap_err();
        assert!(matches!(unknown, StateError::UnknownSlot { .. }), "{unknown}");
        let mut next = wgpu_optim::Optimizer::with_options(&gpu.device, layout.clone(), options).unwrap();
        let mut encoder = gpu.encoder();
        assert_eq!(next.take_over(&gpu.queue, &mut encoder, &run.optimizer), Ok(()));
    }
}

/// The reference and the checker leave them out too.
#[test]
fn references_leave_them_out() {
    let [full, with] = layouts(AdamW::default().into());
    let len = full.len() as usize;
    let mut random = Random::new(8);
    let start: Vec<f64> = random.values(len).into_iter().map(f64::from).collect();
    let grads: Vec<f64> = random.values(len).into_iter().map(f64::from).collect();
    let end = |layout: Layout| {
        let mut params = start.clone();
        cpu::Reference::new(layout).unwrap().step(&mut params, &grads, 0.1).unwrap();
        params
    };
    assert_eq!(end(full), end(with.clone()));
    let mut run = CpuRun::new(with.clone(), Options::default(), &random.values(len));
    let (before, grads) = (run.snapshot(), random.values(len));
    run.step(&grads, 0.1);
    let deviation = Checker::new(with).step(&before, &grads, 0.1, &run.snapshot()).unwrap();
    assert!(deviation.ulps < 5.0, "{deviation}");
    // Nothing to compare.
    let empty = Layout::new([Group::new("g", Sgd::default())]).unwrap();
    let mut run = CpuRun::new(empty.clone(), Options::default(), &[]);
    let before = run.snapshot();
    run.step(&[], 0.1);
    assert!(Checker::new(empty).step(&before, &[], 0.1, &run.snapshot()).unwrap().ulps <= 0.0);
    assert_eq!(single(Sgd::default(), 0).len(), 0);
}
