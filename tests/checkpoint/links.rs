//! Symbolic links where a save writes: none is followed.

#![cfg(unix)]

use crate::common::{Directory, Saves, bits, layout, on_cpu};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use wgpu_optim::checkpoint::{Error, Load, Save};

const ONE: &str = "run.safetensors";
const INDEX: &str = "run.safetensors.index.json";

fn sharded() -> Save {
    Save { shard_bytes: Some(96), ..Save::default() }
}

/// A plain file, and not a link to one.
fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).unwrap().is_file()
}

/// A save of one file and one of several load again, and every file of theirs is a plain one.
fn saves_and_loads(directory: &Directory, name: &str, save: &Save) {
    let path = directory.file(name);
    let mut run = on_cpu(layout());
    run.steps(2).save(&path, save).unwrap();
    let mut other = on_cpu(layout());
    other.load(&path, &Load::default()).unwrap();
    assert_eq!(bits(&other), bits(&run));
    let ours = directory.names().into_iter().filter(|file| file.starts_with("run"));
    assert!(ours.map(|file| directory.file(&file)).all(|file| is_file(&file)));
    assert!(directory.names().iter().all(|file| !file.ends_with(".partial")), "{:?}", directory.names());
}

/// Saves where a link called `link` points to `target`. Nothing lies beside the save but the file "other",
/// which stays as it was.
fn saves_beside(directory: &Directory, link: &str, target: &str, name: &str, save: &Save) {
    let other = directory.file("other");
    fs::write(&other, "precious").unwrap();
    symlink(target, directory.file(link)).unwrap();
    saves_and_loads(directory, name, save);
    let saved = directory.names().into_iter().filter(|file| file.starts_with("run"));
    saved.for_each(|file| fs::remove_file(directory.file(&file)).unwrap());
    assert_eq!(directory.names(), ["other"], "{link} -> {target}");
    assert_eq!(fs::read_to_string(&other).unwrap(), "precious", "{link} -> {target}");
}

/// A link under a temporary name is removed. Its target stays as it was, and is not created.
#[test]
fn a_link_under_a_temporary_name_is_not_followed() {
    let directory = Directory::new("partial-links");
    for target in ["other", "none", ".run.safetensors.partial", "."] {
        for (name, partial, save) in [
            (ONE, ".run.safetensors.partial", Save::default()),
            (INDEX, ".run.safetensors.index.json.partial", sharded()),
            (INDEX, ".run-00001-of-00003-1.safetensors.partial", sharded()),
        ] {
            saves_beside(&directory, partial, target, name, &save);
        }
    }
}

/// Two names of one file: a leftover of a killed save is removed and not written.
#[test]
fn a_hard_link_under_a_temporary_name_is_not_written_to() {
    let directory = Directory::new("hard-links");
    let other = directory.file("other");
    fs::write(&other, "precious").unwrap();
    fs::hard_link(&other, directory.file(".run.safetensors.partial")).unwrap();
    saves_and_loads(&directory, ONE, &Save::default());
    assert_eq!(fs::read_to_string(&other).unwrap(), "precious");
}

/// A link at the checkpoint's own name: the new file takes its place, and its target stays as it was.
#[test]
fn a_link_to_a_checkpoint_is_replaced() {
    let directory = Directory::new("target-links");
    for target in ["other", "none", ONE, INDEX] {
        for (name, save) in [(ONE, Save::default()), (INDEX, sharded())] {
            saves_beside(&directory, name, target, name, &save);
        }
    }
}

/// A directory in the way is refused, and stays with all that is in it.
#[test]
fn a_directory_in_the_way_is_refused() {
    let directory = Directory::new("in-the-way");
    for name in [ONE, ".run.safetensors.partial"] {
        let inside = directory.file(name).join("inside");
        fs::create_dir(directory.file(name)).unwrap();
        fs::write(&inside, "precious").unwrap();
        let error = on_cpu(layout()).save(&directory.file(ONE), &Save::default()).unwrap_err();
        let what = if name == ONE { "replace" } else { "create" };
        assert!(matches!(&error, Error::Io { what: found, .. } if *found == what), "{error}");
        assert_eq!(fs::read_to_string(&inside).unwrap(), "precious");
        assert_eq!(directory.names(), [name]);
        fs::remove_dir_all(directory.file(name)).unwrap();
    }
}
