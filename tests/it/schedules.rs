//! Schedules: PyTorch's values, loops that do what the formulas say, and what is refused.

use crate::common::{Run, assert_same_bits, single};
use harness::Gpu;
use proptest::prelude::*;
use serde_json::Value;
use wgpu_optim::check::Snapshot;
use wgpu_optim::schedule::{Anneal, Mode, OneCycle, ReduceOnPlateau, ThresholdMode};
use wgpu_optim::{Adam, AdamW, Error, Group, Layout, Schedule, Sgd, Step, Twin, cpu, recipes, schedule};

/// PyTorch's values, and how they were made: `tests/golden/schedules.py`.
const GOLDEN: [&str; 2] =
    [include_str!("../golden/schedules.json"), include_str!("../golden/one_cycle.json")];
/// Relative to the value. PyTorch computes most schedules from step to step, in f64: some hundred steps of a few roundings.
const TOLERANCE: f64 = 1e-12;

fn lr(schedule: &Schedule, t: u64) -> f64 {
    schedule.at(t).unwrap_or_else(|error| panic!("{schedule:?} at {t}: {error}")).lr
}

/// Relative to what is wanted; 0 for equal zeros.
fn deviation(got: f64, want: f64) -> f64 {
    if got == want { 0.0 } else { (got - want).abs() / want.abs() }
}

fn numbers(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

/// The schedule that PyTorch's class and arguments describe, at base learning rate `base`.
fn from_torch(torch: &Value, base: f64) -> Schedule {
    let class = torch["class"].as_str().unwrap();
    let f = |name: &str, default: f64| torch.get(name).map_or(default, |x| x.as_f64().unwrap());
    let flag = |name: &str, default: bool| torch.get(name).map_or(default, |x| x.as_bool().unwrap());
    let n = |name: &str| torch[name].as_u64().unwrap();
    let list = |name: &str| numbers(&torch[name]).into_iter().map(|x| x as u64).collect::<Vec<_>>();
    let parts = |base| {
        let parts = torch["schedulers"].as_array().unwrap().iter();
        parts.map(move |part| from_torch(part, base))
    };
    match class {
        "ConstantLR" => Schedule::from(base * f("factor", f64::NAN)).then(n("total_iters"), base),
        "LinearLR" => schedule::linear(
            base * f("start_factor", 1.0 / 3.0),
            base * f("end_factor", 1.0),
            n("total_iters"),
        ),
        "PolynomialLR" => schedule::polynomial(base, 0.0, n("total_iters"), f("power", 1.0)),
        "ExponentialLR" => schedule::exponential(base, f("gamma", f64::NAN)),
        "StepLR" => schedule::step(base, f("gamma", 0.1), n("step_size")),
        "MultiStepLR" => {
            let mut milestones = list("milestones");
            milestones.sort_unstable();
            schedule::multi_step(base, f("gamma", 0.1), milestones)
        }
        "CosineAnnealingLR" => schedule::cosine(base, f("eta_min", 0.0), n("T_max")),
        "CosineAnnealingWarmRestarts" => {
            schedule::cosine_restarts(base, f("eta_min", 0.0), n("T_0"), n("T_mult"))
        }
        "OneCycleLR" => {
            let defaults = OneCycle::default();
            let linear = torch.get("anneal_strategy").is_some_and(|x| x == "linear");
            Schedule::from(OneCycle {
                max_lr: f("max_lr", f64::NAN),
                total_steps: n("total_steps"),
                pct_start: f("pct_start", defaults.pct_start),
                anneal: if linear { Anneal::Linear } else { Anneal::Cos },
                cycle_momentum: flag("cycle_momentum", true),
                base_momentum: f("base_momentum", defaults.base_momentum),
                max_momentum: f("max_momentum", defaults.max_momentum),
                div_factor: f("div_factor", defaults.div_factor),
                final_div_factor: f("final_div_factor", defaults.final_div_factor),
                three_phase: flag("three_phase", false),
            })
        }
        "LambdaLR" => {
            let noam = |warmup: u64| {
                schedule::inverse_sqrt(base / (n("model_size") as f64 * warmup as f64).sqrt(), warmup)
            };
            match torch["lambda"].as_str().unwrap() {
                text if text.starts_with("model_size") => noam(n("warmup")),
                // The first value twice.
                text if text.starts_with("with s = max(t, 1)") => {
                    let first = lr(&noam(n("warmup")), 0);
                    Schedule::from(first).then(1, noam(n("warmup")))
                }
                text if text.starts_with("t / warmup") => {
                    let half_periods = 2.0 * f("cycles", f64::NAN);
                    let steps = (n("total") - n("warmup")) as f64 / half_periods;
                    assert_eq!(steps.fract(), 0.0);
                    schedule::cosine(base, 0.0, steps as u64).warmup(n("warmup"))
                }
                other => panic!("{other}"),
            }
        }
        "SequentialLR" => {
            let schedules = parts(base).collect();
            Schedule::Sequence { schedules, milestones: list("milestones") }
        }
        "ChainedScheduler" => parts(1.0).fold(base.into(), Schedule::times),
        other => panic!("{other}"),
    }
}

fn golden() -> Vec<Value> {
    GOLDEN.iter().flat_map(|text| serde_json::from_str::<Vec<Value>>(text).unwrap()).collect()
}

#[test]
fn every_step_is_pytorchs() {
    for case in golden().iter().filter(|case| case.get("metric").is_none()) {
        let (name, base) = (case["name"].as_str().unwrap(), case["base_lr"].as_f64().unwrap());
        let schedule = from_torch(&case["torch"], base);
        schedule.validate().unwrap();
        let (rates, momenta) = (numbers(&case["lr"]), case.get("momentum").map(numbers));
        let mut worst = (0.0, 0);
        for (t, &want) in rates.iter().enumerate() {
            if want < 0.0 {
                // A line goes on below 0 past the end of a one-cycle; no rule takes that.
                let error = schedule.at(t as u64).unwrap_err();
                assert!(matches!(error, Error::Schedule { field: "value", .. }), "{name} at {t}: {error}");
                assert_eq!(t, rates.len() - 1, "{name}");
                continue;
            }
            let step = schedule.at(t as u64).unwrap();
            let mut found = deviation(step.lr, want);
            assert_eq!(step.momentum.is_some(), momenta.is_some(), "{name} at {t}");
            if let (Some(momentum), Some(momenta)) = (step.momentum, &momenta) {
                found = found.max(deviation(momentum, momenta[t]));
            }
            if found > worst.0 {
                worst = (found, t);
            }
            assert!(found <= TOLERANCE, "{name} at {t}: {step:?}, PyTorch {want:e}: deviation {found:e}");
        }
        println!("{name:42} {:30} worst {:.1e} at {}", case["torch"]["class"], worst.0, worst.1);
    }
}

#[test]
fn every_plateau_is_pytorchs() {
    for case in golden().iter().filter(|case| case.get("metric").is_some()) {
        let (name, torch) = (case["name"].as_str().unwrap(), &case["torch"]);
        let defaults = ReduceOnPlateau::default();
        let f = |name: &str, default: f64| torch.get(name).map_or(default, |x| x.as_f64().unwrap());
        let n = |name: &str, default: u64| torch.get(name).map_or(default, |x| x.as_u64().unwrap());
        let is = |name: &str, value: &str| torch.get(name).is_some_and(|x| x == value);
        let mut plateau = ReduceOnPlateau {
            lr: case["base_lr"].as_f64().unwrap(),
            mode: if is("mode", "max") { Mode::Max } else { Mode::Min },
            factor: f("factor", defaults.factor),
            patience: n("patience", defaults.patience),
            threshold: f("threshold", defaults.threshold),
            threshold_mode: if is("threshold_mode", "abs") {
                ThresholdMode::Absolute
            } else {
                ThresholdMode::Relative
            },
            cooldown: n("cooldown", defaults.cooldown),
            min_lr: f("min_lr", defaults.min_lr),
            eps: f("eps", defaults.eps),
            ..defaults
        };
        let rates = numbers(&case["lr"]);
        assert_eq!(plateau.lr, rates[0]);
        for (t, (&metric, want)) in numbers(&case["metric"]).iter().zip(&rates[1..]).enumerate() {
            // The same products in the same order.
            assert_eq!(plateau.observe(metric).unwrap(), *want, "{name} after metric {t}");
        }
    }
}

/// What PyTorch's own recursion and 1 + cos lose near zero is not in its recorded values: against 40 digits, far into a
/// long fall.
#[test]
fn small_values_keep_their_digits() {
    let million = 1_000_000;
    let cases = [
        (schedule::cosine(1.0, 0.0, million), million - 1, LAST_OF_A_MILLION),
        (schedule::linear(1.0, 0.0, million), million - 1, 1e-6),
        (schedule::polynomial(1.0, 0.0, million, 2.0), million - 1, 1e-12),
        (schedule::polynomial(0.0, 1.0, million, 2.0), 1, 1.999999e-6),
        (schedule::cosine(0.0, 1.0, million), 1, LAST_OF_A_MILLION),
    ];
    for (schedule, t, want) in cases {
        let found = deviation(lr(&schedule, t), want);
        assert!(found <= 1e-15, "{schedule:?}: {found:e}");
    }
}

/// sin²(π / 2 / 10⁶).
const LAST_OF_A_MILLION: f64 = 2.467_401_100_270_310_3e-12;

/// A simple kind with plain numbers, and how many steps it takes to its end.
fn simple() -> impl Strategy<Value = (Schedule, u64)> {
    let (rate, steps) = (0.0..10.0, 1..300u64);
    let plain = (rate.clone(), rate.clone(), steps.clone(), 0.1..5.0);
    prop_oneof![
        rate.prop_map(|value: f64| (value.into(), 1)),
        plain.clone().prop_map(|(start, end, steps, _)| (schedule::linear(start, end, steps), steps)),
        plain
            .clone()
            .prop_map(|(start, end, steps, power)| (schedule::polynomial(start, end, steps, power), steps)),
        plain.clone().prop_map(|(start, end, steps, _)| (schedule::cosine(start, end, steps), steps)),
        plain
            .clone()
            .prop_map(|(start, _, every, gamma)| (schedule::step(start, gamma.min(1.0), every), every)),
        plain.clone().prop_map(|(start, _, steps, gamma)| {
            (schedule::multi_step(start, gamma.min(1.0), [steps, steps, 2 * steps]), 2 * steps)
        }),
        plain.clone().prop_map(|(start, _, _, gamma)| (schedule::exponential(start, gamma.min(1.0)), 1)),
        plain.clone().prop_map(|(peak, _, warmup, _)| (schedule::inverse_sqrt(peak, warmup), warmup)),
        (plain, 1..5u64).prop_map(|((start, end, period, _), factor)| {
            (schedule::cosine_restarts(start, end, period, factor), period)
        }),
        one_cycle().prop_map(|cycle| (cycle.into(), cycle.total_steps)),
    ]
}

fn one_cycle() -> impl Strategy<Value = OneCycle> {
    let shape = (0.0..=1.0, prop_oneof![Just(Anneal::Cos), Just(Anneal::Linear)], any::<bool>());
    (1e-3..10.0, 1..300u64, shape, any::<bool>(), 1.0..100.0, 1.0..1e5).prop_map(
        |(
            max_lr,
            total_steps,
            (pct_start, anneal, three_phase),
            cycle_momentum,
            div_factor,
            final_div_factor,
        )| {
            OneCycle {
                max_lr,
                total_steps,
                pct_start,
                anneal,
                three_phase,
                cycle_momentum,
                div_factor,
                final_div_factor,
                ..OneCycle::default()
            }
        },
    )
}

/// Any kind that can be saved, in any combination.
#[cfg(feature = "serde")]
fn any_schedule() -> impl Strategy<Value = Schedule> {
    simple().prop_map(|(schedule, _)| schedule).prop_recursive(3, 12, 3, |inner| {
        prop_oneof![
            (inner.clone(), 0..50u64).prop_map(|(schedule, steps)| schedule.warmup(steps)),
            (inner.clone(), inner.clone(), 1..100u64).prop_map(|(a, b, milestone)| a.then(milestone, b)),
            (inner.clone(), inner.clone()).prop_map(|(a, b)| a.times(b)),
            (inner.clone(), inner).prop_map(|(a, b)| a.with_momentum(b)),
        ]
    })
}

/// Puts `bad` where the schedule has a number.
fn spoil(schedule: Schedule, bad: f64) -> Schedule {
    match schedule {
        Schedule::Constant(_) => bad.into(),
        Schedule::Linear { start, steps, .. } => schedule::linear(start, bad, steps),
        Schedule::Polynomial { start, end, steps, .. } => schedule::polynomial(start, end, steps, bad),
        Schedule::Exponential { start, .. } => schedule::exponential(start, bad),
        Schedule::Step { start, every, .. } => schedule::step(start, bad, every),
        Schedule::MultiStep { start, milestones, .. } => schedule::multi_step(start, bad, milestones),
        Schedule::InverseSqrt { warmup, .. } => schedule::inverse_sqrt(bad, warmup),
        Schedule::Cosine { end, steps, .. } => schedule::cosine(bad, end, steps),
        Schedule::CosineRestarts { start, period, period_factor, .. } => {
            schedule::cosine_restarts(start, bad, period, period_factor)
        }
        Schedule::OneCycle(cycle) => OneCycle { div_factor: bad, ..cycle }.into(),
        other => panic!("{other:?} is not simple"),
    }
}

/// Rises, or falls, but for roundings: between the ends a value may be off by an ulp or two.
fn monotone(values: &[f64], rises: bool) -> bool {
    values.windows(2).all(|pair| {
        let (low, high) = if rises { (pair[0], pair[1]) } else { (pair[1], pair[0]) };
        low <= high * (1.0 + 4.0 * f64::EPSILON)
    })
}

fn values(schedule: &Schedule, steps: impl Iterator<Item = u64>) -> Vec<f64> {
    steps.map(|t| lr(schedule, t)).collect()
}

proptest! {
    /// `T_c += 1; if T_c ≥ T_i { T_c −= T_i; T_i *= T_mult }`.
    #[test]
    fn restarts_are_a_loop(start in 0.0..1.0, end in 0.0..1.0, period in 1..40u64, factor in 1..5u64) {
        let restarts = schedule::cosine_restarts(start, end, period, factor);
        let (mut current, mut length) = (0, period);
        for t in 0..500 {
            let cosine = (std::f64::consts::PI * current as f64 / length as f64).cos();
            let want = end + 0.5 * (start - end) * (1.0 + cosine);
            prop_assert!((lr(&restarts, t) - want).abs() <= 1e-15, "t = {t}");
            current += 1;
            if current >= length {
                current -= length;
                length *= factor;
            }
        }
    }

    /// Step by step: what changes multiplies the value before.
    #[test]
    fn powers_are_loops(
        start in 0.0..1.0, gamma in 0.0..1.0, every in 1..20u64,
        mut milestones in prop::collection::vec(0..200u64, 0..6),
    ) {
        milestones.sort_unstable();
        let (exponential, step) = (schedule::exponential(start, gamma), schedule::step(start, gamma, every));
        let multi_step = schedule::multi_step(start, gamma, milestones.clone());
        let close = |got: f64, want: f64| (got - want).abs() <= 1e-13 * want + f64::MIN_POSITIVE;
        let [mut e, mut s, mut m] = [start; 3];
        for t in 0..200 {
            if t > 0 {
                e *= gamma;
                s *= if t % every == 0 { gamma } else { 1.0 };
            }
            milestones.iter().filter(|&&milestone| milestone == t).for_each(|_| m *= gamma);
            prop_assert!(close(lr(&exponential, t), e), "t = {t}");
            prop_assert!(close(lr(&step, t), s), "t = {t}");
            prop_assert!(close(lr(&multi_step, t), m), "t = {t}");
        }
    }

    #[test]
    fn combinations_are_what_they_say(
        parts in prop::collection::vec((simple(), 1..50u64), 1..5),
        warmup in 0..30u64,
    ) {
        let (mut sequence, mut milestone) = (parts[0].0.0.clone(), 0);
        for pair in parts.windows(2) {
            milestone += pair[0].1;
            sequence = sequence.then(milestone, pair[1].0.0.clone());
        }
        let product =
            parts.iter().fold(Schedule::Product(vec![]), |all, ((part, _), _)| all.times(part.clone()));
        let warm = sequence.clone().warmup(warmup);
        let mut t = 0;
        for ((part, _), length) in &parts {
            for own in 0..*length {
                let (got, want) = (sequence.at(t), part.at(own));
                prop_assert_eq!(&got, &want);
                prop_assert_eq!(warm.at(warmup + t), want);
                let factors: Result<Vec<_>, _> = parts.iter().map(|((part, _), _)| part.at(t)).collect();
                match (product.at(t), factors) {
                    (Ok(step), Ok(factors)) => {
                        prop_assert_eq!(step.lr, factors.iter().map(|step| step.lr).product::<f64>());
                        prop_assert_eq!(step.momentum, factors.iter().find_map(|step| step.momentum));
                    }
                    (got, want) => prop_assert_eq!(got.is_err(), want.is_err()),
                }
                t += 1;
            }
        }
        for t in 0..warmup {
            prop_assert_eq!(warm.at(t)?.lr, sequence.at(0)?.lr * (t as f64 / warmup as f64));
        }
    }

    #[test]
    fn falls_and_rises_are_monotone_between_exact_ends(
        start in 0.0..1.0, end in 0.0..1.0, steps in 1..2_000u64, power in 0.1..5.0,
    ) {
        let cosine = schedule::cosine(start, end, steps);
        let linear = schedule::linear(start, end, steps);
        for schedule in [linear, schedule::polynomial(start, end, steps, power), cosine.clone()] {
            let values = values(&schedule, 0..=steps);
            prop_assert_eq!((values[0], values[steps as usize]), (start, end));
            prop_assert!(monotone(&values, end > start), "{:?}", schedule);
            prop_assert!(values.iter().all(|&x| (start.min(end)..=start.max(end)).contains(&x)));
            if schedule != cosine {
                prop_assert_eq!((lr(&schedule, steps + 1), lr(&schedule, u64::MAX)), (end, end));
            }
        }
        // There and back again.
        for t in 0..=steps {
            prop_assert_eq!(lr(&cosine, steps + t), lr(&cosine, steps - t));
            prop_assert_eq!(lr(&cosine, 2 * steps + t), lr(&cosine, t));
        }
        let warm = schedule::cosine(start, end, 10).warmup(steps);
        let rise = values(&warm, 0..=steps);
        prop_assert_eq!((rise[0], rise[steps as usize]), (0.0, start));
        prop_assert!(monotone(&rise, true));
    }

    #[test]
    fn a_cycle_rises_and_falls(cycle in one_cycle()) {
        let schedule = Schedule::from(cycle);
        let steps: Vec<_> = (0..cycle.total_steps).map(|t| schedule.at(t).unwrap()).collect();
        let rates: Vec<_> = steps.iter().map(|step| step.lr).collect();
        let peak = cycle.pct_start * cycle.total_steps as f64 - 1.0;
        let rise = if peak < 0.0 { 0 } else { rates.len().min(peak.floor() as usize + 1) };
        prop_assert!(monotone(&rates[..rise], true) && monotone(&rates[rise..], false), "{:?}", rates);
        let initial = cycle.max_lr / cycle.div_factor;
        let min = initial / cycle.final_div_factor;
        prop_assert!(rates.iter().all(|x| (min * (1.0 - 1e-15)..=cycle.max_lr).contains(x)), "{:?}", rates);
        if peak > 0.0 {
            prop_assert_eq!(rates[0], initial);
        }
        for step in &steps {
            prop_assert_eq!(step.momentum.is_some(), cycle.cycle_momentum);
            prop_assert!(step.momentum.is_none_or(|m| (0.85..=0.95).contains(&m)), "{:?}", step);
        }
    }

    /// What `validate` lets pass has a value at every step, and what it refuses is refused where it is used.
    #[test]
    fn validation_agrees_with_use(
        (good, _) in simple(),
        bad in prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(-f64::MIN_POSITIVE)],
        t in any::<u64>(),
    ) {
        prop_assert_eq!(good.validate(), Ok(()));
        match good.at(t) {
            Ok(step) => prop_assert!(step.lr.is_finite() && step.lr >= 0.0),
            Err(Error::PastEnd { .. } | Error::Schedule { field: "value", .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
        let bad = spoil(good.clone(), bad);
        prop_assert_eq!(bad.at(0).unwrap_err().to_string(), bad.validate().unwrap_err().to_string());
        let (product, driven) = (good.clone().times(bad.clone()), good.with_momentum(bad.clone()));
        for outer in [bad.clone().warmup(3), product, bad.clone().then(9, 1.0), driven] {
            prop_assert_eq!(outer.validate().unwrap_err().to_string(), bad.validate().unwrap_err().to_string());
            prop_assert!(outer.at(0).is_err());
        }
    }
}

#[cfg(feature = "serde")]
proptest! {
    #[test]
    fn saved_and_read_back_it_is_the_same(schedule in any_schedule()) {
        let json = serde_json::to_string(&schedule).unwrap();
        prop_assert!(json.starts_with(&format!("{{\"{}\":", schedule.name())), "{json}");
        prop_assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule);
    }

    #[test]
    fn a_plateau_goes_on_where_it_was_saved(metrics in prop::collection::vec(0.0..1.0, 1..60), at in 0..60usize) {
        let mut plateau = ReduceOnPlateau { patience: 1, cooldown: 2, ..ReduceOnPlateau::default() };
        let mut resumed = plateau;
        for (i, &metric) in metrics.iter().enumerate() {
            if i == at {
                resumed = serde_json::from_str(&serde_json::to_string(&resumed).unwrap()).unwrap();
            }
            prop_assert_eq!(plateau.observe(metric), resumed.observe(metric));
        }
    }
}

#[cfg(feature = "serde")]
#[test]
fn json_is_refused_by_name() {
    let refused = |json: &str, words: &[&str]| {
        let error = serde_json::from_str::<Schedule>(json).unwrap_err().to_string();
        assert!(words.iter().all(|word| error.contains(word)), "{json}: {error}");
    };
    refused(r#"{"sine": 1}"#, &["sine", "cosine"]);
    refused(r#"{"linear": {"start": 1, "end": 0, "steps": 9, "stop": 1}}"#, &["`stop`", "`steps`"]);
    refused(r#"{"linear": {"start": 1, "steps": 9}}"#, &["missing field `end`"]);
    refused(r#"{"one_cycle": {"max_lr": 1, "total_steps": 9, "pct": 1}}"#, &["`pct`", "`pct_start`"]);
    refused(r#"{"linear": {"start": 1, "end": 0, "steps": -9}}"#, &["-9", "u64"]);
    refused(r#"{"linear": {"start": null, "end": 0, "steps": 9}}"#, &["null", "f64"]);
    refused(r#"{"custom": {}}"#, &["custom"]);
    // What has no default is refused by the schedule itself.
    let cycle: Schedule = serde_json::from_str(r#"{"one_cycle": {"max_lr": 1}}"#).unwrap();
    assert_eq!(cycle.validate().unwrap_err().to_string(), "one_cycle: total_steps = 0, must be at least 1");
    // A closure cannot be saved.
    let error = serde_json::to_string(&Schedule::from(|_: u64| 1.0).times(0.5)).unwrap_err().to_string();
    assert!(error.contains("Custom"), "{error}");
}

#[test]
fn bad_fields_are_named() {
    let refused = |schedule: Schedule, text: &str| {
        assert_eq!(schedule.validate().unwrap_err().to_string(), text);
        assert_eq!(schedule.at(0).unwrap_err().to_string(), text);
    };
    refused((-1.0).into(), "constant: value = -1, must be finite and at least 0");
    for bad in [f64::NAN, f64::INFINITY, -0.5] {
        let finite = format!("= {bad}, must be finite and at least 0");
        refused(schedule::linear(bad, 0.0, 9), &format!("linear: start {finite}"));
        refused(schedule::linear(1.0, bad, 9), &format!("linear: end {finite}"));
        refused(schedule::polynomial(bad, 0.0, 9, 1.0), &format!("polynomial: start {finite}"));
        refused(schedule::polynomial(1.0, bad, 9, 1.0), &format!("polynomial: end {finite}"));
        refused(schedule::exponential(bad, 0.9), &format!("exponential: start {finite}"));
        refused(schedule::exponential(1.0, bad), &format!("exponential: gamma {finite}"));
        refused(schedule::step(bad, 0.1, 9), &format!("step: start {finite}"));
        refused(schedule::step(1.0, bad, 9), &format!("step: gamma {finite}"));
        refused(schedule::multi_step(bad, 0.1, []), &format!("multi_step: start {finite}"));
        refused(schedule::multi_step(1.0, bad, []), &format!("multi_step: gamma {finite}"));
        refused(schedule::inverse_sqrt(bad, 9), &format!("inverse_sqrt: peak {finite}"));
        refused(schedule::cosine(bad, 0.0, 9), &format!("cosine: start {finite}"));
        refused(schedule::cosine(1.0, bad, 9), &format!("cosine: end {finite}"));
        refused(schedule::cosine_restarts(bad, 0.0, 9, 1), &format!("cosine_restarts: start {finite}"));
        refused(schedule::cosine_restarts(1.0, bad, 9, 1), &format!("cosine_restarts: end {finite}"));
    }
    refused(schedule::linear(1.0, 0.0, 0), "linear: steps = 0, must be at least 1");
    refused(schedule::polynomial(1.0, 0.0, 0, 1.0), "polynomial: steps = 0, must be at least 1");
    refused(schedule::polynomial(1.0, 0.0, 9, 0.0), "polynomial: power = 0, must be finite and above 0");
    refused(schedule::step(1.0, 0.1, 0), "step: every = 0, must be at least 1");
    refused(schedule::inverse_sqrt(1.0, 0), "inverse_sqrt: warmup = 0, must be at least 1");
    refused(schedule::cosine(1.0, 0.0, 0), "cosine: steps = 0, must be at least 1");
    refused(schedule::cosine_restarts(1.0, 0.0, 0, 1), "cosine_restarts: period = 0, must be at least 1");
    refused(
        schedule::cosine_restarts(1.0, 0.0, 9, 0),
        "cosine_restarts: period_factor = 0, must be at least 1",
    );
    refused(
        schedule::multi_step(1.0, 0.1, [5, 9, 8]),
        "multi_step: milestones = 8, must be in ascending order",
    );
    let ascending = "must be at least 1 and in strictly ascending order";
    refused(Schedule::from(1.0).then(0, 2.0), &format!("sequence: milestones = 0, {ascending}"));
    refused(Schedule::from(1.0).then(9, 2.0).then(9, 3.0), &format!("sequence: milestones = 9, {ascending}"));
    refused(
        Schedule::Sequence { schedules: vec![], milestones: vec![] },
        "sequence: number of milestones = 0, must be one fewer than schedules",
    );

    let good = OneCycle { max_lr: 0.1, total_steps: 10, ..OneCycle::default() };
    assert_eq!(Schedule::from(good).validate(), Ok(()));
    refused(OneCycle { max_lr: 0.0, ..good }.into(), "one_cycle: max_lr = 0, must be finite and above 0");
    refused(OneCycle { total_steps: 0, ..good }.into(), "one_cycle: total_steps = 0, must be at least 1");
    refused(OneCycle { pct_start: 1.5, ..good }.into(), "one_cycle: pct_start = 1.5, must be in [0, 1]");
    refused(OneCycle { pct_start: f64::NAN, ..good }.into(), "one_cycle: pct_start = NaN, must be in [0, 1]");
    let above = "must be finite and above 0";
    refused(OneCycle { div_factor: 0.0, ..good }.into(), &format!("one_cycle: div_factor = 0, {above}"));
    refused(
        OneCycle { final_div_factor: -1.0, ..good }.into(),
        &format!("one_cycle: final_div_factor = -1, {above}"),
    );
    let finite = "must be finite and at least 0";
    refused(
        OneCycle { base_momentum: -1.0, ..good }.into(),
        &format!("one_cycle: base_momentum = -1, {finite}"),
    );
    refused(
        OneCycle { max_momentum: f64::NAN, ..good }.into(),
        &format!("one_cycle: max_momentum = NaN, {finite}"),
    );
}

/// What only a step shows.
#[test]
fn bad_values_and_steps_are_named() {
    let cycle = schedule::one_cycle(0.1, 10);
    assert!(cycle.at(10).is_ok());
    let error = cycle.at(11).unwrap_err();
    assert_eq!(error, Error::PastEnd { schedule: "one_cycle", step: 11, bound: 10 });
    assert_eq!(error.to_string(), "one_cycle: step 11, must be at most 10");
    // The step is the cycle's own.
    let later = schedule::one_cycle(0.1, 10).warmup(5);
    assert_eq!(later.at(16), Err(error));

    let out_of_range = |schedule: Schedule, t, name| {
        assert_eq!(schedule.validate(), Ok(()));
        let error = schedule.at(t).unwrap_err();
        assert!(
            matches!(error, Error::Schedule { schedule, field: "value", .. } if schedule == name),
            "{error}"
        );
    };
    out_of_range((|_: u64| f64::NAN).into(), 0, "custom");
    out_of_range(Schedule::from(1.0).times(|t: u64| 1.0 - t as f64), 2, "custom");
    out_of_range(schedule::exponential(1.0, 10.0), 309, "exponential");
    out_of_range(Schedule::from(1e200).times(1e200), 0, "product");
    out_of_range(
        OneCycle { max_lr: 1.0, total_steps: 5, anneal: Anneal::Linear, ..OneCycle::default() }.into(),
        5,
        "one_cycle",
    );
}

/// Phases of length 0, where PyTorch divides by zero, are at their end.
#[test]
fn phases_without_length_are_over() {
    let cycle = OneCycle { max_lr: 1.0, total_steps: 10, ..OneCycle::default() };
    let first = Schedule::from(OneCycle { pct_start: 0.1, ..cycle });
    assert_eq!(first.at(0).unwrap(), Step::from(1.0).with_momentum(0.85));
    let last = Schedule::from(OneCycle { pct_start: 1.0, ..cycle });
    assert_eq!(lr(&last, 9), 1.0);
    assert_eq!(lr(&last, 10), 1.0 / 25.0 / 1e4);
    let single = Schedule::from(OneCycle { total_steps: 1, ..cycle });
    assert_eq!(lr(&single, 0), 1.0 / 25.0 / 1e4);
}

#[test]
fn metrics_that_are_no_numbers_are_no_progress() {
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for mode in [Mode::Min, Mode::Max] {
            let mut plateau = ReduceOnPlateau { mode, patience: 1, ..ReduceOnPlateau::default() };
            plateau.observe(bad).unwrap();
            assert_eq!((plateau.best, plateau.num_bad_epochs), (None, 1));
            plateau.observe(0.5).unwrap();
            assert_eq!((plateau.best, plateau.num_bad_epochs), (Some(0.5), 0));
            plateau.observe(bad).unwrap();
            assert_eq!(plateau.observe(bad), Ok(1e-3 * 0.1));
            assert_eq!(plateau.best, Some(0.5));
        }
    }
    let plateau = ReduceOnPlateau::default();
    for (mut bad, field) in [
        (ReduceOnPlateau { lr: f64::NAN, ..plateau }, "lr"),
        (ReduceOnPlateau { factor: 1.0, ..plateau }, "factor"),
        (ReduceOnPlateau { threshold: -1.0, ..plateau }, "threshold"),
        (ReduceOnPlateau { min_lr: f64::INFINITY, ..plateau }, "min_lr"),
        (ReduceOnPlateau { eps: -1e-9, ..plateau }, "eps"),
        (ReduceOnPlateau { best: Some(f64::NAN), ..plateau }, "best"),
    ] {
        let error = bad.observe(1.0).unwrap_err();
        assert!(matches!(error, Error::Schedule { field: f, .. } if f == field), "{error}");
        assert!(error.to_string().starts_with("reduce_on_plateau: "), "{error}");
        assert_eq!(bad.num_bad_epochs, 0);
    }
}

#[test]
fn a_closure_is_a_schedule() {
    let halves = Schedule::from(|t: u64| 0.5f64.powi(t as i32));
    assert_eq!(halves.clone().times(4.0).warmup(2).at(3).unwrap(), Step::from(2.0));
    assert_eq!(halves.clone(), halves);
    assert_ne!(halves, Schedule::from(|_: u64| 1.0));
    assert_eq!(format!("{halves:?}"), "Custom(Custom(..))");
}

/// Six steps from the same parameters with the same gradients: on a GPU, or else on the CPU.
fn run<R: Twin>(gpu: Option<&Gpu>, layout: Layout<R>, step: impl Fn(u64) -> Step) -> Snapshot {
    let (start, grads) =
        ([1.0f32, -2.0, 3.0, 0.25, 1e3].repeat(2), [0.5f32, 0.25, -1.0, 2.0, -8.0].repeat(2));
    let mut params = start[..layout.len() as usize].to_vec();
    if let Some(gpu) = gpu {
        let mut run = Run::new(gpu, layout, &params);
        (0..6).for_each(|t| run.step(&grads, step(t)));
        return run.snapshot();
    }
    let mut optimizer = cpu::Optimizer::<R>::new(layout).unwrap();
    (0..6).for_each(|t| {
        optimizer.step(cpu::Tensors::flat(&mut params, &grads), step(t)).unwrap();
    });
    harness::cpu_snapshot(&optimizer, cpu::State::F32(&params))
}

/// Two groups with factors of their own in steps of `outer`, against the same without, in steps worked out here for one and the other.
fn groups<R: Twin>(rule: R, slow: &Schedule, fast: &Schedule, outer: &Schedule) {
    let gpu = harness::test_gpu();
    let layout = |factors: [&Schedule; 2]| {
        let group =
            |name, factor: &Schedule| Group::new(name, rule).lr_factor(factor.clone()).tensor(name, [5]);
        Layout::new([group("slow", factors[0]), group("fast", factors[1])]).unwrap()
    };
    for gpu in std::iter::once(None).chain(gpu.iter().map(Some)) {
        let together = run(gpu, layout([slow, fast]), |t| outer.at(t).unwrap());
        for (range, own) in [(0..5, slow), (5..10, fast)] {
            let by_hand = run(gpu, layout([&1.0.into(); 2]), |t| {
                let (outer, own) = (outer.at(t).unwrap(), own.at(t).unwrap());
                Step { lr: outer.lr * own.lr, momentum: own.momentum.or(outer.momentum), ..outer }
            });
            let part = |of: &[f32]| of.get(range.clone()).unwrap_or_default().to_vec();
            let part = |of: &Snapshot| Snapshot {
                params: part(&of.params),
                state: of.state.iter().map(|slot| part(slot)).collect(),
            };
            let engine = if gpu.is_some() { "on the GPU" } else { "on the CPU" };
            let context = format!("{} {own:?} {engine}", R::NAME);
            assert_same_bits(&part(&together), &part(&by_hand), &context);
        }
    }
}

#[test]
fn a_groups_schedule_is_its_learning_rate() {
    let slow = schedule::linear(1e-3, 1e-2, 4);
    let fast = schedule::cosine(0.1, 0.0, 8).warmup(2);
    for outer in [Schedule::from(1.0), schedule::exponential(2.0, 0.5)] {
        groups(AdamW::default(), &slow, &fast, &outer);
        groups(Sgd::default(), &slow, &fast, &outer);
        groups(Sgd::default(), &0.5.into(), &(|t: u64| t as f64).into(), &outer);
    }
}

#[test]
fn a_groups_cycle_drives_its_momentum() {
    let cycle = schedule::one_cycle(0.1, 8);
    let driven = Schedule::from(0.1).with_momentum(schedule::linear(0.5, 0.9, 3));
    // Where a group has none, the step's counts.
    for (slow, fast) in [(&cycle, &driven), (&cycle, &Schedule::from(0.1))] {
        for outer in [Schedule::from(1.0), Schedule::from(2.0).with_momentum(0.7)] {
            groups(Sgd { momentum: 0.9, ..Sgd::default() }, slow, fast, &outer);
            groups(Adam::default(), slow, fast, &outer);
        }
    }
}

#[test]
fn a_groups_schedule_is_refused_by_group() {
    let group = |factor: Schedule| Group::new("g", Sgd::default()).lr_factor(factor).tensor("w", [1]);
    let error = Layout::new([group(schedule::cosine(1.0, 0.0, 0).warmup(3))]).unwrap_err();
    assert_eq!(error.to_string(), "lr_factor of group \"g\": cosine: steps = 0, must be at least 1");
    let cycle = OneCycle { max_lr: 0.1, total_steps: 2, cycle_momentum: false, ..OneCycle::default() };
    let mut optimizer = cpu::Optimizer::<Sgd>::new(Layout::new([group(cycle.into())]).unwrap()).unwrap();
    let mut step = || optimizer.step(cpu::Tensors::flat(&mut [1.0], &[1.0]), 1.0);
    (0..3).for_each(|_| assert!(step().is_ok()));
    let error = step().unwrap_err();
    assert_eq!(error.to_string(), "lr_factor of group \"g\": one_cycle: step 3, must be at most 2");
    assert_eq!(optimizer.steps(), 3);
    // A rule has bounds of its own for what a schedule drives.
    let mut optimizer = cpu::Optimizer::<Adam>::new(single(Adam::default(), 1)).unwrap();
    let step = Schedule::from(0.1).with_momentum(1.0).at(0).unwrap();
    let error = optimizer.step(cpu::Tensors::flat(&mut [1.0], &[1.0]), step).unwrap_err();
    assert!(matches!(error, Error::Step { field: "beta1", .. }), "{error}");
}

#[test]
fn recipes_are_what_their_documentation_says() {
    let llm = recipes::llm(3e-4, 100_000);
    let plain = AdamW::default();
    assert_eq!(llm.rule, AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, ..plain });
    assert_eq!(llm.options.clip, Some(wgpu_optim::Clip::GlobalNorm(1.0)));
    let llm = |t| lr(&llm.schedule, t);
    assert_eq!([llm(0), llm(1_000), llm(2_000)], [0.0, 1.5e-4, 3e-4]);
    assert_eq!([llm(100_000), llm(u64::MAX)], [0.1 * 3e-4; 2]);
    assert!(deviation(llm(51_000), 1.65e-4) < 1e-12);
    let short = recipes::llm(3e-4, 1_000);
    assert_eq!([100, 1_000].map(|t| lr(&short.schedule, t)), [3e-4, 0.1 * 3e-4]);

    let vision = recipes::vision(512, 10);
    assert_eq!((vision.rule.momentum, vision.rule.weight_decay), (0.9, 1e-4));
    let at = [0, 299, 300, 600, 900].map(|t| lr(&vision.schedule, t));
    for (got, want) in at.into_iter().zip([0.2, 0.2, 0.02, 0.002, 0.0002]) {
        assert!(deviation(got, want) < 1e-15);
    }
    let vision = recipes::vision_cosine(256, 10);
    assert_eq!([0, 900, 901].map(|t| lr(&vision.schedule, t)), [0.1, 0.0, 0.0]);

    let tuning = recipes::fine_tuning();
    assert_eq!((tuning.rule.weight_decay, lr(&tuning.schedule, 9)), (0.01, 1e-3));
    let tuning = recipes::fine_tuning_cosine(50);
    assert_eq!([0, 50, 60].map(|t| lr(&tuning.schedule, t)), [1e-3, 0.0, 0.0]);

    let lion = recipes::fine_tuning_lion();
    assert_eq!((lion.rule.weight_decay, lr(&lion.schedule, 9)), (0.01, 1e-4));
    let lion = recipes::fine_tuning_lion_cosine(50);
    assert_eq!([0, 50, 60].map(|t| lr(&lion.schedule, t)), [1e-4, 0.0, 0.0]);

    let refused = [recipes::llm(3e-4, 0).schedule, recipes::fine_tuning_cosine(0).schedule];
    assert!(refused.iter().all(|schedule| schedule.validate().is_err()));
    assert!(recipes::vision_cosine(256, 0).schedule.validate().is_err());
    assert!(recipes::vision(u64::MAX, u64::MAX).schedule.validate().is_ok());
}
