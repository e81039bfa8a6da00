//! Refused fields, values, steps and metrics.

use super::*;

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
    // The schedule itself refuses a field without a default.
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
        refused(schedule::polynomial(1.0, 0.0, 9, bad), &format!("polynomial: power {finite}"));
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
    refused(schedule::step(1.0, 0.1, 0), "step: every = 0, must be at least 1");
    refused(schedule::inverse_sqrt(1.0, 0), "inverse_sqrt: warmup = 0, must be at least 1");
    refused(schedule::cosine(1.0, 0.0, 0), "cosine: steps = 0, must be at least 1");
    refused(schedule::cosine_restarts(1.0, 0.0, 0, 1), "cosine_restarts: period = 0, must be at least 1");
    refused(
        schedule::cosine_restarts(1.0, 0.0, 9, 0),
        "cosine_restarts: period_factor = 0, must be at least 1",
    );
    refused(
        Schedule::from(1.0).then(9, 2.0).then(8, 3.0),
        "sequence: milestones = 8, must be in ascending order",
    );
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

/// Errors that only a step can find.
#[test]
fn bad_values_and_steps_are_named() {
    let cycle = schedule::one_cycle(0.1, 10);
    assert!(cycle.at(10).is_ok());
    let error = cycle.at(11).unwrap_err();
    assert_eq!(error, ScheduleError::PastEnd { schedule: "one_cycle", step: 11, bound: 10 });
    assert_eq!(error.to_string(), "one_cycle: step 11, must be at most 10");
    // The step is the cycle's own.
    let later = schedule::one_cycle(0.1, 10).warmup(5);
    assert_eq!(later.at(16), Err(error));

    let out_of_range = |schedule: Schedule, t, name| {
        assert_eq!(schedule.validate(), Ok(()));
        let error = schedule.at(t).unwrap_err();
        assert!(
            matches!(error, ScheduleError::Field { schedule, field: "value", .. } if schedule == name),
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
        assert!(matches!(error, ScheduleError::Field { field: f, .. } if f == field), "{error}");
        assert!(error.to_string().starts_with("reduce_on_plateau: "), "{error}");
        assert_eq!(bad.num_bad_epochs, 0);
    }
}
