//! A rule does not know of the others: bits and dispatches.

use super::{Run, assert_has, only, ways, with_gaps, zoo};
use crate::common::{Random, cases_of, lr};
use crate::formats::SEED;
use cpu_harness::all;
use harness::{Gpu, GpuRun};
use proptest::prelude::*;
use wgpu_optim::{AnyRule, Clip, Format, Group, Layout, Master, Options, Rounding};

/// The random choices of a layout.
#[derive(Clone, Debug)]
struct Shape {
    /// The rule of each group, and the case of the rule.
    groups: Vec<(usize, usize)>,
    /// `(gap before it, length, group)` of each tensor.
    tensors: Vec<(u64, u64, usize)>,
    /// Whether tensors start wherever the one before them ends.
    packed: bool,
    seed: u64,
}

fn shapes() -> impl Strategy<Value = Shape> {
    let groups = prop::collection::vec((0..AnyRule::NAMES.len(), any::<usize>()), 2..=5);
    let gap = prop_oneof![3 => Just(0u64), 1 => 1u64..9];
    let len = prop_oneof![4 => 1u64..10, 3 => 1u64..70, 1 => 250u64..1_500];
    let tensors = prop::collection::vec((gap, len, any::<usize>()), 5..=16);
    (groups, tensors, any::<bool>(), any::<u64>()).prop_map(|(groups, tensors, packed, seed)| Shape {
        groups,
        tensors,
        packed,
        seed,
    })
}

fn layout(shape: &Shape) -> Layout {
    let mut groups: Vec<_> = (shape.groups.iter().enumerate())
        .map(|(g, &(rule, case))| {
            let cases = cases_of(AnyRule::NAMES[rule]);
            Group::new(format!("g{g}"), cases[case % cases.len()].rule.clone())
        })
        .collect();
    let mut at = 0;
    for (i, &(gap, len, group)) in shape.tensors.iter().enumerate() {
        at += gap;
        if !shape.packed {
            at = at.next_multiple_of(4);
        }
        // Every group has a tensor.
        let group = if i < groups.len() { i } else { group % groups.len() };
        groups[group] = groups[group].clone().tensor_at(format!("t{i}"), [len], at);
        at += len;
    }
    Layout::new(groups).unwrap()
}

/// The run after steps with all of these gradients.
fn taken<'a>(mut run: Run<'a>, steps: &[Vec<f32>]) -> Run<'a> {
    for (t, grads) in steps.iter().enumerate() {
        run.step(grads, lr(t));
    }
    run
}

/// Parameters and state of every tensor are those of a run of its rule's groups alone, and gaps keep their
/// bits.
fn check(gpu: Option<&Gpu>, shape: &Shape, options: Options) {
    let mixed = layout(shape);
    let len = mixed.len() as usize;
    let mut random = Random::new(shape.seed);
    let start = random.values(len);
    let steps: Vec<_> = (0..3).map(|_| with_gaps(&mixed, &random.values(len))).collect();
    for way in ways(gpu) {
        // Single tensors of elements of 2 bytes start at even elements.
        if way.each && shape.packed && options.params != Format::F32 {
            continue;
        }
        let end = taken(way.run(&mixed, options, &start), &steps);
        let (bits, params) = (end.bits(), end.params());
        for rule in
            AnyRule::NAMES.iter().filter(|&rule| mixed.groups().iter().any(|g| g.rule().name() == *rule))
        {
            let own = only(&mixed, |group| group.rule().name() == *rule);
            let own = taken(way.run(&own, options, &start), &steps).bits();
            assert_has(&bits, &own, &format!("{rule}, {}", way.name()));
        }
        let in_gap = |i: usize| !mixed.tensors().iter().any(|tensor| tensor.range().contains(&i));
        for i in (0..len).filter(|&i| in_gap(i)) {
            assert_eq!(params[i], options.params.encode(start[i]), "element {i}, {}", way.name());
        }
    }
}

#[test]
fn rules_do_not_know_of_each_other() {
    let gpu = harness::test_gpu();
    let config = ProptestConfig {
        cases: 6,
        failure_persistence: None,
        max_shrink_iters: 20,
        ..ProptestConfig::default()
    };
    let small = Options {
        params: Format::Bf16,
        grads: Format::Bf16,
        states: Format::Q8,
        master: Master::None,
        rounding: SEED,
        f32_states_below: 20,
        ..Options::default()
    };
    proptest!(config, |(shape in shapes())| {
        check(gpu.as_ref(), &shape, Options::default());
        check(gpu.as_ref(), &shape, small);
    });
}

/// All rules at once, in tensors that share vectors and words, with all kinds of storage.
#[test]
fn all_rules_in_one_layout() {
    let gpu = harness::test_gpu();
    let groups = (0..AnyRule::NAMES.len()).map(|rule| (rule, rule)).collect::<Vec<_>>();
    let lens = [5, 33, 130, 1, 64, 7, 258].into_iter().cycle();
    let tensors = lens.take(2 * groups.len()).enumerate().map(|(i, len)| (0, len, i)).collect();
    let shape = Shape { groups, tensors, packed: true, seed: 5 };
    let bf16 =
        Options { params: Format::Bf16, grads: Format::F16, states: Format::Bf16, ..Options::default() };
    for options in [
        Options::default(),
        Options { master: Master::Remainder, rounding: SEED, ..bf16 },
        Options { states: Format::Q8, rounding: Rounding::Nearest, ..bf16 },
    ] {
        check(gpu.as_ref(), &shape, options);
    }
}

/// Each rule adds one dispatch, or three if it is layer-wise, and nothing else is dispatched more than once.
#[test]
fn a_rule_is_a_dispatch() {
    let Some(gpu) = harness::test_gpu() else { return };
    let dispatches = |rules: &[AnyRule], options| {
        let layout = zoo(rules, true);
        let run = GpuRun::new(&gpu, layout.clone(), options, &vec![0.0; layout.len() as usize]);
        run.bound.dispatches()
    };
    let rules = AnyRule::all();
    let layer_wise = |rule: &AnyRule| ["lamb", "lars"].contains(&rule.name());
    let one = rules[0];
    assert!(!layer_wise(&one));
    for (options, others) in [
        (Options::default(), 0),
        (Options { clip: Some(Clip::Value(1.0)), ..Options::default() }, 0),
        (Options { skip_nonfinite: true, ..Options::default() }, 2),
        (Options { report: true, ..Options::default() }, 2),
        (Options { clip: Some(Clip::GlobalNorm(1.0)), ..Options::default() }, 2),
        (Options { clip: Some(Clip::GroupNorm(1.0)), ..Options::default() }, 3),
        (Options { norms: true, ..Options::default() }, 3),
        (all(Clip::GlobalNorm(1.0)), 3),
        (all(Clip::GroupNorm(1.0)), 4),
    ] {
        assert_eq!(dispatches(&[one], options), 1 + others, "{options:?}");
        for k in [2, 5, rules.len()] {
            let rules = &rules[rules.len() - k..];
            let phases = 2 * rules.iter().filter(|rule| layer_wise(rule)).count();
            assert_eq!(dispatches(rules, options), k + phases + others, "{k} rules, {options:?}");
        }
    }
}
