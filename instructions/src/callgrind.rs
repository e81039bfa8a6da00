//! Callgrind, which counts the instructions of a process, and its files.

use crate::cases::{Case, ELEMENTS, cases, run};
use crate::tables::Count;
use std::env;
use std::fs;
use std::process::Command;

/// The argument of this program inside of Callgrind.
pub(crate) const MEASURE: &str = "measure";
/// The function whose instructions are counted. Patterns are no names for `--dump-after`.
const COUNTED: &str = "counted_step";

/// Settings of the C library. It copies and fills with vectors: of a string instruction every byte would
/// count. It maps each array by itself, so all begin at one place in their pages: the engine updates the
/// elements in front of a cache line apart.
const TUNABLES: &str = "glibc.cpu.x86_rep_stosb_threshold=1000000000:\
                        glibc.cpu.x86_rep_movsb_threshold=1000000000:\
                        glibc.malloc.mmap_threshold=4096";

/// Counts the instructions per element of every rule in every format.
pub(crate) fn count() -> Result<Vec<Count>, String> {
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let file = env::temp_dir().join(format!("wgpu-optim-instructions-{}", std::process::id()));
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--quiet", "--combine-dumps=yes"]);
    valgrind.arg(format!("--toggle-collect={COUNTED}")).arg(format!("--dump-after={COUNTED}"));
    valgrind.arg(format!("--callgrind-out-file={}", file.display())).arg(program).arg(MEASURE);
    valgrind.env("GLIBC_TUNABLES", TUNABLES);
    let output = valgrind.output().map_err(|error| {
        format!(
            "valgrind cannot be run ({error}); it counts the instructions: install valgrind 3.19 or later"
        )
    })?;
    let text = fs::read_to_string(&file);
    let _ = fs::remove_file(&file);
    if !output.status.success() {
        return Err(format!("valgrind: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr)));
    }
    let totals = totals(&text.map_err(|error| format!("{}: {error}", file.display()))?)?;
    let cases = cases();
    counts(&cases, &totals)
}

/// Runs every case, for Callgrind.
pub(crate) fn measure() -> Result<(), String> {
    emulated()?;
    for case in cases() {
        run(&case, ELEMENTS)?;
        run(&case, 2 * ELEMENTS)?;
    }
    Ok(())
}

/// Makes sure that the processor, as Callgrind emulates it, has AVX2 and no AVX-512: then the counts are the
/// same on every machine.
#[cfg(target_arch = "x86_64")]
fn emulated() -> Result<(), String> {
    if std::arch::is_x86_feature_detected!("avx512f") {
        return Err("the processor has AVX-512; instructions are counted of the loops for AVX2".into());
    }
    if !std::arch::is_x86_feature_detected!("avx2") {
        return Err("the processor has no AVX2; instructions are counted of the loops for AVX2".into());
    }
    Ok(())
}

#[cfg(not(target_arch = "x86_64"))]
fn emulated() -> Result<(), String> {
    Err("instructions are counted of the loops for AVX2; run this on a machine with AVX2".into())
}

/// The instructions of each dump of a file, in their order, without the last one, which is of the end.
fn totals(text: &str) -> Result<Vec<u64>, String> {
    let totals = text.lines().filter_map(|line| line.strip_prefix("totals:"));
    let totals = totals.map(|total| total.trim().parse().map_err(|_| format!("{total:?} is no count")));
    let mut totals: Vec<_> = totals.collect::<Result<_, _>>()?;
    totals.pop();
    Ok(totals)
}

/// The difference between the two steps of a case has no fixed costs.
fn counts(cases: &[Case], totals: &[u64]) -> Result<Vec<Count>, String> {
    let (pairs, rest) = totals.as_chunks();
    if pairs.len() != cases.len() || !rest.is_empty() {
        let steps = 2 * cases.len();
        return Err(format!(
            "{} steps were counted in place of {steps}: {COUNTED} is to match one function",
            totals.len()
        ));
    }
    let count = |(case, &[one, two]): (&Case, &[u64; 2])| Count {
        rule: case.rule.into(),
        format: case.format.into(),
        instructions: two.saturating_sub(one) as f64 / ELEMENTS as f64,
    };
    Ok(cases.iter().zip(pairs).map(count).collect())
}
