//! Statistics of the kernels compiled by Mesa for AMD GPUs, without such a GPU: `cargo xtask isa`.

mod assembly;
mod bounds;
mod families;
mod kernels;
mod measured;
mod radv;
mod spirv;
mod tables;

use families::{FAMILIES, Family};
use measured::Measured;
use serde::{Deserialize, Serialize};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

const USAGE: &str = "\
usage: cargo xtask isa [--json | --check | --write | --assembly FAMILY RULE VARIANT]

  without arguments  prints a table of all kernels for each family of GPUs
  --json             prints one object a line for each kernel and family
  --check            holds all kernels to shaders/bounds.txt, and docs/isa.md to what is printed
  --write            writes docs/isa.md
  --assembly         prints the instructions of one kernel";

/// With a family in the environment, prints everything about it for the parent process.
const MEASURE: &str = "measure";
const BOUNDS: &str = "shaders/bounds.txt";
const DOCUMENT: &str = "docs/isa.md";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        [] => measure().map(|report| print!("{}", tables::tables(&report.kernels))),
        ["--json"] => measure().and_then(|report| json(&report)),
        ["--check"] => measure().and_then(|report| check(&report)),
        ["--write"] => measure().and_then(|report| write(&report)),
        ["--assembly", family, rule, variant] => show(family, rule, variant),
        [MEASURE] => measure_one(),
        [MEASURE, rule, variant] => show_one(rule, variant),
        _ => Err(USAGE.into()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::FAILURE
        }
    }
}

/// The compiler's report.
#[derive(Deserialize, Serialize)]
struct Report {
    mesa: String,
    kernels: Vec<Measured>,
}

fn json(report: &Report) -> Result<(), String> {
    report.kernels.iter().try_for_each(|kernel| {
        println!("{}", serde_json::to_string(kernel).map_err(|error| error.to_string())?);
        Ok(())
    })
}

fn check(report: &Report) -> Result<(), String> {
    let bounds = read(BOUNDS)?;
    let bounds = bounds::Bounds::parse(&bounds).map_err(|error| format!("{BOUNDS}: {error}"))?;
    let mut problems = bounds.check(&report.kernels);
    let document = read(DOCUMENT)?;
    if !document.contains(&tables::version_line(&report.mesa)) {
        eprintln!("{DOCUMENT} is of another compiler than this one, {}, and is not compared", report.mesa);
    } else if document != tables::document(&report.mesa, &report.kernels) {
        problems.push(format!("{DOCUMENT} is not of these kernels: cargo xtask isa --write"));
    }
    if problems.is_empty() {
        eprintln!("{} kernels keep their bounds", report.kernels.len());
        return Ok(());
    }
    Err(problems.join("\n"))
}

fn write(report: &Report) -> Result<(), String> {
    let path = root().join(DOCUMENT);
    fs::write(path, tables::document(&report.mesa, &report.kernels)).map_err(|e| format!("{DOCUMENT}: {e}"))
}

/// Everything about all families. Each has a process of its own, since Mesa reads the family from the
/// environment.
fn measure() -> Result<Report, String> {
    let children: Vec<_> = FAMILIES.iter().map(|family| start(family, &[])).collect::<Result<_, _>>()?;
    let mut all = Report { mesa: String::new(), kernels: Vec::new() };
    for (family, child) in FAMILIES.iter().zip(children) {
        let output = child.wait_with_output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(format!("{} could not be measured: {}", family.name, output.status));
        }
        let of_family: Report = serde_json::from_slice(&output.stdout).map_err(|error| error.to_string())?;
        all.mesa = of_family.mesa;
        all.kernels.extend(of_family.kernels);
    }
    Ok(all)
}

fn show(family: &str, rule: &str, variant: &str) -> Result<(), String> {
    let found = FAMILIES.iter().find(|known| known.name == family);
    let family = found.ok_or_else(|| format!("{family:?} is none of the families"))?;
    let output = start(family, &[rule, variant])?.wait_with_output().map_err(|error| error.to_string())?;
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if output.status.success() { Ok(()) } else { Err(format!("no assembly: {}", output.status)) }
}

/// Starts this program for one family.
fn start(family: &Family, args: &[&str]) -> Result<Child, String> {
    let manifest = radv::manifest().ok_or("there is no RADV: install mesa-vulkan-drivers")?;
    let program = env::current_exe().map_err(|error| error.to_string())?;
    let mut command = Command::new(program);
    command.arg(MEASURE).args(args).stdin(Stdio::null()).stdout(Stdio::piped());
    command.env(radv::FAMILY_VARIABLE, family.name).env("VK_DRIVER_FILES", manifest);
    // A pipeline from the cache has no statistics.
    command.env("MESA_SHADER_CACHE_DISABLE", "true");
    command.spawn().map_err(|error| error.to_string())
}

fn measure_one() -> Result<(), String> {
    let compiler = radv::Compiler::open()?;
    let name = env::var(radv::FAMILY_VARIABLE).unwrap_or_default();
    let family = FAMILIES.iter().find(|family| family.name == name).ok_or("no such family")?;
    let kernels = kernels::kernels()?;
    let measured = kernels.iter().map(|kernel| {
        let named = |error| format!("{} {}: {error}", kernel.rule, kernel.variant);
        Measured::new(family, kernel, &compile(&compiler, kernel).map_err(named)?).map_err(named)
    });
    let report = Report { kernels: measured.collect::<Result<_, _>>()?, mesa: compiler.mesa.clone() };
    println!("{}", serde_json::to_string(&report).map_err(|error| error.to_string())?);
    Ok(())
}

fn show_one(rule: &str, variant: &str) -> Result<(), String> {
    let kernels = kernels::kernels()?;
    let found = kernels.iter().find(|kernel| kernel.rule == rule && kernel.variant == variant);
    let kernel = found.ok_or_else(|| format!("there is no kernel {rule:?} {variant:?}"))?;
    println!("{}", compile(&radv::Compiler::open()?, kernel)?.assembly);
    Ok(())
}

fn compile(compiler: &radv::Compiler, kernel: &kernels::Kernel) -> Result<radv::Compiled, String> {
    compiler.compile(&spirv::compile(&kernel.wgsl, &kernel.entry_point)?, &kernel.entry_point)
}

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn read(file: &str) -> Result<String, String> {
    fs::read_to_string(root().join(file)).map_err(|error| format!("{file}: {error}"))
}
