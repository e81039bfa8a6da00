//! The commands of the repository: `cargo xtask test`, `cargo xtask ci`, …
//!
//! CI runs commands that every contributor can run. Each command is shown before it runs, and the times are
//! listed at the end.

mod driver;
mod house;
mod opinions;
mod publish;
mod steps;
mod tools;

use std::env;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use steps::{Failure, Steps};
use tools::Need;

const USAGE: &str = "\
usage: cargo xtask COMMAND

  setup         finds a Vulkan driver, or installs one
  test [ARGS]   setup, then cargo test --workspace with ARGS; all tests by default
  bench [ARGS]  setup, then cargo bench with ARGS
  crash [N]     kills processes that save checkpoints, N times each way; 100 by default
  fuzz [S]      fuzzes the reading of checkpoints for S seconds, 600 by default; needs a nightly compiler and
                cargo-fuzz
  webgpu        runs the code of docs/javascript.md on Dawn, over SwiftShader; needs node and npm
  compilers     compiles the kernels with Tint and, as naga writes them for DirectX, with DXC; needs node, npm
                and pip
  drivers       runs part of the GPU tests on SwiftShader, and on lavapipe with other vectors
  emulate       tests the CPU engine on emulated processors; needs qemu-user and a linker for 64-bit ARM
  isa [ARGS]    compiles the kernels with Mesa's compiler for AMD GPUs, without such a GPU: --json, --check,
                --write, --assembly FAMILY RULE VARIANT
  instructions [ARG]  counts the CPU engine's instructions: --json, --check, --write; needs valgrind
  house         checks the structure of the repository: module map, links, lengths of files,
                widths of lines; --map prints the imports of the sources
  publishable   checks spelling, licences and sources of dependencies, the oldest Rust version, and a dry run
                of cargo publish
  ci            runs all checks of this list except bench, crash and emulate, and formatting, lints, sets of
                features, documentation and other platforms";

/// Features of the library that work one by one, without the default ones.
const FEATURES: [&str; 5] = ["gpu", "web", "rayon", "serde", "checkpoint"];

/// Platforms to compile for: the name of the target, and its sets of features.
const TARGETS: [(&str, &[&str]); 2] = [
    ("wasm32-unknown-unknown", &["", "web", "checkpoint", "web,checkpoint"]),
    ("aarch64-unknown-linux-gnu", &["", "native,rayon,checkpoint"]),
];

fn main() -> ExitCode {
    let mut args = env::args().skip(1);
    let command = args.next().unwrap_or_default();
    let rest: Vec<String> = args.collect();
    let mut steps = Steps::default();
    let done = match (command.as_str(), rest.as_slice()) {
        ("setup", []) => driver::ensure(&mut steps),
        ("test", _) => test(&mut steps, &rest),
        ("bench", _) => bench(&mut steps, &rest),
        ("crash", [] | [_]) => crash(&mut steps, rest.first().map_or("100", String::as_str)),
        ("fuzz", [] | [_]) => fuzz(&mut steps, rest.first().map_or("600", String::as_str)),
        ("webgpu", []) => opinions::webgpu(&mut steps, Need::Demanded, &mut Vec::new()),
        ("compilers", []) => opinions::compilers(&mut steps, Need::Demanded, &mut Vec::new()),
        ("drivers", []) => opinions::drivers(&mut steps, Need::Demanded, &mut Vec::new()),
        ("emulate", []) => emulate(&mut steps),
        ("isa", _) => isa(&mut steps, &rest),
        ("instructions", _) => instructions(&mut steps, &rest, Need::Demanded, &mut Vec::new()),
        ("house", []) => house::check(root()),
        ("house", [flag]) if flag == "--map" => house::draw(root()),
        ("publishable", []) => publish::check(&mut steps),
        ("ci", []) => ci(&mut steps),
        ("help" | "--help" | "-h", _) => {
            println!("{USAGE}");
            Ok(())
        }
        _ => Err(Failure { message: USAGE.into(), code: 2 }),
    };
    steps.list();
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("{}", failure.message);
            ExitCode::from(failure.code)
        }
    }
}

fn test(steps: &mut Steps, args: &[String]) -> Result<(), Failure> {
    driver::ensure(steps)?;
    // Without arguments this includes documentation tests, and that the examples compile.
    steps.run("tests", cargo(["test", "--workspace"]).args(args))?;
    if !args.is_empty() || env::var_os(driver::SKIP_VARIABLE).is_some() {
        return Ok(());
    }
    // Training runs fail below their accuracy; runs with other storage and the user's rule fail beyond their
    // bounds.
    let examples = ["quickstart", "train_digits", "from_config", "mixed_precision", "own_rule", "offload"];
    for example in examples {
        steps.run(&format!("example {example}"), &mut cargo(["run", "--example", example]))?;
    }
    // A quick look: one seed, 60 steps.
    let quick = ["run", "--example", "storage_quality", "--", "all", "1", "60"];
    steps.run("example storage_quality", &mut cargo(quick))?;
    Ok(())
}

fn bench(steps: &mut Steps, args: &[String]) -> Result<(), Failure> {
    driver::ensure(steps)?;
    steps.run("benchmarks", cargo(["bench"]).args(args))
}

fn isa(steps: &mut Steps, args: &[String]) -> Result<(), Failure> {
    driver::ensure_radv(steps)?;
    steps.run("AMD's instructions", cargo(["run", "--quiet", "--package", "isa", "--"]).args(args))
}

fn instructions(
    steps: &mut Steps,
    args: &[String],
    need: Need,
    skipped: &mut Vec<String>,
) -> Result<(), Failure> {
    let what = "instructions of the CPU engine were not counted";
    let Some(()) = need.take(tools::valgrind(steps), what, skipped)? else { return Ok(()) };
    // Users run the release profile.
    let mut count = cargo(["run", "--release", "--quiet", "--package", "instructions", "--"]);
    steps.run("the CPU engine's instructions", count.args(args))
}

fn crash(steps: &mut Steps, kills: &str) -> Result<(), Failure> {
    let mut test = cargo(["test", "--test", "checkpoint", "killed", "--", "--nocapture"]);
    steps.run("killed while saving", test.env("WGPU_OPTIM_TEST_KILLS", kills))
}

/// Memory limits in MiB: of one allocation, and of the whole process.
const FUZZ_LIMITS: [&str; 2] = ["-malloc_limit_mb=64", "-rss_limit_mb=512"];

fn fuzz(steps: &mut Steps, seconds: &str) -> Result<(), Failure> {
    if !can_fuzz() {
        let message = "fuzzing needs a nightly compiler and cargo-fuzz: rustup toolchain install nightly; \
            cargo install cargo-fuzz";
        return Err(Failure::new(message));
    }
    // New inputs go to a copy, since the kept corpus is small. The fuzzer's temporary files are removed with
    // its temporary directory.
    let found = env::temp_dir().join("wgpu-optim-corpus");
    let scratch = env::temp_dir().join(format!("wgpu-optim-fuzz-{}", std::process::id()));
    for path in [&found, &scratch] {
        std::fs::create_dir_all(path)
            .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?;
    }
    let mut fuzz = cargo(["+nightly", "fuzz", "run", "checkpoint"]);
    fuzz.arg(found)
        .args(["fuzz/corpus/checkpoint", "--", &format!("-max_total_time={seconds}")])
        .args(FUZZ_LIMITS)
        // Freed memory is not kept for long, because it counts as memory of the process.
        .env("ASAN_OPTIONS", "quarantine_size_mb=16")
        .env("TMPDIR", &scratch);
    let done = steps.run("fuzzing", &mut fuzz);
    let _ = std::fs::remove_dir_all(scratch);
    done
}

fn can_fuzz() -> bool {
    succeeds(&mut cargo(["+nightly", "fuzz", "--version"]))
}

fn ci(steps: &mut Steps) -> Result<(), Failure> {
    // Checks that fail quickly come first.
    steps.run("structure", &mut cargo(["xtask", "house"]))?;
    component(steps, "rustfmt", "fmt")?;
    steps.run("formatting", &mut cargo(["fmt", "--all", "--check"]))?;
    let (need, mut skipped) = (Need::of_ci(), Vec::new());
    publish::lists(steps, need, &mut skipped)?;
    component(steps, "clippy", "clippy")?;
    let lints = ["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    steps.run("lints", &mut cargo(lints))?;
    let library = ["-p", "wgpu-optim", "--no-default-features"];
    steps.run("without features", cargo(["build"]).args(library))?;
    for feature in FEATURES {
        // Clippy compiles as `cargo check` does and, unlike it, can refuse warnings without a rebuild of all
        // dependencies.
        let mut check = cargo(["clippy"]);
        check.args(library).args(["--features", feature, "--", "-D", "warnings"]);
        steps.run(&format!("feature {feature}"), &mut check)?;
    }
    // The engine by itself, on one thread: in the other tests it has all features.
    steps.run("engine without features", &mut cargo(["test", "-p", "cpu-harness"]))?;
    check_targets(steps, &mut skipped)?;
    publish::package(steps, need, &mut skipped)?;
    let mut doc = cargo(["doc", "--no-deps", "--workspace"]);
    steps.run("documentation", doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    // The command in the README.
    steps.run("tests", &mut cargo(["xtask", "test"]))?;
    instructions(steps, &["--check".into()], need, &mut skipped)?;
    opinions::webgpu(steps, need, &mut skipped)?;
    opinions::compilers(steps, need, &mut skipped)?;
    if env::var_os(driver::SKIP_VARIABLE).is_none() {
        if cfg!(target_os = "linux") {
            steps.run("AMD's instructions", &mut cargo(["xtask", "isa", "--check"]))?;
        }
        opinions::drivers(steps, need, &mut skipped)?;
    }
    if can_fuzz() {
        fuzz(steps, "20")?;
    } else {
        let mut check = cargo(["check", "--locked", "--manifest-path", "fuzz/Cargo.toml"]);
        // Nothing is linked, so no C++ has to be compiled.
        check.env("CUSTOM_LIBFUZZER_PATH", "/nowhere/libfuzzer.a");
        steps.run("the fuzzer compiles", &mut check)?;
        eprintln!(
            "not fuzzed, without a nightly compiler and cargo-fuzz; tests damage the fuzzer's first files"
        );
    }
    // Printed at the end, where it is seen.
    skipped.iter().for_each(|skipped| println!("{skipped}"));
    Ok(())
}

/// Compiles the library for other platforms. `skipped` gets a line per platform that this machine cannot
/// compile for.
fn check_targets(steps: &mut Steps, skipped: &mut Vec<String>) -> Result<(), Failure> {
    for (target, sets) in TARGETS {
        // Without a network or rustup, a contributor cannot change it.
        if !succeeds(Command::new("rustup").args(["target", "add", target])) {
            let why = "its standard library is not here and rustup cannot add it";
            skipped.push(format!("not checked for {target}: {why}"));
            continue;
        }
        for features in sets {
            let mut check =
                cargo(["clippy", "-p", "wgpu-optim", "--no-default-features", "--target", target]);
            check.args(["--features", features, "--", "-D", "warnings"]);
            let with = if features.is_empty() { "none" } else { features };
            steps.run(&format!("{target}, features {with}"), &mut check)?;
        }
    }
    Ok(())
}

/// Processors with other instructions than this machine may have: AVX2 without AVX-512, and neither.
const PROCESSORS: [&str; 2] = ["Haswell", "Nehalem"];

fn emulate(steps: &mut Steps) -> Result<(), Failure> {
    let test = |target: &str, runner: &str| {
        let variable = target.to_uppercase().replace('-', "_");
        let mut command = cargo(["test", "-p", "cpu-harness", "--features", "rayon", "--target", target]);
        command.env(format!("CARGO_TARGET_{variable}_RUNNER"), runner);
        command
    };
    for processor in PROCESSORS {
        let mut command = test("x86_64-unknown-linux-gnu", &format!("qemu-x86_64 -cpu {processor}"));
        steps.run(&format!("emulated {processor}"), &mut command)?;
    }
    let mut command = test("aarch64-unknown-linux-gnu", "qemu-aarch64 -L /usr/aarch64-linux-gnu");
    command.env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc");
    steps.run("emulated 64-bit ARM", &mut command)
}

/// Ensures that a component of the toolchain is installed: minimal installations lack rustfmt and clippy.
fn component(steps: &mut Steps, name: &str, subcommand: &str) -> Result<(), Failure> {
    if succeeds(&mut cargo([subcommand, "--version"])) {
        return Ok(());
    }
    let mut add = Command::new("rustup");
    steps.run(&format!("installing {name}"), add.args(["component", "add", name])).map_err(|failure| {
        let message =
            format!("{}\n{name} is missing; `rustup component add {name}` adds it", failure.message);
        Failure { message, ..failure }
    })
}

fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut command = Command::new("cargo");
    command.args(args);
    command
}

/// The root of the workspace.
fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the workspace")
}

/// Whether a command can be run and exits with 0; its output is not shown.
fn succeeds(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}
