//! Recipes.

use super::*;
use wgpu_optim::recipes;

#[test]
fn recipes_are_what_their_documentation_says() {
    let llm = recipes::llm(3e-4, 100_000).unwrap();
    let plain = AdamW::default();
    assert_eq!(llm.rule, AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1, ..plain });
    assert_eq!(llm.options.clip, Some(wgpu_optim::Clip::GlobalNorm(1.0)));
    let llm = |t| lr(&llm.schedule, t);
    assert_eq!([llm(0), llm(1_000), llm(2_000)], [0.0, 1.5e-4, 3e-4]);
    assert_eq!([llm(100_000), llm(u64::MAX)], [0.1 * 3e-4; 2]);
    assert!(deviation(llm(51_000), 1.65e-4) < 1e-12);
    let short = recipes::llm(3e-4, 1_000).unwrap();
    assert_eq!([100, 1_000].map(|t| lr(&short.schedule, t)), [3e-4, 0.1 * 3e-4]);

    let vision = recipes::vision(512, 10).unwrap();
    assert_eq!((vision.rule.momentum, vision.rule.weight_decay), (0.9, 1e-4));
    let at = [0, 299, 300, 600, 900].map(|t| lr(&vision.schedule, t));
    for (got, want) in at.into_iter().zip([0.2, 0.2, 0.02, 0.002, 0.0002]) {
        assert!(deviation(got, want) < 1e-15);
    }
    let vision = recipes::vision_cosine(256, 10).unwrap();
    assert_eq!([0, 900, 901].map(|t| lr(&vision.schedule, t)), [0.1, 0.0, 0.0]);

    let tuning = recipes::fine_tuning();
    assert_eq!((tuning.rule.weight_decay, lr(&tuning.schedule, 9)), (0.01, 1e-3));
    let tuning = recipes::fine_tuning_cosine(50).unwrap();
    assert_eq!([0, 50, 60].map(|t| lr(&tuning.schedule, t)), [1e-3, 0.0, 0.0]);

    let lion = recipes::fine_tuning_lion();
    assert_eq!((lion.rule.weight_decay, lr(&lion.schedule, 9)), (0.01, 1e-4));
    let lion = recipes::fine_tuning_lion_cosine(50).unwrap();
    assert_eq!([0, 50, 60].map(|t| lr(&lion.schedule, t)), [1e-4, 0.0, 0.0]);
}

#[test]
fn bad_arguments_of_recipes_are_named() {
    fn refused<R: std::fmt::Debug>(recipe: Result<recipes::Recipe<R>, ScheduleError>, text: &str) {
        assert_eq!(recipe.unwrap_err().to_string(), text);
    }
    refused(recipes::llm(3e-4, 0), "llm: total_steps = 0, must be at least 1");
    refused(recipes::llm(-1.0, 9), "llm: peak_lr = -1, must be finite and at least 0");
    refused(recipes::llm(f64::NAN, 9), "llm: peak_lr = NaN, must be finite and at least 0");
    refused(recipes::llm(f64::INFINITY, 9), "llm: peak_lr = inf, must be finite and at least 0");
    refused(recipes::vision(256, 0), "vision: steps_per_epoch = 0, must be at least 1");
    refused(recipes::vision(0, 9), "vision: batch = 0, must be at least 1");
    refused(recipes::vision_cosine(256, 0), "vision_cosine: steps_per_epoch = 0, must be at least 1");
    refused(recipes::vision_cosine(0, 9), "vision_cosine: batch = 0, must be at least 1");
    refused(recipes::fine_tuning_cosine(0), "fine_tuning_cosine: total_steps = 0, must be at least 1");
    refused(
        recipes::fine_tuning_lion_cosine(0),
        "fine_tuning_lion_cosine: total_steps = 0, must be at least 1",
    );

    // Every other argument makes a valid schedule.
    for n in [1, 2, u64::MAX] {
        let schedules = [
            recipes::llm(0.0, n).unwrap().schedule,
            recipes::vision(n, n).unwrap().schedule,
            recipes::vision_cosine(n, n).unwrap().schedule,
            recipes::fine_tuning_cosine(n).unwrap().schedule,
            recipes::fine_tuning_lion_cosine(n).unwrap().schedule,
        ];
        for schedule in schedules {
            assert_eq!(schedule.validate(), Ok(()), "{schedule:?}");
            assert!([0, 1, n, u64::MAX].into_iter().all(|t| schedule.at(t).is_ok()), "{schedule:?}");
        }
    }
}
