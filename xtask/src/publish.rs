//! Checks of a library that is ready to publish: spelling, licences and sources of dependencies, the oldest
//! compiler, and `cargo publish` without the upload.

use crate::tools::{self, Need};
use crate::{Failure, Steps, cargo, root, succeeds};
use std::process::Command;

/// The package to publish.
const LIBRARY: &str = "wgpu-optim";

/// The oldest compiler, `rust-version` of the workspace.
const OLDEST: &str = env!("CARGO_PKG_RUST_VERSION");

/// All checks of this module.
pub(crate) fn check(steps: &mut Steps) -> Result<(), Failure> {
    let mut skipped = Vec::new();
    lists(steps, Need::Demanded, &mut skipped)?;
    package(steps, Need::Demanded, &mut skipped)?;
    skipped.iter().for_each(|skipped| println!("{skipped}"));
    Ok(())
}

/// Checks the words and the dependencies of the whole repository. Takes seconds once the tools are here.
pub(crate) fn lists(steps: &mut Steps, need: Need, skipped: &mut Vec<String>) -> Result<(), Failure> {
    if let Some(typos) = need.take(tools::typos(steps), "spelling was not checked", skipped)? {
        steps.run("spelling", &mut Command::new(typos))?;
    }
    if let Some(deny) = need.take(tools::cargo_deny(steps), "dependencies were not checked", skipped)? {
        // Advisories come from outside and change by themselves, so CI does not depend on them.
        let mut check = Command::new(deny);
        check.args(["--workspace", "check", "--hide-inclusion-graph", "bans", "licenses", "sources"]);
        steps.run("licences and sources", &mut check)?;
    }
    Ok(())
}

/// Compiles the library with the oldest compiler, and packages it as `cargo publish` would.
pub(crate) fn package(steps: &mut Steps, need: Need, skipped: &mut Vec<String>) -> Result<(), Failure> {
    let version = format!("+{OLDEST}");
    if has_oldest(steps) {
        let mut check = cargo([&version, "check", "--locked", "-p", LIBRARY, "--all-features"]);
        steps.run(&format!("Rust {OLDEST}"), &mut check)?;
    } else {
        skipped.push(format!(
            "not compiled with Rust {OLDEST}, which rustup cannot install; clippy compared all calls with it"
        ));
    }
    // Both compile the package apart from the workspace, so a file that `include` misses is an error. Only
    // the first asks the registry.
    let command: &[&str] = match need {
        Need::Demanded => &["publish", "--dry-run"],
        Need::Wished => &["package", "--offline"],
    };
    let mut package = Command::new("cargo");
    package.args(command).args(["--allow-dirty", "-p", LIBRARY]);
    steps.run("the package", &mut package)
}

/// Whether rustup has the oldest compiler, or could install it.
fn has_oldest(steps: &mut Steps) -> bool {
    let found =
        || succeeds(Command::new("cargo").current_dir(root()).args([&format!("+{OLDEST}"), "--version"]));
    if found() {
        return true;
    }
    let mut install = Command::new("rustup");
    install.args(["toolchain", "install", OLDEST, "--profile", "minimal", "--no-self-update"]);
    let _ = steps.run("installing the oldest compiler", &mut install);
    found()
}
