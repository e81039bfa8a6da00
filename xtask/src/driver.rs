//! Ensures that there is a Vulkan driver: Mesa's software Vulkan without a GPU.

use crate::{Failure, Steps, succeeds};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Debian's and Ubuntu's packages of a software Vulkan and the loader.
const DEBIAN_PACKAGES: [&str; 2] = ["mesa-vulkan-drivers", "libvulkan1"];
/// The variable that, set to any value, lets the tests pass without a GPU.
pub(crate) const SKIP_VARIABLE: &str = "WGPU_OPTIM_SKIP_GPU";
const LOADER: &str = "libvulkan.so.1";

/// Finds a Vulkan driver or installs one.
pub(crate) fn ensure(steps: &mut Steps) -> Result<(), Failure> {
    if env::var_os(SKIP_VARIABLE).is_some() {
        eprintln!("{SKIP_VARIABLE} is set: not looking for a Vulkan driver");
        return Ok(());
    }
    if cfg!(any(windows, target_os = "macos")) {
        // DX12 and Metal belong to the system.
        return Ok(());
    }
    let missing = missing();
    if missing.is_empty() {
        eprintln!("there is a Vulkan driver");
        return Ok(());
    }
    add(steps, &missing)?;
    let missing = self::missing();
    if missing.is_empty() { Ok(()) } else { Err(still_missing(&missing)) }
}

/// Finds Mesa's driver for AMD GPUs or installs it: `cargo xtask isa` compiles with it. It comes with the
/// software one.
pub(crate) fn ensure_radv(steps: &mut Steps) -> Result<(), Failure> {
    let missing = || {
        let manifest = icd_directories(env_text).iter().any(|directory| has_radv(directory));
        if manifest { Vec::new() } else { vec!["Mesa's driver for AMD GPUs (icd.d/radeon_icd*.json)"] }
    };
    if missing().is_empty() {
        return Ok(());
    }
    add(steps, &missing())?;
    let missing = missing();
    if missing.is_empty() { Ok(()) } else { Err(still_missing(&missing)) }
}

fn still_missing(missing: &[&str]) -> Failure {
    Failure::new(format!("still missing after the installation: {}", missing.join(", ")))
}

/// Installs Mesa's drivers and the loader.
fn add(steps: &mut Steps, missing: &[&str]) -> Result<(), Failure> {
    for command in install(missing, Family::find(), Rights::find())? {
        let (program, args) = command.split_first().expect("a command has a program");
        steps.run("installing a Vulkan driver", Command::new(program).args(args))?;
    }
    Ok(())
}

/// Installs packages on Debian if this user may; does nothing elsewhere.
pub(crate) fn install_packages(steps: &mut Steps, packages: &[&str]) -> Result<(), Failure> {
    as_root(steps, &UPDATE)?;
    as_root(steps, &[&INSTALL[..], packages].concat())
}

/// Updates the lists of packages on Debian if this user may; does nothing elsewhere.
pub(crate) fn update_packages(steps: &mut Steps) -> Result<(), Failure> {
    as_root(steps, &UPDATE)
}

fn as_root(steps: &mut Steps, command: &[&str]) -> Result<(), Failure> {
    let rights = Rights::find();
    if Family::find() != Family::Debian || rights == Rights::None {
        return Ok(());
    }
    let command = rights.prefix().iter().chain(command).copied().collect::<Vec<_>>();
    steps.run("installing packages", Command::new(command[0]).args(&command[1..]))
}

/// The missing parts: a driver's manifest, the loader.
fn missing() -> Vec<&'static str> {
    let mut missing = Vec::new();
    if !names_a_driver(env_text) && manifests().is_empty() {
        missing.push("a Vulkan driver (icd.d/*.json)");
    }
    if !has_loader() {
        missing.push("the Vulkan loader (libvulkan.so.1)");
    }
    missing
}

fn env_text(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Whether the caller has chosen drivers by a variable.
fn names_a_driver(env: impl Fn(&str) -> Option<String>) -> bool {
    ["VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES", "VK_ICD_FILENAMES"].into_iter().any(|name| env(name).is_some())
}

/// The folders of the loader's manifests, on Linux.
fn icd_directories(env: impl Fn(&str) -> Option<String>) -> Vec<PathBuf> {
    let home = |below: &str| env("HOME").map(|home| format!("{home}/{below}"));
    let roots = [
        env("XDG_CONFIG_HOME").or_else(|| home(".config")),
        Some(env("XDG_CONFIG_DIRS").unwrap_or_else(|| "/etc/xdg".into())),
        Some("/etc".into()),
        env("XDG_DATA_HOME").or_else(|| home(".local/share")),
        Some(env("XDG_DATA_DIRS").unwrap_or_else(|| "/usr/local/share:/usr/share".into())),
    ];
    let lists: Vec<String> = roots.into_iter().flatten().collect();
    let roots = lists.iter().flat_map(|list| list.split(':'));
    roots.map(|root| Path::new(root).join("vulkan/icd.d")).collect()
}

/// The manifests in a directory.
fn manifests_in(directory: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|x| x == "json"))
}

/// The manifests of all drivers that the loader finds by itself.
pub(crate) fn manifests() -> Vec<PathBuf> {
    icd_directories(env_text).iter().flat_map(|directory| manifests_in(directory)).collect()
}

fn has_radv(directory: &Path) -> bool {
    let Ok(mut entries) = fs::read_dir(directory) else { return false };
    entries.any(|entry| entry.is_ok_and(|e| e.file_name().to_string_lossy().starts_with("radeon_icd")))
}

fn has_loader() -> bool {
    // Debian leaves /sbin out of a user's PATH.
    let cached = ["ldconfig", "/sbin/ldconfig"].into_iter().any(|ldconfig| {
        let listed = Command::new(ldconfig).arg("-p").output();
        listed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains(LOADER))
    });
    // Not every system has that cache.
    let library_path = env_text("LD_LIBRARY_PATH").unwrap_or_default();
    let directories = library_path.split(':').chain(["/usr/local/lib", "/usr/lib64", "/usr/lib"]);
    cached || directories.filter(|d| !d.is_empty()).any(|d| Path::new(d).join(LOADER).exists())
}

/// Distributions by their package manager.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Family {
    Debian,
    Fedora,
    Arch,
    Other,
}

impl Family {
    /// The distribution of this system.
    fn find() -> Self {
        let files = ["/etc/os-release", "/usr/lib/os-release"];
        let os_release = files.into_iter().find_map(|path| fs::read_to_string(path).ok());
        Self::of(&os_release.unwrap_or_default())
    }

    /// The family in the text of an `os-release` file, by `ID` or else by `ID_LIKE`.
    fn of(os_release: &str) -> Self {
        let value = |key: &str| {
            let mut fields = os_release.lines().filter_map(|line| line.trim().split_once('='));
            fields.find(|(name, _)| *name == key).map_or("", |(_, value)| value.trim_matches(['"', '\'']))
        };
        let ids = value("ID").split_whitespace().chain(value("ID_LIKE").split_whitespace());
        let mut families = ids.map(|id| match id {
            "debian" | "ubuntu" => Self::Debian,
            "fedora" | "rhel" => Self::Fedora,
            "arch" => Self::Arch,
            _ => Self::Other,
        });
        families.find(|family| *family != Self::Other).unwrap_or(Self::Other)
    }
}

/// The rights of this user.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rights {
    Root,
    /// `sudo` without a password.
    Sudo,
    None,
}

impl Rights {
    fn find() -> Self {
        let id = Command::new("id").arg("-u").output();
        if id.is_ok_and(|output| output.stdout.trim_ascii() == b"0") {
            Self::Root
        } else if succeeds(Command::new("sudo").args(["-n", "true"])) {
            Self::Sudo
        } else {
            Self::None
        }
    }

    /// The beginning of a command for root.
    fn prefix(self) -> &'static [&'static str] {
        if self == Self::Sudo { &["sudo", "-n"] } else { &[] }
    }
}

/// Brings apt's lists of packages up to date.
const UPDATE: [&str; 2] = ["apt-get", "update"];
/// Installs the packages that follow.
const INSTALL: [&str; 4] = ["apt-get", "install", "-y", "--no-install-recommends"];

/// The commands that install missing packages, or a message for the user.
fn install(missing: &[&str], family: Family, rights: Rights) -> Result<Vec<Vec<&'static str>>, Failure> {
    let commands = vec![UPDATE.to_vec(), [&INSTALL[..], &DEBIAN_PACKAGES].concat()];
    let how = match (family, rights) {
        (Family::Debian, Rights::Root | Rights::Sudo) => {
            let allowed = |command: Vec<_>| rights.prefix().iter().copied().chain(command).collect();
            return Ok(commands.into_iter().map(allowed).collect());
        }
        (Family::Debian, Rights::None) => {
            let typed: Vec<_> = commands.iter().map(|command| command.join(" ")).collect();
            format!("run as root: {}", typed.join(" && "))
        }
        (Family::Fedora, _) => "run as root: dnf install mesa-vulkan-drivers vulkan-loader".into(),
        (Family::Arch, _) => "run as root: pacman -S vulkan-swrast vulkan-icd-loader".into(),
        (Family::Other, _) => "install your GPU's Vulkan driver or Mesa's software one (lavapipe)".into(),
    };
    let missing = missing.join(" and ");
    Err(Failure::new(format!(
        "missing: {missing}; {how}\nor set {SKIP_VARIABLE}=1 to go without the tests that need a GPU"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MISSING: [&str; 1] = ["a driver"];

    #[test]
    fn the_harness_has_the_same_names() {
        assert_eq!(SKIP_VARIABLE, harness::SKIP_VARIABLE);
        assert!(DEBIAN_PACKAGES.contains(&harness::SOFTWARE_VULKAN));
    }

    #[test]
    fn distributions_are_told_apart() {
        for (os_release, family) in [
            ("PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nVERSION_ID=\"13\"\nID=debian\n", Family::Debian),
            ("NAME=\"Ubuntu\"\nID=ubuntu\nID_LIKE=debian\n", Family::Debian),
            ("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n", Family::Debian),
            ("ID=fedora\nVARIANT_ID=workstation\n", Family::Fedora),
            ("ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\n", Family::Fedora),
            ("ID=arch\n", Family::Arch),
            ("ID='manjaro'\nID_LIKE='arch'\n", Family::Arch),
            ("ID=nixos\n", Family::Other),
            ("# no fields\nVARIANT_ID=debian\n", Family::Other),
            ("", Family::Other),
        ] {
            assert_eq!(Family::of(os_release), family, "{os_release:?}");
        }
    }

    #[test]
    fn debian_installs_where_it_may() {
        let root = install(&MISSING, Family::Debian, Rights::Root).unwrap();
        assert_eq!(root[0], ["apt-get", "update"]);
        assert_eq!(root[1][..4], ["apt-get", "install", "-y", "--no-install-recommends"]);
        assert_eq!(root[1][4..], DEBIAN_PACKAGES);
        let sudo = install(&MISSING, Family::Debian, Rights::Sudo).unwrap();
        for (sudo, root) in sudo.iter().zip(&root) {
            assert_eq!(sudo[..2], ["sudo", "-n"]);
            assert_eq!(sudo[2..], root[..]);
        }
    }

    #[test]
    fn a_refusal_says_what_to_install() {
        for (family, rights, command) in [
            (
                Family::Debian,
                Rights::None,
                "apt-get install -y --no-install-recommends mesa-vulkan-drivers libvulkan1",
            ),
            (Family::Fedora, Rights::Root, "dnf install mesa-vulkan-drivers"),
            (Family::Arch, Rights::Sudo, "pacman -S vulkan-swrast"),
            (Family::Other, Rights::Root, "lavapipe"),
        ] {
            let Failure { message, code } = install(&MISSING, family, rights).unwrap_err();
            assert_eq!(code, 1);
            for part in [command, MISSING[0], SKIP_VARIABLE] {
                assert!(message.contains(part), "{part:?} is not in {message:?}");
            }
        }
    }

    #[test]
    fn manifests_are_sought_where_the_loader_seeks_them() {
        let paths = |list: &[&str]| list.iter().map(PathBuf::from).collect::<Vec<_>>();
        assert_eq!(
            icd_directories(|_| None),
            paths(&[
                "/etc/xdg/vulkan/icd.d",
                "/etc/vulkan/icd.d",
                "/usr/local/share/vulkan/icd.d",
                "/usr/share/vulkan/icd.d"
            ])
        );
        let env = |name: &str| match name {
            "HOME" => Some("/home/a".into()),
            "XDG_DATA_HOME" => Some("/data".into()),
            "XDG_DATA_DIRS" => Some("/x:/y".into()),
            _ => None,
        };
        assert_eq!(
            icd_directories(env),
            paths(&[
                "/home/a/.config/vulkan/icd.d",
                "/etc/xdg/vulkan/icd.d",
                "/etc/vulkan/icd.d",
                "/data/vulkan/icd.d",
                "/x/vulkan/icd.d",
                "/y/vulkan/icd.d",
            ])
        );
    }

    #[test]
    fn a_chosen_driver_counts() {
        assert!(!names_a_driver(|_| None));
        assert!(names_a_driver(|name| (name == "VK_ICD_FILENAMES").then(|| "/opt/lvp.json".into())));
    }
}
