//! Every recorded run of the repository, on the reference and on both kinds of device.

use optim::bundled;
use optim::replay::{On, replay, run};
use optim::rules::{BuiltIn, RuleVisitor, by_name, names};
use optim::trajectory::Trajectory;
use serde_json::Value;
use std::path::Path;

/// The largest distance of the f64 reference from PyTorch's f64, relative to the tensor's largest value.
///
/// A run is at most 61 steps of about ten roundings, each of at most 1.1e-16 of the largest value: 7e-14 if all of them went one
/// way. The worst measured is 2e-15. A wrong formula is off by far more than either.
const REFERENCE_BOUND: f64 = 1e-13;

fn runs() -> Vec<(String, Trajectory)> {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden");
    let files = std::fs::read_dir(&golden).expect("the golden files are there");
    let files = files.map(|entry| entry.expect("a directory entry").path());
    let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    assert!(files.len() >= 131, "only {} golden files", files.len());
    let golden = files.iter().map(|path| (path.display().to_string(), Trajectory::read(path)));
    let bundled = bundled::RECORDINGS.iter().map(|r| (r.name.to_owned(), Trajectory::parse(&r.bytes())));
    let parsed = |(name, t): (String, Result<Trajectory, _>)| {
        let t = t.unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, t)
    };
    golden.chain(bundled).map(parsed).collect()
}

/// Every hyperparameter of every rule differs from its default in some golden run.
#[test]
fn every_option_has_a_golden_run() {
    struct Untried<'a>(&'a [(String, Trajectory)]);
    impl RuleVisitor for Untried<'_> {
        type Output = Vec<String>;
        fn visit<R: BuiltIn>(self) -> Vec<String> {
            let Ok(Value::Object(defaults)) = serde_json::to_value(R::default()) else { unreachable!() };
            let runs = || self.0.iter().filter(|(_, run)| run.rule == R::NAME);
            let tried = |name: &str, default: &Value| {
                runs().any(|(_, run)| {
                    let overrides = run.groups.iter().map(|group| &group.overrides);
                    [&run.hyper]
                        .into_iter()
                        .chain(overrides)
                        .any(|h| h.get(name).is_some_and(|x| x != default))
                })
            };
            let untried = defaults.iter().filter(|(name, default)| !tried(name, default));
            untried.map(|(name, _)| format!("{} {name}", R::NAME)).collect()
        }
    }
    let runs = runs();
    let untried: Vec<_> =
        names().into_iter().flat_map(|rule| by_name(rule, Untried(&runs)).expect("a known rule")).collect();
    assert!(untried.is_empty(), "no golden run with {untried:?}");
}

#[test]
fn the_reference_agrees_with_pytorch() {
    let mut worst = (0.0, String::new());
    for (file, trajectory) in runs() {
        let ours = run(&trajectory, On::Reference, || ()).unwrap_or_else(|e| panic!("{file}: {e}"));
        for (target, ours) in trajectory.targets.iter().zip(&ours) {
            let size = target.expect.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
            for (i, (got, want)) in ours.iter().zip(&target.expect).enumerate() {
                let off = (got - want).abs();
                assert!(
                    off <= REFERENCE_BOUND * size,
                    "{file}: {}[{i}] = {got:e}, PyTorch {want:e}, largest {size:e}",
                    target.name()
                );
                if off > worst.0 * size {
                    worst = (off / size, format!("{file}: {}[{i}]", target.name()));
                }
            }
        }
    }
    println!("worst relative distance {:e}: {}", worst.0, worst.1);
}

fn all_pass(on: On<'_>) {
    let mut failed = Vec::new();
    for (file, trajectory) in runs() {
        let verdict = replay(&trajectory, on, || ()).unwrap_or_else(|e| panic!("{file}: {e}"));
        let peer = verdict.peer_rms_ulps.expect("every file has a peer");
        println!("{:8} rms {:.4} peer {peer:.4}  {file}", verdict.pass, verdict.rms_ulps);
        failed.extend(verdict.failures().into_iter().map(|f| format!("{file}: {f}")));
        assert_eq!(verdict.pass, verdict.failures().is_empty(), "{file}");
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn the_cpu_engine_passes_the_bar() {
    all_pass(On::Cpu);
}

#[test]
fn the_gpu_passes_the_bar() {
    if let Some(gpu) = harness::test_gpu() {
        all_pass(On::Gpu(&gpu));
    }
}
