//! The structure of the repository according to ARCHITECTURE.md and CONTRIBUTING.md: imports between modules,
//! lengths of files, widths of lines, links.

mod limits;
mod links;
mod map;
mod source;

use crate::Failure;
use limits::LIMITS;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Checks everything, and lists all problems at once.
pub(crate) fn check(root: &Path) -> Result<(), Failure> {
    let mut problems = map::check(root).map_err(Failure::new)?;
    let files = texts(root).map_err(Failure::new)?;
    problems.extend(links::check(root, &files).map_err(Failure::new)?);
    for limit in LIMITS {
        problems.extend(limit.check(root, &files).map_err(Failure::new)?);
    }
    if problems.is_empty() {
        eprintln!(
            "the module map is true and no link is broken; {} files are within the limits of length and \
             width",
            files.len()
        );
        return Ok(());
    }
    let count = problems.len();
    Err(Failure::new(format!("{}\n{count} problems in the structure of the repository", problems.join("\n"))))
}

/// Prints the lines of the module map with the imports that the sources have.
pub(crate) fn draw(root: &Path) -> Result<(), Failure> {
    print!("{}", map::draw(root).map_err(Failure::new)?);
    Ok(())
}

/// Endings of texts with limits.
const ENDINGS: [&str; 8] = [".rs", ".wgsl", ".md", ".py", ".toml", ".mjs", ".sh", ".ci/run"];

/// The texts with limits, by path from the root: git's tracked files. Without git, or if it refuses the
/// directory, all files.
fn texts(root: &Path) -> Result<Vec<String>, String> {
    let mut git = Command::new("git");
    let output = git.current_dir(root).args(["ls-files", "-z"]).output().ok();
    let listed = output.filter(|output| output.status.success()).map(|output| output.stdout);
    let names = String::from_utf8(listed.unwrap_or_default()).map_err(|error| format!("git: {error}"))?;
    // A file that has been deleted is tracked until a commit says so.
    let names = names.split('\0').filter(|name| !name.is_empty() && root.join(name).exists());
    let mut files: Vec<_> = names.map(str::to_owned).collect();
    if files.is_empty() {
        files = walk(root, "")?;
    }
    files.retain(|file| ENDINGS.iter().any(|ending| file.ends_with(ending)));
    Ok(files)
}

/// The files below a folder, by path from the root, without hidden files and those of a build.
fn walk(root: &Path, folder: &str) -> Result<Vec<String>, String> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let failed = |error| format!("{folder}/: {error}");
        for entry in fs::read_dir(root.join(&folder)).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
            if name.starts_with('.') || name == "target" {
                continue;
            }
            let list = if entry.file_type().map_err(failed)?.is_dir() { &mut folders } else { &mut files };
            list.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn read(root: &Path, file: &str) -> Result<String, String> {
    fs::read_to_string(root.join(file)).map_err(|error| format!("{file}: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::succeeds;
    use std::env;
    use std::path::PathBuf;

    /// A directory of a test's own, removed at its end.
    pub(super) struct Tree(pub(super) PathBuf);

    impl Tree {
        pub(super) fn new(name: &str) -> Self {
            let path = env::temp_dir().join(format!("wgpu-optim-house-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        pub(super) fn write(&self, file: &str, text: &str) {
            let path = self.0.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
    }

    impl Drop for Tree {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn limits_are_for_what_git_tracks_or_else_for_all() {
        let tree = Tree::new("git");
        let git = |args: &[&str]| {
            let status = Command::new("git").current_dir(&tree.0).args(args).status().unwrap();
            assert!(status.success(), "{args:?}");
        };
        for file in ["a.rs", "b/c d.wgsl", "e.md", "f.txt", "gone.rs", ".x/a.rs", "b/target/a.rs"] {
            tree.write(file, "");
        }
        assert_eq!(texts(&tree.0).unwrap(), ["a.rs", "b/c d.wgsl", "e.md", "gone.rs"]);
        if !succeeds(Command::new("git").arg("--version")) {
            return;
        }
        git(&["init", "-q"]);
        tree.write(".gitignore", "target\n.x\n");
        git(&["add", "."]);
        tree.write("new.rs", "");
        fs::remove_file(tree.0.join("gone.rs")).unwrap();
        assert_eq!(texts(&tree.0).unwrap(), ["a.rs", "b/c d.wgsl", "e.md"]);
    }

    #[test]
    fn problems_of_all_kinds_are_listed_together() {
        let tree = Tree::new("all");
        let map = "## Module map\n\n```text\na -> nothing  x\nb -> nothing  y\n```\n";
        tree.write("ARCHITECTURE.md", map);
        tree.write("src/lib.rs", "mod a; mod b;");
        tree.write("src/a.rs", "");
        tree.write("src/b.rs", "use crate::a;");
        tree.write("tests/long.rs", &format!("//{}\n{}", "x".repeat(110), "\n".repeat(400)));
        let message = check(&tree.0).unwrap_err().message;
        let expected = "\
src/b.rs:1: room `b` imports `a`, which stands above it
tests/long.rs: 401 lines, 400 allowed
tests/long.rs: 1 lines over 110 columns, 0 allowed: 1
3 problems in the structure of the repository";
        assert_eq!(message, expected);
        tree.write("src/b.rs", "");
        tree.write("tests/long.rs", "");
        check(&tree.0).unwrap();
    }
}
