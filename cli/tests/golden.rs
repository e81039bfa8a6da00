//! Every recorded run of the repository, on the reference and on both kinds of device.

use optim::bundled;
use optim::replay::{On, replay, run};
use optim::rules::hyperparameters;
use optim::trajectory::Trajectory;
use std::path::{Path, PathBuf};
use wgpu_optim::AnyRule;

/// The largest distance of the f64 reference from the truth of the files, relative to the tensor's largest
/// value.
///
/// A run is at most 61 steps of about ten roundings, each of at most 1.1e-16 of the largest value: 7e-14 if
/// all of them went one way. The worst measured is 2e-15. A wrong formula is off by far more.
const REFERENCE_BOUND: f64 = 1e-13;

/// The golden files in a directory of the repository.
fn files(directory: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(directory);
    let files = std::fs::read_dir(&directory).expect("the golden files are there");
    let files = files.map(|entry| entry.expect("a directory entry").path());
    let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "safetensors")).collect();
    files.sort();
    files
}

fn runs() -> Vec<(String, Trajectory)> {
    let [golden, mixed] = ["tests/golden", "tests/golden/mixed"].map(files);
    assert!(golden.len() >= 131, "only {} golden files", golden.len());
    assert!(mixed.len() >= 3, "only {} golden files with several rules", mixed.len());
    let golden = golden.iter().chain(&mixed).map(|path| (path.display().to_string(), Trajectory::read(path)));
    let bundled = bundled::RECORDINGS.iter().map(|r| (r.name.to_owned(), Trajectory::parse(&r.bytes())));
    let parsed = |(name, t): (String, Result<Trajectory, _>)| {
        let t = t.unwrap_or_else(|error| panic!("{name}: {error}"));
        (name, t)
    };
    golden.chain(bundled).map(parsed).collect()
}

/// Whether the groups of a run have rules of different names.
fn is_mixed(run: &Trajectory) -> bool {
    run.groups.iter().any(|group| group.rule.name() != run.groups[0].rule.name())
}

/// Every hyperparameter of every rule differs from its default in some golden run.
#[test]
fn every_option_has_a_golden_run() {
    let runs = runs();
    let groups = runs.iter().flat_map(|(_, run)| &run.groups);
    let used: Vec<_> = groups.map(|group| (group.rule.name(), hyperparameters(group.rule))).collect();
    let mut untried = Vec::new();
    for rule in AnyRule::all() {
        for (name, default) in hyperparameters(rule) {
            let mut values =
                used.iter().filter(|(used, _)| *used == rule.name()).map(|(_, hyper)| &hyper[&name]);
            if !values.any(|value| *value != default) {
                untried.push(format!("{} {name}", rule.name()));
            }
        }
    }
    assert!(untried.is_empty(), "no golden run with {untried:?}");
}

#[test]
fn the_reference_agrees_with_the_files() {
    let mut worst = (0.0, String::new());
    for (file, trajectory) in runs() {
        let ours = run(&trajectory, On::Reference, &mut || ()).unwrap_or_else(|e| panic!("{file}: {e}"));
        for (target, ours) in trajectory.targets.iter().zip(&ours) {
            let size = target.expect.iter().fold(0.0, |max: f64, x| max.max(x.abs()));
            for (i, (got, want)) in ours.iter().zip(&target.expect).enumerate() {
                let off = (got - want).abs();
                assert!(
                    off <= REFERENCE_BOUND * size,
                    "{file}: {}[{i}] = {got:e}, in the file {want:e}, largest {size:e}",
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
        let verdict = replay(&trajectory, on, &mut || ()).unwrap_or_else(|e| panic!("{file}: {e}"));
        let (rms, peer) = (verdict.rms_ulps, verdict.peer_rms_ulps);
        // Runs with several rules have only a truth, without a peer.
        assert_eq!(peer.is_none(), is_mixed(&trajectory), "{file}");
        println!("{:8} rms {rms:.4} peer {peer:.4?}  {file}", verdict.pass);
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
