//! The kernels in other implementations than wgpu and lavapipe: Dawn, other compilers, other drivers.

use crate::tools::{self, Need};
use crate::{Failure, Steps, cargo, driver, root};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The variable with a part of the adapter's name, for the tests.
const ADAPTER_VARIABLE: &str = "WGPU_ADAPTER_NAME";

/// The variable with the folder of Dawn for the test of docs/javascript.md. The test passes without it.
const NPM_VARIABLE: &str = "WGPU_OPTIM_NPM";

/// A file of `xtask/scripts`.
fn script(name: &str) -> PathBuf {
    root().join("xtask/scripts").join(name)
}

/// Runs the code of docs/javascript.md on Dawn over SwiftShader.
pub(crate) fn webgpu(steps: &mut Steps, need: Need, skipped: &mut Vec<String>) -> Result<(), Failure> {
    let what = "docs/javascript.md was not run on Dawn";
    let Some(npm) = need.take(tools::dawn(steps), what, skipped)? else { return Ok(()) };
    let Some(manifest) = need.take(tools::swiftshader(steps), what, skipped)? else { return Ok(()) };
    let mut test = cargo(["test", "--workspace", "--test", "javascript", "--", "--nocapture"]);
    steps.run("JavaScript on Dawn", on_driver(&mut test, &manifest).env(NPM_VARIABLE, npm))
}

/// Has other compilers compile the kernels: Tint, and DXC what naga makes of them.
pub(crate) fn compilers(steps: &mut Steps, need: Need, skipped: &mut Vec<String>) -> Result<(), Failure> {
    let npm = need.take(tools::dawn(steps), "kernels were not compiled by Tint", skipped)?;
    let dxc = need.take(tools::dxc(steps), "kernels were not compiled by DXC", skipped)?;
    if npm.is_none() && dxc.is_none() {
        return Ok(());
    }
    let kernels = tools::folder("kernels")?;
    let failed = |error| Failure::new(format!("{}: {error}", kernels.display()));
    fs::remove_dir_all(&kernels).and_then(|()| fs::create_dir(&kernels)).map_err(failed)?;
    let mut write = cargo(["test", "--workspace", "--lib", "--", "kernels_are_written_in_other_languages"]);
    steps.run("writing kernels", write.env("WGPU_OPTIM_KERNELS", &kernels))?;
    if let Some(npm) = npm {
        // Node looks for packages beside the script.
        let copy = npm.join("tint.mjs");
        fs::copy(script("tint.mjs"), &copy).map_err(failed)?;
        steps.run("Tint", Command::new("node").arg(copy).arg(&kernels))?;
    }
    if let Some((python, library)) = dxc {
        let mut compile = Command::new(python);
        steps.run("DXC", compile.arg(script("dxc.py")).arg(library).arg(&kernels))?;
    }
    Ok(())
}

/// Parts of `tests/it`: what the names of tests begin with, and why they are run again. All of `tests/it`
/// would take SwiftShader more than half an hour, most of it to compile kernels.
type Subset = [(&'static str, &'static str)];

const ON_SWIFTSHADER: &Subset = &[
    ("blocks::", "state in 8 bits: exact codes on every device, workgroup memory, barriers"),
    ("formats::codes", "every code of every format, which drivers may flush or round in their own way"),
    ("formats::rounding", "random numbers are the same on every device"),
    ("formats::runs::a_master", "the sum of a parameter and its remainder is exact"),
    ("identities::", "rules that are equal to others, on the device"),
    ("layers::a_non_finite", "norms of tensors with NaN, which drivers treat in their own way"),
    ("layers::lamb", "the phases of a layer-wise rule"),
    ("layers::norms", "squares that over- or underflow an f32"),
    ("layouts::chunks", "the limits of a small device"),
    ("layouts::parameters_and", "buffers that several bindings share"),
    ("layouts::thousands", "tables of segments"),
    ("options::accumulate", "zeroed gradients"),
    ("options::clip::gradients", "the control kernel and reductions"),
    ("options::everything", "all options, with the least limits of WebGPU"),
    ("options::in_flight", "scalars that the device chooses"),
    ("options::norms", "sums of the update's squares"),
    ("values::extreme", "extreme magnitudes"),
    ("values::overflowing", "infinities"),
    ("values::zeros", "zeros"),
];

/// The widths of lavapipe's vectors in bits, beside the machine's own: with SSE and with AVX-512.
const WIDTHS: [&str; 2] = ["128", "512"];

const IN_OTHER_WIDTHS: &Subset = &[
    ("blocks::", "eight threads share a block's scale, and barriers part their vectors"),
    ("formats::rounding", "random numbers do not depend on how threads are run"),
    ("layers::a_non_finite", "a tensor's sums, with NaN in some of a vector's lanes"),
    ("layers::norms", "sums of squares by the threads of a workgroup"),
    ("layouts::random", "threads behind the end of a segment, inside of a vector"),
    ("options::clip", "sums of all gradients and of groups"),
    ("options::norms", "sums of the update's squares"),
    ("recording::two_runs", "the same bits from run to run"),
    ("values::", "NaN, infinities, zeros and extreme magnitudes"),
];

/// Runs a part of the GPU's tests on SwiftShader, and a part on lavapipe with other vectors.
pub(crate) fn drivers(steps: &mut Steps, need: Need, skipped: &mut Vec<String>) -> Result<(), Failure> {
    driver::ensure(steps)?;
    let what = "tests were not run on SwiftShader";
    if let Some(manifest) = need.take(tools::swiftshader(steps), what, skipped)? {
        let mut test = subset(ON_SWIFTSHADER);
        steps.run(
            "tests on SwiftShader",
            on_driver(&mut test, &manifest).env(ADAPTER_VARIABLE, "swiftshader"),
        )?;
    }
    let what = "tests were not run with other vectors of lavapipe";
    if let Some(manifest) = need.take(tools::lavapipe(), what, skipped)? {
        for width in WIDTHS {
            let mut test = subset(IN_OTHER_WIDTHS);
            on_driver(&mut test, &manifest).env("LP_NATIVE_VECTOR_WIDTH", width);
            let name = format!("tests with vectors of {width} bits");
            steps.run(&name, test.env(ADAPTER_VARIABLE, "llvmpipe"))?;
        }
    }
    Ok(())
}

fn subset(subset: &Subset) -> Command {
    let mut test = cargo(["test", "--workspace", "--test", "it", "--"]);
    test.args(subset.iter().map(|(names, _)| names));
    test
}

/// Chooses a Vulkan driver, by the loader's variables of today and of old.
fn on_driver<'a>(command: &'a mut Command, manifest: &Path) -> &'a mut Command {
    command.env("VK_DRIVER_FILES", manifest).env("VK_ICD_FILENAMES", manifest)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A variable of another name would let the test pass.
    #[test]
    fn the_test_knows_the_variable() {
        let test = include_str!("../../cli/tests/javascript.rs");
        assert!(test.contains(&format!("const NPM_VARIABLE: &str = {NPM_VARIABLE:?};")));
    }

    /// A name that no test begins with would go unnoticed.
    #[test]
    fn subsets_have_tests() {
        for (name, reason) in ON_SWIFTSHADER.iter().chain(IN_OTHER_WIDTHS) {
            assert!(!reason.is_empty());
            let (module, rest) = name.split_once("::").expect("a module");
            let folder = root().join("tests/it");
            let read = |file: PathBuf| fs::read_to_string(file).ok();
            let inner = rest.split("::").next().unwrap_or_default();
            let own = read(folder.join(format!("{module}.rs")));
            let own = own.or_else(|| read(folder.join(module).join("mod.rs"))).expect(module);
            let below = read(folder.join(module).join(format!("{inner}.rs")));
            let function = rest.rsplit("::").next().unwrap_or_default();
            let begins = |text: &str| text.contains(&format!("fn {function}"));
            let is_module = below.is_some() && function == inner;
            let found = rest.is_empty() || is_module || begins(below.as_deref().unwrap_or(&own));
            assert!(found, "no test of tests/it begins with {name}");
        }
    }
}
