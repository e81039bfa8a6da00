//! Properties of random schedules.

use super::*;

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
            (inner.clone(), inner.clone(), 0..100u64).prop_map(|(a, b, milestone)| a.then(milestone, b)),
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

    /// Step by step, a factor multiplies the value before.
    #[test]
    fn powers_are_loops(
        start in 0.0..1.0, gamma in 0.0..1.0, every in 1..20u64,
        milestones in prop::collection::vec(0..200u64, 0..6),
    ) {
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
        parts in prop::collection::vec((simple(), 0..50u64), 1..5),
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

    /// A valid schedule has a value at every step, and an invalid one is refused where it is used.
    #[test]
    fn validation_agrees_with_use(
        (good, _) in simple(),
        bad in prop_oneof![Just(f64::NAN), Just(f64::INFINITY), Just(-1.0), Just(-f64::MIN_POSITIVE)],
        t in any::<u64>(),
    ) {
        prop_assert_eq!(good.validate(), Ok(()));
        match good.at(t) {
            Ok(step) => prop_assert!(step.lr.is_finite() && step.lr >= 0.0),
            Err(ScheduleError::PastEnd { .. } | ScheduleError::Field { field: "value", .. }) => {}
            Err(error) => prop_assert!(false, "{}", error),
        }
        let bad = spoil(good.clone(), bad);
        prop_assert_eq!(bad.at(0).unwrap_err().to_string(), bad.validate().unwrap_err().to_string());
        let (product, driven) = (good.clone().times(bad.clone()), good.with_momentum(bad.clone()));
        for outer in [bad.clone().warmup(3), product, bad.clone().then(9, 1.0), driven] {
            let error = |schedule: &Schedule| schedule.validate().unwrap_err().to_string();
            prop_assert_eq!(error(&outer), error(&bad));
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
    fn a_plateau_goes_on_where_it_was_saved(
        metrics in prop::collection::vec(0.0..1.0, 1..60), at in 0..60usize,
    ) {
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
