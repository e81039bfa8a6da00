//! Instructions per element of the CPU engine, for every rule in every format:
//! `cargo xtask instructions`.

mod callgrind;
mod cases;
mod tables;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use tables::Count;

const USAGE: &str = "\
usage: cargo xtask instructions [--json | --check | --write]

  without arguments  prints a table: a row for each rule, a column for each way of storing values
  --json             prints one object a line for each rule and way
  --check            holds all counts to instructions/bounds.txt, and docs/instructions.md to what is printed
  --write            writes docs/instructions.md";

const BOUNDS: &str = "instructions/bounds.txt";
const DOCUMENT: &str = "docs/instructions.md";

fn main() -> ExitCode {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        [] => callgrind::count().map(|counts| print!("{}", tables::table(&counts))),
        ["--json"] => callgrind::count().map(|counts| json(&counts)),
        ["--check"] => callgrind::count().and_then(|counts| check(&counts)),
        ["--write"] => callgrind::count().and_then(|counts| write(&counts)),
        [callgrind::MEASURE] => callgrind::measure(),
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

fn json(counts: &[Count]) {
    for Count { rule, format, instructions } in counts {
        let object = serde_json::json!({ "rule": rule, "format": format, "instructions": instructions });
        println!("{object}");
    }
}

fn check(counts: &[Count]) -> Result<(), String> {
    let bounds = tables::parse(&read(BOUNDS)?).map_err(|error| format!("{BOUNDS}: {error}"))?;
    let mut problems = tables::exceeding(counts, &bounds);
    let (document, compiler) = (read(DOCUMENT)?, compiler()?);
    if document.contains(&tables::version_line(&compiler)) {
        let written = tables::parse(&document).map_err(|error| format!("{DOCUMENT}: {error}"))?;
        if !tables::alike(counts, &written) {
            problems.push(format!("{DOCUMENT} is not of these loops: cargo xtask instructions --write"));
        }
    } else {
        eprintln!("{DOCUMENT} is of another compiler than {compiler}, and is not compared");
    }
    if problems.is_empty() {
        eprintln!("{} counts keep their bounds", counts.len());
        return Ok(());
    }
    Err(problems.join("\n"))
}

fn write(counts: &[Count]) -> Result<(), String> {
    let document = tables::document(&compiler()?, counts);
    fs::write(root().join(DOCUMENT), document).map_err(|error| format!("{DOCUMENT}: {error}"))
}

/// The compiler's name and version.
fn compiler() -> Result<String, String> {
    let output = Command::new("rustc").arg("--version").output();
    let output = output.map_err(|error| format!("rustc cannot be run: {error}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn read(file: &str) -> Result<String, String> {
    fs::read_to_string(root().join(file)).map_err(|error| format!("{file}: {error}"))
}

/// The root of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}
