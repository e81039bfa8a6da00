//! State that begins late, in a run that has taken steps: as in a new optimizer, or not at all.

use crate::common::{Saves, bytes, mismatches, on_cpu, values};
use cpu_harness::{CpuRun, cases};
use std::io::Cursor;
use wgpu_optim::checkpoint::{self, Cpu, Error, Extra, Load, Mismatch, Missing};
use wgpu_optim::{
    Adagrad, Adam, AdamW, DynRule, Ema, Format, Group, Layout, Master, Options, Sgd, StateError,
    StateMismatch,
};

const LATE: Load = Load { missing: Missing::Zero, extra: Extra::Ignore, ..STRICT };
const STRICT: Load = Load {
    missing: Missing::Error,
    extra: Extra::Error,
    formats: checkpoint::Formats::Same,
    hyperparameters: checkpoint::Differing::Error,
    options: checkpoint::Differing::Error,
};

/// A group of the rule with these tensors, of two elements each, and one with the others.
fn layout(rule: &DynRule, tensors: &[&str], own: &[&str]) -> Layout {
    let group = |name: &str, tensors: &[&str]| {
        tensors.iter().fold(Group::new(name, rule.clone()), |group, name| group.tensor(*name, [2]))
    };
    Layout::packed([group("all", tensors), group("own", own)]).unwrap()
}

fn load(run: &mut CpuRun, file: &[u8], load: &Load) -> Result<(), Error> {
    checkpoint::load_from(&mut run.engine(), Cursor::new(file), load).map(drop)
}

/// The change of the elements of tensor "new" in a step, at a gradient of 1 and a learning rate of `lr`.
fn moved(run: &mut CpuRun, lr: f64) -> f64 {
    let at = run.optimizer.layout().tensor("new").unwrap().range().start;
    let len = run.optimizer.layout().len() as usize;
    run.write_params(&vec![0.0; len]);
    run.step(&vec![1.0; len], lr);
    run.params()[at].into()
}

/// By hand: −1/√(4 + 1); −lr · m̂/√v̂ = −lr; the first velocity is the gradient itself.
#[test]
fn the_first_step_of_a_late_tensor() {
    let rules: [(DynRule, f64, u64, f64); 4] = [
        (Adagrad { initial_accumulator_value: 4.0, ..Adagrad::default() }.into(), 1.0, 1, -0.447_213_595_5),
        (Adam::default().into(), 1e-3, 1_000, -1e-3),
        (Sgd { momentum: 0.9, dampening: 0.5, ..Sgd::default() }.into(), 0.1, 5, -0.1),
        (AdamW { weight_decay: 0.0, ..AdamW::default() }.into(), 1e-3, 7, -1e-3),
    ];
    for (rule, lr, steps, want) in rules {
        let mut old = on_cpu(layout(&rule, &["a"], &[]));
        (0..steps).for_each(|_| _ = old.step(&[1.0, 1.0], lr));
        let file = old.bytes();
        // In the group that has taken the steps it is refused, by the file and by the optimizer.
        let joined = || on_cpu(layout(&rule, &["a", "new"], &[]));
        let (tensor, group) = ("new".to_owned(), "all".to_owned());
        let mut run = joined();
        let before = (run.params(), run.state(rule.spec().slots[0], "a"));
        let found = mismatches(load(&mut run, &file, &LATE));
        assert_eq!(found, [Mismatch::Age { tensor: tensor.clone(), group: group.clone(), steps }]);
        let text = found[0].to_string();
        assert!(text.contains(&format!("the {steps} steps of group \"all\"")), "{text}");
        assert!(text.ends_with("put it in a group of its own"), "{text}");
        assert_eq!((run.params(), run.state(rule.spec().slots[0], "a")), before);
        assert_eq!(run.optimizer.steps(), 0);
        let error = run.optimizer.take_over(&old.optimizer).unwrap_err();
        assert_eq!(error, StateError::Mismatches(vec![StateMismatch::Age { tensor, group, steps }]));
        // In a group of its own it starts as in a new optimizer, and so it does where nothing is left of the
        // group from before.
        for (tensors, own) in [(&["a"][..], &["new"][..]), (&["new"], &[])] {
            let new = || on_cpu(layout(&rule, tensors, own));
            let (mut loaded, mut taken) = (new(), new());
            load(&mut loaded, &file, &LATE).unwrap();
            taken.optimizer.take_over(&old.optimizer).unwrap();
            for run in [&mut loaded, &mut taken] {
                assert_eq!(run.optimizer.steps(), steps);
                let found = moved(run, lr);
                assert!((found - want).abs() <= 1e-6 * want.abs(), "{rule:?}: {found}, must be {want}");
            }
        }
    }
}

/// Without a first step of its own a tensor may join: two steps of a velocity are −lr · (1, 1 + 1.9).
#[test]
fn a_velocity_without_dampening_may_begin_late() {
    for rule in
        [Sgd { momentum: 0.9, ..Sgd::default() }, Sgd { momentum: 0.9, nesterov: true, ..Sgd::default() }]
    {
        let own: DynRule = rule.into();
        let file = on_cpu(layout(&own, &["a"], &[])).after(4).bytes();
        let mut run = on_cpu(layout(&own, &["a", "new"], &[]));
        load(&mut run, &file, &LATE).unwrap();
        let want = if rule.nesterov { [-0.19, -0.271] } else { [-0.1, -0.19] };
        for want in want {
            let found = moved(&mut run, 0.1);
            assert!((found - want).abs() <= 1e-7, "{found}, must be {want}");
        }
    }
}

/// For every option of every rule and every slot: late state is updated bit for bit as in a new optimizer, or
/// refused.
#[test]
fn nothing_begins_late_in_another_way() {
    let ema = |debias| Options { ema: Some(Ema { decay: 0.9, debias }), ..Options::default() };
    let master = Options { params: Format::Bf16, master: Master::F32, ..Options::default() };
    let mut joined = 0;
    for options in [Options::default(), ema(false), ema(true), master] {
        for case in cases() {
            let rule = &case.rule;
            let context = format!("{} {} {options:?}", rule.name(), case.name);
            let run = |tensors: &[&str], own: &[&str]| {
                let layout = layout(rule, tensors, own);
                let start = vec![0.5; layout.len() as usize];
                CpuRun::new(layout, options, &start)
            };
            for steps in [0, 1, 5] {
                let mut old = run(&["a"], &[]);
                old.steps(steps);
                let file = bytes(&mut Cpu::new(&mut old.optimizer));
                for own in [false, true] {
                    let new = || if own { run(&["a"], &["new"]) } else { run(&["a", "new"], &[]) };
                    let (mut loaded, mut taken) = (new(), new());
                    let by_file = checkpoint::load_from(
                        &mut Cpu::new(&mut loaded.optimizer),
                        Cursor::new(&file),
                        &LATE,
                    );
                    let by_optimizer = taken.optimizer.take_over(&old.optimizer);
                    assert_eq!(by_file.is_ok(), by_optimizer.is_ok(), "{context}");
                    assert!(by_file.is_ok() || steps > 0 && !own, "{context}");
                    if by_file.is_err() {
                        assert!(matches!(mismatches(by_file)[..], [Mismatch::Age { .. }]), "{context}");
                        continue;
                    }
                    joined += usize::from(steps > 0 && !own);
                    let mut alone = run(&["new"], &[]);
                    for t in 0..4 {
                        let grads = values(t, 2);
                        alone.step(&grads, 0.01);
                        for run in [&mut loaded, &mut taken] {
                            run.step(&[&values(9, 2)[..], &grads].concat(), 0.01);
                            let at = run.optimizer.layout().tensor("new").unwrap().range();
                            assert_eq!(
                                run.params()[at],
                                alone.params(),
                                "{context}, {steps} steps, then {t}"
                            );
                            for slot in rule.spec().slots.iter().chain(options.ema.map(|_| &"ema")) {
                                assert_eq!(run.state(slot, "new"), alone.state(slot, "new"), "{context}");
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(joined > 20, "{joined}");
}

/// A slot alone may be missing, of a tensor that the file has.
#[test]
fn a_slot_that_begins_late() {
    let ema = Options { ema: Some(Ema { decay: 0.9, debias: false }), ..Options::default() };
    let lenient = Load { options: checkpoint::Differing::Ignore, ..LATE };
    let new = |rule: &DynRule, options| CpuRun::new(layout(rule, &["a"], &[]), options, &[0.5; 2]);
    let (adam, sgd) = (DynRule::from(Adam::default()), DynRule::from(Sgd::default()));
    // An average that began at 0 would be far off.
    let file = new(&adam, Options::default()).after(2).bytes();
    let found = mismatches(load(&mut new(&adam, ema), &file, &lenient));
    assert!(matches!(found[..], [Mismatch::Age { steps: 2, .. }]), "{found:?}");
    // Before the first step it is no matter, nor where there is no other state: then the count starts anew.
    for (rule, steps) in [(&adam, 0), (&sgd, 2)] {
        let file = new(rule, Options::default()).after(steps).bytes();
        let mut run = new(rule, ema);
        load(&mut run, &file, &lenient).unwrap();
        run.steps(1);
        assert_eq!(run.state("ema", "a"), run.params());
    }
    // One that the file has goes on.
    let mut saved = new(&adam, ema).after(3);
    let mut run = new(&adam, ema);
    load(&mut run, &saved.bytes(), &STRICT).unwrap();
    saved.steps(2);
    run.steps(2);
    assert_eq!(run.state("ema", "a"), saved.state("ema", "a"));
}

/// Tensors without elements and groups without tensors come back as they were.
#[test]
fn what_is_empty_is_saved_and_loaded() {
    let rule = DynRule::from(Adam::default());
    let with = |shape: [u64; 2]| {
        let all = Group::new("all", rule.clone()).tensor("a", [3]).tensor("e", shape);
        Layout::packed([all, Group::new("none", rule.clone())]).unwrap()
    };
    let file = on_cpu(with([0, 4])).after(3).bytes();
    let mut run = on_cpu(with([0, 4]));
    load(&mut run, &file, &STRICT).unwrap();
    assert_eq!(run.bytes(), file);
    // With elements it is another tensor, and without it nothing is missing.
    let found = mismatches(load(&mut on_cpu(with([1, 4])), &file, &STRICT));
    let missing = |slot: &str| Mismatch::MissingSlot { slot: slot.into(), tensor: "e".into() };
    assert_eq!(found, ["exp_avg", "exp_avg_sq", "param"].map(missing));
    let full = on_cpu(with([1, 4])).after(3).bytes();
    let found = mismatches(load(&mut on_cpu(with([0, 4])), &full, &STRICT));
    assert_eq!(found.len(), 3);
    for mismatch in &found {
        let Mismatch::Shape { tensor, found, expected } = mismatch else { panic!("{mismatch}") };
        assert!(tensor.ends_with("/e") && (&found[..], &expected[..]) == (&[1, 4], &[0, 4]), "{mismatch}");
    }
    // An infinite bound is no number of JSON.
    let clip = Some(wgpu_optim::Clip::GlobalNorm(f64::INFINITY));
    let options = Options { clip, ..Options::default() };
    let file = CpuRun::new(with([0, 4]), options, &[0.5; 3]).after(1).bytes();
    load(&mut CpuRun::new(with([0, 4]), options, &[0.5; 3]), &file, &STRICT).unwrap();
}
