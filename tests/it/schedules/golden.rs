//! PyTorch's values.

use super::*;

/// PyTorch's values, and how they were made: `tests/golden/schedules.py`.
const GOLDEN: [&str; 2] =
    [include_str!("../../golden/schedules.json"), include_str!("../../golden/one_cycle.json")];
/// Relative to the value. PyTorch computes most schedules from step to step, in f64: some hundred steps of a
/// few roundings.
const TOLERANCE: f64 = 1e-12;

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
        "MultiStepLR" => schedule::multi_step(base, f("gamma", 0.1), list("milestones")),
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
                assert!(
                    matches!(error, ScheduleError::Field { field: "value", .. }),
                    "{name} at {t}: {error}"
                );
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

/// Compares with PyTorch's rates for positive metrics, in both relative modes. Negated metrics with the
/// opposite direction must have the same rates.
#[test]
fn every_plateau_is_pytorchs() {
    for case in golden().iter().filter(|case| case.get("metric").is_some()) {
        let (name, torch) = (case["name"].as_str().unwrap(), &case["torch"]);
        let defaults = ReduceOnPlateau::default();
        let f = |name: &str, default: f64| torch.get(name).map_or(default, |x| x.as_f64().unwrap());
        let n = |name: &str, default: u64| torch.get(name).map_or(default, |x| x.as_u64().unwrap());
        let is = |name: &str, value: &str| torch.get(name).is_some_and(|x| x == value);
        let plateau = ReduceOnPlateau {
            lr: case["base_lr"].as_f64().unwrap(),
            mode: if is("mode", "max") { Mode::Max } else { Mode::Min },
            factor: f("factor", defaults.factor),
            patience: n("patience", defaults.patience),
            threshold: f("threshold", defaults.threshold),
            cooldown: n("cooldown", defaults.cooldown),
            min_lr: f("min_lr", defaults.min_lr),
            eps: f("eps", defaults.eps),
            ..defaults
        };
        let (metrics, rates) = (numbers(&case["metric"]), numbers(&case["lr"]));
        assert_eq!(plateau.lr, rates[0]);
        let follow = |mut plateau: ReduceOnPlateau, sign: f64| {
            for (t, (metric, want)) in metrics.iter().zip(&rates[1..]).enumerate() {
                // PyTorch multiplies in the same order, so the rates are equal.
                assert_eq!(
                    plateau.observe(sign * metric).unwrap(),
                    *want,
                    "{name}, {plateau:?}, metric {t}, times {sign}"
                );
            }
        };
        let opposite = if plateau.mode == Mode::Min { Mode::Max } else { Mode::Min };
        if is("threshold_mode", "abs") {
            let plateau = ReduceOnPlateau { threshold_mode: ThresholdMode::Absolute, ..plateau };
            follow(plateau, 1.0);
            follow(ReduceOnPlateau { mode: opposite, ..plateau }, -1.0);
        } else {
            follow(plateau, 1.0);
            follow(ReduceOnPlateau { threshold_mode: ThresholdMode::SignedRelative, ..plateau }, 1.0);
            follow(ReduceOnPlateau { mode: opposite, ..plateau }, -1.0);
        }
    }
}
