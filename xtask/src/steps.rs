//! The commands that a chore runs: shown, timed, and ended by the first failure.

use crate::root;
use std::env;
use std::fmt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The reason that a command ended early.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    /// The exit status of this program.
    pub(crate) code: u8,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }
}

/// The steps that have been run, with their times.
#[derive(Debug, Default)]
pub(crate) struct Steps(Vec<(String, Duration)>);

impl Steps {
    /// Shows a command, runs it at the root of the workspace and waits.
    pub(crate) fn run(&mut self, name: &str, command: &mut Command) -> Result<(), Failure> {
        self.run_in(root(), name, command)
    }

    /// Runs a command in another folder.
    pub(crate) fn run_in(&mut self, folder: &Path, name: &str, command: &mut Command) -> Result<(), Failure> {
        eprintln!("\n$ {}", Shown(command));
        command.current_dir(folder);
        if cfg!(target_os = "linux") && env::var_os("XDG_RUNTIME_DIR").is_none() {
            // Without it the window system's part of Vulkan drivers complains, though no test opens a window.
            command.env("XDG_RUNTIME_DIR", env::temp_dir());
        }
        let start = Instant::now();
        let status = command.status();
        self.0.push((name.into(), start.elapsed()));
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(Failure {
                message: format!("step failed: {name} ({status})"),
                // A signal has no code.
                code: status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
            }),
            Err(error) => {
                let program = command.get_program().display();
                Err(Failure::new(format!("step failed: {name} ({program} cannot be run: {error})")))
            }
        }
    }

    pub(crate) fn list(&self) {
        if self.0.is_empty() {
            return;
        }
        eprintln!();
        for (name, time) in &self.0 {
            eprintln!("{:>8.1} s  {name}", time.as_secs_f64());
        }
    }
}

/// A command as one would type it.
struct Shown<'a>(&'a Command);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, value) in self.0.get_envs() {
            let value = value.unwrap_or_default().to_string_lossy();
            write!(f, "{}={} ", name.display(), quoted(&value))?;
        }
        f.write_str(&quoted(&self.0.get_program().to_string_lossy()))?;
        self.0.get_args().try_for_each(|arg| write!(f, " {}", quoted(&arg.to_string_lossy())))
    }
}

fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_alphanumeric() || "-_=+./:,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cargo;

    #[test]
    fn a_command_is_shown_as_typed() {
        let mut command = cargo(["doc", "--no-deps"]);
        assert_eq!(Shown(&command).to_string(), "cargo doc --no-deps");
        command.env("RUSTDOCFLAGS", "-D warnings").arg("it's");
        assert_eq!(Shown(&command).to_string(), r"RUSTDOCFLAGS='-D warnings' cargo doc --no-deps 'it'\''s'");
    }

    #[test]
    #[cfg(unix)]
    fn a_failed_step_gives_its_name_and_code() {
        let mut steps = Steps::default();
        steps.run("good", &mut Command::new("true")).unwrap();
        let failure = steps.run("bad", Command::new("sh").args(["-c", "exit 3"])).unwrap_err();
        assert_eq!((failure.message.as_str(), failure.code), ("step failed: bad (exit status: 3)", 3));
        let failure = steps.run("absent", &mut Command::new("no-such-program")).unwrap_err();
        assert_eq!(failure.code, 1);
        assert!(failure.message.starts_with("step failed: absent (no-such-program"), "{}", failure.message);
        let names: Vec<_> = steps.0.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["good", "bad", "absent"]);
    }
}
